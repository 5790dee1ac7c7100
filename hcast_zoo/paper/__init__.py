"""The paper's data sets: facts, label trees, readers and published numbers."""
