"""Pictures in: reading any common format as RGB, and the preprocessing of a config."""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision import transforms as tv

from .config import HCastConfig
from .text import brief, clip

MAX_PIXELS = 100_000_000  # about 300 MB decoded; a larger picture is refused, not loaded
MAX_SIDE = 1_000_000  # pixels; Pillow keeps an address for each row
MAX_BYTES = 2**30  # what that many pixels take without compression, and some; of a larger file nothing is read
MAX_ASPECT = 20  # of a picture that is longer the middle is read: whole, a line of pixels would be resized to a giant
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


def eval_transform(config: HCastConfig) -> tv.Compose:
    """Return the preprocessing of a config: PIL RGB picture to (3, H, W) float32, normalised.

    The short side is resized to ``image_size / crop_pct``, the centre cropped. Of a picture that is over 20 times as
    long as it is wide, only the middle is resized, for the rest would be cropped.

    Source: official datasets.py:177-180 (behaviour 25).
    """
    interpolation = tv.InterpolationMode(config.interpolation)
    return tv.Compose(
        [
            middle,
            tv.Resize(short_side(config), interpolation),
            tv.CenterCrop(config.image_size),
            *to_tensor(config),
        ]
    )


def short_side(config: HCastConfig) -> int:
    """Return the pixels that a picture's short side is resized to before the centre is cropped."""
    return int(config.image_size / config.crop_pct)


def middle(picture: Image.Image) -> Image.Image:
    """Return the middle of a picture that is over 20 times as long as it is wide, else the picture itself."""
    left, top, right, bottom = middle_box(picture.size)
    return picture if (right - left, bottom - top) == picture.size else picture.crop((left, top, right, bottom))


def middle_box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of what :func:`middle` keeps; its centre is the picture's."""
    most = MAX_ASPECT * min(size)
    # Of the side's own parity, so that the same number of pixels is left out at both ends.
    kept = [side if side <= most else most + (side - most) % 2 for side in size]
    left, top = ((side - k) // 2 for side, k in zip(size, kept))
    return left, top, left + kept[0], top + kept[1]


def view_box(config: HCastConfig, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the part of a picture that :func:`eval_transform` shows the model.

    Args:
        config: Tells the preprocessing.
        size: Width and height of the picture in pixels.

    Returns:
        Left, top, right, bottom in the picture's pixels.
    """
    at_left, at_top, right, bottom = middle_box(size)
    size = right - at_left, bottom - at_top
    crop = config.image_size
    short = short_side(config)
    resized = [short if side == min(size) else int(short * side / min(size)) for side in size]
    start = [round((side - crop) / 2) for side in resized]  # as torchvision rounds
    scale = [side / r for side, r in zip(size, resized)]
    left, top = (s * k + at for s, k, at in zip(start, scale, (at_left, at_top)))
    return left, top, left + crop * scale[0], top + crop * scale[1]


def to_tensor(config: HCastConfig) -> list:
    """Return the last steps of every preprocessing: float32 in [0, 1], channels first, normalisation."""
    # ToTensor divides by 255, as timm's and the official loaders do; v2 multiplies by 1/255, which moves last bits.
    grey = [tv.Grayscale(1)] if config.in_chans == 1 else []
    return [*grey, tv.ToTensor(), tv.Normalize(*normalization(config))]


def normalization(config: HCastConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and deviations, a value a channel; of grey pictures their averages, as in SEEDS."""
    if config.in_chans != 1:
        return config.mean, config.std
    return (sum(config.mean) / len(config.mean),), (sum(config.std) / len(config.std),)


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
