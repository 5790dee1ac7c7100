"""Data sets given as lists of pictures with node numbers: iNaturalist 2018, and those of Free-Grained Recognition.

The user downloads the lists and trees from their authors; the pictures are those of another data set. A training
picture of a free-grained data set may be labelled down to an upper level only, given in the list or drawn at random.
"""

import collections
import dataclasses
import operator
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..common.text import from_json
from ..taxonomy.sources import TaxonomyError
from ..taxonomy.tree import Taxonomy
from .benchmarks import Benchmark, Lists
from .readers import DataError, Picture, RawDataset, find_file
from .trees import from_paths, load_tree, numbered


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a list.

    Attributes:
        path: The picture's path, as written in the list.
        nodes: Node of each level, coarse to fine; only the leaf in lists without the levels above.
        depth: Number of levels that are labelled; None for all.
        split: ``train`` or ``test``.
    """

    path: Path
    nodes: tuple[int, ...]
    depth: int | None
    split: str


def read_lists(benchmark: Benchmark, roots: Sequence[Path]) -> RawDataset:
    """Read the lists of a data set, and find its pictures.

    Raises:
        DataError: if a file is missing, or lists, tree and published counts disagree.
    """
    lists = benchmark.lists
    assert lists is not None
    rows = read_rows(benchmark, roots)
    tree = _tree(benchmark, rows, roots)
    for row in rows:
        leaf = row.nodes[-1]
        if not 0 <= leaf < len(tree.paths) or row.nodes not in (tree.paths[leaf], (leaf,)):
            raise DataError(
                f"{lists.files[row.split]}: {row.path}: {row.nodes} is not a path in the tree of {tree.name}"
            )

    folder = _folder_of(lists, rows, roots)
    pictures = []
    for row in rows:
        pictures.append(Picture(file=folder(row.path), leaf=row.nodes[-1], split=row.split, depth=row.depth))

    return RawDataset(pictures, tree)


def read_rows(benchmark: Benchmark, roots: Sequence[Path]) -> list[Row]:
    """Read the lists of a data set: a path and numbers on each line.

    Raises:
        DataError: if a list is missing or malformed.
    """
    lists = benchmark.lists
    assert lists is not None
    rows = []
    for split, name in lists.files.items():
        file = find_file(roots, name)
        has_label = lists.has_depth and split == "train"
        count = (1 if lists.leaf_only else len(benchmark.levels)) + has_label

        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue

            path, *numbers = line.rsplit(maxsplit=count)
            if len(numbers) != count or not all(map(str.isdecimal, numbers)):
                raise DataError(f"{file} line {number}: expected a path and {count} numbers, got {line[:200]!r}")

            nodes, depth = list(map(int, numbers)), None
            if has_label:
                label = nodes.pop()
                depth = _depth(benchmark, nodes, label, f"{file} line {number}") if lists.use_depth else None
            rows.append(Row(path=Path(path), nodes=tuple(nodes), depth=depth, split=split))

    return rows


def _depth(benchmark: Benchmark, nodes: Sequence[int], label: int, where: str) -> int:
    """Return the number of levels down to a label; labels number the nodes of all levels in one go, coarse to fine."""
    first = 0
    for depth, (node, count) in enumerate(zip(nodes, benchmark.levels.values()), 1):
        if label == first + node:
            return depth
        first += count

    raise DataError(f"{where}: expected the label of one of the picture's nodes {tuple(nodes)}, got {label}")


def _tree(benchmark: Benchmark, rows: Sequence[Row], roots: Sequence[Path]) -> Taxonomy:
    """Return the packaged tree if there is one; otherwise the tree that the lists, or a file beside them, define."""
    if benchmark.tree is not None:
        return load_tree(benchmark.tree)

    lists = benchmark.lists
    assert lists is not None
    if lists.leaf_only:
        paths = _read_tree(find_file(roots, *lists.tree_files), len(benchmark.levels))
    else:
        paths = sorted({row.nodes for row in rows}, key=lambda nodes: nodes[-1])

    leaves = [path[-1] for path in paths]
    if leaves != list(range(len(leaves))):
        raise DataError(f"{benchmark.title}: expected one path for each of {len(leaves)} leaves, numbered from 0")

    names = []
    for number, (level, count) in enumerate(benchmark.levels.items()):
        known = _read_names(find_file(roots, lists.names[number]), level, count) if lists.names else None
        names.append(known or numbered(level, 1 + max(path[number] for path in paths)))

    try:
        tree = from_paths(benchmark.title, list(benchmark.levels), paths, names)
    except TaxonomyError as error:
        raise DataError(f"{benchmark.title}: {error}") from error

    classes, expected = tree.level_classes, tuple(benchmark.levels.values())
    # Official heads can have classes that the file of a tree lacks: 274 orders, but 272 in iNaturalist 2018's.
    spare = lists.leaf_only and classes[-1] == expected[-1] and all(map(operator.le, classes, expected))
    if classes != expected and not spare:
        raise DataError(f"{benchmark.title}: expected classes {expected}, the lists have {classes}")

    return tree


def _read_tree(file: Path, depth: int) -> list[tuple[int, ...]]:
    """Read iNaturalist 2018's tree: rows from species to kingdom and supercategory, or of only the three levels."""
    try:
        rows = from_json(file.read_text(encoding="utf-8"))
        columns = (7, 3, 0) if len(rows[0]) == 8 else range(depth - 1, -1, -1)
        paths = []
        for row in rows:
            paths.append(tuple(int(row[column]) for column in columns))
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise DataError(f"{file}: expected rows of node numbers in JSON: {error!r}") from error

    return sorted(paths, key=lambda path: path[-1])


def _read_names(file: Path, level: str, count: int) -> tuple[str, ...]:
    """Read ``{"0": "dog", ...}``; a name that occurs more than once gets its number."""
    try:
        table = from_json(file.read_text(encoding="utf-8"))
        names = [str(table[str(i)]) for i in range(count)]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}: expected a JSON object of {count} names by number: {error!r}") from error

    counts = collections.Counter(names)
    for i, name in enumerate(names):
        if counts[name] > 1:
            names[i] = f"{name} ({level} {i})"
    return tuple(names)


def _folder_of(lists: Lists, rows: Sequence[Row], roots: Sequence[Path]) -> Callable[[Path], Path]:
    """Return a function that maps a path in a list to the picture's file."""
    if lists.pictures == "cub":  # its lists say train/CLASS/FILE, which are folders that their authors made
        images = find_file(roots, "images.txt").parent / "images"
        return lambda path: images.joinpath(*path.parts[-2:])

    bases: dict[str, Path] = {}
    for row in rows:
        top = row.path.parts[0]
        if top not in bases:
            bases[top] = find_file(roots, top, f"ILSVRC/Data/CLS-LOC/{top}")

    def file(path: Path) -> Path:
        top, *rest = path.parts
        listed = bases[top].joinpath(*rest)
        if lists.pictures == "imagenet" and top == "val" and not listed.parent.is_dir():
            return bases[top] / path.name  # ImageNet distributes val without folders

        return listed

    return file


def draw_depths(raw: RawDataset, fine: float, middle: float, seed: int, order: dict[str, int]) -> RawDataset:
    """Return a data set whose training pictures are labelled down to a random level, drawn as the official code does.

    Args:
        raw: A data set of three levels whose pictures are all labelled down to the leaf.
        fine: Fraction of each leaf's pictures that stay labelled down to the leaf.
        middle: Fraction labelled down to the leaf or the level above; the rest has only the coarsest label.
        seed: Seed of the draws.
        order: Position of each training picture's file name in the official code's list.

    Source: FreeGrainLearning's birds_partial_seeds.py and aircraft_partial_seeds.py, which were read but not run.
    """
    random = np.random.RandomState(seed)
    by_leaf: dict[int, list[int]] = {}
    training = [i for i, picture in enumerate(raw.pictures) if picture.split == "train"]
    for i in sorted(training, key=lambda i: order[raw.pictures[i].file.name]):
        by_leaf.setdefault(raw.pictures[i].leaf, []).append(i)

    pictures = list(raw.pictures)
    for indices in by_leaf.values():
        random.shuffle(indices)
        num_fine = int(len(indices) * fine)
        num_middle = int(len(indices) * (middle - fine))
        num_coarse = len(indices) - num_fine - num_middle
        depths = [3] * num_fine + [2] * num_middle + [1] * num_coarse
        for i, depth in zip(indices, depths):
            pictures[i] = dataclasses.replace(pictures[i], depth=depth)

    return dataclasses.replace(raw, pictures=pictures)


def official_order(raw: RawDataset, roots: Sequence[Path], layout: str) -> dict[str, int]:
    """Return the position of each training picture's file name in the list from which the official code draws."""
    if layout == "aircraft":
        lines = find_file(roots, "data/images_variant_trainval.txt", "images_variant_trainval.txt").read_text("utf-8")
        names = [f"{line.split(' ', 1)[0]}.jpg" for line in lines.splitlines()]
    else:
        files = [picture.file for picture in raw.pictures if picture.split == "train"]
        names = [file.name for file in sorted(files, key=lambda file: file.parts[-2:])]

    return {name: position for position, name in enumerate(names)}
