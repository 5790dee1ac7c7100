"""Files that are written completely or not at all, and their checksums."""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 20  # bytes per read
MAX_TEXT = 1 << 26  # largest plan, recipe or report in bytes; these are read whole


@contextlib.contextmanager
def whole_file(path: str | Path, suffix: str = "", sync: bool = True) -> Iterator[Path]:
    """Give a block a temporary file name, and move that file to its target when the block ends.

    If the block raises, or the process is killed, the old file stays as it is.

    Args:
        path: Target file; if it is a symbolic link, the file it points to is replaced.
        suffix: End of the temporary name, for writers that depend on it.
        sync: Also survive a power failure, which costs a few milliseconds.

    Yields:
        The temporary name, in the target's folder. It begins with a dot, and no other process uses it.

    Raises:
        OSError: if the file cannot be written; the error names the target.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not (path.is_file() or path.is_dir()):  # as root, we could replace /dev/null
        raise FileExistsError(errno.EEXIST, "expected a file, got a pipe, a socket or a device", str(path))

    temporary = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):  # ENOSPC does not name the file
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, data: str | bytes | memoryview) -> None:
    """Write a file so that a crash, a full disk or a power failure leaves either the old or the new one.

    Args:
        path: Target file.
        data: What to write; text is encoded as UTF-8.

    Raises:
        OSError: if it cannot be written; the old file then stays as it was.
    """
    with whole_file(path) as temporary, open(temporary, "wb") as sink:
        sink.write(data.encode() if isinstance(data, str) else data)


def check_file(path: str | Path, most: int | None = None, error: type[ValueError] = ValueError) -> None:
    """Refuse a pipe, a device or a file that is too large, before it is opened; a missing file is left to the reader.

    Args:
        path: The file; links are followed.
        most: Largest size in bytes; any by default.
        error: Type of the error.

    Raises:
        ValueError: of the given type, if it is a pipe (reading would wait for it), a device, or too large.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return

    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise error(f"{path}: expected a file, got a pipe, a socket or a device")
    if most is not None and stat.S_ISREG(status.st_mode) and status.st_size > most:
        raise error(f"{path}: {status.st_size:,} bytes, expected {most:,} at most: is it the right file?")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits, without reading the file into memory at once."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)

    return digest.hexdigest()
