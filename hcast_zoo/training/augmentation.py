"""Augmentation: timm's transforms for a picture, and mixup and cutmix for a batch with labels at every level."""

import functools
from collections.abc import Callable

import numpy as np
import timm.data
from timm.data.mixup import Mixup
from torch import Tensor
from torchvision.transforms import Grayscale

from ..common.text import brief, clip
from ..data.transforms import normalization
from ..network.config import IMAGENET_MEAN, IMAGENET_STD, HCastConfig
from .losses import soft_targets
from .settings import TrainConfig


def train_transform(config: HCastConfig, settings: TrainConfig):
    """Return timm's training augmentation, from a PIL RGB picture to a normalised (in_chans, H, W) float32 tensor.

    Raises:
        ValueError: if timm does not know the policy.
    """
    policy = settings.auto_augment or None

    # The official code always trains with ImageNet's normalisation (docs/official_differences.md, 24).
    mean, std = normalization(config.replace(mean=IMAGENET_MEAN, std=IMAGENET_STD) if settings.paper_exact else config)
    try:
        transform = timm.data.create_transform(
            config.image_size,
            is_training=True,
            scale=(settings.crop_scale, 1.0),
            hflip=settings.hflip,
            color_jitter=settings.color_jitter,
            auto_augment=policy,
            interpolation=config.interpolation,
            mean=mean,
            std=std,
            re_prob=settings.random_erasing,
            re_mode="pixel",
            use_prefetcher=False,
        )
    except (AssertionError, KeyError, IndexError) as error:  # timm raises these for a policy that it does not know
        raise ValueError(
            f'auto_augment: expected a policy of timm, such as rand-m9-mstd0.5-inc1, or "", got '
            f"{brief(settings.auto_augment)}: {clip(error)}"
        ) from error

    _limit_posterise(transform)
    if config.in_chans == 1:  # after timm's augmentations, some of which need colours
        kinds = list(map(type, transform.transforms))
        transform.transforms.insert(kinds.index(timm.data.transforms.MaybeToTensor), Grayscale(1))

    return transform


def _limit_posterise(transform) -> None:
    """Posterise to one bit where a policy asks for 0, which Pillow 13 refuses; random draws do not change."""
    for step in transform.transforms:
        for op in getattr(step, "ops", ()):
            if op.name.startswith("Posterize"):
                op.level_fn = functools.partial(_at_least_one_bit, op.level_fn)


def _at_least_one_bit(level_fn: Callable, level: float, hparams: dict) -> tuple[int]:
    return (max(level_fn(level, hparams)[0], 1),)


class HierarchicalMixup(Mixup):
    """timm's mixup and cutmix, with the labels of every level mixed by one lambda.

    Args:
        official_boxes: Cut boxes as timm 0.4.12 did: an odd side becomes one pixel shorter
            (docs/official_differences.md, 40).
        kwargs: timm's arguments.

    Source: official mixup_hier.py:217-222 (docs/official_differences.md, 29).
    """

    def __init__(self, *args, official_boxes: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.official_boxes = official_boxes

    def _mix_batch(self, x: Tensor) -> float:
        if not self.official_boxes:
            return super()._mix_batch(x)

        lam, use_cutmix = self._params_per_batch()
        if lam == 1.0:
            return 1.0
        if not use_cutmix:
            mixed = x.flip(0).mul_(1.0 - lam)
            x.mul_(lam).add_(mixed)
            return lam

        height, width = x.shape[-2:]
        ratio = np.sqrt(1 - lam)
        half_height, half_width = int(height * ratio) // 2, int(width * ratio) // 2
        y, x_centre = np.random.randint(0, height), np.random.randint(0, width)
        top, bottom = max(y - half_height, 0), min(y + half_height, height)
        left, right = max(x_centre - half_width, 0), min(x_centre + half_width, width)
        x[:, :, top:bottom, left:right] = x.flip(0)[:, :, top:bottom, left:right]
        return 1.0 - (bottom - top) * (right - left) / float(height * width)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mix (B, C, H, W) images in place, and (B, L) labels (-1 for unknown) into soft targets."""
        mix = {"elem": self._mix_elem, "pair": self._mix_pair, "batch": self._mix_batch}[self.mode]
        lam = mix(images)
        targets = soft_targets(labels, self.num_classes, self.label_smoothing)
        return images, tuple(t * lam + t.flip(0) * (1.0 - lam) for t in targets)


def make_mixup(config: HCastConfig, settings: TrainConfig) -> HierarchicalMixup | None:
    """Return the mixup and cutmix of the settings, or None if both are off."""
    if not settings.mixup and not settings.cutmix:
        return None

    return HierarchicalMixup(
        settings.mixup,
        settings.cutmix,
        prob=settings.mix_prob,
        label_smoothing=settings.smoothing,
        num_classes=config.level_classes,
        official_boxes=settings.paper_exact,
    )
