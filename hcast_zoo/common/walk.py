"""One walk over a folder tree, for predictions, data sets and taxonomies; nothing is skipped without a reason."""

import dataclasses
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_DEPTH = 100  # levels of folders


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Something in a folder tree that the walk did not enter or yield.

    Attributes:
        path: The folder, link, pipe or device.
        reason: Why, in words that follow the path: ``a link that leads nowhere``.
        folder: Whether it is a folder.
        again: Whether it is a folder that the walk has been in, by another name, so that nothing is missed.
        hidden: Whether its name begins with a dot.
    """

    path: Path
    reason: str
    folder: bool = False
    again: bool = False
    hidden: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def walk(root: str | Path, leave_out: Callable[[LeftOut], object]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder of a tree, and the names of its folders and files, sorted.

    Linked folders are followed, each folder once.

    Args:
        root: Where to begin.
        leave_out: Called with each thing that is left out: hidden files and folders; folders that cannot be read,
            lie too deep or were seen before; links that lead nowhere; pipes, sockets and devices. Things in a folder
            come before the folder is yielded.
    """
    seen: dict[tuple[int, int], Path] = {}
    stack = [(Path(root), 0)]
    while stack:
        folder, depth = stack.pop()
        try:
            status = os.stat(folder)
            first = seen.setdefault((status.st_dev, status.st_ino), folder)
            if first is not folder:
                leave_out(LeftOut(folder, f"the same folder as {first}", folder=True, again=True))
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
            if name.startswith("."):
                leave_out(LeftOut(folder / name, "hidden", hidden=True))
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
    except OSError as error:  # a link to itself; a folder that may be listed and not entered
        return "", f"cannot be reached: {error.strerror}"

    if stat.S_ISDIR(mode):
        return "folder", ""
    if stat.S_ISREG(mode):
        return "file", ""
    return "", "expected a file, got a pipe, a socket or a device"
