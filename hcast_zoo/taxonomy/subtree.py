"""Subtree: the part of a taxonomy below given nodes, as a separate taxonomy."""

import dataclasses
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from .sources import TaxonomyError
from .tree import UNKNOWN, Taxonomy


@dataclasses.dataclass(frozen=True)
class Subtree:
    """The part of a tree that remains when only some of its leaves can be the answer.

    Attributes:
        taxonomy: The remaining nodes. Levels without any are dropped.
        kept: For each remaining level, the indices of its nodes in the whole taxonomy, ascending.
        whole: The taxonomy that this is a part of.
    """

    taxonomy: Taxonomy
    kept: tuple[tuple[int, ...], ...]
    whole: Taxonomy

    @classmethod
    def below(cls, taxonomy: Taxonomy, nodes: Sequence[str]) -> "Subtree":
        """Restrict a taxonomy to the leaves at or below any of some nodes.

        Args:
            taxonomy: The whole tree.
            nodes: Names at any level; ``level:name`` where a name occurs at several.

        Raises:
            TaxonomyError: if no node is given, or one is unknown; the message suggests similar names.
        """
        if isinstance(nodes, str):
            raise TaxonomyError(f"expected a list of nodes to restrict to, got the text {nodes!r}")

        chosen: list[set[int]] = [set() for _ in taxonomy.levels]
        for node in nodes:
            level, index = taxonomy.find(node)
            chosen[level].add(index)

        if not any(chosen):
            raise TaxonomyError("expected at least one node to restrict to, got none")

        paths = []
        for path in taxonomy.paths:
            if any(map(operator.contains, chosen, path)):
                paths.append(path)

        kept = tuple(tuple(sorted(set(nodes) - {UNKNOWN})) for nodes in zip(*paths))
        depth = sum(map(bool, kept))  # a path has no gaps, so the levels without a node are the finest ones

        names, parents = [], []
        new_index: dict[int, int] = {}  # of the nodes of the level above
        for level in range(depth):
            names.append(tuple(taxonomy.names[level][index] for index in kept[level]))
            if level > 0:
                parents.append(tuple(new_index[taxonomy.parents[level - 1][index]] for index in kept[level]))
            new_index = {index: new for new, index in enumerate(kept[level])}

        subtree = Taxonomy(
            levels=taxonomy.levels[:depth], names=tuple(names), parents=tuple(parents), name=taxonomy.name
        )
        return cls(subtree, kept[:depth], taxonomy)

    def logits(self, level_logits: Sequence[Tensor]) -> list[Tensor]:
        """Keep the columns of the remaining nodes in one (B, C_l) tensor per level."""
        return [x[:, list(kept)] for x, kept in zip(level_logits, self.kept)]

    def whole_paths(self, paths: Tensor) -> Tensor:
        """Turn (B, l) int64 paths of the subtree into (B, L) paths of the whole taxonomy."""
        columns = []
        for column, kept in zip(paths.T, self.kept):
            whole = torch.tensor((*kept, UNKNOWN), device=paths.device)
            columns.append(whole[column])  # -1 takes the last entry, which is unknown

        return self.widen(torch.stack(columns, -1), UNKNOWN)

    def widen(self, values: Tensor, fill: float) -> Tensor:
        """Append columns of ``fill`` for the dropped levels: (B, l) to (B, L)."""
        return torch.nn.functional.pad(values, (0, len(self.whole.levels) - len(self.kept)), value=fill)
