"""Files that are there in full or not at all."""

import os
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a file so that a crash, a full disk or a loss of power leaves the old content or the new.

    Args:
        path: Target file.
        content: Text is written as UTF-8.

    Raises:
        OSError: if it cannot be written; then nothing has changed.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()  # what the link leads to is replaced, and not the link
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as sink:
            sink.write(content.encode() if isinstance(content, str) else content)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except OSError as error:  # of a full disk it does not tell which file
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
