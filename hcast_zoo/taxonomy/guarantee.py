"""Guarantees: promises about a model's answers, measured on held-out pictures and stored with the weights."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.text import brief, clip
from .calibration import Calibration, fit_calibration
from .conformal import Scores, set_scores, subtree_scores
from .decode import path_probabilities
from .rollup import path_indices
from .selective import Judged, Promise, promise_accuracy, split_for_promise
from .tree import Taxonomy

KEY = "guarantee"  # in the metadata of weights
MAX_STORED = 5000  # held-out pictures whose scores are stored; a larger sample adds nothing
DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """Promises, and what they were measured on.

    Attributes:
        data: Name of the data.
        date: Day of the measurement, such as ``2026-11-27``.
        pictures: Number of pictures with a whole path as their label.
        temperatures: Those of the calibration that the promises belong to, the path's last.
        promise: A back-off threshold and its accuracy, or None.
        scores: What conformal sets need, or None.
        confidences: Path probabilities of the pictures, to check later whether new ones are like them.
        answers: Index of the answered path of each picture.
    """

    data: str
    date: str
    pictures: int
    temperatures: tuple[float, ...]
    promise: Promise | None = None
    scores: Scores | None = None
    confidences: tuple[float, ...] = ()
    answers: tuple[int, ...] = ()

    def to_dict(self) -> dict:
        """Return plain data that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Guarantee":
        """Build from the plain data of :meth:`to_dict`.

        Raises:
            ValueError: if it is something else.
        """
        try:
            data = dict(data)
            promise, scores = data.pop("promise", None), data.pop("scores", None)
            for key in ("temperatures", "confidences", "answers"):
                data[key] = tuple(data.get(key, ()))
            return cls(
                promise=None if promise is None else Promise(**promise),
                scores=None if scores is None else Scores(**scores),
                **data,
            )
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"expected a guarantee as `hcast-zoo calibrate` writes it: {clip(error)}") from error

    def summary(self) -> dict:
        """Return the facts that a person wants to see, as plain data."""
        return {
            "data": self.data,
            "date": self.date,
            "pictures": self.pictures,
            "promise": None if self.promise is None else dataclasses.asdict(self.promise),
            "pictures for sets": 0 if self.scores is None else len(self.scores.leaves),
        }


def read_guarantee(metadata: Mapping[str, str], calibration: Calibration | None) -> Guarantee | None:
    """Return the guarantee in the metadata of weights, or None.

    Raises:
        ValueError: if it is damaged, or was measured with other temperatures than the weights have now.
    """
    if KEY not in metadata:
        return None

    try:
        guarantee = Guarantee.from_dict(json.loads(metadata[KEY]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged {KEY} in the weights: {clip(error)}") from error

    if calibration is None or not np.allclose(guarantee.temperatures, _temperatures(calibration)):
        raise ValueError(
            f"the weights were calibrated again after their promises were measured on {brief(guarantee.data)}: run "
            "`hcast-zoo calibrate` with --target-accuracy or --sets"
        )

    return guarantee


def measure_guarantee(
    level_logits: Sequence[Tensor],
    labels: Tensor,
    taxonomy: Taxonomy,
    data: str,
    date: str,
    target: float | None = None,
    confidence: float = 0.9,
) -> tuple[Calibration, Guarantee]:
    """Fit temperatures on a third of held-out pictures, and measure promises on the rest.

    Args:
        level_logits: One (S, C_l) tensor per level, as the model gives them.
        labels: (S, L) int64; pictures not labelled with a complete path do not count for promises.
        taxonomy: The tree.
        data: Name of the data, to store.
        date: Day of the measurement, to store.
        target: Accuracy that back-off is to promise, in (0, 1), or None for no such promise.
        confidence: Confidence of that promise, in (0, 1).

    Raises:
        PromiseError: if the accuracy cannot be promised.
        ValueError: if arguments are out of range, or no label is a whole path.
    """
    leaves = path_indices(labels, taxonomy)
    whole = (leaves >= 0).nonzero().flatten()
    if len(whole) < 3:
        raise ValueError(f"expected pictures labelled down to a leaf, to measure promises on, got {len(whole)}")

    fit, test = (whole[torch.from_numpy(index)] for index in split_for_promise(len(whole)))
    calibration = fit_calibration([x[fit] for x in level_logits], labels[fit], taxonomy, data)

    def judge(rows: Tensor) -> Judged:
        decoded = calibration.decode([x[rows] for x in level_logits], taxonomy)
        return Judged.of(decoded, labels[rows], taxonomy)

    promise = None
    if target is not None:
        promise = promise_accuracy(judge(fit), judge(test), target, confidence)

    (test,) = _limited(test)
    test_logits = [x[test] for x in level_logits]
    answers = calibration.decode(test_logits, taxonomy)
    probabilities = path_probabilities(
        calibration.logits(test_logits), taxonomy, path_temperature=calibration.path_temperature
    )

    scores = Scores(
        leaves=tuple(leaves[test].tolist()),
        sets=_rounded(set_scores(probabilities, leaves[test])),
        subtrees=_rounded(subtree_scores(answers, labels[test])),
    )
    guarantee = Guarantee(
        data=data,
        date=date,
        pictures=len(whole),
        temperatures=_temperatures(calibration),
        promise=promise,
        scores=scores,
        confidences=_rounded(answers.path_probabilities.double().numpy()),
        answers=tuple(path_indices(answers.paths, taxonomy).tolist()),
    )

    return calibration, guarantee


def measure_reference(
    level_logits: Sequence[Tensor], labels: Tensor, taxonomy: Taxonomy, calibration: Calibration, data: str, date: str
) -> Guarantee:
    """Return a guarantee without promises: the model's confidences and answers on the pictures of a calibration."""
    answers = calibration.decode(level_logits, taxonomy)
    confidences, paths = _limited(answers.path_probabilities, answers.paths)
    return Guarantee(
        data=data,
        date=date,
        pictures=len(labels),
        temperatures=_temperatures(calibration),
        confidences=_rounded(confidences.double().numpy()),
        answers=tuple(path_indices(paths, taxonomy).tolist()),
    )


def _limited(*columns: Tensor) -> tuple[Tensor, ...]:
    """Return columns of the same length, with a random choice of rows if there are more than ``MAX_STORED``."""
    length = len(columns[0])
    if length <= MAX_STORED:
        return columns
    chosen = torch.from_numpy(np.random.default_rng(1).permutation(length)[:MAX_STORED])
    return tuple(column[chosen] for column in columns)


def _temperatures(calibration: Calibration) -> tuple[float, ...]:
    return (*calibration.temperatures, calibration.path_temperature)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Round up, so that rounding never leaves a leaf out of a set."""
    scale = 10**DIGITS
    return tuple(math.ceil(value * scale - 1e-6) / scale for value in values.tolist())
