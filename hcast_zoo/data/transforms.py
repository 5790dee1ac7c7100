"""The preprocessing of a config, from a picture to a tensor.

The result is bit-equal to torchvision's, but needs only Pillow and torch: importing torchvision takes as long as
importing torch, and longer than a single prediction.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..network.config import HCastConfig

MAX_ASPECT = 20  # beyond this aspect ratio only the middle is used, to limit the memory that resizing takes


class Compose:
    """Steps that run one after the other, as in torchvision.

    Attributes:
        transforms: The steps; each takes what the one before returns.
    """

    def __init__(self, transforms: list[Callable]):
        self.transforms = transforms

    def __call__(self, picture: Image.Image) -> Tensor:
        value: Any = picture
        for step in self.transforms:
            value = step(value)

        return value


def eval_transform(config: HCastConfig) -> Compose:
    """Return the preprocessing of a config: PIL RGB picture to (3, H, W) float32, normalised.

    The short side is resized to ``image_size / crop_pct``, then the centre is cropped. If a picture is over 20 times as
    long as it is wide, only the middle is resized; the rest would be cropped anyway. With ``crop_mode`` ``pad``, the
    long side is resized instead, and the rest is filled with the mean colour; with ``squash``, both sides are resized.

    Source: official datasets.py:177-180 (docs/official_differences.md, 25).
    """
    return Compose([*to_square(config, config.image_size), *to_tensor(config)])


def to_square(config: HCastConfig, size: int) -> list[Callable]:
    """Return the first steps of preprocessing: resize, and crop ``size`` x ``size`` pixels from the centre."""
    resample = Image.Resampling[config.interpolation.upper()]
    side = short_side(config)
    if config.crop_mode == "squash":
        return [partial(squash, side=side, resample=resample), partial(center_crop, size=size)]
    if config.crop_mode == "pad":
        fill = tuple(min(max(round(255 * value), 0), 255) for value in config.mean)
        return [partial(resize_long, long=side, resample=resample), partial(crop_or_pad, size=size, fill=fill)]
    return [middle, partial(resize, short=side, resample=resample), partial(center_crop, size=size)]


def short_side(config: HCastConfig) -> int:
    """Return the length in pixels to which the short side (with ``pad``, the long one) is resized before the crop."""
    return int(config.image_size / config.crop_pct)


def middle(picture: Image.Image) -> Image.Image:
    """Return the middle of a picture that is over 20 times as long as it is wide; any other picture is unchanged."""
    left, top, right, bottom = middle_box(picture.size)
    return picture if (right - left, bottom - top) == picture.size else picture.crop((left, top, right, bottom))


def middle_box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the part that :func:`middle` keeps; its centre is that of the picture."""
    most = MAX_ASPECT * min(size)
    # Odd for an odd side and even for an even one, so that the same number of pixels is cut off at both ends.
    kept = [side if side <= most else most + (side - most) % 2 for side in size]
    left, top = (size[0] - kept[0]) // 2, (size[1] - kept[1]) // 2
    return left, top, left + kept[0], top + kept[1]


def resized(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Return the size (width, height) after the short side is resized to ``short``; the other side rounds down."""
    width, height = (short if side == min(size) else int(short * side / min(size)) for side in size)
    return width, height


def resize(picture: Image.Image, short: int, resample: Image.Resampling) -> Image.Image:
    """Resize a picture so that its short side has ``short`` pixels."""
    size = resized(picture.size, short)
    return picture if size == picture.size else picture.resize(size, resample)


def squash(picture: Image.Image, side: int, resample: Image.Resampling) -> Image.Image:
    """Resize a picture to a square, whatever its shape."""
    return picture if picture.size == (side, side) else picture.resize((side, side), resample)


def resize_long(picture: Image.Image, long: int, resample: Image.Resampling) -> Image.Image:
    """Resize a picture so that its long side has ``long`` pixels."""
    size = resized_long(picture.size, long)
    return picture if size == picture.size else picture.resize(size, resample)


def resized_long(size: tuple[int, int], long: int) -> tuple[int, int]:
    """Return the size (width, height) of a picture whose long side is resized to ``long``; rounded as timm does."""
    ratio = max(size) / long
    width, height = (max(1, round(side / ratio)) for side in size)
    return width, height


def crop_or_pad(picture: Image.Image, size: int, fill: tuple[int, ...]) -> Image.Image:
    """Put a picture in the centre of ``size`` x ``size`` pixels; crop what is too long, fill the rest."""
    if min(picture.size) >= size:
        return center_crop(picture, size)

    left, top = pad_start(picture.size, size)
    colour = fill * 3 if len(fill) == 1 else fill
    if picture.mode == "RGBA":
        colour = (*colour, 255)
    square = Image.new(picture.mode, (size, size), colour)
    square.paste(picture, (left, top))
    return square


def pad_start(size: tuple[int, int], square: int) -> tuple[int, int]:
    """Return left and top of a picture in a square: negative where it is cut off; rounded as timm does."""
    left, top = ((square - side) // 2 if side < square else -round((side - square) / 2) for side in size)
    return left, top


def center_crop(picture: Image.Image, size: int) -> Image.Image:
    """Crop ``size`` x ``size`` pixels from the centre of a picture that is at least as large."""
    left, top = crop_start(picture.size, size)
    return picture.crop((left, top, left + size, top + size))


def crop_start(size: tuple[int, int], crop: int) -> tuple[int, int]:
    """Return left and top of the centre crop; halves round to even, as in torchvision."""
    left, top = (round((side - crop) / 2) for side in size)
    return left, top


def view_box(config: HCastConfig, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the part of a picture that :func:`eval_transform` shows the model.

    Args:
        config: The config, which defines the preprocessing.
        size: Width and height of the picture in pixels.

    Returns:
        Left, top, right, bottom in the picture's pixels; with ``pad``, beyond its edges.
    """
    crop = config.image_size
    at_left, at_top = 0, 0
    if config.crop_mode == "pad":
        shown = resized_long(size, short_side(config))
        before = pad_start(shown, crop)
        start = -before[0], -before[1]
    elif config.crop_mode == "squash":
        shown = short_side(config), short_side(config)
        start = crop_start(shown, crop)
    else:
        at_left, at_top, right, bottom = middle_box(size)
        size = right - at_left, bottom - at_top
        shown = resized(size, short_side(config))
        start = crop_start(shown, crop)

    scale_x, scale_y = size[0] / shown[0], size[1] / shown[1]
    left, top = start[0] * scale_x + at_left, start[1] * scale_y + at_top
    return left, top, left + crop * scale_x, top + crop * scale_y


def to_tensor(config: HCastConfig) -> list[Callable]:
    """Return the last steps of every preprocessing: float32 in [0, 1], channels first, normalisation."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalization(config))
    grey = [to_grey] if config.in_chans == 1 else []
    return [*grey, to_float, partial(normalize, mean=mean, std=std)]


def to_grey(picture: Image.Image) -> Image.Image:
    """Convert a picture to 8-bit grey."""
    return picture.convert("L")


def to_float(picture: Image.Image) -> Tensor:
    """Turn an 8-bit picture into a (C, H, W) float32 tensor in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    # Divided by 255, as timm and the official loaders do; multiplying by 1/255 changes the last bits.
    return pixels.contiguous().float().div(255)


def normalize(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Subtract the mean of each channel of a (C, H, W) tensor, and divide by its deviation."""
    return image.sub(mean).div(std)


def normalization(config: HCastConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation of each channel; for grey images, averages over the channels, as for SEEDS."""
    if config.in_chans != 1:
        return config.mean, config.std

    return (sum(config.mean) / len(config.mean),), (sum(config.std) / len(config.std),)
