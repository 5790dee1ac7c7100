"""Store results picture by picture, so that an interrupted command resumes where it stopped."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..common.text import from_json
from ..data.boxes import BoxedPicture

AT_ONCE = 256  # pictures between two writes
Result = TypeVar("Result")


class Journal:
    """A file of JSON lines, each with a key and a value; a line that a killed process left incomplete is ignored.

    Args:
        path: The file; created if it does not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.known: dict[str, Any] = dict(_entries(self.path)) if self.path.exists() else {}

    def add(self, entries: Iterable[tuple[str, object]]) -> None:
        """Append results to the file."""
        with open(self.path, "a", encoding="utf-8") as file:
            for key, value in entries:
                self.known[key] = value
                file.write(json.dumps([key, value]) + "\n")


def resume(
    pictures: Sequence[Path | bytes],
    journal: Journal | None,
    compute: Callable[[list[Path | bytes]], Iterable[Result]],
    to_data: Callable[[Result], dict],
    from_data: Callable[[dict], Result],
) -> Iterator[Result]:
    """Yield the result for each picture, in order; results in the journal are not computed again.

    Args:
        pictures: Files, or encoded pictures, whose results are not stored.
        journal: Stored results by file; new ones are added. None stores nothing.
        compute: Maps pictures to their results.
        to_data: Maps a result to plain data.
        from_data: Maps plain data back to a result.
    """
    known = {} if journal is None else journal.known
    for start in range(0, len(pictures), AT_ONCE):
        batch = pictures[start : start + AT_ONCE]
        keys = [file_key(picture) for picture in batch]
        new = [i for i, key in enumerate(keys) if key is None or key not in known]
        results = dict(zip(new, compute([batch[i] for i in new]))) if new else {}

        if journal is not None:
            entries = []
            for i in new:
                key = keys[i]
                if key is not None:
                    entries.append((key, to_data(results[i])))
            journal.add(entries)

        for i, key in enumerate(keys):
            yield results[i] if i in results else from_data(known[str(key)])


def _entries(path: Path) -> Iterator[tuple[str, object]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                key, value = from_json(line)
            except ValueError:  # the last line of a process that was killed
                continue

            if isinstance(key, str):
                yield key, value


def file_key(picture: Path | bytes) -> str | None:
    """Return a key that changes when a file changes; None for an encoded picture, or a missing file."""
    if isinstance(picture, bytes):
        return None

    try:
        status = os.stat(picture)
    except OSError:
        return None

    box = f"|{picture.key}" if isinstance(picture, BoxedPicture) else ""
    return f"{os.path.abspath(picture)}|{status.st_size}|{status.st_mtime_ns}{box}"
