"""What weights promise beside their answers: measured on held-out pictures, stored with the weights as data."""

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
from .selective import Judged, Promise, promise_accuracy, split_for_promise
from .tree import Taxonomy

KEY = "guarantee"  # in the metadata of weights
MOST = 5000  # held-out pictures that are remembered: a larger sample tells no more
DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Guarantee:
    """Promises, and what they were measured on.

    Attributes:
        data: Name of the data.
        date: Of the measurement, as ``2026-11-27``.
        pictures: How many the data had with a whole path as their label.
        temperatures: Of the calibration that the promises belong to, the path's last.
        promise: Back-off threshold with an accuracy, or None.
        scores: For conformal sets, or None.
        confidences: Path probabilities of these pictures, to see later whether new ones are alike.
        answers: Indices of their paths.
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
        """Return what a person wants to know of it."""
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
        ValueError: if it is damaged, or of other temperatures than the weights have now.
    """
    if KEY not in metadata:
        return None
    try:
        guarantee = Guarantee.from_dict(json.loads(metadata[KEY]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged {KEY} in the weights: {clip(error)}") from error

    if calibration is None or not np.allclose(guarantee.temperatures, _temperatures(calibration)):
        raise ValueError(
            f"the weights were calibrated anew after their promises were measured on {brief(guarantee.data)}: run "
            "`hcast-zoo calibrate` again with --target-accuracy or --sets"
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
        date: To store.
        target: Accuracy that back-off shall promise, in (0, 1), or None for no such promise.
        confidence: Of that promise, in (0, 1).

    Raises:
        PromiseError: if the accuracy cannot be promised.
        ValueError: if arguments are out of range, or no label is a whole path.
    """
    number = {path: i for i, path in enumerate(taxonomy.paths)}
    leaves = torch.tensor([number.get(tuple(row), -1) for row in labels.tolist()])
    whole = (leaves >= 0).nonzero().flatten()
    if len(whole) < 3:
        raise ValueError(f"expected pictures labelled down to a leaf, to measure promises on, got {len(whole)}")

    fit, test = (whole[torch.from_numpy(index)] for index in split_for_promise(len(whole)))
    part = [x[fit] for x in level_logits]
    calibration = fit_calibration(part, labels[fit], taxonomy, data)
    decoded = [calibration.decode([x[index] for x in level_logits], taxonomy) for index in (fit, test)]

    promise = None
    if target is not None:
        fitted, tested = (Judged.of(d, labels[index], taxonomy) for d, index in zip(decoded, (fit, test)))
        promise = promise_accuracy(fitted, tested, target, confidence)

    (test,) = _limited(test)
    chosen = [x[test] for x in level_logits]
    answers = calibration.decode(chosen, taxonomy)
    probabilities = path_probabilities(
        calibration.logits(chosen), taxonomy, path_temperature=calibration.path_temperature
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
        answers=_numbers(answers.paths, taxonomy),
    )
    return calibration, guarantee


def measure_reference(
    level_logits: Sequence[Tensor], labels: Tensor, taxonomy: Taxonomy, calibration: Calibration, data: str, date: str
) -> Guarantee:
    """Return a guarantee without promises: what the pictures of a calibration looked like to the model."""
    answers = calibration.decode(level_logits, taxonomy)
    confidences, paths = _limited(answers.path_probabilities, answers.paths)
    return Guarantee(
        data=data,
        date=date,
        pictures=len(labels),
        temperatures=_temperatures(calibration),
        confidences=_rounded(confidences.double().numpy()),
        answers=_numbers(paths, taxonomy),
    )


def _limited(*columns: Tensor) -> tuple[Tensor, ...]:
    """Return columns of the same length, of more than ``MOST`` rows a random choice."""
    length = len(columns[0])
    if length <= MOST:
        return columns
    chosen = torch.from_numpy(np.random.default_rng(1).permutation(length)[:MOST])
    return tuple(column[chosen] for column in columns)


def _numbers(paths: Tensor, taxonomy: Taxonomy) -> tuple[int, ...]:
    """Return the index in ``taxonomy.paths`` of each of (N, L) paths."""
    number = {path: i for i, path in enumerate(taxonomy.paths)}
    return tuple(number[tuple(path)] for path in paths.tolist())


def _temperatures(calibration: Calibration) -> tuple[float, ...]:
    return (*calibration.temperatures, calibration.path_temperature)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Return numbers rounded up, so that what is compared with them is not left out by rounding."""
    scale = 10**DIGITS
    return tuple(math.ceil(value * scale - 1e-6) / scale for value in values.tolist())
