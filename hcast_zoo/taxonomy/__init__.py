"""The tree of labels, and answers on it."""
