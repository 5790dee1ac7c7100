"""Inspection: what is wrong in a data set, told before a training shows it."""
