"""Back-off: cut paths at the deepest level that can be trusted, and explain why."""

import dataclasses
import math

import torch
from torch import Tensor

from .decode import DecodedPaths
from .tree import UNKNOWN, Taxonomy


@dataclasses.dataclass
class BackedOffPaths:
    """Shortened paths of a batch.

    Attributes:
        paths: (B, L) int64 node of each level, coarse to fine; -1 from where the answer stops.
        depths: (B,) int64 number of answered levels, from 0.
        path_probabilities: (B,) in [0, 1], that the shortened path is right; 1 for an empty one.
        reasons: B explanations of why the path stops there, as sentences without a full stop.
    """

    paths: Tensor
    depths: Tensor
    path_probabilities: Tensor
    reasons: list[str]


def back_off(
    decoded: DecodedPaths, taxonomy: Taxonomy, threshold: float, *, require_agreement: bool = True
) -> BackedOffPaths:
    """Cut paths at the deepest level that can be trusted.

    A level can be trusted if down to it every level's own choice is the path's node, and the probability of the path
    down to it is at least the threshold. That probability never rises with depth, so all levels above a trusted one
    are trusted too, and each path has a single cut.

    Args:
        decoded: Decoded from calibrated logits; only then is the threshold a rate of correct answers.
        taxonomy: The tree.
        threshold: In [0, 1].
        require_agreement: Also require that the levels' own choices agree; otherwise only the probability counts.

    Raises:
        ValueError: if the threshold is not in [0, 1].

    Example:
        >>> from hcast_zoo.taxonomy.decode import decode
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> logits = [torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.4, 0.1]]).log()]
        >>> answer = back_off(decode(logits, tree), tree, threshold=0.7)
        >>> answer.paths, answer.path_probabilities
        (tensor([[ 0, -1]]), tensor([0.9878]))
        >>> answer.reasons[0]
        "stops at group: down to kind 'owl' the path has 54.8%, below 70%"
    """
    check_threshold(threshold)
    trusted = trusted_probabilities(decoded, taxonomy, require_agreement=require_agreement) >= threshold
    depths = trusted.sum(-1)  # [B]
    level = torch.arange(decoded.paths.shape[1], device=depths.device)
    certain = decoded.prefix_probabilities.new_ones(len(depths), 1)
    probabilities = torch.cat([certain, decoded.prefix_probabilities], -1).gather(-1, depths[:, None])[:, 0]

    reasons = []
    for row, depth in enumerate(depths.tolist()):
        reason = _reason(
            decoded=decoded,
            taxonomy=taxonomy,
            row=row,
            depth=depth,
            threshold=threshold,
            require_agreement=require_agreement,
        )
        reasons.append(reason)

    return BackedOffPaths(
        paths=decoded.paths.masked_fill(level >= depths[:, None], UNKNOWN),
        depths=depths,
        path_probabilities=probabilities,
        reasons=reasons,
    )


def trusted_probabilities(decoded: DecodedPaths, taxonomy: Taxonomy, *, require_agreement: bool = True) -> Tensor:
    """Return the (B, L) probability of the path down to each level; -1 where no threshold can trust it.

    A path cannot be trusted from where it ends and, with ``require_agreement``, from the first level that chooses
    another node by itself. The probability never rises with depth.
    """
    possible = decoded.paths != UNKNOWN
    if require_agreement:
        possible &= (decoded.paths == decoded.level_choices) & _follows_tree(decoded.paths, taxonomy)
    possible = possible.long().cumprod(-1).bool()
    return decoded.prefix_probabilities.masked_fill(~possible, -1.0)


def check_threshold(threshold: float) -> float:
    """Return a threshold; raise ValueError unless it is in [0, 1]."""
    if not 0 <= threshold <= 1:  # also False for NaN
        share = f": for {threshold:g} %, give {threshold / 100:g}" if 1 < threshold <= 100 else ""
        raise ValueError(f"expected a back-off threshold from 0 to 1, got {threshold}{share}")
    return threshold


def _follows_tree(paths: Tensor, taxonomy: Taxonomy) -> Tensor:
    """Return (B, L) bool: whether each node is a child of the node before it; True except for ``independent``."""
    columns = [torch.ones_like(paths[:, 0], dtype=torch.bool)]
    for parents, above, node in zip(taxonomy.parents, paths.T, paths.T[1:]):
        columns.append(torch.tensor(parents, device=paths.device)[node.clamp(min=0)] == above)
    return torch.stack(columns, -1)


def _reason(
    decoded: DecodedPaths, taxonomy: Taxonomy, row: int, depth: int, threshold: float, require_agreement: bool
) -> str:
    """Explain why the path stops here."""
    path, choices = decoded.paths[row].tolist(), decoded.level_choices[row].tolist()
    probabilities = decoded.prefix_probabilities[row].tolist()
    if depth == sum(node != UNKNOWN for node in path):
        agreement = "all levels agree, and " if require_agreement else ""
        return f"{agreement}the whole path has {percent(probabilities[depth - 1])}, at least {threshold * 100:g}%"

    level, name = taxonomy.levels[depth], taxonomy.names[depth][path[depth]]
    reasons = []
    if require_agreement and choices[depth] != path[depth]:
        reasons.append(f"{level} by itself is {taxonomy.names[depth][choices[depth]]!r}, not {name!r}")
    elif require_agreement and depth and taxonomy.parents[depth - 1][path[depth]] != path[depth - 1]:
        parent = taxonomy.names[depth - 1][taxonomy.parents[depth - 1][path[depth]]]
        reasons.append(f"{level} {name!r} belongs to {parent!r}, not to {taxonomy.names[depth - 1][path[depth - 1]]!r}")

    if not probabilities[depth] >= threshold:
        reasons.append(
            f"down to {level} {name!r} the path has {percent(probabilities[depth])}, below {threshold * 100:g}%"
        )

    where = f"stops at {taxonomy.levels[depth - 1]}" if depth else "no level can be trusted"
    return f"{where}: {'; '.join(reasons)}"


def percent(probability: float) -> str:
    """Return a probability as a percentage, rounded down: below a threshold, it is also displayed below it.

    Example:
        >>> percent(0.6999)
        '69.9%'
    """
    return f"{math.floor(probability * 1000) / 10:.1f}%"
