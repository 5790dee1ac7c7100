"""Superpixels: SEEDS on the CPU, SLIC on any device, a regular grid, and checks of segment maps.

A segment map is an int64 tensor (B, H, W) of labels from 0 to ``num_superpixels - 1``. Labels may be missing:
the token of such a label is empty.
"""

import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .config import SUPERPIXELS as METHODS
from .config import HCastConfig
from .layers import is_plain, is_vmapped
from .slic import grid_shape, slic

SEEDS_ITERATIONS = 15
MIN_SUPERPIXELS = 10  # OpenCV raises smaller numbers to this
GRID_NOTE = (
    "this graph uses grid superpixels in place of SEEDS, which cannot run in a graph; its predictions differ from the "
    "model's: pass segments to it, or create the model with superpixels='slic'"
)
CV2_HELP = (
    "cv2 has no ximgproc module, so SEEDS superpixels cannot be computed: another OpenCV package overwrote "
    "the contrib build. Repair it with: pip install --force-reinstall --no-deps opencv-contrib-python-headless"
)


def seeds_superpixels(image: np.ndarray, num_superpixels: int = 196) -> np.ndarray:
    """Segment a picture into superpixels by SEEDS on its Lab colours.

    OpenCV makes a grid of at most ``num_superpixels`` blocks and moves their boundaries. The result is a plain grid if
    the image is too small for such blocks, with which OpenCV would crash or hang, or if ``num_superpixels`` is below
    10, which OpenCV would raise to 10.

    Args:
        image: (H, W, 3) uint8, RGB.
        num_superpixels: Largest number of superpixels, 1 or more.

    Returns:
        (H, W) int64 labels from 0.

    Raises:
        ValueError: if the image is not (H, W, 3) uint8 with at least one pixel.
        ImportError: if OpenCV lacks its contrib modules.

    Source: official birds_seeds.py:104-111 (prior 2, 5 histogram bins, 1 level, 15 iterations).
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected an RGB image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if num_superpixels < 1:
        raise ValueError(f"expected num_superpixels of 1 or more, got {num_superpixels}")

    height, width = image.shape[:2]
    if _seeds_blocks(height, width, num_superpixels) == 0:
        return grid_superpixels(height, width, num_superpixels).numpy()

    cv2 = load_cv2()
    lab = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2LAB)
    algorithm = cv2.ximgproc.createSuperpixelSEEDS(
        width, height, 3, num_superpixels, num_levels=1, prior=2, histogram_bins=5, double_step=False
    )
    algorithm.iterate(lab, SEEDS_ITERATIONS)

    return algorithm.getLabels().astype(np.int64)


def grid_superpixels(height: int, width: int, num_superpixels: int = 196) -> Tensor:
    """Return a (H, W) int64 map of at most ``num_superpixels`` equal rectangles, for tracing and tiny images."""
    rows, cols = grid_shape(height, width, num_superpixels)
    row = torch.arange(height) * rows // height
    col = torch.arange(width) * cols // width
    return row[:, None] * cols + col


def segment_normalized(
    images: Tensor, num_superpixels: int, mean: tuple[float, ...], std: tuple[float, ...], method: str = "seeds"
) -> Tensor:
    """Segment each of a batch of normalised images.

    On the meta device and during export, where OpenCV cannot run, a grid replaces SEEDS; an export warns of it. SLIC
    runs on the images' device, and in exported graphs too.

    Args:
        images: (B, C, H, W) float, normalised by ``mean`` and ``std``.
        num_superpixels: Labels are from 0 to this number, exclusive.
        mean: Channel means, pixels in [0, 1].
        std: Channel deviations.
        method: One of ``METHODS``.

    Returns:
        (B, H, W) int64 labels on the images' device.

    Raises:
        ValueError: if there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"expected superpixels by one of {', '.join(METHODS)}, got {method!r}")
    if images.dtype in (torch.float16, torch.bfloat16):
        images = unrounded(images, mean, std)

    if method == "slic":
        return slic(to_rgb(images, mean, std), num_superpixels)

    in_graph = torch.compiler.is_exporting() or torch.jit.is_tracing()
    if method == "seeds" and in_graph:
        warn_of_grid()
    if method == "grid" or images.is_meta or in_graph:
        height, width = images.shape[2:]
        if torch.jit.is_tracing():
            height, width = int(height), int(width)  # in a trace, sizes are tensors
        labels = grid_superpixels(height, width, num_superpixels).to(images.device)
        return labels.expand(images.shape[0], -1, -1)

    # Compilers and transforms need the custom operator. Its first call imports torch's compiler, so plain tensors do
    # without it.
    segment = _seeds if is_plain(images) else torch.ops.hcast_zoo.seeds
    return segment(images.detach(), num_superpixels, list(mean), list(std))


def warn_of_grid() -> None:
    """Warn that a graph has other superpixels than its model."""
    warnings.warn(GRID_NOTE, stacklevel=2)


# Dynamo drops warnings while it traces, except in a function with the mark that torch.compiler.assume_constant_result
# sets; calling that would import torch's compiler.
warn_of_grid._dynamo_marked_constant = True  # type: ignore[attr-defined]


def prepare_segments(
    images: Tensor, segments: Tensor | None, config: HCastConfig, num_superpixels: int | None = None
) -> Tensor:
    """Return the segments of images: the given ones after checking them, or computed ones.

    Args:
        images: (B, in_chans, H, W) float, normalised.
        segments: (B, H, W) integer superpixel maps, or None.
        config: Any object with the fields ``in_chans``, ``num_superpixels``, ``mean``, ``std`` and ``superpixels``.
        num_superpixels: Another number than the config's. Labels run from 0 to this, exclusive.

    Returns:
        (B, H, W) int64 labels on the images' device.

    Raises:
        ValueError: if a shape, a dtype or a label is not as expected.
    """
    num_superpixels = num_superpixels or config.num_superpixels
    if images.ndim != 4 or images.shape[1] != config.in_chans:
        raise ValueError(f"expected images (B, {config.in_chans}, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"expected normalised floating-point images, got {images.dtype}")

    if segments is None:
        return segment_images(images, config, num_superpixels)
    check_segments(segments, images, num_superpixels)
    return segments.to(images.device, torch.int64)


def segment_images(images: Tensor, config: HCastConfig, num_superpixels: int | None = None) -> Tensor:
    """Return the (B, H, W) int64 superpixels of normalised (B, C, H, W) images, made as a config says."""
    return segment_normalized(
        images, num_superpixels or config.num_superpixels, config.mean, config.std, config.superpixels
    )


def to_uint8(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn normalised images back into the 8-bit RGB pixels that SEEDS sees.

    The value is truncated, not rounded, as in the official loader: 22 % of the bytes are one lower than the
    picture's. Values outside [0, 255] are clipped. Differs from official: there they wrap around
    (docs/official_differences.md, 21).

    Args:
        images: (B, C, H, W) float.

    Returns:
        (B, H, W, 3) uint8, on the CPU.

    Source: official birds_seeds.py:104-106.
    """
    images = images.detach().cpu().double()  # in float32, rounding would change a fifth of the bytes
    return (to_rgb(images, mean, std) * 255).to(torch.uint8).permute(0, 2, 3, 1)


def wrapped_seeds(images: Tensor, num_superpixels: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Segment normalised images by SEEDS as the official loader does, where bytes outside [0, 255] wrap around.

    Args:
        images: (B, 3, H, W) float on the CPU.
        num_superpixels: How many to ask for.
        mean: Channel means.
        std: Channel deviations.

    Returns:
        (B, H, W) int64 labels.

    Source: official birds_seeds.py:104-106; docs/official_differences.md, 21.
    """
    shift, scale = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    values = ((images.double() * scale + shift) * 255).to(torch.int64) % 256
    pixels = values.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.from_numpy(np.stack([seeds_superpixels(picture, num_superpixels) for picture in pixels]))


def unrounded(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return the float32 images that half-precision ones were rounded from, if those came from 8-bit pictures.

    Rounding moves a pixel by less than half a grey level, yet any difference gives SEEDS other segments.

    Args:
        images: (B, C, H, W) float16 or bfloat16, normalised.
    """
    channels = images.shape[1]
    shift, scale = (torch.tensor(v, dtype=torch.float32, device=images.device) for v in (mean, std))
    if len(mean) != channels:
        shift, scale = (v.mean().expand(channels) for v in (shift, scale))
    shift, scale = shift[:, None, None], scale[:, None, None]
    levels = ((images.float() * scale + shift) * 255).round()
    return (levels / 255 - shift) / scale


def to_rgb(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn normalised (B, C, H, W) float images back into (B, 3, H, W) pixels in [0, 1]; NaN becomes 0.

    A single channel is repeated; of more than three channels, the first three are used.
    """
    channels = 3 if images.shape[1] >= 3 else 1
    shift, scale = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (mean, std))
    if len(mean) < channels or channels == 1:
        shift, scale = shift.mean(), scale.mean()
    else:
        shift, scale = shift[:channels, None, None], scale[:channels, None, None]

    pixels = (images[:, :channels] * scale + shift).nan_to_num(0.0).clamp(0, 1)
    return pixels.expand(-1, 3, -1, -1)


def check_segments(segments: Tensor, images: Tensor, num_superpixels: int) -> None:
    """Raise ValueError unless ``segments`` is an integer map of ``images`` with labels in range."""
    expected = (images.shape[0], *images.shape[2:])
    if tuple(segments.shape) != expected:
        raise ValueError(f"expected segments (B, H, W) = {expected}, got {tuple(segments.shape)}")
    if segments.dtype not in (torch.uint8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"expected segments of an integer dtype, got {segments.dtype}")
    if segments.is_meta or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if is_vmapped(segments) or not segments.numel():
        return
    if segments.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # a CUDA graph must not wait for values

    low, high = segments.aminmax()
    if low < 0 or high >= num_superpixels:
        raise ValueError(
            f"expected segment labels from 0 to {num_superpixels - 1}, got {int(low)} to {int(high)}: "
            "relabel the map, or use a model with a larger num_superpixels"
        )


def _seeds(images: Tensor, num_superpixels: int, mean: list[float], std: list[float]) -> Tensor:
    pixels = to_uint8(images, mean, std).numpy()
    # OpenCV releases the interpreter lock, so threads help. Their number does not change the maps.
    with ThreadPoolExecutor(max(1, min(len(pixels), torch.get_num_threads()))) as pool:
        maps = list(pool.map(lambda image: seeds_superpixels(image, num_superpixels), pixels))
    labels = np.stack(maps) if maps else np.zeros(pixels.shape[:3], np.int64)
    return torch.from_numpy(labels).to(images.device)


_seeds_op = torch.library.custom_op("hcast_zoo::seeds", _seeds, mutates_args=())

# Labels have no gradient, but torch.func requires a rule.
_seeds_op.register_autograd(
    lambda context, gradient: (None, None, None, None), setup_context=lambda context, inputs, output: None
)


@_seeds_op.register_vmap
def _(info, in_dims, images, num_superpixels, mean, std):
    images = images.movedim(in_dims[0], 0)
    maps = torch.ops.hcast_zoo.seeds(images.flatten(0, 1), num_superpixels, mean, std)
    return maps.unflatten(0, images.shape[:2]), 0


@_seeds_op.register_fake
def _(images, num_superpixels, mean, std):
    return images.new_empty((images.shape[0], *images.shape[2:]), dtype=torch.int64)


def _seeds_blocks(height: int, width: int, num_superpixels: int) -> int:
    """Return how many blocks OpenCV starts from, with its rounding; 0 if it would crash or hang."""
    rows = int((num_superpixels * height / width) ** 0.5)
    cols = rows * width // height
    if min(rows, cols) < 1 or height < 2 * rows or width < 2 * cols or num_superpixels < MIN_SUPERPIXELS:
        return 0
    block_height, block_width = (2 * math.ceil(side / n / 2) for side, n in ((height, rows), (width, cols)))
    return (height // block_height) * (width // block_width)


def load_cv2():
    """Return OpenCV with its extra modules.

    Raises:
        ImportError: if it is missing, or another build of OpenCV hides them; the message says what to install.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("SEEDS superpixels need OpenCV: pip install opencv-contrib-python-headless") from error
    if not hasattr(cv2, "ximgproc"):
        raise ImportError(CV2_HELP)
    return cv2
