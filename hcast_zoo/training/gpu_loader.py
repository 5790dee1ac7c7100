"""Training pictures on the accelerator: the whole data set is kept, cropped, coloured and mixed there.

With small pictures, worker processes cannot keep up with a GPU; this loader can.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import functional as tvf
from tqdm import tqdm

from ..common.progress import hides_bars
from ..common.text import printable
from ..data.dataset import HierarchicalDataset
from ..data.loading import SeededSampler, seed_everything
from ..data.pictures import PictureError
from ..data.transforms import Compose, normalization, short_side, to_square
from ..network.config import HCastConfig
from .settings import TrainConfig

ROTATION = math.radians(15)  # largest rotation, in either direction
HUE = math.tau / 10  # largest rotation of the hue, in either direction
ASPECT = math.log(4 / 3)  # largest logarithm of a crop's aspect ratio, in either direction
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), math.log(10 / 3)  # of an erased rectangle; timm's values
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


class DeviceLoader:
    """Batches of a data set on a device, augmented there; order and random draws follow from the seed.

    The pictures are decoded once, and kept as 8-bit RGBA of the size that evaluation resizes them to: 37 kB each at
    96 pixels. Those that cannot be read are left out, with a warning.

    Args:
        dataset: The pictures; its transform is not used.
        config: Size and normalisation of the images.
        settings: Augmentation and batch size.
        sampler: Order and seeds of the samples that can be read.
        device: Where the pictures are kept.
        mixup: Called with images and labels, returns mixed images and soft targets.
        progress: Show a progress bar while pictures are decoded.

    Raises:
        ValueError: if fewer pictures than one batch can be read.
    """

    def __init__(
        self,
        dataset: HierarchicalDataset,
        config: HCastConfig,
        settings: TrainConfig,
        sampler: SeededSampler,
        device: torch.device,
        mixup: Callable | None = None,
        progress: bool = True,
    ):
        self.config, self.settings, self.sampler, self.mixup = config, settings, sampler, mixup
        prepare = Compose(to_square(config, short_side(config)))
        pictures, kept = [], []
        for index in tqdm(
            range(len(dataset)), "decode", unit="picture", disable=not progress or hides_bars(), leave=False
        ):
            try:
                picture = dataset.open(index).convert("RGBA")
            except PictureError as error:
                warnings.warn(printable(f"left out: {error}"), stacklevel=2)
                continue

            pictures.append(tvf.pil_to_tensor(prepare(picture)))
            kept.append(index)

        if len(pictures) < settings.batch_size:
            raise ValueError(
                f"expected at least a batch of {settings.batch_size} pictures that can be read, got {len(pictures)}"
            )

        self.pictures, self.labels = torch.stack(pictures).to(device), dataset.labels[kept].to(device)
        sampler.length = len(kept)

    def __len__(self) -> int:
        return len(self.labels) // self.settings.batch_size

    def __iter__(self) -> Iterator[dict]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[dict]:
        """Yield the sampler's epoch from batch ``start``: ``images``, ``labels`` and ``targets`` on the device."""
        size = self.settings.batch_size
        samples = list(self.sampler)[: len(self) * size]

        for first in itertools.islice(range(0, len(samples), size), start, None):
            seed_everything(samples[first][1])
            index = torch.tensor([i for i, _ in samples[first : first + size]], device=self.labels.device)
            images = self._normalize(augment(self.pictures[index], self.config, self.settings))
            erase(images, self.settings.random_erasing)
            labels = targets = self.labels[index]
            if self.mixup is not None:
                images, targets = self.mixup(images, labels)
            yield {"images": images, "labels": labels, "targets": targets}

    def _normalize(self, images: Tensor) -> Tensor:
        if self.config.in_chans == 1:
            images = luma(images)
        return tvf.normalize(images, *normalization(self.config))


def augment(pictures: Tensor, config: HCastConfig, settings: TrainConfig) -> Tensor:
    """Crop, rotate, flip and colour each picture of a batch at random.

    The strengths are ``crop_scale``, ``hflip``, ``color_jitter`` and ``random_background`` of the settings. Pictures
    are rotated by up to 15 degrees unless the crop is the whole picture, hues by up to a tenth of the circle unless
    ``color_jitter`` is 0; half of the random backgrounds are white.

    Args:
        pictures: (B, 4, S, S) uint8, RGBA.
        config: Size of the images.
        settings: Augmentation.

    Returns:
        (B, 3, image_size, image_size) float32, RGB in [0, 1].
    """
    pixels = pictures.float() / 255
    pixels[:, :3] *= pixels[:, 3:]  # otherwise colours of transparent pixels would bleed

    shape = [len(pixels), 4, config.image_size, config.image_size]
    grid = F.affine_grid(random_boxes(len(pixels), pictures.device, settings), shape, align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)

    ground = torch.ones_like(pixels[:, :3, :1, :1])
    if settings.random_background:
        ground = torch.where(_draw(pixels, 0, 1, 1) < 0.5, ground, _draw(pixels, 0, 1, 3))
    images = pixels[:, :3] + (1 - pixels[:, 3:]) * ground

    return jitter(images, settings.color_jitter) if settings.color_jitter else images.clamp(0, 1)


def random_boxes(count: int, device: torch.device, settings: TrainConfig) -> Tensor:
    """Return (count, 2, 3) float32 maps from a crop's coordinates to the picture's, both in [-1, 1]."""
    draw = torch.empty(count, device=device)
    area, aspect = _uniform(draw, settings.crop_scale, 1), _uniform(draw, -ASPECT, ASPECT).exp()
    if settings.crop_scale == 1:
        aspect = torch.ones_like(aspect)
    width, height = ((area * ratio).sqrt().clamp(max=1) for ratio in (aspect, 1 / aspect))
    angle = _uniform(draw, -ROTATION, ROTATION) * (settings.crop_scale < 1)
    mirror = torch.where(_uniform(draw, 0, 1) < settings.hflip, -1.0, 1.0)
    x, y = ((1 - side) * _uniform(draw, -1, 1) for side in (width, height))  # centre of the crop
    cos, sin = angle.cos(), angle.sin()
    entries = [cos * width * mirror, -sin * height, x, sin * width * mirror, cos * height, y]

    return torch.stack(entries, 1).view(count, 2, 3)


def jitter(images: Tensor, amount: float) -> Tensor:
    """Change brightness, contrast, saturation (by factors from 1 - amount to 1 + amount) and hue of each image.

    The hue is rotated about the axis of the greys, so greys do not change.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        amount: In [0, 1].
    """
    brightness, contrast, saturation = (_draw(images, 1 - amount, 1 + amount, 1) for _ in range(3))
    images = (images * brightness).clamp(0, 1)
    mean = luma(images).mean((2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    grey = luma(images)
    images = grey + (images - grey) * saturation
    angle = _draw(images, -HUE, HUE, 1)

    # Rodrigues' formula for the axis (1, 1, 1) / sqrt(3).
    cross = images.roll(1, 1) - images.roll(-1, 1)
    mean = images.mean(1, keepdim=True)
    return (mean + (images - mean) * angle.cos() + cross * angle.sin() / math.sqrt(3)).clamp(0, 1)


def erase(images: Tensor, probability: float) -> None:
    """Fill a random rectangle with noise, in place, in each of the (B, C, H, W) normalised images with a probability.

    timm's ``RandomErasing(device=)`` draws its rectangles image by image, on the CPU; here they are drawn for the whole
    batch, on its device.

    Source: Zhong et al., Random Erasing Data Augmentation, 2020; areas and aspects are timm's.
    """
    height, width = images.shape[2:]
    area, aspect = _draw(images, *ERASED_AREA, 1), _draw(images, -ERASED_ASPECT, ERASED_ASPECT, 1).exp()
    inside = _draw(images, 0, 1, 1) < probability
    for ratio, size, dim in ((aspect, height, 2), (1 / aspect, width, 3)):
        side = (area * ratio).sqrt().clamp(max=1)
        start = _draw(images, 0, 1, 1) * (1 - side)
        place = (torch.arange(size, device=images.device) + 0.5) / size
        place = place.view([-1 if d == dim else 1 for d in range(4)])
        inside = inside & (place >= start) & (place < start + side)

    torch.where(inside, torch.randn_like(images), images, out=images)


def luma(images: Tensor) -> Tensor:
    """Return the (B, 1, H, W) brightness of (B, 3, H, W) RGB images."""
    return (images * torch.tensor(LUMA, device=images.device).view(3, 1, 1)).sum(1, keepdim=True)


def _draw(images: Tensor, low: float, high: float, channels: int) -> Tensor:
    return _uniform(images.new_empty(len(images), channels, 1, 1), low, high)


def _uniform(like: Tensor, low: float, high: float) -> Tensor:
    return torch.empty_like(like).uniform_(low, high)
