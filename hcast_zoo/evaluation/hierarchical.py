"""Metrics of hierarchical classification as the field reports them, each with a bootstrap confidence interval.

Every metric is a ratio of two sums over the pictures, so a bootstrap sample only changes the weights of the pictures.

Source: Bertinetto et al., Making Better Mistakes, CVPR 2020 (hierarchical distance, mistake severity); Kiritchenko et
al., 2006, and Silla and Freitas, 2011 (hierarchical precision, recall, F1); Shi et al., LCA-on-the-Line, ICML 2024 (the
information lost at the lowest common ancestor); Geifman and El-Yaniv, 2017 (risk and coverage, AURC); Goren et al.,
NeurIPS 2024 (coverage on the tree).
"""

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from ..taxonomy.paths import UNKNOWN
from ..taxonomy.tree import Taxonomy

SAMPLES = 1000  # bootstrap samples
CHUNK = 50  # bootstrap samples whose weights are in memory at the same time


@dataclasses.dataclass(frozen=True)
class Interval:
    """A metric with its 95 % interval by bootstrap over the pictures."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Compared:
    """Predicted paths compared with true ones, for N pictures; the coarsest level has depth 1.

    Attributes:
        predicted: (N,) depth of the predicted node; 0 for no answer.
        true: (N,) depth of the true node.
        common: (N,) depth of their lowest common ancestor; 0 for the root.
        height: (N,) levels below that ancestor, along its longest branch; 0 if both nodes are the same.
        lost: (N,) information lost at the ancestor, in bits: log2 of its number of leaves, less that of the true node.
        information: (N,) share of the root's bits that the predicted node determines, in [0, 1]; 1 for a leaf.
    """

    predicted: np.ndarray
    true: np.ndarray
    common: np.ndarray
    height: np.ndarray
    lost: np.ndarray
    information: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether the predicted node is the true one."""
        return (self.predicted == self.common) & (self.true == self.common)

    @property
    def wrong(self) -> np.ndarray:
        """Whether the predicted node is neither the true one nor above it."""
        return self.predicted > self.common


def compare(predictions: Tensor, labels: Tensor, taxonomy: Taxonomy) -> Compared:
    """Compare (N, L) int64 paths with (N, L) labels; -1 ends a path, and predictions below a label are ignored."""
    predictions = predictions.masked_fill(labels == UNKNOWN, UNKNOWN)
    known = (predictions != UNKNOWN).long().cumprod(-1)
    predicted, true = known.sum(-1), (labels != UNKNOWN).sum(-1)
    common = ((predictions == labels) & (labels != UNKNOWN)).long().cumprod(-1).sum(-1)

    heights, leaves = _tables(taxonomy)
    ancestor = _node(labels, common)
    same = (common == predicted) & (common == true)
    bits = torch.tensor(leaves).log2()
    whole = bits[0, 0].clamp(min=1e-12)
    return Compared(
        predicted=predicted.numpy(),
        true=true.numpy(),
        common=common.numpy(),
        height=torch.tensor(heights)[ancestor].masked_fill(same, 0).numpy(),
        lost=(bits[ancestor] - bits[_node(labels, true)]).numpy(),
        information=(1 - bits[_node(predictions, predicted)] / whole).numpy(),
    )


def _node(paths: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns, in the tables of all nodes, of the paths' nodes at a depth; depth 0 is the root."""
    index = paths.gather(-1, (depth - 1).clamp(min=0)[:, None])[:, 0]
    return depth, index.masked_fill(depth == 0, 0)


def _tables(taxonomy: Taxonomy) -> tuple[np.ndarray, np.ndarray]:
    """Return, as (L + 1, widest level) tables with the root first, the levels and the leaves below each node."""
    levels = len(taxonomy.levels)
    heights = np.zeros((levels + 1, max(taxonomy.level_classes)), dtype=np.float64)
    leaves = np.zeros_like(heights)
    for path in taxonomy.paths:
        nodes = [0, *(node for node in path if node != UNKNOWN)]
        for depth, node in enumerate(nodes):
            heights[depth, node] = max(heights[depth, node], len(nodes) - 1 - depth)
            leaves[depth, node] += 1

    return heights, np.maximum(leaves, 1)


def hierarchical_metrics(
    predictions: Tensor,
    labels: Tensor,
    taxonomy: Taxonomy,
    confidences: Tensor | None = None,
    weights: np.ndarray | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return the metrics of predicted paths, which may end early.

    - ``hierarchical_distance``: mean number of levels below the lowest common ancestor of answer and label.
    - ``mistake_severity``: the same, over the pictures whose answer is another node.
    - ``hops``: mean number of edges in the tree between answer and label.
    - ``lca_error``: mean information in bits lost at that ancestor.
    - ``hierarchical_precision``, ``_recall``, ``_f1``: percentage of the predicted, and of the true nodes, that are
      both; micro-averaged without the root.
    - ``balanced_accuracy``: percentage, with the same weight for each true node.
    - ``weighted_accuracy``: percentage, weighted by ``weights``.
    - ``aurc``: area under the risk-coverage curve, in percent.

    Lower is better for the first four and the last.

    Args:
        predictions: (N, L) int64; -1 ends a path.
        labels: (N, L) int64; -1 ends a path, or is unknown.
        taxonomy: The tree.
        confidences: (N,) float confidences of the answers; without them there is no ``aurc``.
        weights: (N,) non-negative float, such as the abundance of the true node divided by its number of pictures here.
        samples: Number of bootstrap samples; 0 for no intervals.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: if shapes differ, or there is no picture.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> predictions, labels = torch.tensor([[0, 0], [0, 1], [0, -1]]), torch.tensor([[0, 0], [0, 0], [1, 2]])
        >>> values = hierarchical_metrics(predictions, labels, tree, samples=0)
        >>> values["hierarchical_distance"].value, values["mistake_severity"].value, values["hops"].value
        (1.0, 1.5, 1.6666666666666667)
    """
    if predictions.shape != labels.shape or labels.ndim != 2 or not len(labels):
        raise ValueError(
            f"expected predictions and labels (N, L), got {tuple(predictions.shape)}, {tuple(labels.shape)}"
        )

    c = compare(predictions, labels, taxonomy)
    ones, right, balance = np.ones(len(labels)), c.right.astype(float), _balance(labels)
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "hierarchical_distance": (c.height, ones),
        "mistake_severity": (c.height, 1 - right),
        "hops": (c.predicted + c.true - 2.0 * c.common, ones),
        "lca_error": (c.lost, ones),
        "hierarchical_precision": (100.0 * c.common, c.predicted),
        "hierarchical_recall": (100.0 * c.common, c.true),
        "hierarchical_f1": (200.0 * c.common, c.predicted + c.true),
        "balanced_accuracy": (100 * right * balance, balance),
    }
    if weights is not None:
        sums["weighted_accuracy"] = (100 * right * weights, weights)

    drawn = _bootstrap(len(labels), samples, seed)
    metrics = {name: _ratio(*pair, drawn) for name, pair in sums.items()}
    if confidences is not None:
        metrics["aurc"] = _area(confidences.numpy(), 1 - right, drawn)

    return metrics


def _balance(labels: Tensor) -> np.ndarray:
    """Return weights of the pictures that give every true node the same total weight."""
    _, node, count = labels.unique(dim=0, return_inverse=True, return_counts=True)
    return (1 / count[node]).numpy()


def _bootstrap(pictures: int, samples: int, seed: int) -> list[np.ndarray]:
    """Return arrays (CHUNK, N) float32: how often each picture is drawn in each bootstrap sample."""
    rng = np.random.default_rng(seed)
    chunks = []
    for start in range(0, samples, CHUNK):
        rows = min(CHUNK, samples - start)
        chosen = rng.integers(pictures, size=(rows, pictures))
        chunks.append(np.stack([np.bincount(row, minlength=pictures) for row in chosen]).astype(np.float32))

    return chunks


def _ratio(above: np.ndarray, below: np.ndarray, drawn: list[np.ndarray]) -> Interval:
    """Return a ratio of two sums over the pictures; 0 where the denominator is 0."""
    samples = [_divide(weights @ above, weights @ below) for weights in drawn]
    return _interval(float(_divide(above.sum(), below.sum())), samples)


def _area(confidences: np.ndarray, wrong: np.ndarray, drawn: list[np.ndarray]) -> Interval:
    """Return the area under the risk-coverage curve, in percent."""
    order = np.argsort(-confidences, kind="stable")
    samples = [_aurc(wrong[order], weights[:, order]) for weights in drawn]
    return _interval(float(_aurc(wrong[order], np.ones((1, len(wrong))))[0]), samples)


def _aurc(wrong: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean risk over all coverages, in percent; pictures are ordered by falling confidence."""
    risk = _divide((weights * wrong).cumsum(-1), weights.cumsum(-1))
    return 100 * (weights * risk).sum(-1) / weights.sum(-1)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above, dtype=float), where=np.asarray(below) > 0)


def _interval(value: float, samples: list[np.ndarray]) -> Interval:
    if not samples:
        return Interval(value, math.nan, math.nan)

    low, high = np.percentile(np.concatenate(samples), [2.5, 97.5])
    return Interval(value, float(low), float(high))


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """Coverage and risk at a back-off threshold.

    Attributes:
        threshold: In [0, 1].
        coverage: Mean share of the bits that the answers determine, in [0, 1]: 0 if all are empty, 1 if all are leaves.
        risk: Share of wrong answers among all pictures, in [0, 1]; an empty answer is not wrong.
    """

    threshold: float
    coverage: float
    risk: float


def tree_curve(trust: Tensor, paths: Tensor, labels: Tensor, taxonomy: Taxonomy, steps: int = 50) -> list[CurvePoint]:
    """Return the curve of risk over coverage along the tree, from whole paths to none.

    Args:
        trust: (N, L); see :func:`hcast_zoo.taxonomy.backoff.trusted_probabilities`.
        paths: (N, L) int64 paths of the same decoding.
        labels: (N, L) int64.
        taxonomy: The tree.
        steps: Number of steps between the thresholds 0 and 1.
    """
    points = []
    for threshold in np.linspace(0, 1, steps + 1):
        cut = paths.masked_fill(trust < threshold, UNKNOWN)
        c = compare(cut, labels, taxonomy)
        points.append(CurvePoint(float(threshold), float(c.information.mean()), float(c.wrong.mean())))

    return points


@dataclasses.dataclass(frozen=True)
class NodeScore:
    """Scores of one node, in percent.

    Attributes:
        level: Name of its level.
        name: Name of the node.
        pictures: Number of pictures labelled with the node or below it.
        recall: Share of these whose answer is the node or below it.
        precision: Share of such answers that are right.
        f1: Harmonic mean of both.
        confused_with: The most frequent wrong answer at the same level for these pictures, or None.
        confused: Number of these wrong answers.
    """

    level: str
    name: str
    pictures: int
    recall: float
    precision: float
    f1: float
    confused_with: str | None
    confused: int


def node_scores(predictions: Tensor, labels: Tensor, taxonomy: Taxonomy) -> list[NodeScore]:
    """Return the scores of each node that is a label or an answer, level by level, in the order of the tree.

    Args:
        predictions: (N, L) int64; -1 ends a path.
        labels: (N, L) int64; -1 ends a path, or is unknown.
        taxonomy: The tree.
    """
    scores = []
    for depth, level in enumerate(taxonomy.levels):
        true = labels[:, depth]
        predicted = predictions[:, depth].masked_fill(true == UNKNOWN, UNKNOWN)
        for index, name in enumerate(taxonomy.names[depth]):
            labelled, answered = true == index, predicted == index
            pictures, answers, both = int(labelled.sum()), int(answered.sum()), int((labelled & answered).sum())
            if not pictures and not answers:
                continue

            others = predicted[labelled & ~answered & (predicted != UNKNOWN)]
            counts = torch.bincount(others, minlength=1)
            most = int(counts.argmax())
            score = NodeScore(
                level=level,
                name=name,
                pictures=pictures,
                recall=100 * both / pictures if pictures else 0.0,
                precision=100 * both / answers if answers else 0.0,
                f1=200 * both / (pictures + answers),
                confused_with=taxonomy.names[depth][most] if len(others) else None,
                confused=int(counts[most]) if len(others) else 0,
            )
            scores.append(score)

    return scores
