"""Results of many pictures, kept as they come, so that the same command goes on where it was stopped."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class Journal:
    """A file of JSON lines, each a key and a value; what a killed process left half written is ignored.

    Args:
        path: The file; it is made if it is not there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.known: dict[str, Any] = dict(_entries(self.path)) if self.path.exists() else {}

    def add(self, entries: Iterable[tuple[str, object]]) -> None:
        """Append results, and keep them."""
        with open(self.path, "a", encoding="utf-8") as file:
            for key, value in entries:
                self.known[key] = value
                file.write(json.dumps([key, value]) + "\n")


def _entries(path: Path) -> Iterator[tuple[str, object]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                key, value = json.loads(line)
            except ValueError:  # the last line of a process that was killed
                continue
            if isinstance(key, str):
                yield key, value


def file_key(picture: Path | bytes) -> str | None:
    """Return a key that changes when a file does; None for an encoded picture, or a file that is not there."""
    if isinstance(picture, bytes):
        return None
    try:
        status = os.stat(picture)
    except OSError:
        return None
    return f"{os.path.abspath(picture)}|{status.st_size}|{status.st_mtime_ns}"
