"""Pictures in object stores and in parquet files: ``s3://birds/2026/1.jpg``, the rows of ``birds.parquet``.

Stores are pyarrow's file systems (``s3://``, ``gs://``, ``hdfs://``, ``abfs://``, ``file://``), and those of fsspec.
Folders in a store are searched with all their sub-folders; tar shards in it are read from beginning to end.
"""

import functools
import io
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..common.extras import needs_extra
from ..common.formats import is_picture_name
from ..common.text import brief, clip
from ..taxonomy.columns import PICTURES, find_column
from .pictures import MAX_BYTES, PictureError
from .tar_shards import check_end, is_shard

ROWS = 64  # rows of a parquet file that are in memory at once


class NamedPicture(io.BytesIO):
    """An encoded picture with a name.

    Args:
        name: Name in its prediction.
        data: The bytes.
    """

    def __init__(self, name: str, data: bytes):
        super().__init__(data)
        self.name = name


class StoredPicture:
    """A picture in a store, read only when it is used.

    Args:
        uri: URI of the picture; options of the store follow a ``?``.
    """

    def __init__(self, uri: str):
        self.uri, self.name = uri, plain_name(uri)

    def read(self, size: int = -1) -> bytes:
        """Return the whole picture.

        Raises:
            OSError: if it cannot be read.
            PictureError: if it is longer than ``size`` bytes; a negative size is no limit.
        """
        with open_stored(self.uri) as file:
            if 0 <= size < file.size():
                raise PictureError(f"{file.size():,} bytes, expected {size:,} at most: is it a picture?")
            return file.read()


class Unreadable:
    """A picture that cannot be read.

    Args:
        name: Name in its prediction.
        reason: Why it cannot be read.
    """

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason

    def read(self, size: int = -1) -> bytes:
        """Raise PictureError."""
        raise PictureError(self.reason)


def is_stored(name: str) -> bool:
    """Return whether a name is a URI in a store."""
    return "://" in name


def is_container(name: object) -> bool:
    """Return whether a name stands for many pictures that are read in order: a parquet file, or a tar in a store."""
    if not isinstance(name, str):
        return False
    path = urlsplit(name).path if is_stored(name) else name
    return path.lower().endswith(".parquet") or (is_stored(name) and is_shard(path))


def plain_name(uri: str) -> str:
    """Return a URI without options of the store and without a password.

    Example:
        >>> plain_name("s3://key:secret@birds/1.jpg?region=eu-west-1")
        's3://birds/1.jpg'
    """
    if not is_stored(uri):
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@functools.lru_cache(64)
def _store(root: str) -> tuple[Any, str]:
    """Return the file system of a URI, and the path in it."""
    with needs_extra("train", "object stores"):
        import pyarrow as pa
        from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(root)
    except pa.ArrowInvalid as error:
        try:
            import fsspec

            store, path = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as other:  # the messages of these errors show passwords
            reasons = f"{clip(error)}; {clip(other)}".replace(root, plain_name(root))
            raise ValueError(f"{plain_name(root)}: {reasons}") from None
        return fs.PyFileSystem(fs.FSSpecHandler(store)), path


def open_stored(uri: str) -> Any:
    """Open a file of a store, or of this machine, with random access."""
    store, path = _store(uri if is_stored(uri) else Path(uri).absolute().as_uri())
    return store.open_input_file(path)


def find_stored(uri: str) -> list[str]:
    """Return the pictures, tar shards and parquet files at a URI, sorted; the URI itself if it is not a folder.

    Raises:
        ValueError: if there is no such store, or it does not answer.
    """
    with needs_extra("train", "object stores"):
        from pyarrow import fs

    store, path = _store(uri)
    try:
        if store.get_file_info(path).type != fs.FileType.Directory:
            return [uri]
        files = [info.path for info in store.get_file_info(fs.FileSelector(path, recursive=True)) if info.is_file]
    except OSError as error:
        raise ValueError(f"{plain_name(uri)}: cannot be listed: {clip(error)}") from error

    root, mark, query = uri.partition("?")
    uris = []
    for file in sorted(files):
        if is_picture_name(file) or file.lower().endswith((".tar", ".parquet")):
            below = os.path.relpath(f"/{file.lstrip('/')}", f"/{path.strip('/')}")
            uris.append(f"{root.rstrip('/')}/{below}{mark}{query}")

    return uris


def read_container(name: str) -> Iterator[Any]:
    """Yield the pictures of a parquet file or of a tar shard in a store, in order, for ``open_picture``.

    Their names are the container's with the member's name or the number of the row, from 0, below it. If the container
    is damaged, the last picture is an :class:`Unreadable` that says so.
    """
    yield from _read_tar(name) if is_shard(plain_name(name)) else _read_parquet(name)


def _read_tar(uri: str) -> Iterator[Any]:
    shown = plain_name(uri)
    try:
        with open_stored(uri) as file, tarfile.open(fileobj=file, mode="r|") as shard:
            for member in shard:
                if not member.isreg() or not is_picture_name(member.name):
                    continue

                name = f"{shown}/{member.name.removeprefix('./')}"
                if member.size > MAX_BYTES:
                    yield Unreadable(name, f"{member.size:,} bytes, expected {MAX_BYTES:,} at most: is it a picture?")
                else:
                    yield NamedPicture(name, shard.extractfile(member).read())  # type: ignore[union-attr]
                shard.members = []  # type: ignore[attr-defined]  # otherwise all headers would be kept

            check_end(file, shard.offset)
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        yield Unreadable(shown, f"expected a complete tar file without compression: {clip(error)}")


def _read_parquet(name: str) -> Iterator[Any]:
    with needs_extra("train", "parquet files"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    shown = plain_name(name)
    folder = name.rpartition("/")[0] if is_stored(name) else str(Path(name).parent)
    try:
        with open_stored(name) as source, pq.ParquetFile(source) as file:
            column = picture_column(file.schema_arrow.names)
            rows = itertools.count()
            for batch in file.iter_batches(ROWS, columns=[column]):
                for cell in batch.column(0).to_pylist():
                    yield from_cell(cell, f"{shown}/{next(rows)}", folder)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Unreadable(shown, f"expected a complete parquet file of pictures: {clip(error)}")


def picture_column(names: Iterable[str]) -> str:
    """Return the column of the pictures: ``bytes``, or one of the names that tables use.

    Raises:
        ValueError: if there is none.
    """
    names = list(names)
    column = find_column(names, ("bytes", *PICTURES, "jpg", "jpeg", "png", "webp"))
    if column is None:
        raise ValueError(f"no column image (or bytes, jpg, file ...); it has {brief(names)}")
    return column


def from_cell(cell: Any, name: str, folder: str = "") -> Any:
    """Return the picture in a cell of a table: bytes, Hugging Face's ``struct<bytes, path>``, or a file's name.

    Args:
        cell: Value of the cell.
        name: Name in its prediction, unless the cell holds a file's name.
        folder: Folder of the table, to which names of files are relative.
    """
    if isinstance(cell, dict):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, bytes | bytearray):
        return NamedPicture(name, bytes(cell))
    if not isinstance(cell, str) or not cell.strip():
        return Unreadable(name, f"expected a picture, got {brief(cell)}")

    if is_stored(cell):
        return StoredPicture(cell)
    if is_stored(folder) and not cell.startswith("/"):
        return StoredPicture(f"{folder}/{cell}")
    return os.path.join(folder, cell)
