"""Paths of names, coarse to fine, on their way to nodes: checked, without gaps, each name unique in its level."""

import collections
import warnings
from collections.abc import Iterable, Sequence

from ..common.text import brief, clip
from .names import alternatives, is_open
from .sources import TaxonomyError

UNKNOWN = -1  # label of a level that is not known, or below a shallow leaf


def path_to(parents: Sequence[Sequence[int]], level: int, index: int) -> tuple[int, ...]:
    """Return the node indices from the coarsest level down to a node.

    Args:
        parents: For each level but the coarsest, the index of each node's parent in the level above.
        level: Of the node.
        index: Of the node in its level.
    """
    path = [index]
    for depth in range(level, 0, -1):
        path.append(parents[depth - 1][path[-1]])
    return tuple(reversed(path))


def check_path(path: object, length: int) -> None:
    """Raise TaxonomyError unless this is a list of at most so many names."""
    if not isinstance(path, (list, tuple)):
        raise TaxonomyError(f"expected a path as a list of names, coarse to fine, got {brief(path)}")
    if len(path) > length:
        raise TaxonomyError(f"path {brief(path)} is longer than the {length} levels")


def complete_paths(rows: Iterable[Sequence[str | None]]) -> list[tuple[str, ...]]:
    """Return paths without gaps for those of the rows of a table that make nodes, each once.

    A gap is filled by what other rows tell of the name below it, else by ``PARENT incertae sedis``, a node of what
    nobody has placed. Names that leave a species open (``Larus sp.``) end at the level above; ``A/B`` of known nodes
    makes none.
    """
    given = list(dict.fromkeys(map(_cut, rows)))
    known: list[set[str]] = []
    parents: list[dict[str, set[str]]] = []
    for names in given:
        for depth, name in enumerate(names):
            if depth == len(known):
                known.append(set())
                parents.append({})
            if name is not None:
                known[depth].add(name)
                above = names[depth - 1] if depth else None
                if above is not None:
                    parents[depth].setdefault(name, set()).add(above)

    paths: dict[tuple[str, ...], None] = {}
    for names in given:
        while names and _offers(names[-1], known[len(names) - 1]):
            names = _cut(names[:-1])

        whole = list(names)
        for depth in range(len(whole) - 2, -1, -1):
            below = whole[depth + 1]
            candidates = parents[depth + 1].get(below, set()) if below is not None else set()
            if whole[depth] is None and len(candidates) == 1:
                whole[depth] = next(iter(candidates))

        path: list[str] = []
        for name in whole:
            path.append(name if name is not None else _unplaced(path[-1]) if path else "incertae sedis")
        if path:
            paths[tuple(path)] = None

    return list(paths)


def _cut(row: Sequence[str | None]) -> tuple[str | None, ...]:
    """Return a row without names that leave a species open, up to its last name."""
    names = [None if name is None or is_open(name) else name for name in row]
    while names and names[-1] is None:
        names.pop()
    return tuple(names)


def _offers(name: str | None, known: set[str]) -> bool:
    parts = alternatives(name) if name else []
    return len(parts) > 1 and all(part in known for part in parts)


def _unplaced(parent: str) -> str:
    return parent if parent.endswith("incertae sedis") else f"{parent} incertae sedis"


def unique_names(level: str, paths: Sequence[tuple[str, ...]], strict: bool) -> tuple[str, ...]:
    """Return a name for each path to a node of a level: its last, with as many parents in brackets as tell it apart."""
    count = collections.Counter(path[-1] for path in paths)
    twice = [path for path in paths if count[path[-1]] > 1]
    if not twice or not all(path[-1] for path in paths):  # a blank name is refused where the tree is checked
        return tuple(path[-1] for path in paths)

    if strict:
        first, second = [path for path in twice if path[-1] == twice[0][-1]][:2]
        differ = next(depth for depth in range(len(first) - 2, -1, -1) if first[depth] != second[depth])
        raise TaxonomyError(
            f"node {brief(first[-1])} of level {brief(level)} has two parents, {brief(first[differ])} "
            f"and {brief(second[differ])}: use names that are unique in their level"
        )

    taken = set(count)
    names = []
    for path in paths:
        name = path[-1]
        if count[name] > 1:
            same = [other for other in twice if other[-1] == name]
            depth = 2
            while sum(other[-depth:] == path[-depth:] for other in same) > 1:
                depth += 1
            name = f"{name} ({' < '.join(path[-2 : -depth - 1 : -1])})"
            while name in taken:
                name += "'"
            taken.add(name)
        names.append(name)

    examples = ", ".join(repr(name) for name in names if name not in count)
    repeated = len({path[-1] for path in twice})
    text = f"{repeated} name is" if repeated == 1 else f"{repeated} names are"
    message = f"level {brief(level)}: {text} below several parents, now in brackets, such as {clip(examples, 200)}"
    if repeated > len(count) / 2:
        message += ". That is most of them: is each level above one of the taxonomy? --levels names those that are"

    warnings.warn(message, stacklevel=4)
    return tuple(names)
