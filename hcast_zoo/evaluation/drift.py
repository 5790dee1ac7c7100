"""Drift: check whether new pictures look, to a model, like those on which its promises were measured."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ..taxonomy.guarantee import Guarantee
from ..taxonomy.paths import UNKNOWN
from ..taxonomy.selective import Judged, binomial_tail
from ..taxonomy.tree import Taxonomy

PERMUTATIONS = 2000
LEVEL = 0.01  # probability of a false alarm in any of the tests


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison of new pictures with those of the calibration.

    Attributes:
        name: Name of the compared quantity.
        before: Its value on the pictures of the calibration.
        now: Its value on the new pictures.
        p_value: Probability of a difference this large among pictures of the same kind.
        drifted: Whether that probability is below the test's level.
    """

    name: str
    before: float
    now: float
    p_value: float
    drifted: bool


def check_drift(
    guarantee: Guarantee, confidences: np.ndarray, answers: np.ndarray, taxonomy: Taxonomy, seed: int = 0
) -> list[Check]:
    """Compare confidence and label mix of new pictures with those of the calibration; no label is needed.

    Confidences are compared by the Kolmogorov-Smirnov statistic, the mix of answers at each level by the total
    variation distance, each against its distribution over random permutations of old and new pictures; the probability
    of any false alarm is 1 %.

    Args:
        guarantee: A guarantee that stores the confidences and answers of its pictures.
        confidences: (N,) calibrated path probabilities of the new pictures.
        answers: (N, L) int paths of the new pictures, by ``best_path``.
        taxonomy: The tree.
        seed: Seed of the permutations.

    Raises:
        ValueError: if there are no new pictures, or the guarantee stores none.
    """
    if not len(confidences) or not guarantee.confidences:
        raise ValueError(f"expected pictures to compare, got {len(guarantee.confidences)} old, {len(confidences)} new")

    rng = np.random.default_rng(seed)
    old_paths = np.array(taxonomy.paths)[list(guarantee.answers)]
    old = np.array(guarantee.confidences)
    limit = LEVEL / (1 + len(taxonomy.levels))

    tests: list[tuple[str, np.ndarray, np.ndarray, Callable, float, float]] = [
        ("confidence (mean)", old, confidences, _ks, float(old.mean()), float(confidences.mean()))
    ]
    for depth, level in enumerate(taxonomy.levels):
        classes = taxonomy.level_classes[depth]
        before, now = _nodes(old_paths[:, depth], classes), _nodes(answers[:, depth], classes)
        most = int(np.bincount(now, minlength=classes + 1).argmax())
        shares = float((before == most).mean()), float((now == most).mean())
        name = taxonomy.names[depth][most] if most < classes else "none"
        tests.append((f"{level} mix (share of {name})", before, now, _variation(classes + 1), *shares))

    checks = []
    for name, before, now, statistic, mean_before, mean_now in tests:
        p_value = permutation_test(before, now, statistic, rng)
        checks.append(Check(name=name, before=mean_before, now=mean_now, p_value=p_value, drifted=p_value <= limit))

    return checks


def check_promise(guarantee: Guarantee, judged: Judged) -> Check | None:
    """Compare the accuracy on new, labelled pictures with the promised one; None without a promise.

    The promise counts as broken if it would give this many wrong answers with a probability of at most 1 %.
    """
    promise = guarantee.promise
    if promise is None:
        return None

    answered, wrong = judged.count(promise.threshold)
    p_value = 1 - binomial_tail(wrong - 1, answered, 1 - promise.target) if wrong else 1.0
    return Check(
        name="accuracy of answers",
        before=promise.target,
        now=1 - wrong / answered if answered else 1.0,
        p_value=p_value,
        drifted=p_value <= LEVEL,
    )


def permutation_test(
    old: np.ndarray, new: np.ndarray, statistic: Callable[[np.ndarray, np.ndarray], float], rng: np.random.Generator
) -> float:
    """Return the probability that a random division of all values into two parts of these sizes differs as much."""
    pooled = np.concatenate([old, new])
    observed = statistic(old, new)
    larger = 0
    for _ in range(PERMUTATIONS):
        mixed = rng.permutation(pooled)
        larger += statistic(mixed[: len(old)], mixed[len(old) :]) >= observed

    return (larger + 1) / (PERMUTATIONS + 1)


def _ks(old: np.ndarray, new: np.ndarray) -> float:
    """Return the largest distance between two empirical distribution functions."""
    values = np.sort(np.concatenate([old, new]))
    shares = [np.searchsorted(np.sort(part), values, side="right") / len(part) for part in (old, new)]
    return float(np.abs(shares[0] - shares[1]).max())


def _variation(classes: int) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the function that gives the total variation distance between two distributions of classes."""

    def statistic(old: np.ndarray, new: np.ndarray) -> float:
        shares = [np.bincount(part, minlength=classes) / len(part) for part in (old, new)]
        return float(np.abs(shares[0] - shares[1]).sum() / 2)

    return statistic


def _nodes(column: np.ndarray, classes: int) -> np.ndarray:
    """Return the nodes of a level, with an extra class for paths that have ended."""
    return np.where(column == UNKNOWN, classes, column)
