"""Levels above a flat classifier: the probability of a node is the sum of its leaves'."""

import torch
from torch import Tensor

from .sources import TaxonomyError
from .tree import Taxonomy

LEAST = 1e-30  # probability whose logarithm is still a number


def check_above(tree: Taxonomy, flat: Taxonomy) -> Taxonomy:
    """Return a tree whose leaves are the classes of a flat model, in its order.

    Args:
        tree: To check.
        flat: The model's own taxonomy.

    Raises:
        TaxonomyError: if the model has levels of its own, or its classes are not the tree's leaves.
    """
    if len(flat.levels) != 1:
        raise TaxonomyError(
            f"expected flat weights below a tree, got weights with the levels {', '.join(flat.levels)} of their own"
        )

    leaves, classes = tree.names[-1], flat.names[0]
    if leaves != classes:
        different = next((a, b) for a, b in zip((*leaves, None), (*classes, None)) if a != b)
        raise TaxonomyError(
            f"expected a tree whose {len(classes)} leaves are the model's classes, in their order, got "
            f"{len(leaves)}; the first that differ are {different[0]!r} in the tree and {different[1]!r} in the model"
        )

    return tree


def sum_upwards(logits: Tensor, tree: Taxonomy) -> list[Tensor]:
    """Return logits of every level from those of the leaves.

    Args:
        logits: (B, leaves) of the finest level.
        tree: Whose finest level they are of.

    Returns:
        (B, nodes) log-probabilities per level, coarse to fine; each level's sum to 1.
    """
    levels = [logits.log_softmax(-1)]
    for parents, names in zip(reversed(tree.parents), reversed(tree.names[:-1])):
        children = levels[0].exp()
        index = torch.tensor(parents, device=logits.device)
        sums = children.new_zeros(len(children), len(names)).index_add(1, index, children)
        levels.insert(0, sums.clamp_min(LEAST).log())

    return levels
