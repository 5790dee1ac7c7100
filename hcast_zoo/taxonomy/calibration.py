"""Calibration: temperatures that turn probabilities into rates of correct answers, and the calibration error.

Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (temperature scaling, ECE).
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.text import brief, clip
from .decode import DecodedPaths, check_logits, decode, path_scores
from .rollup import path_indices
from .subtree import Subtree
from .tree import Taxonomy

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.02, 50.0


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Temperatures of a model's levels, fitted on data it was not trained on; plain data, stored with the weights.

    Args:
        temperatures: One per level, coarse to fine, by which logits are divided; above 1 if a level is over-confident.
        path_temperature: For the product over the levels; see :func:`hcast_zoo.taxonomy.decode.decode`.
        fitted_on: Name of the data.

    Raises:
        ValueError: if a temperature is not a positive number.
    """

    temperatures: tuple[float, ...]
    path_temperature: float = 1.0
    fitted_on: str = ""

    def __post_init__(self):
        try:
            object.__setattr__(self, "temperatures", tuple(map(float, self.temperatures)))
            object.__setattr__(self, "path_temperature", float(self.path_temperature))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"expected a list of temperatures: {clip(error)}") from error

        if not isinstance(self.fitted_on, str):
            raise ValueError(f"expected the name of data as fitted_on, got {brief(self.fitted_on)}")

        # Beyond these, float32 overflows.
        if not all(1e-3 <= t <= 1e3 for t in (*self.temperatures, self.path_temperature)):
            raise ValueError(
                f"expected positive temperatures, 0.001 to 1000, got {brief(self.temperatures)} and "
                f"{self.path_temperature}"
            )

    @classmethod
    def identity(cls, num_levels: int) -> "Calibration":
        """Return the calibration that changes nothing."""
        return cls((1.0,) * num_levels)

    @classmethod
    def from_dict(cls, data: dict) -> "Calibration":
        """Build from the plain data of :meth:`to_dict`; unknown keys are an error."""
        fields = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, dict) or "temperatures" not in data or set(data) - fields:
            raise ValueError(
                f"expected a calibration as a JSON object with {', '.join(sorted(fields))}, got {brief(data)}"
            )
        return cls(**data)

    def to_dict(self) -> dict:
        """Return plain data that JSON can hold."""
        return {**dataclasses.asdict(self), "temperatures": list(self.temperatures)}

    def logits(self, level_logits: Sequence[Tensor]) -> list[Tensor]:
        """Divide one (B, C_l) tensor of logits per level by its temperature.

        Raises:
            ValueError: if there is another number of levels.
        """
        if len(level_logits) != len(self.temperatures):
            raise ValueError(f"expected logits of {len(self.temperatures)} levels, got {len(level_logits)}")
        return [x / t for x, t in zip(level_logits, self.temperatures)]

    def decode(
        self,
        level_logits: Sequence[Tensor],
        taxonomy: Taxonomy,
        mode: str = "best_path",
        within: Subtree | Sequence[str] | None = None,
    ) -> DecodedPaths:
        """Decode calibrated logits; see :func:`hcast_zoo.taxonomy.decode.decode`."""
        return decode(self.logits(level_logits), taxonomy, mode, within=within, path_temperature=self.path_temperature)


def fit_calibration(
    level_logits: Sequence[Tensor], labels: Tensor, taxonomy: Taxonomy, fitted_on: str = ""
) -> Calibration:
    """Fit the temperatures that give held-out labels the highest likelihood.

    Each level's temperature is fitted separately, on the samples with a known label there; then the path's, on the
    samples whose label is a whole path. Without such samples, a temperature is 1.

    Args:
        level_logits: One (S, C_l) tensor per level, as the model gives them.
        labels: (S, L) int64; -1 is unknown.
        taxonomy: The tree.
        fitted_on: Name of the data, to store.

    Raises:
        ValueError: if shapes disagree or logits are not finite.
    """
    check_logits(level_logits, taxonomy)
    if tuple(labels.shape) != (len(level_logits[0]), len(level_logits)):
        raise ValueError(f"expected labels {(len(level_logits[0]), len(level_logits))}, got {tuple(labels.shape)}")

    levels = Calibration(tuple(fit_temperature(x, y) for x, y in zip(level_logits, labels.T)))
    log_probs = [x.double().log_softmax(-1) for x in levels.logits(level_logits)]
    path_temperature = fit_temperature(path_scores(log_probs, taxonomy), path_indices(labels, taxonomy))
    return dataclasses.replace(levels, path_temperature=path_temperature, fitted_on=fitted_on)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature in [0.02, 50] with the lowest cross-entropy of (S, C) logits and (S,) labels.

    The cross-entropy is convex in the inverse temperature, so its slope (expected logit minus true logit) has one zero.
    Bisection finds it and, unlike gradient descent, also ends if the best temperature is 0 (no errors) or infinite
    (nothing learnt). Labels of -1 are ignored; without any other label, the temperature is 1.
    """
    known = labels >= 0
    if not known.any():
        return 1.0

    logits, labels = logits[known].double(), labels[known]
    true = logits.gather(-1, labels[:, None])[:, 0]
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(60):  # more steps than a double has digits
        inverse = math.sqrt(low * high)
        slope = ((inverse * logits).softmax(-1) * logits).sum(-1) - true
        if slope.mean() > 0:
            high = inverse
        else:
            low = inverse

    return 1 / inverse


def expected_calibration_error(confidences: Tensor, right: Tensor, bins: int = 15) -> float:
    """Return ECE in percent: the gap between confidence and accuracy, averaged over bins of equal width.

    Args:
        confidences: (S,) float in [0, 1].
        right: (S,) bool.
        bins: Number of bins; see :func:`confidence_bins`.

    Returns:
        In [0, 100]; NaN without samples.

    Raises:
        ValueError: if shapes differ or a confidence is not in [0, 1].
    """
    if confidences.shape != right.shape or confidences.ndim != 1:
        raise ValueError(
            f"expected confidences and right (S,), got {tuple(confidences.shape)} and {tuple(right.shape)}"
        )

    if len(confidences) == 0:
        return math.nan

    confidences = confidences.double()
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise ValueError("expected confidences from 0 to 1")

    # In each bin, |sum of confidence - sum of right| over all samples is the bin's share of the samples times its gap.
    index = confidence_bins(confidences, bins)
    gaps = confidences.new_zeros(bins).index_add(0, index, confidences - right.double())
    return 100 * gaps.abs().sum().item() / len(confidences)


def confidence_bins(confidences: Tensor, bins: int) -> Tensor:
    """Return the (S,) int64 bin of each confidence in [0, 1]: bin i is (i / bins, (i + 1) / bins], 0 is in the first.

    Example:
        >>> confidence_bins(torch.tensor([0.0, 0.1, 0.25, 1.0]), 10)
        tensor([0, 0, 2, 9])
    """
    return ((confidences * bins).ceil().long() - 1).clamp(min=0, max=bins - 1)


def calibration_errors(
    level_logits: Sequence[Tensor],
    labels: Tensor,
    taxonomy: Taxonomy,
    calibration: Calibration | None = None,
    mode: str = "best_path",
) -> dict[str, float]:
    """Return the expected calibration error in percent of each level's own choice, and of the decoded path.

    Args:
        level_logits: One (S, C_l) tensor per level, as the model gives them.
        labels: (S, L) int64; samples are ignored at levels where they are -1, and for the path if all levels are.
        taxonomy: The tree.
        calibration: Applied first; none by default.
        mode: Decoding of the path.

    Returns:
        ``ece/LEVEL`` for each level, and ``ece/path``.
    """
    calibration = calibration or Calibration.identity(len(level_logits))
    confidences = _confidences(level_logits, labels, taxonomy, calibration, mode)
    return {name: expected_calibration_error(*pair) for name, pair in confidences.items()}


def cross_fitted_errors(
    level_logits: Sequence[Tensor],
    labels: Tensor,
    taxonomy: Taxonomy,
    mode: str = "best_path",
    folds: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """Return :func:`calibration_errors` by cross-fitting: no picture is measured with temperatures fitted on it.

    The pictures are divided into ``folds`` at random; temperatures fitted on all folds but one are applied to that one.

    Raises:
        ValueError: if there are fewer pictures than folds.
    """
    if len(labels) < folds:
        raise ValueError(f"expected at least {folds} pictures to measure a calibration on, got {len(labels)}")

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for fold in range(folds):
        held_out = torch.zeros(len(labels), dtype=torch.bool)
        held_out[order[fold::folds]] = True
        calibration = fit_calibration([x[~held_out] for x in level_logits], labels[~held_out], taxonomy)

        part = _confidences([x[held_out] for x in level_logits], labels[held_out], taxonomy, calibration, mode)
        for name, pair in part.items():
            parts.setdefault(name, []).append(pair)

    errors = {}
    for name, pairs in parts.items():
        confidences, right = zip(*pairs)
        errors[name] = expected_calibration_error(torch.cat(confidences), torch.cat(right))

    return errors


def _confidences(
    level_logits: Sequence[Tensor], labels: Tensor, taxonomy: Taxonomy, calibration: Calibration, mode: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the (S,) confidences of each level's own choice and of the path, and the (S,) bool whether it is right."""
    scaled = calibration.logits(level_logits)
    confidences = {}
    for level, x, label in zip(taxonomy.levels, scaled, labels.T):
        known = label >= 0
        confidence, choice = x[known].float().softmax(-1).max(-1)
        confidences[f"ece/{level}"] = confidence.clamp(max=1), choice == label[known]

    decoded = decode(scaled, taxonomy, mode, path_temperature=calibration.path_temperature)
    right, known = (decoded.paths == labels) | (labels < 0), (labels >= 0).any(1)
    confidences["ece/path"] = decoded.path_probabilities[known].clamp(max=1), right[known].all(1)

    return confidences
