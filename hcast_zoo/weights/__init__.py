"""Weight files, the Hub, and the converter of official checkpoints."""
