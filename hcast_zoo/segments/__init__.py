"""What each level looked at: explained, measured and drawn."""
