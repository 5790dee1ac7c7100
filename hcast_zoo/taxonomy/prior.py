"""Priors: re-weight answers by Bayes' rule with expected abundances, read from a table."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.text import brief, from_metadata
from .names import clean_name
from .rollup import LEAST, path_indices, path_tensor
from .sources import TaxonomyError, read_cells
from .tree import UNKNOWN, Taxonomy

KEY = "training_prior"  # in the weights' metadata
HEADERS = frozenset({"name", "names", "node", "taxon", "leaf", "label", "species", "scientificname", "scientific_name"})


@dataclasses.dataclass(frozen=True)
class Prior:
    """Weights of leaves.

    Attributes:
        log_ratios: (P,) float32, in the order of ``taxonomy.paths``: the logarithm of the expected share over the share
            in training; minus infinity for leaves that are not expected.
        unknown: Names in the table that are not in the tree.
        left_out: Number of leaves with weight 0.
        trained: Whether the weights store the shares of their training; otherwise equal shares are assumed.
    """

    log_ratios: Tensor
    unknown: tuple[str, ...] = ()
    left_out: int = 0
    trained: bool = False

    def apply(self, path_probabilities: Tensor) -> Tensor:
        """Return (B, P) probabilities of the paths under this prior; a row sums to 1.

        Example:
            >>> Prior(torch.tensor([0.0, 1.0, -math.inf]).float()).apply(torch.tensor([[0.5, 0.2, 0.3]]))
            tensor([[0.4791, 0.5209, 0.0000]])
        """
        return (path_probabilities.clamp_min(LEAST).log() + self.log_ratios.to(path_probabilities)).softmax(-1)


def make_prior(expected: Mapping[str, float], taxonomy: Taxonomy, trained: Sequence[float] | None = None) -> Prior:
    """Return the prior of a table.

    Args:
        expected: The amount, a count or a share, of each node, given as a name or ``level:name``. The amount of a node
            above the leaves is divided equally among the leaves below it. Leaves that are not named have 0.
        taxonomy: The tree.
        trained: The share of each leaf in the training data, in the order of ``taxonomy.paths``; None if unknown, which
            counts as equal shares.

    Raises:
        ValueError: if an amount is negative or not finite, or none is of a node of the tree.
    """
    amounts = torch.zeros(len(taxonomy.paths), dtype=torch.float64)
    paths = path_tensor(taxonomy)
    unknown = []
    for name, amount in expected.items():
        if not 0 <= amount < math.inf:
            raise ValueError(f"prior: expected an amount of 0 or more for {brief(name)}, got {amount}")
        try:
            level, index = taxonomy.find(name)
        except TaxonomyError:
            unknown.append(name)
            continue

        below = paths[:, level] == index
        amounts[below] += amount / below.sum()

    if not amounts.sum() > 0:
        raise ValueError(
            f"prior: expected an amount above 0 of at least one node of the tree; not in the tree: {brief(unknown)}"
        )

    before = torch.ones_like(amounts) if trained is None else torch.tensor(trained, dtype=torch.float64)
    ratios = (amounts / amounts.sum()).log() - (before / before.sum()).log()
    return Prior(
        log_ratios=ratios.float(),
        unknown=tuple(unknown),
        left_out=int((amounts == 0).sum()),
        trained=trained is not None,
    )


def read_amounts(path: str | Path) -> dict[str, float]:
    """Read a table with a name and a number per row, with or without a header; numbers of the same name are added.

    Raises:
        ValueError: if a row is malformed, or a number is negative or not finite.
    """
    amounts: dict[str, float] = {}
    for line, cells in _rows(path):
        try:
            name, number = clean_name(cells[0]), float(cells[1])
        except (IndexError, ValueError) as error:
            if line == 1 and len(cells) > 1:  # a header
                continue
            raise ValueError(f"{path} line {line}: expected a name and a number, got {brief(cells)}") from error

        if not 0 <= number < math.inf:
            raise ValueError(f"{path} line {line}: expected a number of 0 or more, got {brief(cells)}")
        amounts[name] = amounts.get(name, 0.0) + number

    if not amounts:
        raise ValueError(f"{path}: expected a name and a number per row, got none")

    return amounts


def read_names(path: str | Path, taxonomy: Taxonomy) -> tuple[list[str], list[str]]:
    """Read the first column of a table; return the names that are nodes of the tree, and those that are not.

    Raises:
        ValueError: if no name is a node.
    """
    names, unknown = [], []
    levels = {level.lower() for level in taxonomy.levels}
    for line, cells in _rows(path):
        name = clean_name(cells[0])
        try:
            taxonomy.find(name)
            names.append(name)
        except TaxonomyError:
            if line > 1 or name.lower() not in HEADERS | levels:
                unknown.append(name)

    if not names:
        raise ValueError(f"{path}: expected names of nodes, one per row; none of {brief(unknown)} is one")

    return names, unknown


def read_trained(metadata: Mapping[str, str], taxonomy: Taxonomy) -> list[float] | None:
    """Return the share of each leaf in the training data, from the metadata of weights; None if it is not stored.

    Raises:
        ValueError: if the metadata are damaged.
    """
    shares = from_metadata(metadata, KEY, lambda data: [float(share) for share in data])
    if shares is not None and (len(shares) != len(taxonomy.paths) or not all(0 < share < math.inf for share in shares)):
        raise ValueError(f"damaged metadata {KEY!r} of the weights: expected {len(taxonomy.paths)} shares above 0")
    return shares


def trained_shares(labels: Tensor, taxonomy: Taxonomy, drawn: Tensor | None = None, evened: float = 0.0) -> list[float]:
    """Return the share of each leaf in a training, in the order of ``taxonomy.paths``; they sum to 1.

    Args:
        labels: (S, L) int64; pictures that are not labelled down to a leaf are left out.
        taxonomy: The tree.
        drawn: (S,) how often each picture is drawn; by default equally often.
        evened: How far the loss evens out the shares, from 0 (not at all) to 1 (completely).
    """
    counts = [1e-3] * len(taxonomy.paths)  # a leaf without pictures is not impossible
    weights = [1.0] * len(labels) if drawn is None else (drawn / drawn.mean()).tolist()
    for index, weight in zip(path_indices(labels, taxonomy).tolist(), weights):
        if index != UNKNOWN:
            counts[index] += weight

    powers = [count ** (1 - evened) for count in counts]
    return [power / sum(powers) for power in powers]


def _rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row whose first cell is not empty."""
    for line, cells in read_cells(path):
        if cells and cells[0].strip():
            yield line, cells
