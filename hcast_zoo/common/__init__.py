"""Files, text and processes: what every room uses."""
