"""Compare a model with another one, whose leaf probabilities for the same pictures are in a file."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.extras import needs_extra
from ..common.files import check_file
from ..common.text import brief
from ..taxonomy.names import clean_name
from ..taxonomy.paths import UNKNOWN
from ..taxonomy.rollup import path_tensor, roll_up
from ..taxonomy.sources import MAX_COLUMNS, read_table
from ..taxonomy.tree import Taxonomy
from .metrics import HierarchicalMetrics

FILE_COLUMNS = ("file", "picture", "path", "filename", "image_path")


@dataclasses.dataclass(frozen=True)
class Beside:
    """Two models on the same N pictures.

    Attributes:
        results: ``{model: {metric: percent}}`` for ``ours``, for ``theirs`` (their most probable leaf), and for the
            ``product`` of both probabilities.
        levels: ``{level: percent}``, the accuracy of their most probable node after rolling up to that level.
        agree: Percentage of the pictures for which both models name the same leaf.
        right_where_both_agree: Accuracy on these, in percent.
        queue: Indices of the pictures on which they disagree, the most confident disagreement first.
        errors_in_queue: Percentage of our wrong answers that are in the queue.
    """

    results: dict[str, dict[str, float]]
    levels: dict[str, float]
    agree: float
    right_where_both_agree: float
    queue: list[int]
    errors_in_queue: float


def read_probabilities(path: str | Path, taxonomy: Taxonomy, names: Sequence[str]) -> Tensor:
    """Read leaf probabilities from a table: a column for each leaf, by its name, and a row for each picture.

    Args:
        path: A ``.csv`` or ``.parquet`` file. With a column ``file``, rows are found by the picture's name, with or
            without folders; without one there must be one row per picture, in their order.
        taxonomy: The tree.
        names: Names of the pictures in the data set.

    Returns:
        (N, P) float64, in the order of the pictures and of ``taxonomy.paths``.

    Raises:
        ValueError: if a leaf has no column, a picture no row, or a cell is not a number; the message says which.
    """
    leaves = [taxonomy.path_names(leaf)[-1] for leaf in taxonomy.paths]
    header, rows = _read_rows(Path(path), len(leaves) + MAX_COLUMNS)
    if missing := [leaf for leaf in leaves if leaf not in header]:
        raise ValueError(f"{path}: expected a column for each of {len(leaves)} leaves, got none for {brief(missing)}")

    file_column = next((name for name in header if name.lower() in FILE_COLUMNS and name not in leaves), None)
    if file_column is not None:
        rows = _rows_by_name(path, rows, file_column, names)
    elif len(rows) != len(names):
        raise ValueError(
            f"{path}: expected a column `file`, or a row for each of {len(names)} pictures, got {len(rows)}"
        )

    try:
        values = []
        for row in rows:
            values.append([float(row[leaf]) for leaf in leaves])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a number in every leaf's column: {error}") from error

    return torch.tensor(values, dtype=torch.float64)


def _rows_by_name(path: str | Path, rows: list[dict], column: str, names: Sequence[str]) -> list[dict]:
    """Return the row of each picture, found by its name, or by its name without folders if only one row has it."""
    by_name = {str(row[column]): row for row in rows}
    by_short_name: dict[str, list[dict]] = {}
    for row in rows:
        by_short_name.setdefault(Path(str(row[column])).name, []).append(row)

    chosen, missing = [], []
    for name in names:
        namesakes = by_short_name.get(Path(name).name, [])
        if name in by_name:
            chosen.append(by_name[name])
        elif len(namesakes) == 1:
            chosen.append(namesakes[0])
        else:
            missing.append(name)

    if missing:
        raise ValueError(f"{path}: expected a row for every picture, got none for {len(missing)}, such as {missing[0]}")

    return chosen


def _read_rows(path: Path, max_columns: int) -> tuple[list[str], list[dict]]:
    if path.suffix.lower() != ".parquet":
        header, table = read_table(path, max_columns)
        return header, [row for _, row in table]

    check_file(path)
    with needs_extra("train", "parquet files"):
        import pyarrow.parquet as pq

    columns = pq.read_table(path)
    header = [clean_name(name) for name in columns.column_names]
    return header, columns.rename_columns(header).to_pylist()


def compare_beside(ours: Tensor, theirs: Tensor, labels: Tensor, paths: Tensor, taxonomy: Taxonomy) -> Beside:
    """Compare two models by their leaf probabilities.

    Args:
        ours: (N, P) probability of each path of the tree.
        theirs: (N, P), not necessarily normalised.
        labels: (N, L) int64.
        paths: (N, L) int64, our answers.
        taxonomy: The tree.
    """
    tree = path_tensor(taxonomy)
    rolled = roll_up(theirs, taxonomy)
    theirs = theirs / theirs.sum(-1, keepdim=True)
    product = ours.double() * theirs
    product = torch.where(product.sum(-1, keepdim=True) > 0, product, ours.double())

    answers = {"ours": paths, "theirs": tree[theirs.argmax(-1)], "product": tree[product.argmax(-1)]}
    results = {}
    for name, answer in answers.items():
        metrics = HierarchicalMetrics(taxonomy)
        metrics.update(answer, labels)
        results[name] = metrics.compute()

    levels = {}
    for depth, level in enumerate(taxonomy.levels):
        known = labels[:, depth] != UNKNOWN
        if known.any():
            levels[level] = 100 * (rolled[depth].argmax(-1) == labels[:, depth])[known].double().mean().item()

    same = (paths == answers["theirs"]).all(1)
    wrong = ((paths != labels) & (labels != UNKNOWN)).any(1)
    confidence = torch.minimum(ours.max(-1).values, theirs.max(-1).values)
    queue = [i for i in confidence.argsort(descending=True).tolist() if not same[i]]

    return Beside(
        results=results,
        levels=levels,
        agree=100 * same.double().mean().item(),
        right_where_both_agree=100 * (~wrong[same]).double().mean().item() if same.any() else 0.0,
        queue=queue,
        errors_in_queue=100 * (~same[wrong]).double().mean().item() if wrong.any() else 0.0,
    )
