"""Pictures in: reading any common format as RGB, and the preprocessing of a config."""

from PIL import Image
from torchvision import transforms as tv

from ..network.config import HCastConfig

MAX_ASPECT = 20  # of a picture that is longer the middle is read: whole, a line of pixels would be resized to a giant


def eval_transform(config: HCastConfig) -> tv.Compose:
    """Return the preprocessing of a config: PIL RGB picture to (3, H, W) float32, normalised.

    The short side is resized to ``image_size / crop_pct``, the centre cropped. Of a picture that is over 20 times as
    long as it is wide, only the middle is resized, for the rest would be cropped.

    Source: official datasets.py:177-180 (docs/official_differences.md, 25).
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
