"""Pictures in folders: found by their names, with what else lies there counted and told."""

import functools
import os

from PIL import Image

from ..common.walk import Skipped
from .pictures import HEIF_HINT, HEIF_SUFFIXES, formats


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
