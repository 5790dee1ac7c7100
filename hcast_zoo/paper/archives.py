"""Unpack archives of data sets once, and never write outside their folder."""

import copy
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ..common.files import write_whole

DONE = ".unpacked.json"  # the archives that are fully unpacked in a folder: name -> size, choice


class ArchiveError(ValueError):
    """An archive is damaged, or would write outside its folder."""


def is_archive(path: Path) -> bool:
    """Tell whether a file is a tar, perhaps compressed, or a zip."""
    try:
        return path.is_file() and (tarfile.is_tarfile(path) or zipfile.is_zipfile(path))
    except (EOFError, zlib.error, LZMAError):  # truncated before the first member
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
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError) as error:
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
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"size": archive.stat().st_size, "choice": choice}
    if _read_done(folder).get(archive.name) == entry:
        return False

    try:
        for _ in tqdm(_unpack(archive, folder, target), f"unpack {archive.name}", unit="file", disable=not progress):
            pass
    except tarfile.FilterError as error:
        raise ArchiveError(f"{archive}: {error}: do not trust this archive") from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, LZMAError) as error:
        raise ArchiveError(f"{archive}: damaged or incomplete archive: {error}: download it again") from error

    write_whole(folder / DONE, json.dumps({**_read_done(folder), archive.name: entry}, indent=1))

    return True


def _unpack(archive: Path, folder: Path, target: Callable[[str], str | None]) -> Iterator[str]:
    """Write files in the archive's order, so that a compressed one is read once; yield the name of each member."""
    if not zipfile.is_zipfile(archive):
        with tarfile.open(archive, "r:*") as content:
            yield from _unpack_tar(content, folder, target)
        return

    with zipfile.ZipFile(archive) as content:
        for info in content.infolist():
            if not info.is_dir() and (where := target(info.filename)) is not None:
                info = copy.copy(info)
                info.filename = _inside(where)
                content.extract(info, folder)
            yield info.filename


def _unpack_tar(content: tarfile.TarFile, folder: Path, target: Callable, prefix: str = "") -> Iterator[str]:
    for member in content:
        name = prefix + member.name
        if member.isfile() and name.endswith(".tar") and not prefix:
            if target(f"{name}/") is not None:
                with tarfile.open(fileobj=content.extractfile(member), mode="r:") as inner:
                    yield from _unpack_tar(inner, folder, target, f"{name}/")
        elif member.isfile() and (where := target(name)) is not None:
            content.extract(member.replace(name=_inside(where), deep=False), folder, filter="data")
        yield name
        content.members.clear()  # type: ignore[attr-defined]  # or half a million members would stay in memory


def _inside(name: str) -> str:
    """Return a member's name, after checking that it stays in the folder; zipfile and tarfile do not enforce this."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ArchiveError(f"member {name!r} would be written outside the folder: do not trust this archive")
    return name


def _read_done(folder: Path) -> dict:
    try:
        return json.loads((folder / DONE).read_text())
    except (OSError, ValueError):
        return {}
