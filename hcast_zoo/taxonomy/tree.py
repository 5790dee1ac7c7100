"""Taxonomy: the levels, nodes and parents of a label tree, coarse to fine."""

import dataclasses
import difflib
import functools
import itertools
import json
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..common.files import write_whole
from ..common.text import brief, clip
from .sources import MAX_LEVELS, TaxonomyError, _first_duplicate, label_folders, read_table, trim_path

UNKNOWN = -1  # label of a level that is not known, or below a shallow leaf
MAX_NAME = 1000  # characters
MAX_COMPARED = 20_000  # names that a mistyped one is compared with, which takes a second


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
        self._validate_levels()
        self._validate_names()
        self._validate_parents()

    def _validate_levels(self) -> None:
        if self.name != "" and (fault := _fault(self.name)):
            raise TaxonomyError(f"expected a name of the taxonomy, {fault}")
        if not 1 <= len(self.levels) <= MAX_LEVELS:
            raise TaxonomyError(f"expected at least one level and at most {MAX_LEVELS}, got {len(self.levels)}")

        for index, level in enumerate(self.levels):
            if fault := _fault(level):
                raise TaxonomyError(f"level {index}: expected level names that are non-empty strings, {fault}")

        if duplicate := _first_duplicate(self.levels):
            raise TaxonomyError(f"level name {duplicate!r} occurs twice")

        if len(self.names) != len(self.levels) or len(self.parents) != len(self.levels) - 1:
            raise TaxonomyError(
                f"expected names for {len(self.levels)} levels and parents for "
                f"{len(self.levels) - 1}, got {len(self.names)} and {len(self.parents)}"
            )

    def _validate_names(self) -> None:
        for level, names in zip(self.levels, self.names):
            if not names:
                raise TaxonomyError(f"level {level!r} has no node")
            for index, name in enumerate(names):
                if fault := _fault(name):
                    raise TaxonomyError(f"node {index} of level {level!r}: expected a name, {fault}")
            if duplicate := _first_duplicate(names):
                raise TaxonomyError(f"node {brief(duplicate)} occurs twice at level {level!r}")

    def _validate_parents(self) -> None:
        for depth, parents in enumerate(self.parents):
            level, names = self.levels[depth + 1], self.names[depth + 1]
            if len(parents) != len(names):
                raise TaxonomyError(
                    f"level {level!r}: expected a parent for each of {len(names)} nodes, got {len(parents)}"
                )

            for name, parent in zip(names, parents):
                if type(parent) is not int or not 0 <= parent < len(self.names[depth]):
                    raise TaxonomyError(
                        f"node {brief(name)} of level {level!r}: expected a parent from 0 to "
                        f"{len(self.names[depth]) - 1}, got {brief(parent)}"
                    )

    @classmethod
    def from_paths(
        cls, paths: Iterable[Sequence[str]], levels: Sequence[str] | None = None, name: str = ""
    ) -> "Taxonomy":
        """Build a taxonomy from paths of node names, coarse to fine; shorter paths end in a shallow leaf.

        Nodes keep the order in which they first appear.

        Args:
            paths: One sequence of names a leaf. Repeated paths count once.
            levels: Names of the levels; ``level_1``, ``level_2`` ... by default.
            name: What the taxonomy is called.

        Raises:
            TaxonomyError: if a node has two parents, a path is empty or longer than ``levels``, or a name is empty.

        Example:
            >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
            >>> tree.names
            (('bird', 'cat'), ('owl', 'gull', 'lion'))
            >>> tree.parents
            ((0, 0, 1),)
            >>> tree.paths
            ((0, 0), (0, 1), (1, 2))
            >>> Taxonomy.from_paths([("bird", "owl"), ("plant",)]).paths  # plants have no kinds
            ((0, 0), (1, -1))
        """
        parent_of: list[dict[str, str | None]] = []
        for path in paths:
            _check_path(path, MAX_LEVELS if levels is None else len(levels))
            if len(path) == 0:
                raise TaxonomyError("expected at least one name in each path, got an empty path")

            for depth, node in enumerate(path):
                if not isinstance(node, str):
                    raise TaxonomyError(f"path {brief(path)}: expected a name, got {brief(node)}")
                if depth == len(parent_of):
                    parent_of.append({})
                parent = path[depth - 1] if depth else None
                known = parent_of[depth].setdefault(node, parent)
                if known != parent:
                    level = levels[depth] if levels is not None else f"level_{depth + 1}"
                    raise TaxonomyError(
                        f"node {brief(node)} of level {brief(level)} has two parents, {brief(known)} "
                        f"and {brief(parent)}: use names that are unique in their level"
                    )

        if levels is None:
            levels = [f"level_{depth + 1}" for depth in range(len(parent_of))]
        index = [{node: i for i, node in enumerate(nodes)} for nodes in parent_of]
        parents = tuple(
            tuple(index[depth][parent] for parent in nodes.values() if parent is not None)
            for depth, nodes in enumerate(parent_of[1:])
        )

        return cls(tuple(levels), tuple(map(tuple, parent_of)), parents, name)

    @classmethod
    def from_csv(cls, path: str | Path, columns: Sequence[str] | None = None) -> "Taxonomy":
        """Build a taxonomy from a CSV file with a header and one path a row; trailing empty cells end a path early.

        Args:
            path: The file, UTF-8.
            columns: Columns to use, coarse to fine, as level names; by default all.
        """
        header, table = read_table(path)
        columns = list(columns or header)
        if not columns or not set(columns) <= set(header):
            raise TaxonomyError(f"{path}: expected columns {brief(columns)}, got {brief(header)}")
        rows = [trim_path([row[c] for c in columns], f"{path} line {line}") for line, row in table]
        return cls.from_paths(rows, columns, Path(path).stem)

    @classmethod
    def from_folder(cls, root: str | Path, levels: Sequence[str] | None = None) -> "Taxonomy":
        """Build a taxonomy from a tree of folders: each folder that has no sub-folder is a leaf. Links are followed.

        Hidden folders and what systems leave behind are no labels, and neither are folders without a picture, unless
        there is no picture in the whole tree.
        """
        root = Path(root)
        if not root.is_dir():
            raise TaxonomyError(f"expected a folder, got {root}")
        paths = label_folders(root)
        if paths == [()]:
            raise TaxonomyError(f"{root}: expected a folder for each label, got no sub-folder")
        return cls.from_paths(paths, levels, root.resolve().name)

    @classmethod
    def from_dict(cls, data: dict) -> "Taxonomy":
        """Build a taxonomy from the plain data of :meth:`to_dict`; unknown keys are an error."""
        if not isinstance(data, dict):
            raise TaxonomyError(f"expected a taxonomy as a JSON object, got {type(data).__name__}")
        fields = {f.name for f in dataclasses.fields(cls)}
        if missing := sorted(fields - {"name"} - set(data)):
            raise TaxonomyError(f"taxonomy lacks {', '.join(missing)}")
        if unknown := sorted(set(data) - fields):
            raise TaxonomyError(f"unknown taxonomy keys: {clip(', '.join(unknown))}")
        return cls(**data)

    def to_dict(self) -> dict:
        """Return plain data that JSON can hold."""
        return {
            "name": self.name,
            "levels": list(self.levels),
            "names": [list(n) for n in self.names],
            "parents": [list(p) for p in self.parents],
        }

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
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise TaxonomyError(f"{path}: expected JSON: {error}") from error
        except TaxonomyError as error:
            raise TaxonomyError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write JSON at once."""
        write_whole(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n")

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
        return tuple(
            self.path_to(level, index)
            for level in range(last, -1, -1)
            for index in range(len(self.names[level]))
            if index not in with_children[level]
        )

    def path_to(self, level: int, index: int) -> tuple[int, ...]:
        """Return the node indices from the coarsest level to a node, -1 at finer levels.

        Example:
            >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
            >>> tree.path_to(1, 2), tree.path_to(0, 1)
            ((1, 2), (1, -1))
        """
        path = [UNKNOWN] * len(self.levels)
        for depth in range(level, -1, -1):
            path[depth] = index
            if depth:
                index = self.parents[depth - 1][index]
        return tuple(path)

    def path_names(self, path: Sequence[int]) -> tuple[str, ...]:
        """Return the names along a path of node indices, leaving out levels that are -1.

        Example:
            >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
            >>> tree.path_names((1, 2)), tree.path_names((1, -1))
            (('cat', 'lion'), ('cat',))
        """
        return tuple(self.names[level][index] for level, index in enumerate(path) if index != UNKNOWN)

    def labels(self, path: Sequence[str | int]) -> tuple[int, ...]:
        """Turn a path of names (or node indices) into a label for each level, -1 where the path has ended.

        Args:
            path: Coarse to fine. None, empty or -1 at a level means unknown there; ancestors of a known node are
                filled in.

        Raises:
            TaxonomyError: if a node is unknown, or is not a child of the node before it.

        Example:
            >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
            >>> tree.labels(("bird", "gull"))
            (0, 1)
            >>> tree.labels(("bird",))
            (0, -1)
            >>> tree.labels((None, "lion"))
            (1, 2)
            >>> tree.labels(("cat", "owl"))
            Traceback (most recent call last):
            ...
            hcast_zoo.taxonomy.sources.TaxonomyError: 'owl' of level 'kind' belongs to 'bird', not to 'cat'
        """
        _check_path(path, len(self.levels))
        given = [self._index(level, node) for level, node in enumerate(path)]
        known = [level for level, index in enumerate(given) if index != UNKNOWN]
        if not known:
            return (UNKNOWN,) * len(self.levels)
        labels = self.path_to(known[-1], given[known[-1]])
        for level in known:
            if labels[level] != given[level]:
                node, child = self.names[level][given[level]], self.names[known[-1]][given[known[-1]]]
                raise TaxonomyError(
                    f"{child!r} of level {self.levels[known[-1]]!r} belongs to "
                    f"{self.names[level][labels[level]]!r}, not to {node!r}"
                )

        return labels

    def find(self, node: str) -> tuple[int, int]:
        """Return the level and index of a node, given by its name, or as ``level:name`` where a name is not unique.

        Raises:
            TaxonomyError: if there is no such node (the message names the nearest ones), or several.

        Example:
            >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
            >>> tree.find("gull")
            (1, 1)
            >>> tree.find("gul")
            Traceback (most recent call last):
            ...
            hcast_zoo.taxonomy.sources.TaxonomyError: no node 'gul' in the taxonomy: did you mean 'gull'?
        """
        places = [(level, index[node]) for level, index in enumerate(self._name_index) if node in index]
        if len(places) > 1:
            raise TaxonomyError(
                f"node {node!r} is at more than one level: write "
                f"{' or '.join(repr(f'{self.levels[level]}:{node}') for level, _ in places)}"
            )

        if places:
            return places[0]
        prefix, colon, name = node.partition(":")
        if colon and prefix in self.levels and name:
            level = self.levels.index(prefix)
            return level, self._index(level, name)

        near = self._nearest(node)
        hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise TaxonomyError(f"no node {brief(node)} in the taxonomy{hint}")

    def _nearest(self, node: str) -> list[str]:
        """Return up to three names at any level that are near to one, whole or by a word, in any case."""
        names: dict[str, str] = {}
        start = node.lower()[:3] if sum(self.level_classes) > MAX_COMPARED else ""
        for name in (name for level in self.names for name in level):
            if (lower := name.lower()).startswith(start):
                names.setdefault(lower, name)

        if len(names) > MAX_COMPARED:
            return []
        words = {word: name for whole, name in reversed(names.items()) for word in whole.replace("-", " ").split()}
        near = _near(node.lower(), {**words, **names}, 6)

        return list(dict.fromkeys({**words, **names}[match] for match in near))[:3]

    def _index(self, level: int, node: str | int | None) -> int:
        if node is None or node == "" or node == UNKNOWN:
            return UNKNOWN

        if isinstance(node, str):
            index = self._name_index[level].get(node)
            if index is None:
                near = _near(node, self.names[level], 3)
                hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
                raise TaxonomyError(f"no node {brief(node)} at level {self.levels[level]!r}{hint}")
            return index

        try:
            node = operator.index(node)
        except TypeError as error:
            raise TaxonomyError(
                f"expected a name or a label at level {self.levels[level]!r}, got {brief(node)}"
            ) from error

        if not 0 <= node < len(self.names[level]):
            raise TaxonomyError(
                f"label {node} is out of range at level {self.levels[level]!r}: expected 0 to "
                f"{len(self.names[level]) - 1}, or -1 for unknown"
            )

        return node

    @functools.cached_property
    def _name_index(self) -> tuple[dict[str, int], ...]:
        return tuple({name: i for i, name in enumerate(names)} for names in self.names)


def _fault(name: object) -> str | None:
    """Return why something cannot be the name of a level or a node, or None."""
    if not isinstance(name, str) or not name.strip():
        return f"got {brief(name)}"
    if len(name) > MAX_NAME:
        return f"got {len(name)} characters, {brief(name)}: expected {MAX_NAME} at most"

    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            return f"got {brief(name)}, which is no text: it holds half of a surrogate pair"

    return None


def _check_path(path: object, length: int) -> None:
    if not isinstance(path, (list, tuple)):
        raise TaxonomyError(f"expected a path as a list of names, coarse to fine, got {brief(path)}")
    if len(path) > length:
        raise TaxonomyError(f"path {brief(path)} is longer than the {length} levels")


def _near(name: str, names: Iterable[str], count: int) -> list[str]:
    """Return names that are near to one; of very many, only some that begin alike are looked at."""
    names = list(names)
    if len(names) > 2 * MAX_COMPARED:
        names = list(itertools.islice((n for n in names if n[:3] == name[:3]), MAX_COMPARED))
    return difflib.get_close_matches(name, names, count) if len(name) <= MAX_NAME else []
