"""Training: settings, augmentation, losses and the trainer."""
