"""Walk over a folder tree, for predictions, data sets and taxonomies; nothing is skipped without a reason."""

import collections
import dataclasses
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from .text import printable

MAX_DEPTH = 100  # levels of folders
# What systems and programs leave behind, in lower case; hidden files (.DS_Store, ._x.jpg, .Trashes) need no list.
JUNK = frozenset(
    {
        "#recycle",  # Synology's bin
        "#snapshot",
        "$recycle.bin",  # Windows
        "@eadir",  # Synology's thumbnails, one folder per picture
        "@recycle",  # QNAP's bin
        "__macosx",  # macOS, in zip files
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",  # macOS
        "lost+found",
        "recycler",
        "system volume information",
        "thumbs.db",
    }
)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Something in a folder tree that the walk did not enter or yield.

    Attributes:
        path: The folder, link, pipe or device.
        reason: Why it was left out, in words that can follow the path: ``a link that leads nowhere``.
        folder: Whether it is a folder.
        seen_before: Whether it is a folder that the walk has entered by another name, so that nothing is missed.
        hidden: Whether its name begins with a dot, or is one that systems and programs leave behind (``JUNK``).
    """

    path: Path
    reason: str
    folder: bool = False
    seen_before: bool = False
    hidden: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Skipped:
    """Counts what was left out, by kind, for one warning."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.hints: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, kind: str, hint: str = "") -> None:
        """Count one item of a kind; a hint on how to read such items is kept once."""
        self.counts[kind] += 1
        if hint and hint not in self.hints:
            self.hints.append(hint)

    def __str__(self) -> str:
        common = self.counts.most_common(8)
        kinds = [f"{printable(kind)} ({count})" for kind, count in common]
        if others := sum(self.counts.values()) - sum(count for _, count in common):
            kinds.append(f"others ({others})")

        return "; ".join([", ".join(kinds), *self.hints])

    def warn(self, where: object) -> None:
        """Warn about what was left out, if anything was."""
        if self:
            warnings.warn(printable(f"{where}: skipped {self}"), stacklevel=3)


def is_junk(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or left behind by a system or a program."""
    return name.startswith(".") or name.lower() in JUNK


def walk(root: str | Path, leave_out: Callable[[LeftOut], object]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder of a tree, and the names of its folders and files, sorted.

    Linked folders are followed, each folder once.

    Args:
        root: The folder to start from.
        leave_out: Called with everything that is left out: hidden files and ``JUNK``; folders that cannot be read, lie
            too deep or were seen before; links that lead nowhere; pipes, sockets and devices. It is called for the
            contents of a folder before the folder is yielded.
    """
    seen: dict[tuple[int, int], Path] = {}
    stack = [(Path(root), 0)]
    while stack:
        folder, depth = stack.pop()
        try:
            status = os.stat(folder)
            first = seen.setdefault((status.st_dev, status.st_ino), folder)
            if first is not folder:
                leave_out(LeftOut(folder, f"the same folder as {first}", folder=True, seen_before=True))
                continue
            if depth > MAX_DEPTH:
                leave_out(LeftOut(folder, f"expected at most {MAX_DEPTH} levels of folders", folder=True))
                continue
            names = sorted(os.listdir(folder))
        except OSError as error:
            leave_out(LeftOut(folder, f"a folder that cannot be read: {error.strerror}", folder=True))
            continue

        folders, files = [], []
        for name in names:
            if is_junk(name):
                reason = "hidden" if name.startswith(".") else "left behind by a system or a program"
                leave_out(LeftOut(folder / name, reason, hidden=True))
                continue

            kind, reason = _kind(folder / name)
            if reason:
                leave_out(LeftOut(folder / name, reason))
            elif kind == "folder":
                folders.append(name)
            else:
                files.append(name)

        yield folder, folders, files
        stack += [(folder / name, depth + 1) for name in reversed(folders)]


def _kind(path: Path) -> tuple[str, str]:
    """Return ``folder`` or ``file``, or else the reason why it is neither."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "", "a link that leads nowhere"
    except OSError as error:  # a link to itself; a folder that may be listed but not entered
        return "", f"cannot be reached: {error.strerror}"

    if stat.S_ISDIR(mode):
        return "folder", ""
    if stat.S_ISREG(mode):
        return "file", ""
    return "", "expected a file, got a pipe, a socket or a device"
