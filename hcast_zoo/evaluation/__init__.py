"""Metrics, and a model measured on a labelled data set."""
