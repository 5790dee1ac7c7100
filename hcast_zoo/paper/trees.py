"""Label trees: those of the paper's data sets, with nodes in the official order, and one over ImageNet's classes."""

import collections
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from ..taxonomy.sources import TaxonomyError
from ..taxonomy.tree import Taxonomy

TREES = Path(__file__).parent / "label_trees"


def tree_names() -> list[str]:
    """Return the names of the trees."""
    return sorted(path.stem for path in TREES.glob("*.json"))


def load_tree(name: str) -> Taxonomy:
    """Return a tree. Node i of a level is class i of the official checkpoints' head.

    A level whose nodes the data set does not name (CUB's orders and families), or names only in the files that come
    with its pictures (iNat21), has numbers for names: ``order 0``.

    Raises:
        TaxonomyError: if there is no such tree.
    """
    return _read(name)


def leaf_ids(name: str) -> list[str]:
    """Return the data set's own identifiers of a tree's leaves, such as ImageNet's n01440764, in order.

    Raises:
        TaxonomyError: if there is no such tree, or it has no identifiers.
    """
    ids = _parse(name).get("leaf_ids") if name in tree_names() else None
    if ids is None:
        raise TaxonomyError(f"the taxonomy {name!r} has no identifiers for its leaves: match by name or order")
    return ids


def with_names(tree: Taxonomy, level_names: Sequence[Sequence[str] | None]) -> Taxonomy:
    """Return a tree with other names; None keeps the names of a level."""
    names = tuple(tuple(new or old) for new, old in zip(level_names, tree.names, strict=True))
    return Taxonomy(levels=tree.levels, names=names, parents=tree.parents, name=tree.name)


def is_numbered(tree: Taxonomy, level: int) -> bool:
    """Tell whether the nodes of a level have only numbers for names."""
    return tree.names[level] == numbered(tree.levels[level], len(tree.names[level]))


def same_tree(tree: Taxonomy, other: Taxonomy) -> bool:
    """Tell whether node i of one is node i of the other: equal parents, and equal leaf names if both have names."""
    if tree.level_classes != other.level_classes or tree.parents != other.parents:
        return False

    last = len(tree.levels) - 1
    return is_numbered(tree, last) or is_numbered(other, last) or tree.names[last] == other.names[last]


def only_children(tree: Taxonomy) -> dict[str, list[str]]:
    """Return, for each level but the finest, the names of the nodes that have one child.

    Such a node and its child are one class under two names, so being right about one is being right about the other.
    """
    single = {}
    for level, parents in enumerate(tree.parents):
        counts = collections.Counter(parents)
        single[tree.levels[level]] = [name for node, name in enumerate(tree.names[level]) if counts[node] == 1]

    return single


def shallow_leaves(tree: Taxonomy) -> list[tuple[str, ...]]:
    """Return the paths that end above the finest level; the paper's trees have none."""
    return [tree.path_names(path) for path in tree.paths if path[-1] < 0]


def _parse(name: str) -> dict:
    return json.loads((TREES / f"{name}.json").read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=8)
def _read(name: str) -> Taxonomy:
    """Read the tree's ``paths`` of node indices, and the names of the levels that have some."""
    if name not in tree_names():
        raise TaxonomyError(f"no tree {name!r}: expected one of {', '.join(tree_names())}")

    tree = _parse(name)
    paths, levels = tree["paths"], tree["levels"]
    level_names = []
    for level, nodes in zip(levels, zip(*paths)):
        level_names.append(tree["names"].get(level) or numbered(level, max(nodes) + 1))

    try:
        return from_paths(tree["dataset"], levels, paths, level_names)
    except TaxonomyError as error:
        raise TaxonomyError(f"tree {name}: {error}") from error


def from_paths(
    title: str, levels: Sequence[str], paths: Sequence[Sequence[int]], level_names: Sequence[Sequence[str]]
) -> Taxonomy:
    """Return the tree that has these paths of node numbers, coarse to fine; nodes keep their numbers.

    Raises:
        TaxonomyError: if a node has two parents, or a number is missing.
    """
    parents = []
    for depth, level in enumerate(levels[1:]):
        parent_of: dict[int, int] = {}
        for path in paths:
            parent, node = path[depth], path[depth + 1]
            if parent_of.setdefault(node, parent) != parent:
                raise TaxonomyError(f"node {node} of level {level!r} has two parents")

        if missing := sorted(set(range(len(parent_of))) - set(parent_of)):
            raise TaxonomyError(f"node {missing[0]} of level {level!r} is on no path")
        parents.append(tuple(parent_of[node] for node in range(len(parent_of))))

    return Taxonomy(levels=tuple(levels), names=tuple(map(tuple, level_names)), parents=tuple(parents), name=title)


def numbered(level: str, count: int) -> tuple[str, ...]:
    """Return names for the nodes of a level that has none."""
    return tuple(f"{level} {index}" for index in range(count))
