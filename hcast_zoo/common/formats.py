"""Formats of pictures that can be read, and the file names by which pictures are found."""

import contextlib
import functools
import importlib
import os

from PIL import Image

from .walk import Skipped

# Not all that Pillow can read: some readers start another program (EPS runs Ghostscript), others are rarely tested.
FORMATS = (
    "AVIF",
    "BMP",
    "GIF",
    "HEIF",  # by pillow-heif, if it is installed
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
HINTS = {  # what to do with files that people take for pictures, by suffix
    **dict.fromkeys(HEIF_SUFFIXES, HEIF_HINT),
    **dict.fromkeys((".pdf", ".docx", ".pptx"), "Save its pictures as JPEG or PNG, and give those"),
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), "Save a camera's raw file as JPEG"
    ),
    **dict.fromkeys((".avi", ".mov", ".mp4"), "Save a video's frames first: ffmpeg -i VIDEO frame_%04d.jpg"),
    ".svg": "Save drawings as PNG",
}


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats that are read here: those of ``FORMATS`` that the installed Pillow knows."""
    Image.init()  # otherwise Pillow knows only the formats that it has used so far
    # By name: for an import statement, transformers would ask users of remote code to install the package.
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()

    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Return the suffixes of names, in lower case, by which pictures are found: those of every format that is read."""
    known = formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in known)


def is_picture_name(name: str, skipped: Skipped | None = None) -> bool:
    """Return whether a file has the name of a picture; if not, count it in ``skipped``."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in picture_suffixes():
        return True

    if skipped is not None:
        hint = HEIF_HINT if suffix in HEIF_SUFFIXES else ""
        skipped.add(f"{suffix} files" if suffix else "files without a suffix", hint)
    return False
