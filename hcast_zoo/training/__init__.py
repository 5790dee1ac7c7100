"""Losses, settings and the trainer."""
