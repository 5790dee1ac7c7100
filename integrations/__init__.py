"""H-CAST in the frameworks that people use; each sub-package imports the core and its framework, and no other."""
