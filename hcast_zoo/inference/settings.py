"""AnswerSettings: how a predictor turns the probabilities of the levels into answers, as plain data."""

import dataclasses
from collections.abc import Sequence

from ..taxonomy.prior import Prior


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """Settings of answers, which a predictor can change without loading its model again.

    :class:`.predictor.Predictor` describes them.
    """

    decoder: str = "best_path"
    num_clusters: tuple[int, ...] | None = None
    within: Sequence[str] | None = None
    threshold: float | str | None = None
    top_k: int | None = None
    coverage: float | None = None
    set_level: str | None = None
    prior: Prior | None = None
