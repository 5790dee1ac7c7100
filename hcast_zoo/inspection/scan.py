"""Measure each picture: whether it can be read, its size, and fingerprints to find its copies."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.extras import needs_extra
from ..common.text import clip
from ..data.pictures import PictureError, content_digest, read_picture
from .journal import Journal, resume

COLOURS = 4  # pixels per side of the thumbnail whose colours are compared
BLANK = 2.0  # standard deviation of grey values in [0, 255] below which a picture shows nothing


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of a picture.

    Attributes:
        error: Why it cannot be read, or None. If it cannot, the other fields are empty.
        sha256: SHA-256 of the file.
        width: In pixels, with the picture upright.
        height: In pixels.
        blank: Whether it is of one colour, so that its perceptual hash is meaningless.
        hash: Perceptual hash, 16 hexadecimal digits.
        colours: RGB of a 4x4 thumbnail, 96 hexadecimal digits.
    """

    error: str | None = None
    sha256: str = ""
    width: int = 0
    height: int = 0
    blank: bool = False
    hash: str = ""
    colours: str = ""


def scan(pictures: Sequence[Path | bytes], journal: Journal | None = None, threads: int = 1) -> Iterator[Measured]:
    """Measure pictures, in order; for one that cannot be read, the result says why.

    Args:
        pictures: Files, or encoded pictures.
        journal: Stored results, so that files are read again only after they have changed.
        threads: Number of pictures decoded at the same time.

    Raises:
        ImportError: if imagehash is missing.
    """
    read = functools.partial(measure, phash=_import_phash())
    with ThreadPoolExecutor(threads) as pool:
        yield from resume(
            pictures,
            journal,
            compute=lambda new: pool.map(read, new),
            to_data=dataclasses.asdict,
            from_data=lambda data: Measured(**data),
        )


def measure(picture: Path | bytes, phash) -> Measured:
    """Measure one picture.

    Args:
        picture: A file, or an encoded picture.
        phash: The function of that name of the library imagehash.
    """
    try:
        image = read_picture(picture)
        digest = content_digest(picture)
    except PictureError as error:
        return Measured(error=clip(error.reason, 300))
    except OSError as error:
        return Measured(error=f"cannot be read: {error.strerror}")

    grey = image.convert("L").resize((32, 32), Image.Resampling.BOX)
    colours = image.resize((COLOURS, COLOURS), Image.Resampling.BOX)
    return Measured(
        sha256=digest,
        width=image.width,
        height=image.height,
        blank=bool(np.asarray(grey, np.float32).std() < BLANK),
        hash=str(phash(image)),
        colours=colours.tobytes().hex(),
    )


def _import_phash():
    with needs_extra("check", "copies of pictures"):
        from imagehash import phash

    return phash


def hashes(measured: Iterable[Measured]) -> np.ndarray:
    """Return (N,) uint64 perceptual hashes."""
    return np.array([int(m.hash, 16) for m in measured], np.uint64)


def colours(measured: Iterable[Measured]) -> np.ndarray:
    """Return (N, 48) uint8 colours of thumbnails."""
    rows = [np.frombuffer(bytes.fromhex(m.colours), np.uint8) for m in measured]
    return np.stack(rows) if rows else np.zeros((0, 3 * COLOURS**2), np.uint8)
