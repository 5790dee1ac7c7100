"""Find pictures: files, and those in folders, patterns, tar shards and stores."""

import glob
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..common.formats import is_picture_name
from ..common.walk import LeftOut, Skipped, walk
from .stores import find_stored, is_stored
from .tar_shards import is_shard, shard_members


def find_pictures(arguments: Iterable[str], leave_out: Callable[[LeftOut], object] = lambda left: None) -> list[str]:
    """Return picture files for files, folders (searched below, sorted) and glob patterns.

    An argument that matches nothing is returned unchanged, so that its prediction reports the error. So is a broken
    link or a pipe in a folder, if it has a picture's name.

    Args:
        arguments: Files, folders and patterns. A tar shard stands for the pictures in it, ``shard.tar/name.jpg``. URIs
            of stores are searched as folders are; see :mod:`hcast_zoo.data.stores`.
        leave_out: Called with everything that is left out of a folder, except files without the name of a picture,
            which one warning counts.
    """
    files = []
    skipped = Skipped()
    for argument in arguments:
        if is_stored(argument):
            matches = find_stored(argument)
        elif os.path.isdir(argument):
            matches = _pictures_below(Path(argument), leave_out, skipped)
        else:
            matches = [] if os.path.lexists(argument) else sorted(glob.glob(argument, recursive=True))

        for match in matches or [argument]:
            if is_shard(match) and os.path.isfile(match):
                files += _pictures_in(match, skipped)
            else:
                files.append(match)

    skipped.warn("folders")
    return files


def _pictures_in(shard: str, skipped: Skipped) -> list[str]:
    """Return the pictures in a tar shard, in their order."""
    return [f"{shard}/{name}" for name in shard_members(shard) if is_picture_name(name, skipped)]


def _pictures_below(root: Path, leave_out: Callable[[LeftOut], object], skipped: Skipped) -> list[str]:
    pictures = []

    def note(left: LeftOut) -> None:
        if is_picture_name(left.path.name) and not left.folder and not left.hidden:
            pictures.append(str(left.path))
        else:
            leave_out(left)

    for folder, _, names in walk(root, note):
        pictures += [str(folder / name) for name in names if is_picture_name(name, skipped)]

    return sorted(pictures)
