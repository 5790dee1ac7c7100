"""Pictures in tar shards, as WebDataset packs them: ``birds-0007.tar/owls/0042.jpg`` names one as if it were a file.

A shard is read once to find the position of each member; after that, pictures can be read in any order, so a training
resumes as exactly as with files. Shards must not be compressed, nor change while they are in use.
"""

import functools
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

SUFFIX = ".tar"
BLOCK = 512  # bytes


def is_shard(path: str | os.PathLike) -> bool:
    """Return whether a file is a tar shard, by its name."""
    return str(path).lower().endswith(SUFFIX)


def shard_members(path: str | os.PathLike) -> Mapping[str, tuple[int, int]]:
    """Return the offset and the size in bytes of each file in a shard, by name, in order.

    Raises:
        OSError: if the shard cannot be read.
        ValueError: if it is not a complete tar file without compression.
    """
    status = os.stat(path)
    return _index(os.path.abspath(path), status.st_mtime_ns, status.st_size)


@functools.cache
def _index(path: str, _mtime_ns: int, size: int) -> Mapping[str, tuple[int, int]]:
    places = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if member.isreg() and not member.issparse():
                    places[PurePosixPath(member.name).as_posix()] = (member.offset_data, member.size)
                shard.members = []  # type: ignore[attr-defined]  # otherwise all headers would be kept

            with open(path, "rb") as file:
                check_end(file, shard.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: expected a complete tar file without compression: {error}") from error

    if any(offset + length > size for offset, length in places.values()):
        raise ValueError(f"{path}: expected a complete tar file, it ends in the middle of a picture")
    return places


def check_end(file: Any, offset: int) -> None:
    """Raise EOFError unless a shard ends with an empty block, as it must; tarfile does not notice a truncated one.

    Args:
        file: The shard, open for random access.
        offset: Position in bytes where its members end.
    """
    file.seek(offset)
    if file.read(BLOCK) != bytes(BLOCK):
        raise EOFError("its end is missing")


def open_member(path: str | os.PathLike, most: int) -> BinaryIO | None:
    """Open a file in a shard.

    Args:
        path: Path of the shard, followed by the name in the shard.
        most: Largest size of the file in bytes.

    Returns:
        None if no part of the path is a shard.

    Raises:
        FileNotFoundError: if the shard has no such file.
        ValueError: if it is not a tar file, or the file in it is too large.
    """
    whole = Path(path)
    shard = next((parent for parent in whole.parents if is_shard(parent) and parent.is_file()), None)
    if shard is None:
        return None

    try:
        offset, size = shard_members(shard)[whole.relative_to(shard).as_posix()]
    except KeyError:
        raise FileNotFoundError(str(path)) from None
    if size > most:
        raise ValueError(f"{size:,} bytes, expected {most:,} at most: is it a picture?")

    with open(shard, "rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))
