"""The command line: each command reads its arguments, calls the core, prints, and returns an exit code.

Data goes to stdout, messages and progress to stderr. Heavy imports are inside the functions, so that
``hcast-zoo --help`` answers at once.
"""

from .entry import main

__all__ = ["main"]
