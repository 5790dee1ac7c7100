"""Pictures in object stores and in parquet files, to be labelled: ``s3://birds/2026/1.jpg``, rows of ``birds.parquet``.

Stores are pyarrow's file systems (``s3://``, ``gs://``, ``hdfs://``, ``abfs://``, ``file://``), and those of fsspec. A
folder there is searched below. Tar shards in a store are read from their beginning to their end.
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

ROWS = 64  # of a parquet file that are in memory at once


class NamedPicture(io.BytesIO):
    """An encoded picture and where it is from.

    Args:
        name: For its prediction.
        content: The bytes.
    """

    def __init__(self, name: str, content: bytes):
        super().__init__(content)
        self.name = name


class StoredPicture:
    """A picture in a store, which is read when it is wanted.

    Args:
        uri: Of the picture; what follows ``?`` sets up the store.
    """

    def __init__(self, uri: str):
        self.uri, self.name = uri, plain_name(uri)

    def read(self, size: int = -1) -> bytes:
        """Return the whole picture.

        Raises:
            OSError: if it cannot be read.
            PictureError: if it is longer than ``size`` bytes, unless that is below 0.
        """
        with open_stored(self.uri) as file:
            if 0 <= size < file.size():
                raise PictureError(f"{file.size():,} bytes, expected {size:,} at most: is it a picture?")
            return file.read()


class Unreadable:
    """A picture that cannot be read.

    Args:
        name: For its prediction.
        reason: Why.
    """

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason

    def read(self, size: int = -1) -> bytes:
        """Raise PictureError."""
        raise PictureError(self.reason)


def is_stored(name: str) -> bool:
    """Return whether a name is that of something in a store."""
    return "://" in name


def is_container(name: object) -> bool:
    """Return whether a name is that of many pictures which are read one after the other: parquet, or tar in a store."""
    if not isinstance(name, str):
        return False
    path = urlsplit(name).path if is_stored(name) else name
    return path.lower().endswith(".parquet") or (is_stored(name) and is_shard(path))


def plain_name(uri: str) -> str:
    """Return a URI without what sets up the store, and without a password.

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
        except (ImportError, ValueError) as other:  # their texts show passwords
            reasons = f"{clip(error)}; {clip(other)}".replace(root, plain_name(root))
            raise ValueError(f"{plain_name(root)}: {reasons}") from None
        return fs.PyFileSystem(fs.FSSpecHandler(store)), path


def open_stored(uri: str) -> Any:
    """Open a file of a store, or of this machine, with random access."""
    store, path = _store(uri if is_stored(uri) else Path(uri).absolute().as_uri())
    return store.open_input_file(path)


def find_stored(uri: str) -> list[str]:
    """Return the pictures, tar shards and parquet files at a URI, sorted; itself if it is not a folder.

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
    wanted = sorted(file for file in files if is_picture_name(file) or file.lower().endswith((".tar", ".parquet")))
    below = (os.path.relpath(f"/{file.lstrip('/')}", f"/{path.strip('/')}") for file in wanted)
    return [f"{root.rstrip('/')}/{file}{mark}{query}" for file in below]


def read_container(name: str) -> Iterator[Any]:
    """Yield the pictures of a parquet file or of a tar shard in a store, in their order, for ``open_picture``.

    They are named by the container and, below it, by the member or the number of the row, from 0. Where the container
    is damaged, one last picture tells it.
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
                shard.members = []  # type: ignore[attr-defined]  # else all headers would be kept
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
    """Return the column of the pictures: ``bytes``, or one that is named as readers of tables know it.

    Raises:
        ValueError: if there is none.
    """
    names = list(names)
    found = find_column(names, ("bytes", *PICTURES, "jpg", "jpeg", "png", "webp"))
    if found is None:
        raise ValueError(f"no column image (or bytes, jpg, file ...); it has {brief(names)}")
    return found


def from_cell(cell: Any, name: str, folder: str = "") -> Any:
    """Return the picture in a cell of a table: bytes, Hugging Face's ``struct<bytes, path>``, or a file's name.

    Args:
        cell: What is there.
        name: For its prediction, unless the cell holds a file's.
        folder: Of the table; files are named as seen from there.
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
