"""Taxonomy: the levels, nodes and parents of a label tree, coarse to fine."""

import csv
import dataclasses
import difflib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

UNKNOWN = -1  # label of a level that is not known, or below a shallow leaf


class TaxonomyError(ValueError):
    """The given levels, names and parents are no tree; the message names the node."""


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """A tree of labels whose nodes lie on named levels. Leaves may lie at different depths.

    Args:
        levels: Names of the levels, coarse to fine, e.g. ``("order", "family", "species")``.
        names: Node names of each level; a name is unique in its level.
        parents: For each level but the coarsest, the index of each node's parent in the level above.
        name: What the taxonomy is called.

    Raises:
        TaxonomyError: if these are no tree. The message names the level and the node.
    """

    levels: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    parents: tuple[tuple[int, ...], ...]
    name: str = ""

    def __post_init__(self):
        try:
            object.__setattr__(self, "levels", tuple(self.levels))
            object.__setattr__(self, "names", tuple(map(tuple, self.names)))
            object.__setattr__(self, "parents", tuple(map(tuple, self.parents)))
        except TypeError as error:
            raise TaxonomyError(f"expected lists of levels, names and parents: {error}") from error
        self._validate()

    def _validate(self) -> None:
        if not self.levels:
            raise TaxonomyError("expected at least one level")
        if not all(isinstance(level, str) and level for level in self.levels):
            raise TaxonomyError(f"expected level names that are non-empty strings, got {self.levels!r}")
        if duplicate := _first_duplicate(self.levels):
            raise TaxonomyError(f"level name {duplicate!r} occurs twice")
        if len(self.names) != len(self.levels) or len(self.parents) != len(self.levels) - 1:
            raise TaxonomyError(f"expected names for {len(self.levels)} levels and parents for "
                                f"{len(self.levels) - 1}, got {len(self.names)} and {len(self.parents)}")
        for level, names in zip(self.levels, self.names):
            if not names:
                raise TaxonomyError(f"level {level!r} has no node")
            for index, name in enumerate(names):
                if not isinstance(name, str) or not name.strip():
                    raise TaxonomyError(f"node {index} of level {level!r}: expected a name, got {name!r}")
            if duplicate := _first_duplicate(names):
                raise TaxonomyError(f"node {duplicate!r} occurs twice at level {level!r}")
        for depth, parents in enumerate(self.parents):
            level, names = self.levels[depth + 1], self.names[depth + 1]
            if len(parents) != len(names):
                raise TaxonomyError(f"level {level!r}: expected a parent for each of {len(names)} nodes, got "
                                    f"{len(parents)}")
            for name, parent in zip(names, parents):
                if type(parent) is not int or not 0 <= parent < len(self.names[depth]):
                    raise TaxonomyError(f"node {name!r} of level {level!r}: expected a parent from 0 to "
                                        f"{len(self.names[depth]) - 1}, got {parent!r}")

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[str]], levels: Sequence[str] | None = None,
                   name: str = "") -> "Taxonomy":
        """Build a taxonomy from paths of node names, coarse to fine; shorter paths end in a shallow leaf.

        Nodes keep the order in which they first appear.

        Args:
            paths: One sequence of names a leaf. Repeated paths count once.
            levels: Names of the levels; ``level_1``, ``level_2`` ... by default.
            name: What the taxonomy is called.

        Raises:
            TaxonomyError: if a node has two parents, a path is empty or longer than ``levels``, or a name is empty.
        """
        parent_of: list[dict[str, str | None]] = []
        for path in paths:
            if len(path) == 0:
                raise TaxonomyError("expected at least one name in each path, got an empty path")
            if levels is not None and len(path) > len(levels):
                raise TaxonomyError(f"path {tuple(path)!r} is longer than the {len(levels)} levels")
            for depth, node in enumerate(path):
                if depth == len(parent_of):
                    parent_of.append({})
                parent = path[depth - 1] if depth else None
                known = parent_of[depth].setdefault(node, parent)
                if known != parent:
                    level = levels[depth] if levels is not None else f"level_{depth + 1}"
                    raise TaxonomyError(f"node {node!r} of level {level!r} has two parents, {known!r} and {parent!r}: "
                                        "use names that are unique in their level")
        if levels is None:
            levels = [f"level_{depth + 1}" for depth in range(len(parent_of))]
        index = [{node: i for i, node in enumerate(nodes)} for nodes in parent_of]
        parents = tuple(tuple(index[depth][parent] for parent in nodes.values() if parent is not None)
                        for depth, nodes in enumerate(parent_of[1:]))
        return cls(tuple(levels), tuple(map(tuple, parent_of)), parents, name)

    @classmethod
    def from_csv(cls, path: str | Path, columns: Sequence[str] | None = None) -> "Taxonomy":
        """Build a taxonomy from a CSV file with a header and one path a row; trailing empty cells end a path early.

        Args:
            path: The file, UTF-8.
            columns: Columns to use, coarse to fine, as level names; by default all.
        """
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(columns or reader.fieldnames or [])
            missing = [c for c in columns if c not in (reader.fieldnames or [])]
            if missing or not columns:
                raise TaxonomyError(f"{path}: expected columns {columns}, got {reader.fieldnames}")
            rows = [trim_path([row[c] for c in columns], f"{path} line {reader.line_num}") for row in reader]
        return cls.from_paths(rows, columns, Path(path).stem)

    @classmethod
    def from_folder(cls, root: str | Path, levels: Sequence[str] | None = None) -> "Taxonomy":
        """Build a taxonomy from a tree of folders: each folder that has no sub-folder is a leaf."""
        root = Path(root)
        if not root.is_dir():
            raise TaxonomyError(f"expected a folder, got {root}")

        def leaves(folder: Path, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
            children = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
            if not children and path:
                yield path
            for child in children:
                yield from leaves(child, (*path, child.name))

        paths = list(leaves(root, ()))
        if not paths:
            raise TaxonomyError(f"{root}: expected a folder for each label, got no sub-folder")
        return cls.from_paths(paths, levels, root.name)

    @classmethod
    def from_dict(cls, data: dict) -> "Taxonomy":
        """Build a taxonomy from the plain data of :meth:`to_dict`; unknown keys are an error."""
        if not isinstance(data, dict):
            raise TaxonomyError(f"expected a taxonomy as a JSON object, got {type(data).__name__}")
        fields = {f.name for f in dataclasses.fields(cls)}
        if missing := sorted(fields - {"name"} - set(data)):
            raise TaxonomyError(f"taxonomy lacks {', '.join(missing)}")
        if unknown := sorted(set(data) - fields):
            raise TaxonomyError(f"unknown taxonomy keys: {', '.join(unknown)}")
        return cls(**data)

    def to_dict(self) -> dict:
        """Return plain data that JSON can hold."""
        return {"name": self.name, "levels": list(self.levels), "names": [list(n) for n in self.names],
                "parents": [list(p) for p in self.parents]}

    @classmethod
    def load(cls, path: str | Path) -> "Taxonomy":
        """Read a JSON or CSV file, or a tree of folders."""
        path = Path(path)
        if path.is_dir():
            return cls.from_folder(path)
        if path.suffix.lower() == ".csv":
            return cls.from_csv(path)
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise TaxonomyError(f"{path}: expected JSON: {error}") from error
        except TaxonomyError as error:
            raise TaxonomyError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @property
    def level_classes(self) -> tuple[int, ...]:
        """Number of nodes of each level, coarse to fine."""
        return tuple(map(len, self.names))

    @functools.cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """One path a leaf: node index of each level, coarse to fine; -1 below a shallow leaf.

        Leaves of the finest level come first, in their order, so that path i is finest node i.
        """
        last = len(self.levels) - 1
        with_children = [set(p) for p in self.parents] + [set()]
        return tuple(self.path_to(level, index) for level in range(last, -1, -1)
                     for index in range(len(self.names[level])) if index not in with_children[level])

    def path_to(self, level: int, index: int) -> tuple[int, ...]:
        """Return the node indices from the coarsest level to a node, -1 at finer levels."""
        path = [UNKNOWN] * len(self.levels)
        for depth in range(level, -1, -1):
            path[depth] = index
            if depth:
                index = self.parents[depth - 1][index]
        return tuple(path)

    def path_names(self, path: Sequence[int]) -> tuple[str, ...]:
        """Return the names along a path of node indices, leaving out levels that are -1."""
        return tuple(self.names[level][index] for level, index in enumerate(path) if index != UNKNOWN)

    def labels(self, path: Sequence[str | int]) -> tuple[int, ...]:
        """Turn a path of names (or node indices) into a label for each level, -1 where the path has ended.

        Args:
            path: Coarse to fine. None, empty or -1 at a level means unknown there; ancestors of a known node are
                filled in.

        Raises:
            TaxonomyError: if a node is unknown, or is not a child of the node before it.
        """
        if len(path) > len(self.levels):
            raise TaxonomyError(f"path {tuple(path)!r} is longer than the {len(self.levels)} levels")
        given = [self._index(level, node) for level, node in enumerate(path)]
        known = [level for level, index in enumerate(given) if index != UNKNOWN]
        if not known:
            return (UNKNOWN,) * len(self.levels)
        labels = self.path_to(known[-1], given[known[-1]])
        for level in known:
            if labels[level] != given[level]:
                node, child = self.names[level][given[level]], self.names[known[-1]][given[known[-1]]]
                raise TaxonomyError(f"{child!r} of level {self.levels[known[-1]]!r} belongs to "
                                    f"{self.names[level][labels[level]]!r}, not to {node!r}")
        return labels

    def find(self, node: str) -> tuple[int, int]:
        """Return the level and index of a node, given by its name, or as ``level:name`` where a name is not unique.

        Raises:
            TaxonomyError: if there is no such node (the message names the nearest ones), or several.
        """
        places = [(level, index[node]) for level, index in enumerate(self._name_index) if node in index]
        if len(places) > 1:
            raise TaxonomyError(f"node {node!r} is at more than one level: write "
                                f"{' or '.join(repr(f'{self.levels[level]}:{node}') for level, _ in places)}")
        if places:
            return places[0]
        prefix, colon, name = node.partition(":")
        if colon and prefix in self.levels and name:
            level = self.levels.index(prefix)
            return level, self._index(level, name)
        near = self._nearest(node)
        hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise TaxonomyError(f"no node {node!r} in the taxonomy{hint}")

    def _nearest(self, node: str) -> list[str]:
        """Return up to three names at any level that are near to one, whole or by a word, in any case."""
        names: dict[str, str] = {}
        for name in (name for level in self.names for name in level):
            names.setdefault(name.lower(), name)
        words = {word: name for whole, name in reversed(names.items()) for word in whole.replace("-", " ").split()}
        near = difflib.get_close_matches(node.lower(), {**words, **names}, 6)
        return list(dict.fromkeys({**words, **names}[match] for match in near))[:3]

    def _index(self, level: int, node: str | int | None) -> int:
        if node is None or node == "" or node == UNKNOWN:
            return UNKNOWN
        if isinstance(node, str):
            index = self._name_index[level].get(node)
            if index is None:
                near = difflib.get_close_matches(node, self.names[level], 3)
                hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise TaxonomyError(f"no node {node!r} at level {self.levels[level]!r}{hint}")
            return index
        if not 0 <= node < len(self.names[level]):
            raise TaxonomyError(f"label {node} is out of range at level {self.levels[level]!r}: expected 0 to "
                                f"{len(self.names[level]) - 1}, or -1 for unknown")
        return int(node)

    @functools.cached_property
    def _name_index(self) -> tuple[dict[str, int], ...]:
        return tuple({name: i for i, name in enumerate(names)} for names in self.names)


def trim_path(cells: Sequence[str | None], where: str) -> list[str]:
    """Return the cells of a path without trailing empty ones.

    Raises:
        TaxonomyError: if a cell before the last name is empty.
    """
    names = [(cell or "").strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    if not all(names) or not names:
        raise TaxonomyError(f"{where}: expected names without a gap, coarse to fine, got {names}")
    return names


def _first_duplicate(values: Sequence[str]) -> str | None:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
