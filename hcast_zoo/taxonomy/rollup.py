"""Leaf probabilities, of any model, as probabilities of every node of the tree."""

import torch
from torch import Tensor

from .paths import UNKNOWN
from .tree import Taxonomy


def roll_up(leaf_probabilities: Tensor, taxonomy: Taxonomy) -> tuple[Tensor, ...]:
    """Sum the probabilities of leaves up the tree.

    Args:
        leaf_probabilities: (B, P) float, of 0 or more, one for each leaf in the order of ``taxonomy.paths``; a row is
            divided by its sum.
        taxonomy: The tree.

    Returns:
        One (B, C_l) tensor in [0, 1] per level, coarse to fine: of each node, the sum over the leaves at or below it.

    Raises:
        ValueError: if there is another number of leaves, or a row is negative, not finite or without any probability.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> roll_up(torch.tensor([[0.5, 0.2, 0.3]]), tree)
        (tensor([[0.7000, 0.3000]]), tensor([[0.5000, 0.2000, 0.3000]]))
    """
    leaves = len(taxonomy.paths)
    if leaf_probabilities.ndim != 2 or leaf_probabilities.shape[1] != leaves:
        raise ValueError(f"expected probabilities (B, {leaves}), got {tuple(leaf_probabilities.shape)}")
    total = leaf_probabilities.sum(-1, keepdim=True)
    bad = ~(leaf_probabilities.isfinite() & (leaf_probabilities >= 0)).all(-1) | ~(total[:, 0] > 0)
    if bad.any():
        raise ValueError(
            f"expected probabilities of 0 or more, not all 0, got others in rows {bad.nonzero()[:5, 0].tolist()}"
        )

    return sum_paths(leaf_probabilities / total, taxonomy)


def sum_paths(probabilities: Tensor, taxonomy: Taxonomy) -> tuple[Tensor, ...]:
    """Return the probability of every node from (B, P) ones of the paths, which sum to 1; see :func:`roll_up`."""
    paths = torch.tensor(taxonomy.paths, device=probabilities.device)
    levels = []
    for classes, nodes in zip(taxonomy.level_classes, paths.T):
        column = nodes.where(nodes != UNKNOWN, classes)  # paths that have ended go to an extra column
        sums = probabilities.new_zeros(len(probabilities), classes + 1).index_add(1, column, probabilities)
        levels.append(sums[:, :classes].clamp(max=1))

    return tuple(levels)
