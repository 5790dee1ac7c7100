"""Paths of a tree as tensors, and sums of their probabilities: those of every node from those of the leaves."""

import torch
from torch import Tensor

from .paths import UNKNOWN
from .tree import Taxonomy

LEAST = 1e-30  # smallest probability, so that its logarithm is finite


def path_tensor(taxonomy: Taxonomy) -> Tensor:
    """Return the (P, L) int64 paths of a tree; kept in it, as building them takes longer than decoding a large tree."""
    paths = taxonomy.__dict__.get("_path_tensor")
    if paths is None:
        with torch.inference_mode(False):  # otherwise autograd could not use it later
            paths = taxonomy.__dict__["_path_tensor"] = torch.tensor(taxonomy.paths)
    return paths


def path_indices(labels: Tensor, taxonomy: Taxonomy) -> Tensor:
    """Return the (S,) int64 index in ``taxonomy.paths`` of each of (S, L) labels; -1 where they are no whole path.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> path_indices(torch.tensor([[1, 2], [0, -1], [0, 0]]), tree)
        tensor([ 2, -1,  0])
    """
    index_of = {path: index for index, path in enumerate(taxonomy.paths)}
    return torch.tensor([index_of.get(tuple(row), UNKNOWN) for row in labels.tolist()], dtype=torch.int64)


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
    """Return what :func:`roll_up` does for (B, P) probabilities of the paths whose rows already sum to 1."""
    paths = path_tensor(taxonomy).to(probabilities.device)
    levels = []
    for classes, nodes in zip(taxonomy.level_classes, paths.T):
        column = nodes.where(nodes != UNKNOWN, classes)  # an extra column for paths that have ended
        sums = probabilities.new_zeros(len(probabilities), classes + 1).index_add(1, column, probabilities)
        levels.append(sums[:, :classes].clamp(max=1))

    return tuple(levels)
