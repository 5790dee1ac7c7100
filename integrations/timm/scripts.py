"""timm's own scripts, for `hcast-zoo timm`, with H-CAST registered and pictures read as the core reads them."""

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
    """A timm reader whose pictures are RGB, upright, on white and uncompressed.

    timm itself opens what a reader gives and converts it to RGB, which drops transparency, cuts 16 bits to 8 and
    ignores EXIF orientation. Pictures that cannot be read raise OSError, and timm then skips them with a message. The
    reader can be pickled, for workers that do not fork.

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
        if name == "reader":  # during unpickling
            raise AttributeError(name)
        return getattr(self.reader, name)


def find_script(script: str) -> str:
    """Return the file of a script: ``train.py``, ``validate.py`` or another.

    Raises:
        FileNotFoundError: if there is none; timm's packages hold no scripts.
    """
    if not Path(script).is_file():
        raise FileNotFoundError(f"{script}: no such script; timm's are in its repository, not in its package: {SOURCE}")
    return script


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run a script as if it had been started by itself.

    Args:
        script: The script's file.
        arguments: Its command-line arguments.

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
    """Make timm's reader, and wrap it if it can be indexed; streaming readers already give decoded pictures."""
    reader = create_reader(*args, **kwargs)
    return UprightReader(reader) if hasattr(reader, "__getitem__") else reader
