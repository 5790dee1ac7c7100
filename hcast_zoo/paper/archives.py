"""Unpack archives of data sets, once, and never outside their folder."""

import contextlib
import copy
import itertools
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
from ..common.text import clip

DONE = ".unpacked.json"  # lists the archives that are fully unpacked in a folder: name -> size, choice
ENCRYPTED = 0x1  # flag of a zip's member
HEADER = 512  # bytes that even an empty member takes
MAX_TIME = 2**40  # seconds
SMALL = 2**28  # bytes that any archive may unpack to
MAX_RATIO = 200  # unpacked size to archive size; 20 at most for text, 2 for pictures

# What tarfile and zipfile raise on damage; the last three come from absurd numbers in headers, and from empty names.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError, ValueError, MemoryError, IndexError)


class ArchiveError(ValueError):
    """An archive is damaged, or would write outside its folder."""


def is_archive(path: Path) -> bool:
    """Tell whether a file is a tar, compressed or not, or a zip."""
    try:
        return path.is_file() and (tarfile.is_tarfile(path) or zipfile.is_zipfile(path))
    except DAMAGE:  # so early that the kind of archive cannot be told
        return False


def first_names(archive: Path) -> list[str]:
    """Return the names of the first members, enough to recognise an archive.

    Raises:
        ArchiveError: if the archive is damaged from its beginning.
    """
    with _as_archive_errors(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zip_file:
                return zip_file.namelist()[:64]
        with tarfile.open(archive, "r:*") as tar:
            return [member.name for member in itertools.islice(tar, 64)]


@contextlib.contextmanager
def _as_archive_errors(archive: Path) -> Iterator[None]:
    """Turn what tarfile and zipfile raise into an ArchiveError that says what to do."""
    try:
        yield
    except ArchiveError:
        raise
    except tarfile.FilterError as error:
        raise ArchiveError(f"{archive}: {clip(error)}: do not trust this archive") from error
    except (NotImplementedError, OverflowError) as error:
        raise ArchiveError(f"{archive}: this Python cannot unpack it: {error}: unpack it with another tool") from error
    except MemoryError:
        raise ArchiveError(f"{archive}: damaged archive: it needs more memory than there is") from None
    except DAMAGE as error:
        raise ArchiveError(f"{archive}: damaged or incomplete archive: {clip(error)}: download it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ArchiveError(f"{archive}: damaged archive: {error}: download it again") from error  # bzip2 raises it


def unpack(
    archive: Path,
    folder: Path,
    target: Callable[[str], str | None] = lambda name: name,
    choice: str = "",
    progress: bool = True,
) -> bool:
    """Unpack the files of an archive into a folder, unless a previous run has unpacked all of it.

    Links and devices are skipped. A tar within a tar (ImageNet's training pictures) is unpacked too; its members
    are named ``inner.tar/member``.

    Args:
        archive: A tar, compressed or not, or a zip.
        folder: Target folder; created if it does not exist.
        target: Maps the name of a member to its path in the folder, or to None to leave it out.
        choice: Name for what ``target`` selects; the archive is unpacked again for another choice.
        progress: Show a progress bar.

    Returns:
        Whether anything was unpacked.

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

    with _as_archive_errors(archive):
        hidden = not progress or hides_bars()
        for _ in tqdm(_unpack(archive, folder, target), f"unpack {archive.name}", unit="file", disable=hidden):
            pass

    write_whole(folder / DONE, json.dumps({**_read_done(folder), archive.name: entry}, indent=1))

    return True


def _unpack(archive: Path, folder: Path, target: Callable[[str], str | None]) -> Iterator[str]:
    """Write files in the archive's order, so that a compressed one is read only once; yield each member's name."""
    room = Room(archive, folder)
    if not zipfile.is_zipfile(archive):
        with tarfile.open(archive, "r:*") as tar:
            yield from _unpack_tar(tar, folder, target, room)
        return

    with zipfile.ZipFile(archive) as zip_file:
        for info in zip_file.infolist():
            if not info.is_dir() and (path := target(info.filename)) is not None:
                if info.flag_bits & ENCRYPTED:
                    raise ArchiveError(
                        f"{archive}: member {info.filename!r} is encrypted: unpack it yourself, with its password"
                    )
                room.take(info.filename, info.file_size)
                info = copy.copy(info)
                info.filename = _check_inside(path)
                zip_file.extract(info, folder)
            yield info.filename


def _unpack_tar(tar: tarfile.TarFile, folder: Path, target: Callable, room: "Room", prefix: str = "") -> Iterator[str]:
    for member in tar:
        name = prefix + member.name
        if member.isfile() and name.endswith(".tar") and not prefix:
            if target(f"{name}/") is not None:
                with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                    yield from _unpack_tar(inner, folder, target, room, f"{name}/")
        elif member.isfile() and (path := target(name)) is not None:
            room.take(name, member.size)
            time = member.mtime if 0 <= member.mtime <= MAX_TIME else 0  # also for NaN
            tar.extract(member.replace(name=_check_inside(path), mtime=time, deep=False), folder, filter="data")
        yield name
        tar.members.clear()  # type: ignore[attr-defined]  # or half a million members would stay in memory


def _check_inside(name: str) -> str:
    """Return a member's name, after checking that it stays in the folder; zipfile and tarfile do not enforce this."""
    if "\0" in name:
        raise ArchiveError(f"member {name!r} has a NUL in its name: do not trust this archive")

    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ArchiveError(f"member {name!r} would be written outside the folder: do not trust this archive")
    if path.parts and path.parts[0].casefold() == DONE:
        raise ArchiveError(f"member {name!r} has the name of the file that lists what is unpacked: rename it")

    return name


class Room:
    """Adds up the unpacked size of an archive, so that a small one cannot fill the disk.

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
            ArchiveError: if the disk has no room for it, or the archive unpacks to far more than its own size.
        """
        self.taken += size + HEADER
        if self.taken > self.free:
            raise ArchiveError(
                f"{self.archive}: with member {member!r} it needs {self.taken:,} bytes, the disk has "
                f"{self.free:,} free: make room, or choose another disk"
            )

        if self.taken > max(SMALL, MAX_RATIO * self.size):
            raise ArchiveError(
                f"{self.archive}: {self.size:,} bytes unpack to more than {self.taken:,}, over {MAX_RATIO} times as "
                f"many, at member {member!r}, far more than any data set; do not trust this archive"
            )


def _read_done(folder: Path) -> dict:
    try:
        done = json.loads((folder / DONE).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return done if isinstance(done, dict) else {}
