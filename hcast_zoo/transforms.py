"""Pictures in: reading any common format as RGB, and the preprocessing of a config."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision import transforms as tv

from .config import HCastConfig

MAX_PIXELS = 100_000_000  # about 300 MB decoded; a larger picture is refused, not loaded
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
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise PictureError(f"{name}: {picture.width}x{picture.height} pixels, expected {MAX_PIXELS:,} at "
                                       "most: make it smaller first")
                picture.load()
                return to_8_bit(ImageOps.exif_transpose(picture))
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise PictureError(f"{name}: expected a picture, got a folder") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}: not a picture, or of an unknown format") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise PictureError(f"{name}: damaged or incomplete picture: {error}") from error


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

    The short side is resized to ``image_size / crop_pct``, the centre cropped.

    Source: official datasets.py:177-180 (behaviour 25).
    """
    interpolation = tv.InterpolationMode(config.interpolation)
    return tv.Compose([
        tv.Resize(int(config.image_size / config.crop_pct), interpolation),
        tv.CenterCrop(config.image_size),
        *to_tensor(config),
    ])


def view_box(config: HCastConfig, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the part of a picture that :func:`eval_transform` shows the model.

    Args:
        config: Tells the preprocessing.
        size: Width and height of the picture in pixels.

    Returns:
        Left, top, right, bottom in the picture's pixels.
    """
    crop = config.image_size
    short = int(crop / config.crop_pct)
    resized = [short if side == min(size) else int(short * side / min(size)) for side in size]
    start = [round((side - crop) / 2) for side in resized]  # as torchvision rounds
    scale = [side / r for side, r in zip(size, resized)]
    left, top = (s * k for s, k in zip(start, scale))
    return left, top, left + crop * scale[0], top + crop * scale[1]


def to_tensor(config: HCastConfig) -> list:
    """Return the last steps of every preprocessing: float32 in [0, 1], channels first, normalisation."""
    # ToTensor divides by 255, as timm's and the official loaders do; v2 multiplies by 1/255, which moves last bits.
    grey = [tv.Grayscale(1)] if config.in_chans == 1 else []
    return [*grey, tv.ToTensor(), tv.Normalize(config.mean, config.std)]


def to_8_bit(picture: Image.Image) -> Image.Image:
    """Convert a picture of any mode to 8-bit RGB, or RGBA if parts of it are transparent."""
    if picture.mode.startswith(("I", "F")):
        pixels = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        if picture.mode.startswith("I"):  # 16 bits, in mode "I" of old files perhaps only 8
            pixels = pixels / 257 if picture.mode != "I" or pixels.max(initial=0) > 255 else pixels
        else:
            low, high = min(pixels.min(initial=0), 0.0), max(pixels.max(initial=0), 1.0)
            pixels = (pixels - low) / (high - low) * 255
        return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture.convert("RGB")
