"""Whether progress bars are shown."""

import os


def hides_bars() -> bool:
    """Return whether the user wants no bars: ``--quiet``, or ``TQDM_DISABLE`` in the environment.

    tqdm reads the variable only when it is imported, and ignores it where ``disable`` is given.
    """
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")
