"""timm's own scripts, for `hcast-zoo timm`: H-CAST is registered, and pictures are read as the core reads them."""

import io
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm.data.dataset
from timm.data.readers import create_reader
from timm.data.readers.reader import Reader

import hcast_zoo  # noqa: F401  registers the models
from hcast_zoo.data.pictures import PictureError, read_picture

SOURCE = "https://github.com/huggingface/pytorch-image-models"


class UprightReader(Reader):
    """A reader of timm's whose pictures are RGB, upright and on white, without compression.

    timm opens what a reader gives and converts it to RGB, which drops transparency, cuts 16 bits to 8 and leaves
    pictures turned. A picture that cannot be read is left to timm, which skips it and says so. It can be pickled, for
    workers that do not fork.

    Args:
        reader: The reader that finds files and labels.
    """

    def __init__(self, reader: Any):
        super().__init__()
        self.reader = reader

    def __getitem__(self, index: int) -> tuple:
        source, *rest = self.reader[index]
        picture = io.BytesIO()
        try:
            read_picture(source).save(picture, "PPM")
        except PictureError as error:
            raise OSError(str(error)) from error
        picture.seek(0)

        return picture, *rest

    def __len__(self) -> int:
        return len(self.reader)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.reader.filename(index, basename, absolute)

    def __getattr__(self, name: str) -> Any:
        if name == "reader":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.reader, name)


def find(script: str) -> str:
    """Return the file of a script: ``train.py``, ``validate.py`` or another.

    Raises:
        FileNotFoundError: if there is none; timm's packages hold no scripts.
    """
    if not Path(script).is_file():
        raise FileNotFoundError(f"{script}: no such script; timm's are in its repository, not in its package: {SOURCE}")
    return script


def run(script: str, arguments: Sequence[str]) -> None:
    """Run a script as its own program would.

    Args:
        script: File.
        arguments: Its command line.

    Raises:
        SystemExit: if the script ends with an exit code.
    """
    before = sys.argv, sys.path
    sys.argv, sys.path = [script, *arguments], [str(Path(script).resolve().parent), *sys.path]
    timm.data.dataset.create_reader = create_upright_reader
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv, sys.path = before
        timm.data.dataset.create_reader = create_reader


def create_upright_reader(*args: Any, **kwargs: Any) -> Any:
    """Make the reader that timm would, and wrap it if it is one of files; those that stream give decoded pictures."""
    reader = create_reader(*args, **kwargs)
    return UprightReader(reader) if hasattr(reader, "__getitem__") else reader
