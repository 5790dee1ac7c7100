"""Conformal prediction on the tree: sets of nodes that hold the true leaf as often as promised, whatever the model.

There are two forms, each with its own score: a *set* of leaves, written as the fewest nodes that cover exactly these
leaves; and a *subtree*, the deepest node on the best path with enough probability, which stands for all its leaves.

Source: Vovk et al., Algorithmic Learning in a Random World, 2005 (split conformal, Mondrian groups); Sadinle et al.,
Least Ambiguous Set-Valued Classifiers, JASA 2019 (the score of the set).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .decode import DecodedPaths
from .paths import UNKNOWN
from .tree import Taxonomy


def conformal_quantile(scores: np.ndarray, coverage: float) -> float:
    """Return a bound that the score of a new picture's true leaf does not exceed, with at least this probability.

    It is the k-th smallest of n scores, k = ceil((n + 1) coverage); infinite if k is above n, since with so few scores
    only the set of all leaves has the coverage.

    Args:
        scores: (N,) of pictures that had no part in the model or its temperatures; exchangeable with the new one.
        coverage: In (0, 1).

    Example:
        >>> conformal_quantile(np.array([0.1, 0.2, 0.3, 0.4]), 0.6), conformal_quantile(np.array([0.1, 0.2]), 0.9)
        (0.3, inf)
    """
    check_coverage(coverage)
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)  # 1e-9: 0.9 * 10 is a little above 9
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def check_coverage(coverage: float) -> None:
    """Raise ValueError unless a coverage is in (0, 1)."""
    if not 0 < coverage < 1:  # also False for NaN
        raise ValueError(f"expected a coverage between 0 and 1, such as 0.9, got {coverage}")


def fewest_scores(coverage: float) -> int:
    """Return how many scores are needed for a coverage with less than all leaves.

    Example:
        >>> fewest_scores(0.9), fewest_scores(0.95)
        (9, 19)
    """
    check_coverage(coverage)
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def set_scores(probabilities: Tensor, leaves: Tensor) -> np.ndarray:
    """Return (N,) float64 scores of true leaves: one minus their probability.

    Args:
        probabilities: (N, P) of each path of the tree; see :func:`.decode.path_probabilities`.
        leaves: (N,) int64 index of the true path.
    """
    true = probabilities.gather(1, leaves[:, None])[:, 0]
    return 1 - true.double().cpu().numpy()


def subtree_scores(decoded: DecodedPaths, labels: Tensor) -> np.ndarray:
    """Return (N,) float64 scores: the probability of the path down to its first wrong level; 0 if it is all right.

    Args:
        decoded: Paths of the tree (not of ``independent``).
        labels: (N, L) int64, each a whole path.
    """
    wrong = (decoded.paths != labels) & (decoded.paths != UNKNOWN)
    first = wrong.long().argmax(-1)
    reached = decoded.prefix_probabilities.gather(-1, first[:, None])[:, 0]
    return torch.where(wrong.any(-1), reached, 0.0).double().cpu().numpy()


def leaf_sets(probabilities: Tensor, quantiles: Tensor | float) -> Tensor:
    """Return (N, P) bool: the leaves whose score is at most a quantile, and always the most probable one.

    Args:
        probabilities: (N, P) of each path.
        quantiles: Of the scores: one for all leaves, or (P,) by the leaf's group.
    """
    chosen = 1 - probabilities.double() <= quantiles
    return chosen.scatter(-1, probabilities.argmax(-1, keepdim=True), True)


def subtree_depths(decoded: DecodedPaths, quantile: float) -> Tensor:
    """Return (N,) int64: how many levels of the best path exceed a quantile in probability; 0 for the whole tree."""
    return (decoded.prefix_probabilities.double() > quantile).sum(-1)  # False for the NaN below a shallow leaf


def cover(leaves: Sequence[bool], taxonomy: Taxonomy) -> list[tuple[int, int]]:
    """Return the fewest nodes below which exactly these leaves lie, as (level, index), in the order of the tree.

    Args:
        leaves: P flags, in the order of ``taxonomy.paths``.
        taxonomy: The tree.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> cover([True, True, False], tree), cover([True, False, True], tree)
        ([(0, 0)], [(1, 0), (0, 1)])
    """
    whole: dict[tuple[int, int], bool] = {}
    for path, chosen in zip(taxonomy.paths, leaves, strict=True):
        for node in _nodes(path):
            whole[node] = whole.get(node, True) and bool(chosen)

    covering: dict[tuple[int, int], None] = {}  # a dictionary, to keep each node once and in order
    for path, chosen in zip(taxonomy.paths, leaves):
        if chosen:
            highest = next(node for node in _nodes(path) if whole[node])
            covering[highest] = None

    return list(covering)


def _nodes(path: Sequence[int]) -> list[tuple[int, int]]:
    return [(level, index) for level, index in enumerate(path) if index != UNKNOWN]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of held-out pictures, from which a set of any coverage follows.

    Attributes:
        leaves: N indices of the true paths.
        sets: N scores of :func:`set_scores`.
        subtrees: N scores of :func:`subtree_scores`.
    """

    leaves: tuple[int, ...]
    sets: tuple[float, ...]
    subtrees: tuple[float, ...]

    def __post_init__(self):
        for name in ("leaves", "sets", "subtrees"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not len(self.leaves) == len(self.sets) == len(self.subtrees):
            raise ValueError("expected as many leaves as scores of sets and of subtrees")

    def quantiles(self, coverage: float, taxonomy: Taxonomy, level: int | None = None) -> tuple[Tensor, float]:
        """Return what :func:`leaf_sets` and :func:`subtree_depths` need for a coverage.

        Args:
            coverage: In (0, 1).
            taxonomy: The tree.
            level: Promise the coverage of sets for each node of this level separately, not only on average.

        Returns:
            (P,) float64 quantiles of the sets, one for each leaf, and the quantile of the subtrees, one for all.
        """
        scores, leaves = np.array(self.sets), np.array(self.leaves, int)
        paths = np.array(taxonomy.paths)
        subtree = conformal_quantile(np.array(self.subtrees), coverage)
        if level is None:
            return torch.full((len(paths),), conformal_quantile(scores, coverage), dtype=torch.float64), subtree

        groups = paths[:, level]
        group_of_picture = groups[leaves]
        by_leaf = torch.empty(len(paths), dtype=torch.float64)
        for group in np.unique(groups):
            quantile = conformal_quantile(scores[group_of_picture == group], coverage)
            by_leaf[torch.from_numpy(groups == group)] = quantile

        return by_leaf, subtree
