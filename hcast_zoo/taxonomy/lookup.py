"""Find nodes by their names as people write them: open, mistyped, in another Unicode form, or without their parent."""

import difflib
import functools
import itertools
import operator
from collections.abc import Iterable, Sequence

from ..common.text import brief
from .names import MAX_NAME, alternatives, clean_name, genus_of, is_open
from .paths import UNKNOWN, path_to
from .sources import TaxonomyError

MAX_COMPARED = 20_000  # names that a mistyped one is compared with, which takes a second


class NameLookup:
    """Finds nodes by name.

    Args:
        levels: Names of the levels, coarse to fine.
        names: Node names of each level.
        parents: For each level but the coarsest, the index of each node's parent in the level above.
    """

    def __init__(self, levels: Sequence[str], names: Sequence[Sequence[str]], parents: Sequence[Sequence[int]]) -> None:
        self.levels, self.names, self.parents = levels, names, parents
        self.indices = tuple({name: i for i, name in enumerate(names)} for names in self.names)

    @functools.cached_property
    def plain_names(self) -> tuple[dict[str, list[int]], ...]:
        """For each level: names in composed form, also without a parent in brackets, and the nodes that have them."""
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

    def path(self, nodes: Sequence[str | int | None]) -> list[int]:
        """Return the index of each node of a path, coarse to fine; -1 where it is unknown or left open.

        A name that leaves its node open may still name a node above it: see :meth:`.tree.Taxonomy.labels`.
        """
        indices: list[int] = []
        for level, node in enumerate(nodes):
            if isinstance(node, str) and node not in self.indices[level]:
                node = self._settle(level, node, indices)
            indices.append(self.index(level, node, indices))

        return indices

    def index(self, level: int, node: str | int | None, above: Sequence[int] = ()) -> int:
        """Return the index of a node, -1 if it is unknown; the nodes ``above`` tell nodes of the same name apart.

        Raises:
            TaxonomyError: if there is no such node at this level, or there are several.
        """
        if node is None or node == "" or node == UNKNOWN:
            return UNKNOWN

        if isinstance(node, str):
            index = self.indices[level].get(node)
            if index is None:
                index = self._plain_index(level, node, above)
            if index is None:
                near = _near(node, self.names[level], 3)
                raise TaxonomyError(f"no node {brief(node)} at level {self.levels[level]!r}{hint(near)}")
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

    def nearest(self, node: str) -> list[str]:
        """Return up to three names of any level that resemble one, as a whole or in one word, in any case."""
        names: dict[str, str] = {}
        start = node.lower()[:3] if sum(map(len, self.names)) > MAX_COMPARED else ""
        for name in itertools.chain.from_iterable(self.names):
            if (lower := name.lower()).startswith(start):
                names.setdefault(lower, name)

        if len(names) > MAX_COMPARED:
            return []

        by_word: dict[str, str] = {}
        for lower, name in reversed(names.items()):
            by_word.update(dict.fromkeys(lower.replace("-", " ").split(), name))

        candidates = {**by_word, **names}
        near = _near(node.lower(), candidates, 6)
        return list(dict.fromkeys(candidates[match] for match in near))[:3]

    def _settle(self, level: int, node: str, above: list[int]) -> str | int:
        """Return a name, or -1 if it leaves its node open; then the ancestor that it names is written to ``above``.

        ``Larus sp.`` names the genus; ``A/B`` and ``A or B`` name the deepest common ancestor of nodes of this level.
        """
        name = clean_name(node)
        if name in self.plain_names[level]:
            return node

        if is_open(name):
            for depth in range(level - 1, -1, -1):
                genera = self.plain_names[depth].get(genus_of(name), ())
                if len(genera) == 1:
                    above[depth] = genera[0]
                    break

            return UNKNOWN

        parts = alternatives(name)
        if len(parts) > 1 and all(part in self.plain_names[level] for part in parts):
            paths = [path_to(self.parents, level, self.index(level, part, above)) for part in parts]
            for depth in range(level - 1, -1, -1):
                if len({path[depth] for path in paths}) == 1:
                    above[depth] = paths[0][depth]
                    break

            return UNKNOWN

        return node

    def _plain_index(self, level: int, node: str, above: Sequence[int]) -> int | None:
        """Return the index of a node by its name without the parent in brackets, or in another Unicode form."""
        nodes = self.plain_names[level].get(clean_name(node), ())
        if len(nodes) <= 1:
            return nodes[0] if nodes else None

        below = []
        for index in nodes:
            path = path_to(self.parents, level, index)
            if all(node in (UNKNOWN, ancestor) for node, ancestor in zip(above, path)):
                below.append(index)

        if len(below) != 1:
            names = " or ".join(repr(self.names[level][i]) for i in (below or nodes)[:3])
            raise TaxonomyError(
                f"node {brief(node)} of level {self.levels[level]!r} is below several parents: write {names}"
            )
        return below[0]


def hint(names: Sequence[str]) -> str:
    """Return the end of an error message, which suggests names; empty if there are none."""
    return f": did you mean {' or '.join(map(repr, names))}?" if names else ""


def _near(name: str, names: Iterable[str], count: int) -> list[str]:
    """Return names that resemble one; among very many, only names with the same beginning are compared."""
    names = list(names)
    if len(names) > 2 * MAX_COMPARED:
        names = [other for other in names if other[:3] == name[:3]][:MAX_COMPARED]
    return difflib.get_close_matches(name, names, count) if len(name) <= MAX_NAME else []
