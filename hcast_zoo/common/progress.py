"""Whether progress bars are shown."""

import os
import sys


def hides_bars() -> bool:
    """Return whether the user wants no bars: ``--quiet``, or ``TQDM_DISABLE`` in the environment.

    tqdm reads the variable only when it is imported, and ignores it where ``disable`` is given.
    """
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


def hides_terminal_bars() -> bool:
    """Return whether to hide bars that are of use on a terminal only: there is none, or the user wants no bars."""
    return hides_bars() or not sys.stderr.isatty()
