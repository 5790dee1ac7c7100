"""HierarchicalLoss as an mmpretrain loss."""

from collections.abc import Sequence

from mmpretrain.registry import MODELS
from torch import Tensor

from hcast_zoo.training.losses import HierarchicalLoss as CoreLoss


@MODELS.register_module()
class HierarchicalLoss(CoreLoss):
    """Sum of the levels' cross-entropies plus ``kl_weight`` times the Tree-path KL; see the core's class.

    Args:
        kl_weight: Weight of the Tree-path KL; 0 leaves it out.
        level_weights: Weight of each level's cross-entropy, coarse to fine; 1 by default.
        smoothing: Label smoothing in [0, 1). In mmpretrain targets are mixed before the loss sees them, so here soft
            targets are smoothed too; mixing and smoothing are linear, so their order makes no difference.
        binary: Use binary cross-entropy of each class instead.
        loss_weight: Factor for the whole loss.
    """

    def __init__(
        self,
        kl_weight: float = 0.5,
        level_weights: Sequence[float] | None = None,
        smoothing: float = 0.0,
        binary: bool = False,
        loss_weight: float = 1.0,
    ):
        super().__init__(kl_weight, level_weights, smoothing, binary)
        self.loss_weight = loss_weight

    def forward(self, level_logits: Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the scalar loss.

        Args:
            level_logits: One (B, C_l) tensor per level, coarse to fine.
            targets: (B, L) int64 labels, -1 for unknown, or one (B, C_l) soft target per level.
        """
        if not isinstance(targets, Tensor) and self.smoothing:
            targets = [smooth(target, self.smoothing) for target in targets]
        return self.loss_weight * super().forward([x.float() for x in level_logits], targets)


def smooth(target: Tensor, smoothing: float) -> Tensor:
    """Spread part of the mass of each row of a (B, C) soft target over all classes; a row of zeros stays zero."""
    return target * (1 - smoothing) + target.sum(-1, keepdim=True) * smoothing / target.shape[-1]
