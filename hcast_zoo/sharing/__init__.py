"""Model cards, the Hub, Spaces and exported graphs."""
