"""Answers as sets of nodes that contain the true node as often as promised."""

import dataclasses
import warnings
from collections.abc import Sequence

from torch import Tensor

from ..common.text import brief
from ..taxonomy.calibration import Calibration
from ..taxonomy.conformal import Scores, cover, fewest_scores, leaf_sets, subtree_depths
from ..taxonomy.decode import DecodedPaths, path_probabilities
from ..taxonomy.tree import UNKNOWN, Taxonomy


@dataclasses.dataclass(frozen=True)
class NodeSet:
    """The nodes that a picture may show, at a requested coverage.

    Attributes:
        nodes: Names of the fewest nodes that cover the leaves of the set exactly.
        leaves: Number of these leaves.
        subtree: The same promise as one node with everything below it, as a path of names; empty for the whole tree.
    """

    nodes: tuple[str, ...]
    leaves: int
    subtree: tuple[str, ...]

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return {"nodes": list(self.nodes), "leaves": self.leaves, "subtree": list(self.subtree)}


class SetMaker:
    """Turns logits into sets of a requested coverage.

    Args:
        scores: Scores of held-out pictures.
        taxonomy: The tree.
        calibration: Calibration of the weights that the scores belong to.
        coverage: In (0, 1).
        level: Name of a level at which to promise the coverage for each node, not only on average.

    Raises:
        ValueError: if the coverage is not in (0, 1), there is no such level, or there are too few scores.
    """

    def __init__(
        self, scores: Scores, taxonomy: Taxonomy, calibration: Calibration, coverage: float, level: str | None = None
    ):
        self.taxonomy, self.calibration = taxonomy, calibration
        needed = fewest_scores(coverage)
        if len(scores.leaves) < needed:
            raise ValueError(
                f"a coverage of {coverage:g} needs {needed} held-out pictures, and the weights have "
                f"{len(scores.leaves)}: calibrate on more, or ask for less"
            )

        depth = None
        if level is not None:
            if level not in taxonomy.levels:
                raise ValueError(f"no level {brief(level)}: expected one of {', '.join(taxonomy.levels)}")
            depth = taxonomy.levels.index(level)

        self.quantiles, self.subtree_quantile = scores.quantiles(coverage, taxonomy, depth)
        unpromised = [] if depth is None else self._nodes_without_promise(depth)
        if unpromised:
            warnings.warn(
                f"nodes of {level} with fewer than {needed} held-out pictures ({len(unpromised)}), such as "
                f"{brief(unpromised[0])}: everything below them is in every set",
                stacklevel=2,
            )

    def _nodes_without_promise(self, depth: int) -> list[str]:
        """Return the nodes of a level that have too few held-out pictures."""
        names: dict[str, None] = {}
        for path, quantile in zip(self.taxonomy.paths, self.quantiles.tolist()):
            if quantile == float("inf") and path[depth] != UNKNOWN:
                names[self.taxonomy.names[depth][path[depth]]] = None

        return list(names)

    def sets(self, level_logits: Sequence[Tensor], decoded: DecodedPaths) -> list[NodeSet]:
        """Return the set of each of B pictures.

        Args:
            level_logits: One (B, C_l) tensor per level, as the model gives them.
            decoded: Their calibrated paths, decoded by ``best_path``.
        """
        logits, temperature = self.calibration.logits(level_logits), self.calibration.path_temperature
        probabilities = path_probabilities(logits, self.taxonomy, path_temperature=temperature)
        chosen = leaf_sets(probabilities, self.quantiles.to(probabilities.device))
        depths = subtree_depths(decoded, self.subtree_quantile).tolist()

        node_sets = []
        for leaves, path, depth in zip(chosen.tolist(), decoded.paths.tolist(), depths):
            nodes = cover(leaves, self.taxonomy)
            node_set = NodeSet(
                nodes=tuple(self.taxonomy.names[level][index] for level, index in nodes),
                leaves=sum(leaves),
                subtree=self.taxonomy.path_names(path)[:depth],
            )
            node_sets.append(node_set)

        return node_sets
