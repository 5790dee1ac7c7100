"""Metrics of hierarchical classification, in percent: per-level accuracy, FPA, TICE, wAP."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..taxonomy.tree import UNKNOWN, Taxonomy


def level_accuracy(predictions: Tensor, labels: Tensor) -> tuple[float, ...]:
    """Return each level's accuracy in percent, over the samples whose label there is known (NaN if none is).

    Args:
        predictions: (B, L) int64 predicted node of each level, coarse to fine.
        labels: (B, L) int64 true nodes; -1 is unknown.

    Example:
        >>> predictions = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> labels = torch.tensor([[0, 0], [0, 0], [1, -1]])  # nobody knew the last kind
        >>> level_accuracy(predictions, labels)
        (100.0, 50.0)
    """
    right, known = _right(predictions, labels)
    return tuple(_percent(r, k) for r, k in zip(right.sum(0).tolist(), known.sum(0).tolist()))


def full_path_accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return FPA: percent of the samples that are right at every known level.

    Source: official engine_hier_eval.py (docs/official_differences.md, 34).

    Example:
        >>> predictions = torch.tensor([[0, 0], [0, 1], [1, 0]])
        >>> labels = torch.tensor([[0, 0], [0, 0], [1, -1]])  # nobody knew the last kind
        >>> f"{full_path_accuracy(predictions, labels):.1f}"
        '66.7'
    """
    right, known = _right(predictions, labels)
    counted = known.any(1)
    return _percent(int((right | ~known)[counted].all(1).sum()), int(counted.sum()))


def tree_inconsistency(predictions: Tensor, taxonomy: Taxonomy) -> float:
    """Return TICE: percent of the predicted tuples that are not a path of the tree (lower is better).

    A prediction below a shallow leaf is ignored, and so is whatever follows a level predicted as -1.

    Source: official engine_hier_eval.py (docs/official_differences.md, 34).

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> tree_inconsistency(torch.tensor([[0, 0], [0, 1], [1, 2], [1, 0]]), tree)
        25.0
    """
    return _percent(int((~in_tree(predictions, taxonomy)).sum()), len(predictions))


def weighted_average_precision(accuracies: Sequence[float], level_classes: Sequence[int]) -> float:
    """Return wAP: mean of the levels' accuracies, weighted by their number of classes.

    The authors' code does not compute it; this is our interpretation (docs/official_differences.md, 35).

    Example:
        >>> weighted_average_precision((90.0, 60.0), (10, 20))
        70.0
    """
    weighted, total = 0.0, 0
    for accuracy, classes in zip(accuracies, level_classes, strict=True):
        if not math.isnan(accuracy):
            weighted += accuracy * classes
            total += classes

    return weighted / total if total else math.nan


def in_tree(predictions: Tensor, taxonomy: Taxonomy) -> Tensor:
    """Return (B,) bool: whether each (B, L) prediction follows the tree from the coarsest level on.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> in_tree(torch.tensor([[0, 0], [1, 0]]), tree)
        tensor([ True, False])
    """
    ok = predictions[:, 0] != UNKNOWN
    open_path = ok.clone()  # False once the path has ended in a shallow leaf
    for depth, parents in enumerate(taxonomy.parents):
        table = torch.tensor(parents, device=predictions.device)
        has_children = torch.zeros(taxonomy.level_classes[depth], dtype=torch.bool, device=predictions.device)
        has_children[table] = True
        above, node = predictions[:, depth], predictions[:, depth + 1]
        open_path = open_path & has_children[above.clamp(min=0)] & (node != UNKNOWN)
        ok = ok & (~open_path | (table[node.clamp(min=0)] == above))

    return ok


class HierarchicalMetrics:
    """Accumulate predictions over batches; :meth:`compute` weighs every sample once, whatever the batches were.

    Args:
        taxonomy: The tree.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> metrics = HierarchicalMetrics(tree)
        >>> metrics.update(torch.tensor([[0, 0], [1, 0]]), torch.tensor([[0, 0], [1, 2]]))
        >>> metrics.compute()
        {'fpa': 50.0, 'tice': 50.0, 'wap': 70.0, 'accuracy/group': 100.0, 'accuracy/kind': 50.0}
    """

    def __init__(self, taxonomy: Taxonomy):
        self.taxonomy = taxonomy
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.predictions: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add a batch of (B, L) int64 predictions and labels.

        Raises:
            ValueError: if the shapes differ or do not have the taxonomy's number of levels.
        """
        expected = (len(predictions), len(self.taxonomy.levels))
        if tuple(predictions.shape) != expected or tuple(labels.shape) != expected:
            raise ValueError(
                f"expected predictions and labels {expected}, got {tuple(predictions.shape)} and {tuple(labels.shape)}"
            )

        self.predictions.append(predictions.cpu())
        self.labels.append(labels.cpu())

    def compute(self) -> dict[str, float]:
        """Return ``fpa``, ``tice``, ``wap`` and ``accuracy/LEVEL`` for each level, in percent.

        Metrics of levels at which no picture has a label are left out, with a warning; no value is NaN.

        Raises:
            ValueError: if nothing was added.
        """
        if not self.predictions:
            raise ValueError("no predictions to compute metrics from: call update first")

        predictions, labels = torch.cat(self.predictions), torch.cat(self.labels)
        accuracies = level_accuracy(predictions, labels)

        values = {
            "fpa": full_path_accuracy(predictions, labels),
            "tice": tree_inconsistency(predictions, self.taxonomy),
            "wap": weighted_average_precision(accuracies, self.taxonomy.level_classes),
        }
        unknown = []
        for level, accuracy in zip(self.taxonomy.levels, accuracies):
            values[f"accuracy/{level}"] = accuracy
            if math.isnan(accuracy):
                unknown.append(level)

        if unknown:
            warnings.warn(f"no picture has a label at {', '.join(unknown)}: left out of the metrics", stacklevel=2)
        return {name: value for name, value in values.items() if not math.isnan(value)}


def _right(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, L) bool: whether each prediction is right, and whether its label is known."""
    if predictions.shape != labels.shape or labels.ndim != 2:
        raise ValueError(
            f"expected predictions and labels (B, L), got {tuple(predictions.shape)} and {tuple(labels.shape)}"
        )

    known = labels != UNKNOWN
    return (predictions == labels) & known, known


def _percent(count: int, total: int) -> float:
    return 100 * count / total if total else float("nan")
