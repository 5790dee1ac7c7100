"""HierarchicalClassifier: mmpretrain's ImageClassifier, passing superpixel maps to its backbone."""

import torch
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from hcast_zoo.network.config import default_head_stages

from .backbone import HCast
from .head import HierarchicalClsHead
from .preprocessor import HierarchicalDataPreprocessor


@MODELS.register_module()
class HierarchicalClassifier(ImageClassifier):
    """Classify along a taxonomy. The backbone makes the superpixel maps, unless the data samples hold ``segments``.

    Args:
        backbone: An :class:`.backbone.HCast`.
        head: A :class:`.head.HierarchicalClsHead`.
        neck: None, or a module that keeps the number of features.
        train_cfg: Batch augmentations, as for ImageClassifier: ``dict(augments=[dict(type="Mixup", alpha=0.8)])``.
        data_preprocessor: A :class:`.preprocessor.HierarchicalDataPreprocessor` by default.
        pretrained: Checkpoint to start from.
        init_cfg: mmengine's initialisation.

    Raises:
        ValueError: if the head cannot read the backbone's outputs, or preprocessor and backbone normalise differently.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module | None = None,
        neck: dict | nn.Module | None = None,
        pretrained: str | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list | None = None,
    ):
        if data_preprocessor is None or isinstance(data_preprocessor, dict):
            data_preprocessor = {"type": "HierarchicalDataPreprocessor", **(data_preprocessor or {})}
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            pretrained=pretrained,
            train_cfg=train_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        if isinstance(self.head, HierarchicalClsHead) and isinstance(self.backbone, HCast):
            self._check_head(self.backbone, self.head)
        if isinstance(self.data_preprocessor, HierarchicalDataPreprocessor):
            self._check_preprocessor(self.data_preprocessor)

    @staticmethod
    def _check_head(backbone: HCast, head: HierarchicalClsHead) -> None:
        if head.in_channels != backbone.config.embed_dim:
            raise ValueError(
                f"in_channels of the head: expected the backbone's width {backbone.config.embed_dim}, got "
                f"{head.in_channels}"
            )

        if max(head.in_indices) >= len(backbone.out_indices):
            default = [stage - 1 for stage in default_head_stages(len(head.level_classes))]
            raise ValueError(
                f"the head reads outputs {head.in_indices} of the backbone, which has out_indices "
                f"{backbone.out_indices}: give it out_indices=(0, 1, 2, 3) and the head in_indices="
                f"{default}, the default"
            )

    def _check_preprocessor(self, preprocessor: HierarchicalDataPreprocessor) -> None:
        if isinstance(self.head, HierarchicalClsHead):
            preprocessor.set_levels(self.head.level_classes)

        if isinstance(self.backbone, HCast):
            for name in ("mean", "std"):
                expected = torch.tensor(getattr(self.backbone.config, name))
                values = getattr(preprocessor, name).flatten()
                if len(values) != len(expected) or not torch.allclose(values, expected):
                    raise ValueError(
                        f"{name}: the data preprocessor has {values.tolist()}, the backbone "
                        f"{expected.tolist()} (for pixels in [0, 1]): they must agree, or superpixels are "
                        "not those of the picture"
                    )

    def extract_feat(
        self, inputs: Tensor, stage: str = "neck", data_samples: list[DataSample] | None = None
    ) -> tuple[Tensor, ...]:
        """Return features; see ImageClassifier. The maps in ``data_samples`` are used, if any."""
        return self._after_backbone(self.backbone(inputs, **stack_segments(data_samples)), stage)

    def _after_backbone(self, feats: tuple[Tensor, ...], stage: str = "neck") -> tuple[Tensor, ...]:
        if stage not in ("backbone", "neck", "pre_logits"):
            raise ValueError(f"stage: expected 'backbone', 'neck' or 'pre_logits', got {stage!r}")
        if stage == "backbone":
            return feats
        feats = self.neck(feats) if self.with_neck else feats
        return feats if stage == "neck" else self.head.pre_logits(feats)

    def forward(self, inputs: Tensor, data_samples: list[DataSample] | None = None, mode: str = "tensor"):
        """Return logits of the levels (``"tensor"``), data samples (``"predict"``) or losses (``"loss"``)."""
        if mode != "tensor":
            return super().forward(inputs, data_samples, mode)
        feats = self.extract_feat(inputs, data_samples=data_samples)
        return self.head(feats) if self.with_head else feats

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Return ``{"loss": scalar}``."""
        return self.head.loss(self.extract_feat(inputs, data_samples=data_samples), data_samples)

    def predict(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, return_segments: bool = False, **kwargs
    ) -> list[DataSample]:
        """Return data samples with the answer; see :meth:`.head.HierarchicalClsHead.predict`.

        Args:
            inputs: (B, C, H, W) float, normalised.
            data_samples: Samples to add to; they may hold maps.
            return_segments: Also add ``pred_segments`` (L, H, W) int64: the segmentation that each level saw.
            kwargs: For the head.
        """
        if not return_segments:
            return self.head.predict(self.extract_feat(inputs, data_samples=data_samples), data_samples, **kwargs)
        output = self.backbone.forward_stages(inputs, **stack_segments(data_samples))
        samples = self.head.predict(self._after_backbone(self.backbone.select(output)), data_samples, **kwargs)
        stages = [self.backbone.out_indices[i] + 1 for i in self.head.in_indices]
        maps = torch.stack([output.segment_map(stage) for stage in stages], 1)
        for sample, segments in zip(samples, maps):
            sample.set_field(segments, "pred_segments")
        return samples


def stack_segments(data_samples: list[DataSample] | None) -> dict[str, Tensor]:
    """Return ``{"segments": (B, H, W)}`` if the samples have maps, else nothing.

    Raises:
        ValueError: if only some samples have maps, or maps differ in size.
    """
    maps = [sample.segments for sample in data_samples or () if sample is not None and "segments" in sample]
    if not maps:
        return {}

    sizes = {tuple(segments.shape) for segments in maps}
    if len(maps) != len(data_samples) or len(sizes) > 1:
        raise ValueError(
            f"expected a superpixel map of one size in each of {len(data_samples)} data samples, got "
            f"{len(maps)} of sizes {sorted(sizes)}"
        )

    return {"segments": torch.stack(maps)}
