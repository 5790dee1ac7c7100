"""HierarchicalDataPreprocessor: from collated samples to a normalised batch, mixed at all levels in training."""

from collections.abc import Sequence

import torch
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from hcast_zoo.network.config import IMAGENET_MEAN, IMAGENET_STD
from hcast_zoo.training.losses import soft_targets

from .head import stack_paths


@MODELS.register_module()
class HierarchicalDataPreprocessor(ClsDataPreprocessor):
    """Normalise bit for bit as the core does, and mix the labels of all levels with one lambda.

    Mixup and CutMix are mmpretrain's: they see the concatenated targets of all levels (``gt_score``). Mixing makes the
    superpixels of the pictures stale, so the maps are dropped and the backbone makes those of the mixed batch.

    Args:
        mean: Channel means, R, G, B, for pixels in [0, 1]. mmpretrain's preprocessor expects [0, 255].
        std: Channel standard deviations.
        to_rgb: Whether pictures come as B, G, R, as mmpretrain's pipelines give them.
        level_classes: Classes of each level, coarse to fine; :class:`.classifier.HierarchicalClassifier` sets it.
        batch_augments: See mmpretrain's RandomBatchAugment; from the model's ``train_cfg``.
        keep_segments: Keep the maps of the unmixed pictures, as the official code does.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        to_rgb: bool = True,
        level_classes: Sequence[int] | None = None,
        batch_augments: dict | None = None,
        keep_segments: bool = False,
    ):
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"expected a mean and a positive std for each channel, got {mean} and {std}")
        super().__init__(mean, std, to_rgb=to_rgb, to_onehot=True, batch_augments=batch_augments)
        self.to_onehot = False  # the targets of all levels are made here (True above avoids a wrong log line)
        self.level_classes = None if level_classes is None else tuple(level_classes)
        self.keep_segments = keep_segments

    def set_levels(self, level_classes: tuple[int, ...]) -> None:
        """Set the classes of the levels.

        Raises:
            ValueError: if they differ from those given before.
        """
        if self.level_classes not in (None, level_classes):
            raise ValueError(f"level_classes: the data preprocessor has {self.level_classes}, the head {level_classes}")
        self.level_classes = level_classes

    def forward(self, data: dict, training: bool = False) -> dict:
        """Return ``inputs`` (B, C, H, W) float32, normalised, and ``data_samples`` on the device.

        Args:
            data: ``inputs``, a (B, C, H, W) tensor or a list of (C, H, W), values in [0, 255]; ``data_samples``.
            training: Whether to mix.
        """
        inputs = self.cast_data(data["inputs"])
        # The core divides by 255 and then normalises; mmpretrain's single step changes the last bits, and those change
        # SEEDS' segments.
        inputs = inputs.float() / 255 if isinstance(inputs, torch.Tensor) else [x.float() / 255 for x in inputs]
        samples = self.cast_data(data.get("data_samples"))
        if training and self.batch_augments is not None and samples is not None:
            self._prepare_mixing(samples)
        return super().forward({"inputs": inputs, "data_samples": samples}, training)

    def _prepare_mixing(self, samples: Sequence[DataSample]) -> None:
        if self.level_classes is None:
            raise ValueError("level_classes: batch augmentations need the number of classes of each level")
        targets = torch.cat(soft_targets(stack_paths(samples), self.level_classes), -1)
        for sample, target in zip(samples, targets):
            sample.set_gt_score(target)
            if not self.keep_segments:
                sample.pop("segments", None)
