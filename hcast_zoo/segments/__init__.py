"""What each level looked at: explanations, metrics and drawings."""
