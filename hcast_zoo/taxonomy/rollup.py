"""Sum the leaf probabilities of any model to probabilities of every node of the tree."""

import torch
from torch import Tensor

from .paths import UNKNOWN
from .tree import Taxonomy


def roll_up(leaf_probabilities: Tensor, taxonomy: Taxonomy) -> tuple[Tensor, ...]:
    """Sum the probabilities of leaves up the tree.

    Args:
        leaf_probabilities: (B, P) non-negative float, one column per leaf in the order of ``taxonomy.paths``; each row
            is divided by its sum.
        taxonomy: The tree.

    Returns:
        One (B, C_l) tensor in [0, 1] per level, coarse to fine: for each node, the sum over the leaves at or below it.

    Raises:
        ValueError: if the number of leaves is wrong, or a row has negative or non-finite values, or sums to 0.

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
    """Return the probability of every node, given (B, P) probabilities of the paths that sum to 1; see `roll_up`."""
    paths = torch.tensor(taxonomy.paths, device=probabilities.device)
    levels = []
    for classes, nodes in zip(taxonomy.level_classes, paths.T):
        column = nodes.where(nodes != UNKNOWN, classes)  # an extra column for paths that have ended
        sums = probabilities.new_zeros(len(probabilities), classes + 1).index_add(1, column, probabilities)
        levels.append(sums[:, :classes].clamp(max=1))

    return tuple(levels)
