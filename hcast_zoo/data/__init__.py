"""From files to batches: pictures, tables, transforms and data sets."""
