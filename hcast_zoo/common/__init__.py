"""Files, text and processes: code that the other packages share."""
