"""Selective classification on the tree: the back-off threshold whose answers are right at least as often as promised.

Source: Goren, Galil, El-Yaniv, Hierarchical Selective Classification, NeurIPS 2024 (answers that stop higher in the
tree); Angelopoulos et al., Learn then Test, 2021 (thresholds tested in a fixed order); Clopper and Pearson, Biometrika
1934 (the exact binomial bound).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .backoff import trusted_probabilities
from .decode import DecodedPaths
from .paths import UNKNOWN
from .tree import Taxonomy

FINE = 0.01  # step between the thresholds that are tried
GRID = (0.999, 0.995, *(round(1 - FINE * i, 2) for i in range(1, 101)))
FIT_SHARE = 1 / 3  # of the pictures, to fit the temperatures and choose where testing begins; the others test
FEWEST_ANSWERED = 0.05  # of the pictures; a threshold with fewer answers is of no use


class PromiseError(ValueError):
    """No threshold can be promised; the message says what would help."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """Answers for N pictures on L levels, and the depth down to which they are right.

    Attributes:
        trust: (N, L) float64, the probability of the path down to each level; -1 from where levels disagree, or the
            path has ended. Never rises.
        right_depth: (N,) int64, how many levels, from the coarsest, are right.
    """

    trust: np.ndarray
    right_depth: np.ndarray

    @classmethod
    def of(cls, decoded: DecodedPaths, labels: Tensor, taxonomy: Taxonomy) -> "Judged":
        """Judge decoded paths by (N, L) int64 labels, each a whole path."""
        right = ((decoded.paths == labels) & (labels != UNKNOWN)).long().cumprod(-1).sum(-1)
        trust = trusted_probabilities(decoded, taxonomy)
        return cls(trust.double().cpu().numpy(), right.cpu().numpy())

    def __len__(self) -> int:
        return len(self.right_depth)

    def rows(self, index: np.ndarray) -> "Judged":
        """Return some of the pictures."""
        return Judged(self.trust[index], self.right_depth[index])

    def count(self, threshold: float) -> tuple[int, int]:
        """Return how many pictures have an answer at this back-off threshold, and how many answers are wrong."""
        ((answered, wrong),) = self.counts((threshold,))
        return answered, wrong

    def counts(self, thresholds: Sequence[float]) -> list[tuple[int, int]]:
        """Return what :meth:`count` does, for each threshold."""
        depth = (self.trust[..., None] >= np.array(thresholds)).sum(1)  # (N, T)
        answered, wrong = (depth > 0).sum(0), (depth > self.right_depth[:, None]).sum(0)
        return list(zip(answered.tolist(), wrong.tolist()))


@dataclasses.dataclass(frozen=True)
class Promise:
    """With this back-off threshold, answers are right at least as often as promised, whatever depth they stop at.

    The promise holds for pictures drawn like those it was tested on; pictures without an answer do not count.

    Attributes:
        target: Least share of right answers, in (0, 1).
        confidence: Least probability that the promise holds, over the draw of the pictures it was tested on.
        threshold: For back-off, in [0, 1].
        pictures: Number of pictures it was tested on.
        answered: Number of these with an answer.
        wrong: Number of wrong answers.
        bound: Lower bound of the share of right answers, at this confidence.
    """

    target: float
    confidence: float
    threshold: float
    pictures: int
    answered: int
    wrong: int
    bound: float


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Return the probability of at most this many successes in independent trials.

    Example:
        >>> round(binomial_tail(1, 3, 0.5), 6)
        0.5
    """
    if successes >= trials:
        return 1.0
    if probability <= 0 or probability >= 1:
        return float(probability <= 0)

    k, log_factorials = np.arange(successes + 1), _log_factorials(1 << trials.bit_length())
    log_choose = log_factorials[trials] - log_factorials[k] - log_factorials[trials - k]
    logs = log_choose + k * math.log(probability) + (trials - k) * math.log1p(-probability)
    return min(1.0, float(np.exp(logs).sum()))


@functools.lru_cache(8)
def _log_factorials(most: int) -> np.ndarray:
    """Return the logarithms of 0! to ``most``!."""
    return np.concatenate([[0.0], np.log(np.arange(1, most + 1)).cumsum()])


def accuracy_bound(right: int, total: int, confidence: float) -> float:
    """Return the exact (Clopper-Pearson) lower bound of an accuracy, one-sided.

    Args:
        right: Number of right answers.
        total: Number of answers.
        confidence: In (0, 1).

    Example:
        >>> f"{accuracy_bound(45, 45, 0.9):.3f}, {accuracy_bound(95, 100, 0.9):.3f}"
        '0.950, 0.909'
    """
    wrong = total - right
    low, high = 0.0, 1.0  # of the share of wrong answers
    for _ in range(60):
        middle = (low + high) / 2
        if binomial_tail(wrong, total, middle) > 1 - confidence:
            low = middle
        else:
            high = middle

    return 1 - high if total else 0.0


def split_for_promise(pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of pictures to fit on, and of those to test on; drawn at random, the same for each number."""
    order = np.random.default_rng(0).permutation(pictures)
    fit = round(pictures * FIT_SHARE)
    return np.sort(order[:fit]), np.sort(order[fit:])


def promise_accuracy(fit: Judged, test: Judged, target: float, confidence: float = 0.9) -> Promise:
    """Find the lowest back-off threshold whose answers are right at least as often as ``target``.

    Thresholds are tested one after the other, from the one with the strongest evidence in ``fit`` down to the first
    that fails, each by an exact binomial test at level 1 - confidence. The order does not depend on ``test``, so the
    probability that any threshold passes wrongly, and the chosen one with it, is at most 1 - confidence.

    Args:
        fit: Pictures that choose where testing begins. The temperatures may be fitted on them.
        test: Other pictures, with no part in any choice.
        target: In (0, 1).
        confidence: In (0, 1).

    Raises:
        PromiseError: if no threshold passes; the message says how many pictures would do, if any number would.
        ValueError: if ``target`` or ``confidence`` is not in (0, 1).
    """
    for name, value in (("target accuracy", target), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: expected a number between 0 and 1, got {value}")

    start = _start(fit, target)
    passed = None
    for threshold, (answered, wrong) in zip(GRID[start:], test.counts(GRID[start:])):
        if not answered or binomial_tail(wrong, answered, 1 - target) > 1 - confidence:
            break
        passed = threshold, answered, wrong

    if passed is None:
        raise PromiseError(_why_none_passes(fit, test, GRID[start], target, confidence))

    threshold, answered, wrong = passed
    return Promise(
        target=target,
        confidence=confidence,
        threshold=threshold,
        pictures=len(test),
        answered=answered,
        wrong=wrong,
        bound=accuracy_bound(answered - wrong, answered, confidence),
    )


def _start(fit: Judged, target: float) -> int:
    """Return the index in the grid of the threshold with the strongest evidence."""
    best, strongest = 0, math.inf
    for index, (answered, wrong) in enumerate(fit.counts(GRID)):
        evidence = binomial_tail(wrong, answered, 1 - target) if answered else 2.0  # weaker than any that answers
        if evidence < strongest:
            best, strongest = index, evidence

    return best


def _why_none_passes(fit: Judged, test: Judged, threshold: float, target: float, confidence: float) -> str:
    """Explain why no threshold passes, and what would help."""
    fit_answered, fit_wrong = fit.count(threshold)
    test_answered, test_wrong = test.count(threshold)
    answered, wrong = fit_answered + test_answered, fit_wrong + test_wrong
    rate = wrong / answered if answered else 0.0

    pictures = len(fit) + len(test)
    result = (
        f"no threshold can be promised to be right {target:.1%} of the time with confidence {confidence:.0%}: of "
        f"{pictures} pictures {answered} had an answer at {threshold:g}, and {wrong} were wrong"
    )
    share = answered / pictures
    if rate >= 1 - target or share < FEWEST_ANSWERED:
        return f"{result}. More pictures will not help: choose a lower target"

    needed = pictures_needed(rate, target, confidence)
    total = math.ceil(needed / share / (1 - FIT_SHARE) / 10) * 10
    return f"{result}. At this rate about {total} pictures would do"


def pictures_needed(rate: float, target: float, confidence: float) -> int:
    """Return how many answers it takes to pass the test of an accuracy at a given rate of errors.

    Args:
        rate: Share of wrong answers, below 1 - ``target``.
        target: Accuracy to be shown, in (0, 1).
        confidence: Confidence of the test, in (0, 1).

    Example:
        >>> pictures_needed(0.0, 0.95, 0.9), pictures_needed(0.02, 0.95, 0.9)
        (45, 105)
    """
    total = math.ceil(math.log(1 - confidence) / math.log(target))
    while binomial_tail(math.ceil(rate * total), total, 1 - target) > 1 - confidence:
        total = max(total + 1, math.ceil(total * 1.02))
    return total
