"""Taxonomy: the levels, nodes and parents of a label tree, coarse to fine."""

import collections
import dataclasses
import difflib
import functools
import itertools
import json
import operator
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..common.files import check_file, write_whole
from ..common.text import brief, clip
from .columns import find_columns
from .names import alternatives, clean_name, genus_of, is_open
from .sources import MAX_LEVELS, TaxonomyError, _first_duplicate, complete_paths, label_folders, read_table

UNKNOWN = -1  # label of a level that is not known, or below a shallow leaf
TABLES = (".csv", ".tsv", ".txt")
MAX_NAME = 1000  # characters
MAX_BYTES = 2**30  # of a file; a million names take 30 MB
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
        cls,
        paths: Iterable[Sequence[str]],
        levels: Sequence[str] | None = None,
        name: str = "",
        *,
        strict_names: bool = False,
    ) -> "Taxonomy":
        """Build a taxonomy from paths of node names, coarse to fine; shorter paths end in a shallow leaf.

        Nodes keep the order in which they first appear. Names are compared in Unicode's composed form, with plain
        spaces. A name below two parents becomes two nodes, ``other (owls)`` and ``other (gulls)``, told by a warning;
        :meth:`labels` still finds them as ``("owls", "other")``.

        Args:
            paths: One sequence of names a leaf. Repeated paths count once.
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
        nodes: list[dict[tuple[str, ...], None]] = []  # of each level, the paths that lead to its nodes
        for path in paths:
            _check_path(path, MAX_LEVELS if levels is None else len(levels))
            if len(path) == 0:
                raise TaxonomyError("expected at least one name in each path, got an empty path")
            if not all(isinstance(node, str) for node in path):
                wrong = next(node for node in path if not isinstance(node, str))
                raise TaxonomyError(f"path {brief(path)}: expected a name, got {brief(wrong)}")

            clean = tuple(map(clean_name, path))
            for depth in range(len(clean)):
                if depth == len(nodes):
                    nodes.append({})
                nodes[depth].setdefault(clean[: depth + 1])

        if levels is None:
            levels = [f"level_{depth + 1}" for depth in range(len(nodes))]
        names = [_unique_names(level, list(found), strict_names) for level, found in zip(levels, nodes)]
        index = [{path: i for i, path in enumerate(found)} for found in nodes]
        parents = tuple(tuple(index[depth][path[:-1]] for path in found) for depth, found in enumerate(nodes[1:]))

        return cls(tuple(levels), tuple(names), parents, name)

    @classmethod
    def from_csv(
        cls, path: str | Path, columns: Sequence[str] | None = None, *, strict_names: bool = False
    ) -> "Taxonomy":
        """Build a taxonomy from a table with a header and one path a row; trailing empty cells end a path early.

        A gap in a path is filled from other rows, else by a node ``PARENT incertae sedis``.

        Args:
            path: The file; see :func:`.sources.read_table`.
            columns: Columns to use, coarse to fine, as level names; by default :func:`.columns.find_columns` tells.
            strict_names: Refuse a name below two parents.
        """
        header, table = read_table(path)
        if (columns is not None and not {c.lower() for c in columns} <= {c.lower() for c in header}) or not header:
            raise TaxonomyError(f"{path}: expected columns {brief(list(columns or []))}, got {brief(header)}")
        found = find_columns(header, columns)
        if not found.levels:
            raise TaxonomyError(f"{path}: expected columns of levels, got {brief(header)}; name them (--levels)")
        rows = []
        for line, row in table:
            names = found.path(row)
            if not any(names):
                raise TaxonomyError(f"{path} line {line}: expected a name, got none")
            rows.append(names)

        return cls.from_paths(complete_paths(rows), list(found.levels), Path(path).stem, strict_names=strict_names)

    @classmethod
    def from_folder(
        cls, root: str | Path, levels: Sequence[str] | None = None, *, strict_names: bool = False
    ) -> "Taxonomy":
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
        """Write JSON at once."""
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
        with_children = [set(p) for p in self.parents] + [set()]
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
        _check_path(path, len(self.levels))
        given: list[int] = []
        for level, node in enumerate(path):
            if isinstance(node, str) and node not in self._name_index[level]:
                node = self._settle(level, node, given)
            given.append(self._index(level, node, given))
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

    def _index(self, level: int, node: str | int | None, above: Sequence[int] = ()) -> int:
        """Return the index of a node, -1 where it is unknown; a name may be plain where ``above`` makes it unique."""
        if node is None or node == "" or node == UNKNOWN:
            return UNKNOWN

        if isinstance(node, str):
            index = self._name_index[level].get(node)
            if index is None:
                index = self._plain_index(level, node, above)
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

    def _settle(self, level: int, node: str, given: list[int]) -> str | int:
        """Return a name, or -1 if it leaves open which node it is; then note in ``given`` what it does tell.

        ``Larus sp.`` tells the genus, ``A/B`` or ``A or B`` the deepest common ancestor of nodes of this level.
        """
        name = clean_name(node)
        if name in self._plain_names[level]:
            return node

        if is_open(name):
            for depth in range(level - 1, -1, -1):
                found = self._plain_names[depth].get(genus_of(name), ())
                if len(found) == 1:
                    given[depth] = found[0]
                    break
            return UNKNOWN

        parts = alternatives(name)
        if len(parts) > 1 and all(part in self._plain_names[level] for part in parts):
            paths = [self.path_to(level, self._index(level, part, given)) for part in parts]
            for depth in range(level - 1, -1, -1):
                if len({path[depth] for path in paths}) == 1:
                    given[depth] = paths[0][depth]
                    break
            return UNKNOWN

        return node

    def _plain_index(self, level: int, node: str, above: Sequence[int]) -> int | None:
        """Return the index of a node by its name without the parent in brackets, or in another Unicode form."""
        found = self._plain_names[level].get(clean_name(node), ())
        if len(found) > 1:
            known = [(depth, index) for depth, index in enumerate(above) if index != UNKNOWN]
            below = [i for i in found if all(self.path_to(level, i)[depth] == index for depth, index in known)]
            if len(below) != 1:
                names = " or ".join(repr(self.names[level][i]) for i in (below or found)[:3])
                raise TaxonomyError(
                    f"node {brief(node)} of level {self.levels[level]!r} is below several parents: write {names}"
                )
            return below[0]

        return found[0] if found else None

    @functools.cached_property
    def _name_index(self) -> tuple[dict[str, int], ...]:
        return tuple({name: i for i, name in enumerate(names)} for names in self.names)

    @functools.cached_property
    def _plain_names(self) -> tuple[dict[str, list[int]], ...]:
        """For each level, names without a parent in brackets, in composed form, to the nodes that have them."""
        levels: list[dict[str, list[int]]] = []
        for depth, names in enumerate(self.names):
            plain: dict[str, list[int]] = {}
            for index, name in enumerate(names):
                name = clean_name(name)
                plain.setdefault(name, []).append(index)
                if depth and name.endswith(")") and " (" in name:
                    start, _, inside = name[:-1].rpartition(" (")
                    parent = self.names[depth - 1][self.parents[depth - 1][index]]
                    if inside and parent.startswith(inside.split(" < ")[0]):
                        plain.setdefault(start, []).append(index)
            levels.append(plain)

        return tuple(levels)


def _unique_names(level: str, paths: Sequence[tuple[str, ...]], strict: bool) -> tuple[str, ...]:
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
    warnings.warn(
        f"level {brief(level)}: {len({path[-1] for path in twice})} names are below several parents and carry them in "
        f"brackets, such as {clip(examples, 200)}",
        stacklevel=4,
    )
    return tuple(names)


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
