"""Unpack archives of data sets once, and never write outside their folder."""

import copy
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ..common.files import check_file, write_whole
from ..common.progress import hides_bars

DONE = ".unpacked.json"  # the archives that are fully unpacked in a folder: name -> size, choice
ENCRYPTED = 0x1  # flag of a zip's member
HEADER = 512  # bytes that a member takes however small it is
MAX_TIME = 2**40  # seconds
SMALL = 2**28  # bytes that any archive may unfold to
MAX_RATIO = 200  # of what an archive unfolds to, to its size; texts have 20 at most, pictures 2


# What tarfile and zipfile raise of damage; the last two are of numbers in a tar's headers that are none, or absurd.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError, ValueError, MemoryError)


class ArchiveError(ValueError):
    """An archive is damaged, or would write outside its folder."""


def is_archive(path: Path) -> bool:
    """Tell whether a file is a tar, perhaps compressed, or a zip."""
    try:
        return path.is_file() and (tarfile.is_tarfile(path) or zipfile.is_zipfile(path))
    except DAMAGE:  # before the first member
        return False


def first_names(archive: Path) -> list[str]:
    """Return the names of the first members, enough to recognise an archive.

    Raises:
        ArchiveError: if the archive is damaged from its beginning.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as content:
                return content.namelist()[:64]
        with tarfile.open(archive, "r:*") as content:
            return [member.name for member, _ in zip(content, range(64))]
    except DAMAGE as error:
        raise ArchiveError(f"{archive}: damaged or incomplete archive: {error}: download it again") from error


def unpack(
    archive: Path,
    folder: Path,
    target: Callable[[str], str | None] = lambda name: name,
    choice: str = "",
    progress: bool = True,
) -> bool:
    """Unpack the files of an archive into a folder, unless a previous run has completed it.

    Links and devices are skipped. A tar within a tar (ImageNet's training pictures) is opened too: its members
    are named ``inner.tar/member``.

    Args:
        archive: A tar, perhaps compressed, or a zip.
        folder: Where to; made if it is not there.
        target: From the name of a member to where it goes in the folder, or None to leave it out.
        choice: What ``target`` chooses; another choice from the same archive is unpacked again.
        progress: Show a bar.

    Returns:
        Whether anything was done.

    Raises:
        ArchiveError: if the archive is damaged, or a member would be written outside the folder.
    """
    if not hasattr(tarfile, "data_filter"):
        raise ImportError("this Python cannot unpack safely: use 3.10.12, 3.11.4, 3.12 or a later one")
    check_file(archive, error=ArchiveError)
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"size": archive.stat().st_size, "choice": choice}
    if _read_done(folder).get(archive.name) == entry:
        return False

    try:
        hidden = not progress or hides_bars()
        for _ in tqdm(_unpack(archive, folder, target), f"unpack {archive.name}", unit="file", disable=hidden):
            pass
    except ArchiveError:
        raise
    except tarfile.FilterError as error:
        raise ArchiveError(f"{archive}: {error}: do not trust this archive") from error
    except (NotImplementedError, OverflowError) as error:
        raise ArchiveError(f"{archive}: this Python cannot unpack it: {error}: unpack it with another tool") from error
    except DAMAGE as error:
        raise ArchiveError(f"{archive}: damaged or incomplete archive: {error}: download it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ArchiveError(f"{archive}: damaged archive: {error}: download it again") from error  # by bzip2

    write_whole(folder / DONE, json.dumps({**_read_done(folder), archive.name: entry}, indent=1))

    return True


def _unpack(archive: Path, folder: Path, target: Callable[[str], str | None]) -> Iterator[str]:
    """Write files in the archive's order, so that a compressed one is read once; yield the name of each member."""
    room = Room(archive, folder)
    if not zipfile.is_zipfile(archive):
        with tarfile.open(archive, "r:*") as content:
            yield from _unpack_tar(content, folder, target, room)
        return

    with zipfile.ZipFile(archive) as content:
        for info in content.infolist():
            if not info.is_dir() and (where := target(info.filename)) is not None:
                if info.flag_bits & ENCRYPTED:
                    raise ArchiveError(
                        f"{archive}: member {info.filename!r} is encrypted: unpack it yourself, with its password"
                    )
                room.take(info.filename, info.file_size)
                info = copy.copy(info)
                info.filename = _inside(where)
                content.extract(info, folder)
            yield info.filename


def _unpack_tar(
    content: tarfile.TarFile, folder: Path, target: Callable, room: "Room", prefix: str = ""
) -> Iterator[str]:
    for member in content:
        name = prefix + member.name
        if member.isfile() and name.endswith(".tar") and not prefix:
            if target(f"{name}/") is not None:
                with tarfile.open(fileobj=content.extractfile(member), mode="r:") as inner:
                    yield from _unpack_tar(inner, folder, target, room, f"{name}/")
        elif member.isfile() and (where := target(name)) is not None:
            room.take(name, member.size)
            time = member.mtime if 0 <= member.mtime <= MAX_TIME else 0  # neither NaN nor what no clock has
            content.extract(member.replace(name=_inside(where), mtime=time, deep=False), folder, filter="data")
        yield name
        content.members.clear()  # type: ignore[attr-defined]  # or half a million members would stay in memory


def _inside(name: str) -> str:
    """Return a member's name, after checking that it stays in the folder; zipfile and tarfile do not enforce this."""
    if "\0" in name:
        raise ArchiveError(f"member {name!r} has a NUL in its name: do not trust this archive")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ArchiveError(f"member {name!r} would be written outside the folder: do not trust this archive")
    if path.parts and path.parts[0].casefold() == DONE:
        raise ArchiveError(f"member {name!r} has the name of the file that tells what is unpacked: rename it")
    return name


class Room:
    """Counts what an archive unfolds to, so that a small one cannot fill a disk.

    Args:
        archive: The file.
        folder: Where it is unpacked.
    """

    def __init__(self, archive: Path, folder: Path):
        self.archive, self.size = archive, archive.stat().st_size
        self.free = shutil.disk_usage(folder).free
        self.taken = 0

    def take(self, member: str, size: int) -> None:
        """Add the size of a member in bytes.

        Raises:
            ArchiveError: if the disk has no room for it, or the archive unfolds to very much more than it is.
        """
        self.taken += size + HEADER
        if self.taken > self.free:
            raise ArchiveError(
                f"{self.archive}: member {member!r} needs {self.taken:,} bytes with those before it, the disk has "
                f"{self.free:,} free: make room, or choose another disk"
            )
        if self.taken > max(SMALL, MAX_RATIO * self.size):
            raise ArchiveError(
                f"{self.archive}: {self.size:,} bytes unfold to more than {self.taken:,}, over {MAX_RATIO} times as "
                f"many, at member {member!r}: no data set does so; do not trust this archive"
            )


def _read_done(folder: Path) -> dict:
    try:
        done = json.loads((folder / DONE).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return done if isinstance(done, dict) else {}
