"""Inspection: find what is wrong in a data set before training."""
