"""Losses: the cross-entropy of every level, and the Tree-path KL, which makes the levels agree on one path.

Targets are hard, (B, L) int64 with -1 where a level is unknown, or soft, one (B, C_l) float tensor per level. The rows
of soft targets sum to 1, to 0 where the level is unknown, or to a value between after mixing a known and an unknown
label.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..taxonomy.tree import UNKNOWN


def soft_targets(labels: Tensor, level_classes: Sequence[int], smoothing: float = 0.0) -> tuple[Tensor, ...]:
    """Turn (B, L) int64 labels into one (B, C_l) float32 target per level; unknown labels give rows of 0.

    Args:
        labels: Labels, coarse to fine; -1 is unknown.
        level_classes: Classes of each level.
        smoothing: Label smoothing in [0, 1): this fraction of the mass is spread over all classes of the level.

    Raises:
        ValueError: if a label is out of range.

    Example:
        >>> soft_targets(torch.tensor([[0, 2], [1, -1]]), (2, 3), smoothing=0.3)[1]
        tensor([[0.1000, 0.1000, 0.8000],
                [0.0000, 0.0000, 0.0000]])
    """
    check_labels(labels, level_classes)
    targets = []
    for label, classes in zip(labels.T, level_classes):
        known = label != UNKNOWN
        one_hot = F.one_hot(label.clamp(min=0), classes).float()
        targets.append((one_hot * (1 - smoothing) + smoothing / classes) * known[:, None])

    return tuple(targets)


def level_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of one level over the samples with a known label (0 if there are none).

    Args:
        logits: (B, C).
        target: (B, C) soft target; a row is weighted by its sum.

    Example:
        >>> logits, target = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.0, 1.0]])
        >>> level_cross_entropy(logits, target)  # -log 0.75
        tensor(0.2877)
    """
    loss = -(target * _widen(logits).log_softmax(-1)).sum()
    return (loss / _at_least_one(target.sum())).to(logits.dtype)


def level_binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of a level's classes over the samples with a known label.

    Args:
        logits: (B, C).
        target: (B, C) in [0, 1].
    """
    known = target.sum(-1) > 0
    wide = _widen(logits)
    loss = F.binary_cross_entropy_with_logits(wide, target.to(wide.dtype), reduction="none").mean(-1)
    return ((loss * known).sum() / _at_least_one(known.sum())).to(logits.dtype)


def tree_path_kl(level_logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the Tree-path KL divergence: one distribution over the nodes of all levels against the true path.

    The nodes of a sample's unknown level are left out of its softmax.

    Args:
        level_logits: One (B, C_l) tensor per level.
        targets: One (B, C_l) soft target per level.

    Returns:
        Scalar, averaged over the samples with a known level.

    Source: paper section 3.3; official engine_hier.py:62-69, 129-136 (docs/official_differences.md, 28, 29).

    Example:
        >>> logits = [torch.tensor([[0.5, 0.1]]).log(), torch.tensor([[0.3, 0.1]]).log()]
        >>> targets = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])]
        >>> tree_path_kl(logits, targets)  # (log 0.5 / 0.5 + log 0.5 / 0.3) / 2
        tensor(0.2554)
    """
    known = [t.sum(-1, keepdim=True) > 0 for t in targets]
    wide = [_widen(x) for x in level_logits]
    lowest = torch.finfo(wide[0].dtype).min
    logits = torch.cat([x.masked_fill(~k, lowest) for x, k in zip(wide, known)], -1)

    target = torch.cat(list(targets), -1).to(logits.dtype)
    target = F.normalize(target, p=1, dim=-1)
    loss = F.kl_div(logits.log_softmax(-1), target, reduction="sum")
    return (loss / _at_least_one(torch.cat(known, -1).any(-1).sum())).to(level_logits[0].dtype)


class HierarchicalLoss(nn.Module):
    """Sum of the levels' cross-entropies plus ``kl_weight`` times the Tree-path KL.

    Args:
        kl_weight: Weight of the Tree-path KL; 0 leaves it out. The paper uses 0.5.
        level_weights: Weight of each level's cross-entropy, coarse to fine; 1 by default.
        smoothing: Label smoothing in [0, 1) for hard targets; soft targets are used as they are.
        priors: One (C_l,) tensor per level, the share of each class. The loss adds ``adjustment`` times their logarithm
            to the logits, so that the logits themselves are those for classes of equal size (Menon et al., 2021).
        adjustment: Strength of the priors.
        class_weights: One (C_l,) tensor per level, the weight of each class in the cross-entropy.
        binary: Use binary cross-entropy for each class instead. As in the official code, every positive target of
            the finest level then counts as 1, so do not smooth (docs/official_differences.md, 31).

    Source: official engine_hier.py:54-69 (docs/official_differences.md, 27).

    Example:
        >>> loss = HierarchicalLoss(kl_weight=0.5)
        >>> logits = [torch.zeros(1, 2), torch.zeros(1, 3)]
        >>> loss(logits, torch.tensor([[0, 2]]))  # log 2 + log 3 + 0.5 * log(5 / 2)
        tensor(2.2499)
        >>> loss(logits, torch.tensor([[0, -1]]))  # the second level is unknown: log 2 + 0.5 * log 2
        tensor(1.0397)
    """

    def __init__(
        self,
        kl_weight: float = 0.5,
        level_weights: Sequence[float] | None = None,
        smoothing: float = 0.0,
        binary: bool = False,
        *,
        priors: Sequence[Tensor] | None = None,
        adjustment: float = 1.0,
        class_weights: Sequence[Tensor] | None = None,
    ):
        super().__init__()
        self.offsets = None if priors is None else [adjustment * prior.log() for prior in priors]
        self.class_weights = class_weights
        self.kl_weight, self.level_weights, self.smoothing, self.binary = kl_weight, level_weights, smoothing, binary

    def forward(self, level_logits: Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the scalar loss.

        Args:
            level_logits: One (B, C_l) tensor per level, coarse to fine.
            targets: (B, L) labels of any integer type, -1 for unknown, or one (B, C_l) soft target per level.

        Raises:
            ValueError: if levels or classes disagree, or a label is out of range.
        """
        classes = [x.shape[-1] for x in level_logits]
        if isinstance(targets, Tensor):
            if not targets.is_floating_point() and targets.dtype != torch.bool:
                targets = targets.long()  # one_hot needs int64, and uint8 cannot hold the -1 of an unknown label
            targets = soft_targets(targets, classes, self.smoothing)

        if (target_classes := [t.shape[-1] for t in targets]) != classes:
            raise ValueError(f"expected targets of {classes} classes, got {target_classes}")

        if self.offsets is not None:
            level_logits = [x + offset.to(x.device) for x, offset in zip(level_logits, self.offsets)]

        weights = self.level_weights or [1.0] * len(classes)
        level_loss = level_cross_entropy
        if self.binary:
            level_loss = level_binary_cross_entropy
            targets = (*targets[:-1], (targets[-1] > 0).float())

        weighted = targets
        if self.class_weights is not None:
            weighted = [t * weight.to(t.device) for t, weight in zip(targets, self.class_weights)]

        parts = [w * level_loss(x, t) for w, x, t in zip(weights, level_logits, weighted, strict=True)]
        loss = torch.stack(parts).sum()
        return loss + self.kl_weight * tree_path_kl(level_logits, targets) if self.kl_weight else loss


def check_labels(labels: Tensor, level_classes: Sequence[int]) -> None:
    """Raise ValueError unless ``labels`` is (B, L) integer with values from -1 to the classes of each level."""
    if labels.ndim != 2 or labels.shape[1] != len(level_classes) or labels.is_floating_point():
        raise ValueError(
            f"expected labels (B, {len(level_classes)}) of an integer dtype, got {tuple(labels.shape)} {labels.dtype}"
        )

    if labels.is_meta or torch.compiler.is_compiling() or labels.numel() == 0:
        return

    limit = torch.tensor(level_classes, device=labels.device)
    wrong = (labels < UNKNOWN) | (labels >= limit)
    if wrong.any():
        row, level = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"label {int(labels[row, level])} of sample {row} is out of range at level {level}: expected "
            f"0 to {level_classes[level] - 1}, or -1 for unknown"
        )


def _at_least_one(count: Tensor) -> Tensor:
    """Return the count, or 1 where it is 0, so that a sum over nothing divides to 0."""
    return torch.where(count > 0, count, torch.ones_like(count))


def _widen(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32, others as they are.

    In float16 the log-softmax of a masked node is -inf, and the Tree-path KL would be NaN.
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
