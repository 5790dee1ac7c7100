"""A model beside another one, whose leaf probabilities for the same pictures come from a file."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.extras import needs_extra
from ..common.files import check_file
from ..common.text import brief
from ..taxonomy.paths import UNKNOWN
from ..taxonomy.rollup import roll_up
from ..taxonomy.tree import Taxonomy
from .metrics import HierarchicalMetrics

FILE_COLUMNS = ("file", "picture", "path", "filename", "image_path")


@dataclasses.dataclass(frozen=True)
class Beside:
    """Two models on the same N pictures.

    Attributes:
        results: Model (``ours``, ``theirs``, ``product``) to metric to percent; of theirs, the most probable leaf.
        levels: Level to ``accuracy``, percent, of the most probable node of theirs rolled up to that level.
        agree: Percent of the pictures for which both name the same leaf.
        right_where_both_agree: Percent of these.
        queue: Index of the pictures on which they disagree, the surest disagreement first.
        errors_in_queue: Percent of the pictures that ours has wrong, which are in the queue.
    """

    results: dict[str, dict[str, float]]
    levels: dict[str, float]
    agree: float
    right_where_both_agree: float
    queue: list[int]
    errors_in_queue: float


def read_probabilities(path: str | Path, taxonomy: Taxonomy, names: Sequence[str]) -> Tensor:
    """Read leaf probabilities: a column for each leaf, by its name, and a row for each picture.

    Args:
        path: A ``.csv`` or ``.parquet`` file. With a column ``file`` rows are found by the picture's name, whole or
            without folders; without one there is a row for each of the pictures, in their order.
        taxonomy: The tree.
        names: Of the pictures, as the data set names them.

    Returns:
        (N, P) float64, in the order of the pictures and of ``taxonomy.paths``.

    Raises:
        ValueError: if a leaf has no column, a picture no row, or a cell is no number; the message says which.
    """
    header, rows = _read(Path(path))
    leaves = [taxonomy.path_names(leaf)[-1] for leaf in taxonomy.paths]
    if missing := [leaf for leaf in leaves if leaf not in header]:
        raise ValueError(f"{path}: expected a column for each of {len(leaves)} leaves, got none for {brief(missing)}")
    columns = [header.index(leaf) for leaf in leaves]

    named = next((header.index(name) for name in header if name.lower() in FILE_COLUMNS and name not in leaves), None)
    if named is None:
        if len(rows) != len(names):
            raise ValueError(
                f"{path}: expected a column `file`, or a row for each of {len(names)} pictures, got {len(rows)}"
            )
        chosen = rows
    else:
        chosen = _by_name(path, rows, named, names)

    try:
        return torch.tensor([[float(row[column]) for column in columns] for row in chosen], dtype=torch.float64)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: expected a number in every leaf's column: {error}") from error


def _by_name(path: str | Path, rows: list, named: int, names: Sequence[str]) -> list:
    whole = {str(row[named]): row for row in rows}
    short: dict[str, list] = {}
    for row in rows:
        short.setdefault(Path(str(row[named])).name, []).append(row)

    chosen: list = []
    missing: list[str] = []
    for name in names:
        found = whole.get(name)
        same = short.get(Path(name).name, [])
        if found is None and len(same) == 1:
            found = same[0]
        if found is None:
            missing.append(name)
        else:
            chosen.append(found)

    if missing:
        raise ValueError(f"{path}: expected a row for every picture, got none for {len(missing)}, such as {missing[0]}")
    return chosen


def _read(path: Path) -> tuple[list[str], list]:
    check_file(path)
    if path.suffix.lower() == ".parquet":
        with needs_extra("train", "parquet files"):
            import pyarrow.parquet as pq

        table = pq.read_table(path)
        return list(table.column_names), list(zip(*(column.to_pylist() for column in table.columns)))
    with open(path, newline="", encoding="utf-8-sig") as source:
        rows = list(csv.reader(source))
    if not rows:
        raise ValueError(f"{path}: expected a header, got an empty file")
    return rows[0], rows[1:]


def compare_beside(ours: Tensor, theirs: Tensor, labels: Tensor, paths: Tensor, taxonomy: Taxonomy) -> Beside:
    """Compare two models by their leaf probabilities.

    Args:
        ours: (N, P) of each path of the tree.
        theirs: (N, P), not necessarily normalised.
        labels: (N, L) int64.
        paths: (N, L) int64, our answers.
        taxonomy: The tree.
    """
    tree = torch.tensor(taxonomy.paths)
    rolled = roll_up(theirs, taxonomy)
    theirs = theirs / theirs.sum(-1, keepdim=True)
    product = ours.double() * theirs
    product = torch.where(product.sum(-1, keepdim=True) > 0, product, ours.double())

    leaves = {"ours": None, "theirs": theirs.argmax(-1), "product": product.argmax(-1)}
    found = {name: paths if leaf is None else tree[leaf] for name, leaf in leaves.items()}
    results = {}
    for name, answer in found.items():
        metrics = HierarchicalMetrics(taxonomy)
        metrics.update(answer, labels)
        results[name] = metrics.compute()

    levels = {}
    for depth, level in enumerate(taxonomy.levels):
        known = labels[:, depth] != UNKNOWN
        if known.any():
            levels[level] = 100 * (rolled[depth].argmax(-1) == labels[:, depth])[known].double().mean().item()

    same = (found["ours"] == found["theirs"]).all(1)
    wrong = ((found["ours"] != labels) & (labels != UNKNOWN)).any(1)
    certainty = torch.minimum(ours.max(-1).values, theirs.max(-1).values)
    queue = [i for i in certainty.argsort(descending=True).tolist() if not same[i]]
    return Beside(
        results=results,
        levels=levels,
        agree=100 * same.double().mean().item(),
        right_where_both_agree=100 * (~wrong[same]).double().mean().item() if same.any() else 0.0,
        queue=queue,
        errors_in_queue=100 * (~same[wrong]).double().mean().item() if wrong.any() else 0.0,
    )
