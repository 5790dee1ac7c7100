"""The error for weights that cannot be used."""


class WeightsError(ValueError):
    """A file holds no usable H-CAST weights; the message says what was expected and how to mend it."""
