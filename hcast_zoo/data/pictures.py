"""Pictures in: any common format is read as 8-bit RGB."""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..common.text import brief, clip

MAX_PIXELS = 100_000_000  # about 300 MB decoded; a larger picture is refused, not loaded
MAX_SIDE = 1_000_000  # pixels; Pillow keeps an address for each row
MAX_BYTES = 2**30  # what that many pixels take without compression, and some; of a larger file nothing is read
# Not all that Pillow knows: some of its readers start another program (EPS runs Ghostscript), others are seldom tried.
FORMATS = (
    "AVIF",
    "BMP",
    "GIF",
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
PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class PictureError(ValueError):
    """A picture cannot be read; the message says why."""


def open_picture(source: str | Path | bytes) -> Image.Image:
    """Read a picture upright, as 8-bit RGB or RGBA; of an animation, the first frame.

    Grey, palette, CMYK and 16-bit pictures are converted; 16-bit and float ones are scaled to [0, 255] (float by
    its own range if it is outside [0, 1]).

    Args:
        source: A file, or its bytes.

    Raises:
        PictureError: if there is no such file, it is no complete picture, or it has over 100 million pixels.
    """
    name = "picture" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's size warning: the limit below is ours
            Image.init()  # else Pillow asks for a format that it has not loaded yet
            formats = [f for f in FORMATS if f in Image.OPEN]
            with _open(source, name) as file, Image.open(file, formats=formats) as picture:
                if picture.width * picture.height > MAX_PIXELS or max(picture.size) > MAX_SIDE:
                    raise PictureError(
                        f"{name}: {picture.width}x{picture.height} pixels, expected {MAX_PIXELS:,} at "
                        f"most, and {MAX_SIDE:,} a side: make it smaller first"
                    )

                picture.load()
                ImageOps.exif_transpose(picture, in_place=True)
                return to_8_bit(picture)
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise PictureError(f"{name}: expected a picture, got a folder") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}: not a picture, or of an unknown format") from error
    except MemoryError as error:
        raise PictureError(f"{name}: this picture needs more memory than there is: make it smaller first") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise PictureError(f"{name}: cannot be read: {error.strerror}") from error
        raise PictureError(f"{name}: damaged or incomplete picture: {clip(error)}") from error


class _File(io.BufferedReader):
    """A file that makes room for no more than it holds, whatever a header in it says."""

    def __init__(self, path: str | Path, size: int):
        super().__init__(io.FileIO(path))
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _open(source: str | Path | bytes, name: str) -> BinaryIO:
    """Open a picture, unless it is no file at all: a pipe would be waited for, a device read for ever."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, (str, Path)):
        raise PictureError(f"expected a picture's name or bytes, got {brief(source)}")
    status = os.stat(source)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise PictureError(f"{name}: expected a file, got a pipe, a socket or a device")
    if status.st_size > MAX_BYTES:
        raise PictureError(f"{name}: {status.st_size:,} bytes, expected {MAX_BYTES:,} at most: is it a picture?")

    return cast(BinaryIO, _File(source, status.st_size))


def read_picture(source: str | Path | bytes, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Read a picture as RGB, transparent parts composited on ``background`` (white). See :func:`open_picture`."""
    return on_background(open_picture(source), background)


def on_background(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Composite an RGBA picture on one colour; an RGB one is returned as it is."""
    if picture.mode != "RGBA":
        return picture
    canvas = Image.new("RGBA", picture.size, (*background, 255))
    canvas.alpha_composite(picture)
    return canvas.convert("RGB")


def to_8_bit(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to 8-bit RGB, or RGBA if parts of it are transparent."""
    if picture.mode.startswith(("I", "F")):
        pixels = np.asarray(picture)
        bands = [slice(y, y + 64) for y in range(0, len(pixels), 64)]  # float64 is 8 times as large
        if picture.mode.startswith("I"):  # 16 bits, in mode "I" of old files perhaps only 8
            low, high = 0.0, 65535.0 if picture.mode != "I" or pixels.max(initial=0) > 255 else 255.0
        else:
            low, high = 0.0, 1.0
            for band in bands:
                values = np.nan_to_num(pixels[band], posinf=0.0, neginf=0.0)
                low, high = min(low, float(values.min())), max(high, float(values.max()))

        out = np.empty(pixels.shape, np.uint8)
        for band in bands:
            values = np.nan_to_num(pixels[band].astype(np.float64), posinf=high, neginf=low)
            out[band] = ((values - low) / (high - low) * 255).clip(0, 255).round()

        return Image.fromarray(out).convert("RGB")

    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture.convert("RGB")
