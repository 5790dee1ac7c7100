"""Levels above a flat classifier: the probability of a node is the sum over its leaves."""

from torch import Tensor

from .paths import UNKNOWN
from .rollup import LEAST, path_tensor, sum_paths
from .sources import TaxonomyError
from .tree import Taxonomy


def check_above(tree: Taxonomy, flat: Taxonomy) -> Taxonomy:
    """Return a tree after checking that its leaves are the classes of a flat model, in the model's order.

    Args:
        tree: The tree to check.
        flat: The model's taxonomy, of one level.

    Raises:
        TaxonomyError: if the model has several levels, or its classes are not the tree's leaves.
    """
    if len(flat.levels) != 1:
        raise TaxonomyError(
            f"expected weights of one level to put a tree above, got weights with the levels {', '.join(flat.levels)}"
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
    """Return log-probabilities of the nodes of every level from the logits of the finest level.

    Args:
        logits: (B, leaves) of the finest level.
        tree: The tree; leaves above its finest level have probability 0.

    Returns:
        One (B, C_l) tensor per level, coarse to fine; the probabilities of a level sum to 1.
    """
    finest = path_tensor(tree)[:, -1].to(logits.device)
    probabilities = logits.softmax(-1)[:, finest.clamp(min=0)].masked_fill(finest == UNKNOWN, 0.0)  # [B, P]

    upper = [level.clamp_min(LEAST).log() for level in sum_paths(probabilities, tree)[:-1]]
    return [*upper, logits.log_softmax(-1)]
