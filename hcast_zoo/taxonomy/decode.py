"""Decoding: from the probabilities of every level to one path of the taxonomy."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..common.choices import DECODERS
from .rollup import path_tensor, sum_paths
from .subtree import Subtree
from .tree import UNKNOWN, Taxonomy


@dataclasses.dataclass
class DecodedPaths:
    """Paths of a batch.

    Attributes:
        paths: (B, L) int64 node of each level, coarse to fine; -1 below a shallow leaf.
        path_probabilities: (B,) in [0, 1]; see :func:`decode` for what it is in each mode.
        level_probabilities: (B, L) in [0, 1], the level's own probability of its node; NaN where the path has ended.
        runner_up: (B, L) int64, the second-best path, or -1 if there is none.
        runner_up_probabilities: (B,) in [0, 1]; 0 if there is none.
        prefix_probabilities: (B, L) in [0, 1], of the path down to each level: the sum over all paths that share it
            (``independent``: the product of the level probabilities so far). Never rises; NaN where the path has ended.
        level_choices: (B, L) int64, the most probable node of each level by itself.
    """

    paths: Tensor
    path_probabilities: Tensor
    level_probabilities: Tensor
    runner_up: Tensor
    runner_up_probabilities: Tensor
    prefix_probabilities: Tensor
    level_choices: Tensor


def decode(
    level_logits: Sequence[Tensor],
    taxonomy: Taxonomy,
    mode: str = "best_path",
    *,
    within: Subtree | Sequence[str] | None = None,
    path_temperature: float = 1.0,
) -> DecodedPaths:
    """Choose a path for every sample.

    ``best_path``: the path of the tree with the highest product of level probabilities. Its probability is that
    product over the sum of the products of all paths, so the paths of the tree sum to 1.

    ``top_down``: the most probable node of the coarsest level, then the most probable of its children, and so on.
    Its probability is the product of the probabilities among siblings; the paths of the tree sum to 1.

    ``independent``: the most probable node of each level by itself, as in the paper. It may not be a path of the tree.
    Its probability is the product of the level probabilities.

    A path that ends in a shallow leaf is scored by the geometric mean of its level probabilities, to the power of the
    number of levels, so that short paths have no advantage.

    Args:
        level_logits: One (B, C_l) tensor per level, coarse to fine.
        taxonomy: The tree; its levels and classes must be those of the logits.
        mode: One of ``DECODERS``.
        within: Decode as if the tree had only the leaves at or below these nodes (see :meth:`Taxonomy.find` for how
            to name them): probabilities are renormalised over the remaining paths. For many batches, give the
            :class:`~hcast_zoo.taxonomy.subtree.Subtree` of the nodes, which takes 0.1 s to build on a large tree.
        path_temperature: For ``best_path``, whose product counts the evidence that levels share several times. Products
            are raised to the power 1 / ``path_temperature`` before they are normalised. It never changes the path.

    Raises:
        ValueError: if the mode or a node is unknown, levels disagree, or logits are not finite (the message names the
            rows).

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> logits = [torch.tensor([[0.4, 0.6]]).log(), torch.tensor([[0.5, 0.2, 0.3]]).log()]
        >>> decoded = decode(logits, tree)  # the products are 0.20, 0.08 and 0.18
        >>> decoded.paths, decoded.path_probabilities
        (tensor([[0, 0]]), tensor([0.4348]))
        >>> decode(logits, tree, "top_down").paths
        tensor([[1, 2]])
        >>> decode(logits, tree, "independent").paths  # no owl is a cat
        tensor([[1, 0]])
        >>> decode(logits, tree, within=["cat", "gull"]).paths
        tensor([[1, 2]])
    """
    _check_arguments(level_logits, taxonomy, mode, path_temperature)
    if within is not None:
        return _decode_within(level_logits, _subtree(taxonomy, within), mode, path_temperature)

    log_probs = [x.float().log_softmax(-1) for x in level_logits]
    if mode == "independent":
        return _independent(log_probs)

    paths = path_tensor(taxonomy).to(log_probs[0].device)  # [P, L]
    scores, best = _score_paths(log_probs, taxonomy, paths, mode, path_temperature)
    probabilities = scores.softmax(-1)  # no effect for top_down, whose scores are already normalised
    return _choose(probabilities, paths, best, log_probs)


def _choose(probabilities: Tensor, paths: Tensor, best: Tensor, log_probs: Sequence[Tensor]) -> DecodedPaths:
    """Describe the (B,) chosen paths, from the (B, P) probabilities of all (P, L) paths and those of each level."""
    others = probabilities.scatter(-1, best[:, None], -1.0)
    second = others.argmax(-1)
    runner_up = paths[second] if len(paths) > 1 else torch.full_like(paths[best], UNKNOWN)

    return DecodedPaths(
        paths=paths[best],
        path_probabilities=probabilities.gather(-1, best[:, None])[:, 0],
        level_probabilities=_level_probabilities(log_probs, paths[best]),
        runner_up=runner_up,
        runner_up_probabilities=others.gather(-1, second[:, None])[:, 0].clamp(min=0),
        prefix_probabilities=_prefix_probabilities(probabilities, paths, best),
        level_choices=_choices(log_probs),
    )


def decode_paths(probabilities: Tensor, taxonomy: Taxonomy) -> DecodedPaths:
    """Choose the most probable path from the probabilities of paths; a node has the sum over its paths.

    Args:
        probabilities: (B, P) in [0, 1], in the order of ``taxonomy.paths``; a row sums to 1.
        taxonomy: The tree.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> decoded = decode_paths(torch.tensor([[0.5, 0.2, 0.3]]), tree)
        >>> decoded.paths, decoded.level_probabilities
        (tensor([[0, 0]]), tensor([[0.7000, 0.5000]]))
    """
    paths = path_tensor(taxonomy).to(probabilities.device)  # [P, L]
    log_probs = [x.log() for x in sum_paths(probabilities, taxonomy)]
    return _choose(probabilities, paths, probabilities.argmax(-1), log_probs)


def most_probable(probabilities: Tensor, taxonomy: Taxonomy, count: int) -> tuple[Tensor, Tensor]:
    """Return what :func:`top_paths` does, from (B, P) probabilities of the paths."""
    paths = path_tensor(taxonomy).to(probabilities.device)  # [P, L]
    best = probabilities.topk(min(count, len(paths)), -1)
    return paths[best.indices], best.values


def top_paths(
    level_logits: Sequence[Tensor],
    taxonomy: Taxonomy,
    count: int,
    mode: str = "best_path",
    *,
    within: Subtree | Sequence[str] | None = None,
    path_temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return the most probable paths: (B, K, L) int64 nodes, and their (B, K) probabilities in descending order.

    K is ``count``, or the number of paths if that is lower. See :func:`decode` for the other arguments and errors.

    Raises:
        ValueError: also if ``count`` is below 1, or the mode is ``independent``, which gives probabilities to no paths.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> logits = [torch.tensor([[0.4, 0.6]]).log(), torch.tensor([[0.5, 0.2, 0.3]]).log()]
        >>> top_paths(logits, tree, 2)
        (tensor([[[0, 0],
                 [1, 2]]]), tensor([[0.4348, 0.3913]]))
    """
    _check_arguments(level_logits, taxonomy, mode, path_temperature)
    check_top_k(count, mode)
    if within is not None:
        subtree = _subtree(taxonomy, within)
        inner, probabilities = top_paths(
            subtree.logits(level_logits), subtree.taxonomy, count, mode, path_temperature=path_temperature
        )
        rows = subtree.whole_paths(inner.flatten(0, 1))
        return rows.view(*inner.shape[:2], -1), probabilities

    probabilities = path_probabilities(level_logits, taxonomy, mode, path_temperature=path_temperature)
    return most_probable(probabilities, taxonomy, count)


def path_probabilities(
    level_logits: Sequence[Tensor], taxonomy: Taxonomy, mode: str = "best_path", *, path_temperature: float = 1.0
) -> Tensor:
    """Return the (B, P) probability of each path of the tree, in the order of ``taxonomy.paths``; a row sums to 1.

    See :func:`decode` for the arguments and errors.

    Raises:
        ValueError: also if the mode is ``independent``, which gives no probabilities to paths.
    """
    _check_arguments(level_logits, taxonomy, mode, path_temperature)
    check_gives_paths(mode, "path_probabilities")

    log_probs = [x.float().log_softmax(-1) for x in level_logits]
    paths = path_tensor(taxonomy).to(log_probs[0].device)  # [P, L]
    return _score_paths(log_probs, taxonomy, paths, mode, path_temperature)[0].softmax(-1)


def check_top_k(count: int, mode: str) -> None:
    """Raise ValueError unless a decoding can return this many paths."""
    if type(count) is not int or count < 1:
        raise ValueError(f"top_k: expected an integer of 1 or more, got {count!r}")
    check_gives_paths(mode, "top_k")


def check_gives_paths(mode: str, option: str) -> None:
    """Raise ValueError, naming what needs them, unless a decoding gives probabilities to the paths of the tree."""
    if mode == "independent":
        raise ValueError(
            f"{option}: expected the decoding best_path or top_down; independent gives no probabilities to paths"
        )


def node_probabilities(
    level_logits: Sequence[Tensor],
    taxonomy: Taxonomy,
    mode: str = "best_path",
    *,
    within: Subtree | Sequence[str] | None = None,
    path_temperature: float = 1.0,
) -> tuple[Tensor, ...]:
    """Return the probability of every node under a decoding: one (B, C_l) tensor in [0, 1] per level.

    ``best_path``, ``top_down``: of all paths through the node, so the children of a node sum to it, and the coarsest
    level to 1. ``independent``: the level's own. Nodes outside ``within`` have 0.

    See :func:`decode` for the arguments and errors.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> logits = [torch.tensor([[0.4, 0.6]]).log(), torch.tensor([[0.5, 0.2, 0.3]]).log()]
        >>> node_probabilities(logits, tree)
        (tensor([[0.6087, 0.3913]]), tensor([[0.4348, 0.1739, 0.3913]]))
    """
    _check_arguments(level_logits, taxonomy, mode, path_temperature)

    if within is not None:
        subtree = _subtree(taxonomy, within)
        inner = node_probabilities(
            subtree.logits(level_logits), subtree.taxonomy, mode, path_temperature=path_temperature
        )
        whole = tuple(torch.zeros_like(x, dtype=torch.float32) for x in level_logits)
        for level, kept, values in zip(whole, subtree.kept, inner):  # a dropped level stays 0
            level[:, list(kept)] = values
        return whole

    log_probs = [x.float().log_softmax(-1) for x in level_logits]
    if mode == "independent":
        return tuple(x.exp() for x in log_probs)

    paths = path_tensor(taxonomy).to(log_probs[0].device)  # [P, L]
    scores, _ = _score_paths(log_probs, taxonomy, paths, mode, path_temperature)
    return sum_paths(scores.softmax(-1), taxonomy)


def check_logits(level_logits: Sequence[Tensor], taxonomy: Taxonomy) -> None:
    """Raise ValueError unless logits are finite and have the taxonomy's classes; the message names the rows."""
    classes = tuple(x.shape[-1] for x in level_logits)
    if classes != taxonomy.level_classes:
        raise ValueError(f"logits have {classes} classes, but the taxonomy has {taxonomy.level_classes}")

    bad = torch.stack([~x.isfinite().all(-1) for x in level_logits]).any(0)
    if bad.any():
        raise ValueError(f"logits of rows {bad.nonzero().flatten().tolist()[:10]} are not finite: check the pixels")


def path_scores(log_probs: Sequence[Tensor], taxonomy: Taxonomy) -> Tensor:
    """Return the (B, P) logarithm of each path's product of level probabilities, in the order of ``taxonomy.paths``.

    A shallow path has its geometric mean to the power of the number of levels; see :func:`decode`. Levels with a single
    node, which always have probability 1, count in neither the mean nor the power.

    Args:
        log_probs: One (B, C_l) tensor per level.
        taxonomy: The tree.

    Example:
        >>> tree = Taxonomy.from_paths([("bird", "owl"), ("bird", "gull"), ("cat", "lion")], ("group", "kind"))
        >>> logits = [torch.tensor([[0.4, 0.6]]).log(), torch.tensor([[0.5, 0.2, 0.3]]).log()]
        >>> path_scores(logits, tree).exp()
        tensor([[0.2000, 0.0800, 0.1800]])
    """
    paths = path_tensor(taxonomy).to(log_probs[0].device)
    deciding = torch.tensor([x.shape[-1] > 1 for x in log_probs], device=paths.device)
    length = ((paths != UNKNOWN) & deciding).sum(-1).clamp(min=1)
    return _gather(log_probs, paths).sum(-1) * deciding.sum().clamp(min=1) / length


def check_decoder(mode: str) -> None:
    """Raise ValueError unless there is such a decoding."""
    if mode not in DECODERS:
        raise ValueError(f"unknown decoding {mode!r}: expected one of {', '.join(DECODERS)}")


def _subtree(taxonomy: Taxonomy, within: Subtree | Sequence[str]) -> Subtree:
    if not isinstance(within, Subtree):
        return Subtree.below(taxonomy, within)
    if within.whole is not taxonomy and within.whole != taxonomy:
        raise ValueError("expected a subtree of this taxonomy, got one of another: build it with Subtree.below")
    return within


def _check_arguments(level_logits: Sequence[Tensor], taxonomy: Taxonomy, mode: str, path_temperature: float) -> None:
    check_decoder(mode)
    if not 0 < path_temperature < math.inf:
        raise ValueError(f"expected a positive path_temperature, got {path_temperature}")
    check_logits(level_logits, taxonomy)


def _score_paths(
    log_probs: Sequence[Tensor], taxonomy: Taxonomy, paths: Tensor, mode: str, path_temperature: float
) -> tuple[Tensor, Tensor]:
    """Return (B, P) scores, whose softmax is the probability of each path of the tree, and the (B,) chosen path."""
    if mode == "top_down":
        conditional = _among_siblings(log_probs, taxonomy)
        return _gather(conditional, paths).sum(-1), _greedy(conditional, paths)

    scores = path_scores(log_probs, taxonomy) / path_temperature
    return scores, scores.argmax(-1)


def _decode_within(
    level_logits: Sequence[Tensor], subtree: Subtree, mode: str, path_temperature: float
) -> DecodedPaths:
    d = decode(subtree.logits(level_logits), subtree.taxonomy, mode, path_temperature=path_temperature)
    return DecodedPaths(
        paths=subtree.whole_paths(d.paths),
        path_probabilities=d.path_probabilities,
        level_probabilities=subtree.widen(d.level_probabilities, torch.nan),
        runner_up=subtree.whole_paths(d.runner_up),
        runner_up_probabilities=d.runner_up_probabilities,
        prefix_probabilities=subtree.widen(d.prefix_probabilities, torch.nan),
        level_choices=subtree.whole_paths(d.level_choices),
    )


def _gather(log_probs: Sequence[Tensor], paths: Tensor) -> Tensor:
    """Return (B, P, L) log-probabilities of the nodes of each path; 0 where a path has ended."""
    columns = []
    for x, path in zip(log_probs, paths.T):
        columns.append(x[:, path.clamp(min=0)].masked_fill(path == UNKNOWN, 0.0))

    return torch.stack(columns, -1)


def _among_siblings(log_probs: Sequence[Tensor], taxonomy: Taxonomy) -> list[Tensor]:
    """Normalise each level's (B, C_l) log-probabilities among the children of each parent."""
    conditional = [log_probs[0]]
    for x, parents in zip(log_probs[1:], taxonomy.parents):
        parent = torch.tensor(parents, device=x.device).expand_as(x)
        peak = x.new_full((len(x), max(parents) + 1), -torch.inf).scatter_reduce(1, parent, x, "amax")
        total = torch.zeros_like(peak).scatter_add(1, parent, (x - peak.gather(1, parent)).exp())
        conditional.append(x - peak.gather(1, parent) - total.gather(1, parent).log())
    return conditional


def _greedy(conditional: Sequence[Tensor], paths: Tensor) -> Tensor:
    """Return (B,) indices of the paths found by taking the most probable child at each level."""
    alive = paths.new_ones((len(conditional[0]), len(paths)), dtype=torch.bool)
    for x, path in zip(conditional, paths.T):
        ended = path == UNKNOWN  # if so, it is the only path left
        level = x[:, path.clamp(min=0)].masked_fill(ended, 0.0).masked_fill(~alive, -torch.inf)
        alive &= path[level.argmax(-1)][:, None] == path
    return alive.int().argmax(-1)


def _independent(log_probs: Sequence[Tensor]) -> DecodedPaths:
    """Take each level's most probable node; the runner-up differs at one level, that of the closest second choice."""
    best = _choices(log_probs)
    level_log = torch.stack([x.amax(-1) for x in log_probs], -1)

    seconds = [x.scatter(-1, x.argmax(-1, keepdim=True), -torch.inf).max(-1) for x in log_probs]
    second_log = torch.stack([second.values for second in seconds], -1)
    second_index = torch.stack([second.indices for second in seconds], -1)

    level = (level_log - second_log).argmin(-1, keepdim=True)
    runner_up = best.scatter(-1, level, second_index.gather(-1, level))
    runner_up_log = level_log.scatter(-1, level, second_log.gather(-1, level)).sum(-1)
    runner_up = runner_up.masked_fill(runner_up_log.isneginf()[:, None], UNKNOWN)

    return DecodedPaths(
        paths=best,
        path_probabilities=level_log.sum(-1).exp(),
        level_probabilities=level_log.exp(),
        runner_up=runner_up,
        runner_up_probabilities=runner_up_log.exp(),
        prefix_probabilities=level_log.cumsum(-1).exp(),
        level_choices=best,
    )


def _level_probabilities(log_probs: Sequence[Tensor], chosen: Tensor) -> Tensor:
    columns = []
    for x, node in zip(log_probs, chosen.T):
        columns.append(x.gather(-1, node.clamp(min=0)[:, None])[:, 0].exp())

    return torch.stack(columns, -1).masked_fill(chosen == UNKNOWN, torch.nan)


def _prefix_probabilities(probabilities: Tensor, paths: Tensor, best: Tensor) -> Tensor:
    """Sum the (B, P) probabilities of the paths that share the chosen path's node at each level."""
    chosen = paths[best]  # [B, L]
    whole = probabilities.sum(-1)  # 1 but for rounding; dividing by it gives a node that all paths share exactly 1
    columns = []
    for path, node in zip(paths.T, chosen.T):
        columns.append(torch.where(path == node[:, None], probabilities, 0.0).sum(-1) / whole)

    return torch.stack(columns, -1).clamp(max=1).masked_fill(chosen == UNKNOWN, torch.nan)


def _choices(log_probs: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.argmax(-1) for x in log_probs], -1)
