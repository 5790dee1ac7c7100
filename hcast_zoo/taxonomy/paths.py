"""Paths of names, coarse to fine, before they become nodes: gaps are filled, names made unique in their level."""

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
        level: Level of the node.
        index: Index of the node in its level.
    """
    path = [index]
    for depth in range(level, 0, -1):
        path.append(parents[depth - 1][path[-1]])
    return tuple(reversed(path))


def check_path(path: object, length: int) -> None:
    """Raise TaxonomyError unless a path is a list or tuple of at most this length."""
    if not isinstance(path, (list, tuple)):
        raise TaxonomyError(f"expected a path as a list of names, coarse to fine, got {brief(path)}")
    if len(path) > length:
        raise TaxonomyError(f"path {brief(path)} is longer than the {length} levels")


def complete_paths(rows: Iterable[Sequence[str | None]]) -> list[tuple[str, ...]]:
    """Return paths without gaps from the rows of a table, each path once.

    A gap is filled with the parent that other rows give the name below it, otherwise with ``PARENT incertae sedis``,
    the usual name for taxa of unknown place. A name that leaves its species open (``Larus sp.``) ends the path at the
    level above, and so does ``A/B`` of names that other rows have.
    """
    given = list(dict.fromkeys(map(_cut, rows)))
    known, parents = _names_and_parents(given)

    paths: dict[tuple[str, ...], None] = {}
    for names in given:
        while names and _offers(names[-1], known[len(names) - 1]):
            names = _cut(names[:-1])
        if names:
            paths[_fill_gaps(names, parents)] = None

    return list(paths)


def _names_and_parents(
    rows: Iterable[Sequence[str | None]],
) -> tuple[list[set[str]], list[dict[str, set[str]]]]:
    """Return the names that occur at each level, and for each of them the names that occur directly above it."""
    known: list[set[str]] = []
    parents: list[dict[str, set[str]]] = []
    for names in rows:
        for depth, name in enumerate(names):
            if depth == len(known):
                known.append(set())
                parents.append({})
            if name is None:
                continue

            known[depth].add(name)
            above = names[depth - 1] if depth else None
            if above is not None:
                parents[depth].setdefault(name, set()).add(above)

    return known, parents


def _fill_gaps(names: Sequence[str | None], parents: Sequence[dict[str, set[str]]]) -> tuple[str, ...]:
    whole = list(names)
    for depth in range(len(whole) - 2, -1, -1):
        below = whole[depth + 1]
        candidates = parents[depth + 1].get(below, set()) if below is not None else set()
        if whole[depth] is None and len(candidates) == 1:
            whole[depth] = next(iter(candidates))

    path: list[str] = []
    for name in whole:
        if name is None:
            name = _unplaced(path[-1]) if path else "incertae sedis"
        path.append(name)

    return tuple(path)


def _cut(row: Sequence[str | None]) -> tuple[str | None, ...]:
    """Return a row up to its last name, with gaps for names that leave a species open."""
    names = [None if name is None or is_open(name) else name for name in row]
    while names and names[-1] is None:
        names.pop()
    return tuple(names)


def _offers(name: str | None, known: set[str]) -> bool:
    """Return whether a name is an alternative, ``A/B``, of known names."""
    parts = alternatives(name) if name else []
    return len(parts) > 1 and all(part in known for part in parts)


def _unplaced(parent: str) -> str:
    return parent if parent.endswith("incertae sedis") else f"{parent} incertae sedis"


def _with_ancestors(path: tuple[str, ...], namesakes: Sequence[tuple[str, ...]]) -> str:
    """Return the last name of a path with as many ancestors in brackets as tell it apart from all its namesakes."""
    depth = 2
    while sum(other[-depth:] == path[-depth:] for other in namesakes) > 1:
        depth += 1

    return f"{path[-1]} ({' < '.join(path[-2 : -depth - 1 : -1])})"


def unique_names(level: str, paths: Sequence[tuple[str, ...]], strict: bool) -> tuple[str, ...]:
    """Return a name for each node of a level, unique in it: in brackets, as many ancestors as tell two nodes apart.

    Args:
        level: Name of the level.
        paths: The path of names to each node, all of one length.
        strict: Refuse a name below two parents.

    Raises:
        TaxonomyError: with ``strict``, if a name occurs below two parents.

    Example:
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     unique_names("kind", [("owls", "other"), ("gulls", "other"), ("gulls", "tern")], strict=False)
        ('other (owls)', 'other (gulls)', 'tern')
    """
    last_names = tuple(path[-1] for path in paths)
    count = collections.Counter(last_names)
    shared = [path for path in paths if count[path[-1]] > 1]
    if not shared or not all(last_names):  # the check of the tree refuses a blank name
        return last_names

    if strict:
        first, second = [path for path in shared if path[-1] == shared[0][-1]][:2]
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
            name = _with_ancestors(path, [other for other in shared if other[-1] == name])
            while name in taken:
                name += "'"
            taken.add(name)

        names.append(name)

    examples = ", ".join(repr(name) for name in names if name not in count)
    repeated = len({path[-1] for path in shared})
    text = f"{repeated} name is" if repeated == 1 else f"{repeated} names are"
    message = f"level {brief(level)}: {text} below several parents, now in brackets, such as {clip(examples, 200)}"
    if repeated > len(count) / 2:
        message += ". That is most of the names: is each column above it a level? Name the levels with --levels"

    warnings.warn(message, stacklevel=4)
    return tuple(names)
