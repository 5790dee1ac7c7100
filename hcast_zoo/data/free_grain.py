"""Make a data set whose labels end early, from one that is labelled down to the leaves.

Real collections are like that: one expert noted the species, another only the order. Training leaves unknown levels out
of every loss (see :mod:`hcast_zoo.training.losses`); with such a data set, the cost in accuracy can be measured.

Source: the setting of Free-Grained Hierarchical Visual Recognition (arXiv 2510.14737). Our choice of pictures differs:
there, a vision-language model's confidence decides; here, it is random but even over the tree.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..common.files import whole_file
from ..taxonomy.sources import TaxonomyError
from ..taxonomy.tree import UNKNOWN, Taxonomy
from .readers import read_listing


@dataclasses.dataclass(frozen=True)
class FreeGrain:
    """Summary of a data set with shortened labels.

    Attributes:
        output: The file.
        split: The split whose labels were shortened; None for all.
        pictures: Number of pictures of that split.
        known_down_to: Level name to the number of pictures whose label now ends there.
        leaves: Number of leaves that had a fully labelled picture.
        leaves_left: Number of those that still have one.
    """

    output: str
    split: str | None
    pictures: int
    known_down_to: dict[str, int]
    leaves: int
    leaves_left: int


def deal_levels(labels: Sequence[Sequence[int]], fractions: Sequence[float | Fraction], seed: int = 0) -> np.ndarray:
    """Choose how many levels of each picture's label to keep.

    Pictures are sorted in the order of the tree, at random within a leaf, and each in turn gets the level that is
    furthest behind its fraction. So the fractions hold to within a picture or two, overall and in every leaf and
    subtree; within a leaf, the assignment is random.

    Args:
        labels: S paths of node indices, coarse to fine, -1 where unknown.
        fractions: Fraction of the pictures known down to each level, coarse to fine. They add up to 1.
        seed: Seed of the random order.

    Returns:
        (S,) int64, from 1 to the number of levels.

    Raises:
        ValueError: if there is not one fraction per level, or they do not add up to 1.
    """
    rows = np.asarray(labels, dtype=np.int64)
    check_fractions(fractions, rows.shape[1])
    chance = np.random.default_rng(seed).permutation(len(rows))
    order = np.lexsort((chance, *rows.T[::-1]))  # lexsort's last key is the primary one: the coarsest level

    parts = np.array([float(f) for f in fractions])
    levels, count = np.empty(len(rows), dtype=np.int64), np.zeros(len(parts))
    for turn, picture in enumerate(order, 1):
        level = int(np.argmax(np.round(parts * turn - count, 9)))  # rounding: ties must not depend on the last bit
        count[level] += 1
        levels[picture] = level + 1

    return levels


def check_fractions(fractions: Sequence[float | Fraction], num_levels: int) -> None:
    """Raise ValueError unless there is one fraction per level, none is negative, and they add up to 1."""
    given = ", ".join(map(str, fractions))
    if len(fractions) != num_levels:
        raise ValueError(f"fractions: expected one for each of {num_levels} levels, coarse to fine, got {given}")
    if not all(f >= 0 for f in fractions) or abs(float(sum(fractions)) - 1) > 1e-6:
        raise ValueError(
            f"fractions: expected parts of 1, such as 1/3 1/3 1/3 or 0.2 0.3 0.5, got {given}, which add "
            f"up to {float(sum(fractions)):g}"
        )


def write_free_grain(
    source: str | Path,
    output: str | Path,
    taxonomy: Taxonomy,
    fractions: Sequence[float | Fraction],
    split: str | None = "train",
    seed: int = 0,
) -> FreeGrain:
    """Copy a data set with the labels of one split shortened; everything else in the file stays the same.

    Labels are only ever shortened: one that already ends early stays as it is or becomes shorter.

    Args:
        source: A ``.csv``, ``.jsonl`` or ``.parquet`` file; see :class:`hcast_zoo.data.dataset.HierarchicalDataset`.
        output: File of the same format. Picture names are rewritten relative to it.
        taxonomy: The tree; its levels name the columns.
        fractions: Fraction of the pictures known down to each level, coarse to fine.
        split: The split whose labels are shortened; None for all.
        seed: Determines which pictures lose which levels.

    Raises:
        ValueError: if the file, its format or the fractions are not as expected, or no picture is in the split.
        TaxonomyError: if a label is not in the taxonomy.
    """
    source, output = Path(source), Path(output)
    formats = {".csv": _cut_csv, ".jsonl": _cut_jsonl, ".parquet": _cut_parquet}
    suffix = source.suffix.lower()
    if suffix not in formats or not source.is_file():
        raise ValueError(f"{source}: expected a file that ends in {', '.join(formats)}")
    if output.suffix.lower() != suffix or output.resolve() == source.resolve():
        raise ValueError(f"{output}: expected a file other than {source.name} that also ends in {suffix}")

    check_fractions(fractions, len(taxonomy.levels))
    labels = []
    for number, path in enumerate(read_listing(source, taxonomy).part(split).paths):
        try:
            labels.append(taxonomy.labels(path))
        except TaxonomyError as error:
            raise TaxonomyError(f"{source}, picture {number} of split {split}: {error}") from error

    if not labels:
        raise ValueError(f"{source}: expected at least one picture of split {split!r}, got none")

    kept = deal_levels(labels, fractions, seed)
    turn = iter(kept.tolist())

    def keep(part: str | None) -> int:
        """Return how many levels the next row keeps; rows come in the order of the file."""
        return next(turn) if split in (None, part) else len(taxonomy.levels)

    cut = formats[suffix]
    with whole_file(output) as temporary:
        cut(source, temporary, taxonomy, keep, output.parent)

    return _summary(output, split, labels, kept, taxonomy)


def _summary(
    output: Path, split: str | None, labels: list[tuple[int, ...]], kept: np.ndarray, taxonomy: Taxonomy
) -> FreeGrain:
    known_before = (np.array(labels) != UNKNOWN).sum(1)  # a known node's ancestors are known too
    known = np.minimum(known_before, kept)
    leaves = set(taxonomy.paths)
    still_whole = set()
    for path, before, after in zip(labels, known_before, known):
        if path in leaves and before == after:
            still_whole.add(path)

    return FreeGrain(
        output=str(output),
        split=split,
        pictures=len(labels),
        known_down_to={level: int((known == depth).sum()) for depth, level in enumerate(taxonomy.levels, 1)},
        leaves=len(leaves & set(labels)),
        leaves_left=len(still_whole),
    )


def _cut_csv(source: Path, output: Path, taxonomy: Taxonomy, keep: Callable, folder: Path) -> None:
    with open(source, encoding="utf-8-sig", newline="") as old, open(output, "w", encoding="utf-8", newline="") as new:
        reader = csv.DictReader(old)
        writer = csv.DictWriter(new, reader.fieldnames or [], lineterminator="\n")
        writer.writeheader()
        for row in reader:
            cut_levels = taxonomy.levels[keep(row.get("split")) :]
            writer.writerow({**row, **dict.fromkeys(cut_levels, ""), "file": _seen_from(folder, source, row["file"])})


def _cut_jsonl(source: Path, output: Path, taxonomy: Taxonomy, keep: Callable, folder: Path) -> None:
    with open(source, encoding="utf-8") as old, open(output, "w", encoding="utf-8") as new:
        for line in filter(str.strip, old):
            row = json.loads(line)
            row["path"] = row["path"][: keep(row.get("split"))]
            row["file"] = _seen_from(folder, source, row["file"])
            new.write(json.dumps(row, ensure_ascii=False) + "\n")


def _cut_parquet(source: Path, output: Path, taxonomy: Taxonomy, keep: Callable, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(source)
    parts = table["split"].to_pylist() if "split" in table.column_names else [None] * len(table)
    kept = np.array([keep(part) for part in parts])
    for depth, level in enumerate(taxonomy.levels):
        column = table[level]
        cut = pc.if_else(pa.array(kept > depth), column, pa.scalar(None, column.type))
        table = table.set_column(table.column_names.index(level), table.schema.field(level).with_nullable(True), cut)

    pq.write_table(table, output, compression="zstd")


def _seen_from(folder: Path, source: Path, file: str) -> str:
    """Return a picture's name relative to the output's folder instead of the source's."""
    if os.path.isabs(file) or folder.resolve() == source.parent.resolve():
        return file

    return Path(os.path.relpath(source.parent / file, folder)).as_posix()
