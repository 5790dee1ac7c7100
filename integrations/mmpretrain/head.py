"""HierarchicalClsHead: a linear layer for each level of a taxonomy, and decoding of their outputs to a path."""

from collections.abc import Mapping, Sequence

import torch
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from hcast_zoo.common.choices import DECODERS
from hcast_zoo.network.config import default_head_stages
from hcast_zoo.taxonomy.tree import Taxonomy

from .config import load_calibration, load_taxonomy


@MODELS.register_module()
class HierarchicalClsHead(ClsHead):
    """Classify every level from the class token of its stage.

    Args:
        in_channels: Width of the backbone's features.
        taxonomy: A taxonomy or its name; see :func:`.config.load_taxonomy`.
        level_classes: Number of classes of each level, coarse to fine. Not needed with a taxonomy, but must agree
            with it if given.
        in_indices: Which of the backbone's outputs each level reads, coarse to fine. By default, as in the paper, the
            coarsest level reads the last of the four stages, and each finer one the stage before.
        decoder: How levels become a path: ``"best_path"``, ``"top_down"`` or ``"independent"`` (as in the paper, and
            the only one without a taxonomy).
        drop_rate: Dropout before the layers.
        calibration: Temperatures for decoding: plain data of :meth:`Calibration.to_dict`, or the
            name or file of weights, for theirs if they have any. None changes nothing.
        num_classes: The argument of mmpretrain's flat heads; if given, it must be the finest level's.
        loss: The loss; see :class:`.loss.HierarchicalLoss`.
        init_cfg: mmengine's initialisation.

    Raises:
        ValueError: if levels and taxonomy disagree or both are missing, or the decoder is unknown or needs a taxonomy.
    """

    def __init__(
        self,
        in_channels: int,
        taxonomy: str | Mapping | Taxonomy | None = None,
        level_classes: Sequence[int] | None = None,
        in_indices: Sequence[int] | None = None,
        decoder: str = "best_path",
        drop_rate: float = 0.0,
        calibration: str | Mapping | None = None,
        loss: dict | nn.Module | None = None,
        init_cfg: dict | list | None = None,
        num_classes: int | None = None,
    ):
        super().__init__(
            loss=loss or dict(type="HierarchicalLoss"),
            init_cfg=init_cfg or dict(type="TruncNormal", layer="Linear", std=0.02),
        )
        self.taxonomy = None if taxonomy is None else load_taxonomy(taxonomy)
        self.level_classes = self._check_levels(level_classes)
        if num_classes not in (None, self.level_classes[-1]):
            raise ValueError(
                f"num_classes={num_classes} is for flat heads, and the finest level here has {self.level_classes[-1]} "
                "classes: give the classes of all levels by taxonomy= (a .json or .csv file, a folder of your "
                "pictures, weights) or level_classes=[...], coarse to fine"
            )

        self.in_channels = in_channels
        levels = len(self.level_classes)
        self.in_indices = tuple(in_indices or (stage - 1 for stage in default_head_stages(levels)))
        if len(self.in_indices) != levels:
            raise ValueError(f"in_indices: expected one for each of {levels} levels, got {self.in_indices}")
        if decoder not in DECODERS:
            raise ValueError(f"unknown decoder {decoder!r}: expected one of {', '.join(DECODERS)}")
        if self.taxonomy is None and decoder != "independent":
            raise ValueError(f"the decoder {decoder!r} needs a taxonomy: give one, or decoder='independent'")
        self.decoder = decoder
        self.calibration = load_calibration(calibration, levels)
        self.dropout = nn.Dropout(drop_rate)
        self.heads = nn.ModuleList(nn.Linear(in_channels, classes) for classes in self.level_classes)

    def _check_levels(self, level_classes: Sequence[int] | None) -> tuple[int, ...]:
        classes = None if level_classes is None else tuple(level_classes)
        if self.taxonomy is None:
            if not classes or any(type(number) is not int or number < 1 for number in classes):
                raise ValueError(
                    f"expected a taxonomy, or level_classes with at least one level, got {classes!r}. num_classes, "
                    "which flat heads take, does not say how many classes the other levels have"
                )
            return classes

        if classes not in (None, self.taxonomy.level_classes):
            raise ValueError(
                f"level_classes {classes} disagree with the taxonomy {self.taxonomy.name!r}, whose levels "
                f"{', '.join(self.taxonomy.levels)} have {self.taxonomy.level_classes} classes"
            )

        return self.taxonomy.level_classes

    def pre_logits(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the (B, C) features that each level reads, coarse to fine."""
        if len(feats) <= max(self.in_indices):
            raise ValueError(
                f"the levels read outputs {self.in_indices}, but the backbone gave {len(feats)}: set its "
                "out_indices to (0, 1, 2, 3), or in_indices of the head"
            )
        return tuple(feats[i] for i in self.in_indices)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return one (B, C_l) tensor of logits per level, coarse to fine."""
        return tuple(head(self.dropout(x)) for head, x in zip(self.heads, self.pre_logits(feats)))

    def _get_loss(self, cls_score: Sequence[Tensor], data_samples: list[DataSample], **kwargs) -> dict[str, Tensor]:
        device = cls_score[0].device
        if "gt_score" in data_samples[0]:  # mixed: the targets of all levels, concatenated
            scores = torch.stack([sample.gt_score for sample in data_samples]).to(device)
            targets = scores.split(self.level_classes, -1)
        else:
            targets = stack_paths(data_samples).to(device)
        return {"loss": self.loss_module(cls_score, targets, **kwargs)}

    def _get_predictions(
        self, cls_score: Sequence[Tensor], data_samples: list[DataSample | None] | None
    ) -> list[DataSample]:
        """Add the answer to each data sample.

        ``pred_score`` and ``pred_label`` are the finest level's own, as everywhere in mmpretrain; ``pred_path`` (L,)
        is the decoded path, with ``pred_path_score`` and each level's ``pred_level_scores`` (L,); ``pred_runner_up``
        (L,) and ``pred_runner_up_score`` are the second-best path; all scores are calibrated. ``level_logits`` are
        the uncalibrated logits that they come from.
        """
        taxonomy = self.taxonomy or unnamed_taxonomy(self.level_classes)
        decoded = self.calibration.decode(cls_score, taxonomy, self.decoder)
        scores = self.calibration.logits(cls_score)[-1].float().softmax(-1)
        answered = []
        for row, sample in enumerate(data_samples or [None] * len(scores)):
            sample = DataSample() if sample is None else sample
            sample.set_pred_score(scores[row]).set_pred_label(scores[row].argmax(-1, keepdim=True))
            sample.set_field(decoded.paths[row], "pred_path")
            sample.set_field(decoded.path_probabilities[row], "pred_path_score")
            sample.set_field(decoded.level_probabilities[row], "pred_level_scores")
            sample.set_field(decoded.runner_up[row], "pred_runner_up")
            sample.set_field(decoded.runner_up_probabilities[row], "pred_runner_up_score")
            sample.set_field(tuple(x[row] for x in cls_score), "level_logits")
            answered.append(sample)

        return answered


def unnamed_taxonomy(level_classes: Sequence[int]) -> Taxonomy:
    """Return an arbitrary tree with these classes, for decoding each level by itself, which ignores parents."""
    levels = [f"level_{number}" for number in range(len(level_classes))]
    names = [list(map(str, range(classes))) for classes in level_classes]
    parents = [[0] * classes for classes in level_classes[1:]]
    return Taxonomy(levels, names, parents)


def stack_paths(data_samples: Sequence[DataSample]) -> Tensor:
    """Return the (B, L) int64 labels of data samples.

    Raises:
        ValueError: if a sample has no label for each level.
    """
    if not all("gt_path" in sample for sample in data_samples):
        raise ValueError(
            "data samples have no gt_path, the label of each level: use HierarchicalDataset (around your "
            "data set, if it is one of mmpretrain's) and PackHierarchicalInputs"
        )
    return torch.stack([sample.gt_path for sample in data_samples])
