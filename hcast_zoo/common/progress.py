"""Whether progress bars are shown."""

import os


def hides_bars() -> bool:
    """Return whether the user wants none: ``--quiet``, or ``TQDM_DISABLE`` in the environment.

    tqdm itself asks for the variable when it is imported, and not where ``disable`` is given.
    """
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")
