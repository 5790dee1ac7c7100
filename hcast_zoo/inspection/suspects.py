"""Suspect labels: those that a model's confident answers contradict."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..inference.predictor import Prediction, Predictor
from ..taxonomy.tree import UNKNOWN, Taxonomy
from .journal import Journal, resume


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A label that a model contradicts.

    Attributes:
        level: Name of the coarsest level at which label and answer differ.
        answer: Names that the model is confident of, coarse to fine.
        probability: Probability of that answer, in [0, 1].
    """

    level: str
    answer: tuple[str, ...]
    probability: float


def answers(
    predictor: Predictor,
    pictures: Sequence[Path | bytes],
    journal: Journal | None = None,
    batch_size: int = 16,
    workers: int = 0,
) -> Iterator[Prediction]:
    """Return the predictor's answer for each picture, in order; answers in the journal are not computed again."""
    return resume(
        pictures,
        journal,
        compute=lambda new: predictor.predict(new, batch_size, workers),
        to_data=Prediction.to_dict,
        from_data=lambda data: Prediction(**data),
    )


def find_suspect(prediction: Prediction, label: Sequence, taxonomy: Taxonomy) -> Suspect | None:
    """Return why a label is suspect, or None.

    Args:
        prediction: A prediction with back-off, so that its path has only nodes that the model is confident of.
        label: Names, coarse to fine, as they are in the data.
        taxonomy: The model's tree.

    Raises:
        TaxonomyError: if the model does not know the label.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> sure = Prediction("1.jpg", ("bird", "gull"), path_probability=0.9)
        >>> find_suspect(sure, ("bird", "owl"), tree).level, find_suspect(sure, ("cat",), tree).level
        ('kind', 'group')
        >>> find_suspect(sure, ("bird",), tree)  # None: the label is less specific, but no contradiction
    """
    labelled = taxonomy.labels(list(label))
    if prediction.error is not None or not prediction.path:
        return None

    answered = taxonomy.labels(list(prediction.path))
    for level, node, answer in zip(taxonomy.levels, labelled, answered):
        if UNKNOWN in (node, answer):
            return None
        if node != answer:
            return Suspect(level, tuple(prediction.path), prediction.path_probability)

    return None
