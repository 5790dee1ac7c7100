"""The formats of pictures that are read, and the names of files by which pictures are found."""

import contextlib
import functools
import importlib
import os

from PIL import Image

from .walk import Skipped

# Not all that Pillow knows: some of its readers start another program (EPS runs Ghostscript), others are seldom tried.
FORMATS = (
    "AVIF",
    "BMP",
    "GIF",
    "HEIF",  # by pillow-heif, if it is there
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
HEIF_HINT = "HEIC pictures need pillow-heif: pip install 'hcast-zoo[heic]'"


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats that are read here: those of ``FORMATS`` that the installed Pillow knows."""
    Image.init()  # else Pillow asks for a format that it has not loaded yet
    with contextlib.suppress(ImportError):  # by its name: transformers would ask users of remote code to install it
        importlib.import_module("pillow_heif").register_heif_opener()

    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Return the endings of names, in lower case, by which pictures are found: those of every format that is read."""
    known = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def is_picture_name(name: str, skipped: Skipped | None = None) -> bool:
    """Return whether a file's name is that of a picture; count it among what is skipped if not."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in picture_suffixes():
        return True
    if skipped is not None:
        hint = HEIF_HINT if suffix in HEIF_SUFFIXES else ""
        skipped.add(f"{suffix} files" if suffix else "files without a suffix", hint)
    return False
