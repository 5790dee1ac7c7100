"""From picture files to answers."""
