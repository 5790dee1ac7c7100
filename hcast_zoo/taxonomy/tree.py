"""Taxonomy: the levels, nodes and parents of a label tree, coarse to fine."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..common.files import check_file, write_whole
from ..common.text import brief, clip
from .columns import find_columns
from .lookup import NameLookup, hint
from .names import clean_name, fault_of, first_duplicate
from .paths import UNKNOWN, check_path, complete_paths, path_to, unique_names
from .sources import MAX_LEVELS, TaxonomyError, label_folders, read_table

TABLES = (".csv", ".tsv", ".txt")
MAX_BYTES = 2**30  # largest file; a million names take 30 MB


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """A tree of labels whose nodes lie on named levels. Leaves may lie at different depths.

    Args:
        levels: Names of the levels, coarse to fine, e.g. ``("order", "family", "species")``.
        names: Node names of each level; a name is unique in its level.
        parents: For each level but the coarsest, the index of each node's parent in the level above.
        name: What the taxonomy is called.

    Raises:
        TaxonomyError: if these do not form a tree. The message names the level and the node.
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
        if self.name != "" and (fault := fault_of(self.name)):
            raise TaxonomyError(f"expected a name of the taxonomy, {fault}")
        if not 1 <= len(self.levels) <= MAX_LEVELS:
            raise TaxonomyError(f"expected at least one level and at most {MAX_LEVELS}, got {len(self.levels)}")

        for index, level in enumerate(self.levels):
            if fault := fault_of(level):
                raise TaxonomyError(f"level {index}: expected level names that are non-empty strings, {fault}")

        if duplicate := first_duplicate(self.levels):
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
                if fault := fault_of(name):
                    raise TaxonomyError(f"node {index} of level {level!r}: expected a name, {fault}")
            if duplicate := first_duplicate(names):
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
        cls,
        paths: Iterable[Sequence[str]],
        levels: Sequence[str] | None = None,
        name: str = "",
        *,
        strict_names: bool = False,
    ) -> "Taxonomy":
        """Build a taxonomy from paths of node names, coarse to fine; shorter paths end in a shallow leaf.

        Nodes keep the order in which they first appear. Names are compared in Unicode's composed form, with plain
        spaces. A name below two parents becomes two nodes, ``other (owls)`` and ``other (gulls)``, with a warning;
        :meth:`labels` still finds them as ``("owls", "other")``.

        Args:
            paths: One sequence of names per leaf. Repeated paths count once.
            levels: Names of the levels; ``level_1``, ``level_2`` ... by default.
            name: What the taxonomy is called.
            strict_names: Refuse a name below two parents.

        Raises:
            TaxonomyError: if a path is empty or longer than ``levels``, a name is empty, or with ``strict_names`` a
                node has two parents.

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
        nodes: list[dict[tuple[str, ...], None]] = []  # for each level, the paths that lead to its nodes
        for path in paths:
            check_path(path, MAX_LEVELS if levels is None else len(levels))
            if len(path) == 0:
                raise TaxonomyError("expected at least one name in each path, got an empty path")

            for node in path:
                if not isinstance(node, str):
                    raise TaxonomyError(f"path {brief(path)}: expected a name, got {brief(node)}")

            clean = tuple(map(clean_name, path))
            for depth in range(len(clean)):
                if depth == len(nodes):
                    nodes.append({})
                nodes[depth].setdefault(clean[: depth + 1])

        if levels is None:
            levels = [f"level_{depth + 1}" for depth in range(len(nodes))]

        names, parents = [], []
        indices: dict[tuple[str, ...], int] = {}  # of the nodes of the level above, by their paths
        for depth, (level, level_paths) in enumerate(zip(levels, nodes)):
            names.append(unique_names(level, list(level_paths), strict_names))
            if depth:
                parents.append(tuple(indices[path[:-1]] for path in level_paths))
            indices = {path: index for index, path in enumerate(level_paths)}

        return cls(tuple(levels), tuple(names), tuple(parents), name)

    @classmethod
    def from_csv(
        cls, path: str | Path, columns: Sequence[str] | None = None, *, strict_names: bool = False
    ) -> "Taxonomy":
        """Build a taxonomy from a table with a header and one path per row; trailing empty cells end a path early.

        A gap in a path is filled from other rows, otherwise with a node ``PARENT incertae sedis``.

        Args:
            path: The file; see :func:`.sources.read_table`.
            columns: Columns of the levels, coarse to fine; by default those that :func:`.columns.find_columns` finds.
            strict_names: Refuse a name below two parents.

        Raises:
            TaxonomyError: if a column is missing, no column is a level, a row is empty, or names do not form a tree.
        """
        header, table = read_table(path)
        if (columns is not None and not {c.lower() for c in columns} <= {c.lower() for c in header}) or not header:
            raise TaxonomyError(f"{path}: expected columns {brief(list(columns or []))}, got {brief(header)}")

        chosen = find_columns(header, columns)
        if not chosen.levels:
            raise TaxonomyError(f"{path}: expected columns of levels, got {brief(header)}; name them (--levels)")

        rows = []
        for line, row in table:
            names = chosen.path(row)
            if not any(names):
                raise TaxonomyError(f"{path} line {line}: expected a name, got none")
            rows.append(names)

        paths = complete_paths(rows)
        deepest = max(map(len, paths), default=0)
        if deepest < len(chosen.levels):
            empty = brief(list(chosen.levels)[deepest])
            raise TaxonomyError(f"{path}: column {empty} is empty: fill it, or name the other columns (--levels)")
        return cls.from_paths(paths, list(chosen.levels), Path(path).stem, strict_names=strict_names)

    @classmethod
    def from_folder(
        cls, root: str | Path, levels: Sequence[str] | None = None, *, strict_names: bool = False
    ) -> "Taxonomy":
        """Build a taxonomy from a tree of folders: each folder without a sub-folder is a leaf. Links are followed.

        Hidden folders and those of operating systems are not labels, nor are folders without a picture, unless the
        whole tree has none.

        Raises:
            TaxonomyError: if there is no such folder, it has no sub-folder, or names do not form a tree.
        """
        root = Path(root)
        if not root.is_dir():
            raise TaxonomyError(f"expected a folder, got {root}")

        paths = label_folders(root)
        if paths == [()]:
            raise TaxonomyError(f"{root}: expected a folder for each label, got no sub-folder")
        return cls.from_paths(paths, levels, root.resolve().name, strict_names=strict_names)

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
    def load(cls, path: str | Path, levels: Sequence[str] | None = None, *, strict_names: bool = False) -> "Taxonomy":
        """Read a JSON file, a table (``.csv``, ``.tsv``, ``.txt``), or a tree of folders.

        Args:
            path: The file or folder.
            levels: Columns of a table that are levels, coarse to fine; see :meth:`from_csv`.
            strict_names: Refuse a name below two parents.

        Raises:
            TaxonomyError: if it is missing, unreadable or not a taxonomy; the message names the file.
        """
        path = Path(path)
        if path.is_dir():
            return cls.from_folder(path, strict_names=strict_names)

        check_file(path, MAX_BYTES, TaxonomyError)
        if path.suffix.lower() in TABLES:
            return cls.from_csv(path, levels, strict_names=strict_names)

        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise TaxonomyError(f"{path}: expected JSON: {error}") from error
        except TaxonomyError as error:
            raise TaxonomyError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a JSON file; if that fails, an old file stays as it was."""
        write_whole(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n")

    @property
    def level_classes(self) -> tuple[int, ...]:
        """Number of nodes of each level, coarse to fine."""
        return tuple(map(len, self.names))

    @functools.cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """One path per leaf: node index of each level, coarse to fine; -1 below a shallow leaf.

        Leaves of the finest level come first, in their order, so that path i is finest node i.
        """
        last = len(self.levels) - 1
        with_children = [*map(set, self.parents), set()]  # nobody is a parent on the finest level
        paths = []
        for level in range(last, -1, -1):
            for index in range(len(self.names[level])):
                if index not in with_children[level]:
                    paths.append(self.path_to(level, index))

        return tuple(paths)

    def path_to(self, level: int, index: int) -> tuple[int, ...]:
        """Return the node indices from the coarsest level to a node, -1 at finer levels.

        Example:
            >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
            >>> tree.path_to(1, 2), tree.path_to(0, 1)
            ((1, 2), (1, -1))
        """
        path = path_to(self.parents, level, index)
        return path + (UNKNOWN,) * (len(self.levels) - len(path))

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
                filled in. ``Larus sp.`` and ``Larus cf. fuscus`` end at the genus, ``A/B`` and ``A or B`` at the
                deepest common ancestor.

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
        check_path(path, len(self.levels))
        given = self._lookup.path(path)
        known = [level for level, index in enumerate(given) if index != UNKNOWN]
        if not known:
            return (UNKNOWN,) * len(self.levels)

        finest = known[-1]
        labels = self.path_to(finest, given[finest])
        for level in known:
            if labels[level] != given[level]:
                node, child = self.names[level][given[level]], self.names[finest][given[finest]]
                raise TaxonomyError(
                    f"{child!r} of level {self.levels[finest]!r} belongs to "
                    f"{self.names[level][labels[level]]!r}, not to {node!r}"
                )

        return labels

    def find(self, node: str) -> tuple[int, int]:
        """Return the level and index of a node, given by its name, or as ``level:name`` where a name is not unique.

        Raises:
            TaxonomyError: if there is no such node (the message suggests similar names), or several.

        Example:
            >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
            >>> tree.find("gull")
            (1, 1)
            >>> tree.find("gul")
            Traceback (most recent call last):
            ...
            hcast_zoo.taxonomy.sources.TaxonomyError: no node 'gul' in the taxonomy: did you mean 'gull'?
        """
        places = [(level, index[node]) for level, index in enumerate(self._lookup.indices) if node in index]
        if len(places) > 1:
            choices = [repr(f"{self.levels[level]}:{node}") for level, _ in places]
            raise TaxonomyError(f"node {node!r} is at more than one level: write {' or '.join(choices)}")
        if places:
            return places[0]

        prefix, colon, name = node.partition(":")
        if colon and prefix in self.levels and name:
            level = self.levels.index(prefix)
            return level, self._lookup.index(level, name)

        raise TaxonomyError(f"no node {brief(node)} in the taxonomy{hint(self._lookup.nearest(node))}")

    @functools.cached_property
    def _lookup(self) -> NameLookup:
        return NameLookup(self.levels, self.names, self.parents)
