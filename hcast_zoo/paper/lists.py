"""Data sets that are lists of pictures and of their nodes' numbers: iNaturalist 2018, and Free-Grained Recognition's.

The lists and trees are their authors' and are fetched by the user; the pictures are those of another data set. A
training picture of a free-grained data set is known down to some level only, which its list tells, or which is drawn.
"""

import dataclasses
import json
import operator
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..taxonomy.sources import TaxonomyError
from ..taxonomy.tree import Taxonomy
from .benchmarks import Benchmark, Lists
from .readers import DataError, Picture, RawDataset, find_file
from .trees import from_paths, load_tree, numbered


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a list: the picture's path in its data set, its nodes from coarse to fine, and its last known level.

    Attributes:
        path: As it is written.
        nodes: Node of each level, coarse to fine; the leaf alone in lists without the levels above.
        depth: How many levels are known; None for all.
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
        if not 0 <= row.nodes[-1] < len(tree.paths) or row.nodes not in (tree.paths[row.nodes[-1]], row.nodes[-1:]):
            raise DataError(f"{lists.files[row.split]}: {row.path}: {row.nodes} is no path of the tree of {tree.name}")

    folder = _folder_of(lists, rows, roots)
    pictures = [Picture(folder(row.path), row.nodes[-1], row.split, row.depth) for row in rows]
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
        given = lists.has_depth and split == "train"
        count = (1 if lists.leaf_only else len(benchmark.levels)) + given
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            path, *numbers = line.rsplit(maxsplit=count)
            if len(numbers) != count or not all(word.isdecimal() for word in numbers):
                raise DataError(f"{file} line {number}: expected a path and {count} numbers, got {line[:200]!r}")

            *nodes, last = map(int, numbers)
            if not given:
                rows.append(Row(Path(path), (*nodes, last), None, split))
            elif not lists.use_depth:
                rows.append(Row(Path(path), tuple(nodes), None, split))
            else:
                rows.append(
                    Row(Path(path), tuple(nodes), _depth(benchmark, nodes, last, f"{file} line {number}"), split)
                )

    return rows


def _depth(benchmark: Benchmark, nodes: Sequence[int], given: int, where: str) -> int:
    """Return how many levels a given label knows: nodes of all levels are numbered on, from coarse to fine."""
    first = 0
    for depth, (node, count) in enumerate(zip(nodes, benchmark.levels.values()), 1):
        if given == first + node:
            return depth
        first += count

    raise DataError(f"{where}: the given label {given} is none of the picture's own nodes {tuple(nodes)}")


def _tree(benchmark: Benchmark, rows: Sequence[Row], roots: Sequence[Path]) -> Taxonomy:
    """Return the packaged tree; else the one that the lists, or a file beside them, define."""
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

    found, expected = tree.level_classes, tuple(benchmark.levels.values())
    # Official heads may have classes that the file of a tree lacks: 274 orders, and 272 in iNaturalist 2018's.
    spare = lists.leaf_only and found[-1] == expected[-1] and all(map(operator.le, found, expected))
    if found != expected and not spare:
        raise DataError(f"{benchmark.title}: expected classes {expected}, the lists have {found}")
    return tree


def _read_tree(file: Path, depth: int) -> list[tuple[int, ...]]:
    """Read iNaturalist 2018's tree: rows from species to kingdom and supercategory, or of the three levels alone."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        columns = (7, 3, 0) if len(rows[0]) == 8 else range(depth - 1, -1, -1)
        return sorted((tuple(int(row[c]) for c in columns) for row in rows), key=lambda path: path[-1])
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise DataError(f"{file}: expected rows of node numbers in JSON: {error!r}") from error


def _read_names(file: Path, level: str, count: int) -> tuple[str, ...]:
    """Read ``{"0": "dog", ...}``; a name that occurs twice gets its number."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        names = [str(table[str(i)]) for i in range(count)]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}: expected a JSON object of {count} names by number: {error!r}") from error
    return tuple(f"{name} ({level} {i})" if names.count(name) > 1 else name for i, name in enumerate(names))


def _folder_of(lists: Lists, rows: Sequence[Row], roots: Sequence[Path]) -> Callable[[Path], Path]:
    """Return the function from a path in a list to the picture's file."""
    if lists.pictures == "cub":  # its lists say train/CLASS/FILE, of folders that their authors made
        images = find_file(roots, "images.txt").parent / "images"
        return lambda path: images.joinpath(*path.parts[-2:])

    bases = {top: find_file(roots, top, f"ILSVRC/Data/CLS-LOC/{top}") for top in {row.path.parts[0] for row in rows}}

    def file(path: Path) -> Path:
        top, *rest = path.parts
        whole = bases[top].joinpath(*rest)
        if lists.pictures == "imagenet" and top == "val" and not whole.parent.is_dir():
            return bases[top] / path.name  # as ImageNet distributes it, without folders
        return whole

    return file


def deal(content: RawDataset, fine: float, middle: float, seed: int, order: dict[str, int]) -> RawDataset:
    """Return a data set whose training pictures are known down to a drawn level, with the official code's draws.

    Args:
        content: Whose every picture is known to the leaf, of three levels.
        fine: Part of each leaf's pictures that stays known to the leaf.
        middle: Part that is known to the leaf or to the level above; the rest is known at the coarsest level only.
        seed: Of the draws.
        order: Place of each training picture's file name in the official code's list.

    Source: FreeGrainLearning's birds_partial_seeds.py and aircraft_partial_seeds.py, by reading.
    """
    random = np.random.RandomState(seed)
    of_leaf: dict[int, list[int]] = {}
    training = [i for i, picture in enumerate(content.pictures) if picture.split == "train"]
    for i in sorted(training, key=lambda i: order[content.pictures[i].file.name]):
        of_leaf.setdefault(content.pictures[i].leaf, []).append(i)

    pictures = list(content.pictures)
    for own in of_leaf.values():
        random.shuffle(own)
        known = int(len(own) * fine)
        above = known + int(len(own) * (middle - fine))
        for place, i in enumerate(own):
            depth = 3 if place < known else 2 if place < above else 1
            pictures[i] = dataclasses.replace(pictures[i], depth=depth)

    return dataclasses.replace(content, pictures=pictures)


def official_order(content: RawDataset, roots: Sequence[Path], layout: str) -> dict[str, int]:
    """Return the place of each training picture's file name in the list that the official code draws along."""
    if layout == "aircraft":
        lines = find_file(roots, "data/images_variant_trainval.txt", "images_variant_trainval.txt").read_text("utf-8")
        return {f"{line.split(' ', 1)[0]}.jpg": place for place, line in enumerate(lines.splitlines())}
    files = sorted((p.file for p in content.pictures if p.split == "train"), key=lambda file: file.parts[-2:])
    return {file.name: place for place, file in enumerate(files)}
