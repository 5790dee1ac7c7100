"""Where each level looks: gradient-weighted attention over segments, propagated back to superpixels.

A level reads the class token of its stage. The contribution of each segment to that token is the attention of the
stage's blocks, weighted by the positive part of its gradient on the level's score. The pooling assignments then carry
the contributions from segments to superpixels, and the blocks of earlier stages add what the class token took from
theirs. With a pretrained stem, the class token also starts from the area-weighted mean of the segments' evidence,
which counts as one more attention.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..network.model import HCast, HCastOutput
from ..taxonomy.tree import UNKNOWN


@dataclasses.dataclass
class Explanation:
    """Where each level of a batch looks.

    Attributes:
        targets: (B, L) int64, the node of each level, coarse to fine, whose score is explained.
        shares: One (B, N_s) float32 tensor per level: the share of each segment of the level's own stage in its
            decision, in [0, 1]; rows sum to 1.
        focus: (B, L, N) float32, the share of each superpixel in each level's decision, through all stages up to the
            level's; the last axis sums to 1.
    """

    targets: Tensor
    shares: tuple[Tensor, ...]
    focus: Tensor


def explain_levels(
    model: HCast,
    images: Tensor,
    segments: Tensor | None = None,
    *,
    targets: Tensor | None = None,
    num_clusters: tuple[int, ...] | None = None,
) -> tuple[HCastOutput, Explanation]:
    """Classify images and explain where each level looks. The model's parameters get no gradient.

    Args:
        model: A model in eval mode; otherwise dropout makes the answer random.
        images: (B, in_chans, H, W) float, normalised.
        segments: (B, H, W) integer superpixels; computed by the model if None.
        targets: (B, L) int64 nodes to explain, such as a decoded path. Where it is -1, and by default, the level's
            most probable node is explained.
        num_clusters: Cluster counts to use instead of the config's.

    Returns:
        The model's output, detached, and the explanation.

    Raises:
        ValueError: if an input is invalid; see :meth:`HCast.forward`.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Gradients start at the pixels, so that they also reach the attention of a model with frozen parameters.
        images = images.detach().clone().requires_grad_()
        if segments is not None:
            segments = segments.clone()
        output = model(images, segments, num_clusters=num_clusters, output_attentions=True)
        c = model.config
        explanation = explain_output(output, c.depths, c.head_stages, targets, c.sampling)

    return output.detach(), explanation


def explain_output(
    output: HCastOutput,
    depths: Sequence[int],
    head_stages: Sequence[int],
    targets: Tensor | None = None,
    sampling: int = 1,
) -> Explanation:
    """Explain where each level looks, from an output with attentions and their graph.

    Args:
        output: Output of a forward pass with ``output_attentions=True`` and gradients on.
        depths: Number of blocks of each stage; a network without pooling is one stage.
        head_stages: Stage that each level reads, from 1.
        targets: (B, L) int64; see :func:`explain_levels`.
        sampling: Step in pixels between those whose superpixels have a token; see :attr:`HCastConfig.sampling`.

    Raises:
        ValueError: if the output has no attentions, or targets are invalid.
    """
    if output.attentions is None or not output.attentions[0].requires_grad:
        raise ValueError(
            "expected an output with attentions and their graph: call the model with "
            "output_attentions=True and gradients on"
        )

    targets = _check_targets(targets, output.level_logits)
    count = output.attentions[0].shape[-1] - 1

    # A superpixel without a grid cell is an empty token: it gets attention, but shows nothing.
    seen = _pixel_counts(output.segments[:, ::sampling, ::sampling], count) > 0
    ends = torch.tensor(depths).cumsum(0).tolist()

    shares, focus = [], []
    for level, (logits, stage) in enumerate(zip(output.level_logits, head_stages)):
        score = logits.gather(1, targets[:, level, None]).sum()
        attentions = output.attentions[: ends[stage - 1]]
        sources = attentions if output.evidence is None else (*attentions, output.evidence)
        gradients = torch.autograd.grad(score, sources, retain_graph=True)
        weights = [(g * a).clamp(min=0).mean(1).detach() for g, a in zip(gradients, attentions)]  # [B, 1 + N, 1 + N]
        stages = [weights[end - depth : end] for end, depth in zip(ends[:stage], depths)]
        relevance = class_token_relevance(stages, output.assignments[: stage - 1])
        if output.evidence is not None:
            contributions = (gradients[-1] * output.evidence).sum(-1).clamp(min=0).detach()  # [B, N]
            relevance = _add_evidence(relevance, contributions, output.assignments)

        relevance[0] = relevance[0] * seen
        shares.append(_to_shares(relevance[-1], seen if stage == 1 else None))
        focus.append(_to_shares(relevance[0], seen))

    return Explanation(targets, tuple(shares), torch.stack(focus, 1))


def class_token_relevance(weights: Sequence[Sequence[Tensor]], assignments: Sequence[Tensor]) -> list[Tensor]:
    """Propagate relevance from the class token of the last stage back to the tokens of every stage.

    In a block, a token keeps its relevance and also passes it on to the tokens that it attended to. In a pooling, a
    segment passes its relevance to its members in proportion to their weight in its average; the class token keeps its
    relevance.

    Args:
        weights: For each stage, one (B, 1 + N_s, 1 + N_s) tensor of non-negative weights per block.
        assignments: For each pooling between them, (B, N_s, N_(s+1)) probabilities of each token's segments.

    Returns:
        One (B, N_s) tensor per stage, the first stage first.

    Source: the rule of a block is equation 6 of Chefer et al., Generic Attention-model Explainability (ICCV 2021);
        that of pooling is ours.
    """
    last = weights[-1][0]
    relevance = torch.zeros_like(last[:, 0])
    relevance[:, 0] = 1
    relevances = []
    for stage in range(len(weights) - 1, -1, -1):
        for weight in reversed(weights[stage]):
            relevance = relevance + (relevance[:, None] @ weight)[:, 0]
        relevances.append(relevance[:, 1:])
        if stage > 0:
            part = assignments[stage - 1].detach()
            part = part / part.sum(1, keepdim=True)  # [B, N, M]; the members of each segment sum to 1
            relevance = torch.cat([relevance[:, :1], (part @ relevance[:, 1:, None])[..., 0]], 1)

    return relevances[::-1]


def _add_evidence(relevance: list[Tensor], contributions: Tensor, assignments: Sequence[Tensor]) -> list[Tensor]:
    """Add (B, N) contributions of superpixels to the relevance of each stage, pooled to the stage's segments."""
    total = [relevance[0] + contributions]
    for stage_relevance, assignment in zip(relevance[1:], assignments):
        contributions = (contributions[:, None] @ assignment.detach())[:, 0]
        total.append(stage_relevance + contributions)

    return total


def focus_map(focus: Tensor, segments: Tensor) -> Tensor:
    """Spread the shares of superpixels evenly over their pixels.

    Args:
        focus: (B, L, N) float shares.
        segments: (B, H, W) int64 superpixels.

    Returns:
        (B, L, H, W) float32; each level's map sums to 1.
    """
    size = _pixel_counts(segments, focus.shape[-1])
    density = focus / size.clamp(min=1)[:, None]
    index = segments.flatten(1)[:, None].expand(-1, focus.shape[1], -1)
    return density.gather(2, index).unflatten(2, segments.shape[1:])


def level_overlap(focus: Tensor) -> Tensor:
    """Return (B, L, L): the overlap of the focus of each pair of levels, in [0, 1].

    This is the histogram intersection, ``sum(min(p, q))``: 1 if both look at the same place, 0 without overlap.

    Args:
        focus: (B, L, N) float shares that sum to 1.

    Source: Swain and Ballard, Color Indexing, 1991.
    """
    return torch.minimum(focus[:, :, None], focus[:, None]).sum(-1)


def agreement(focus: Tensor) -> Tensor:
    """Return (B,): the mean :func:`level_overlap` over all pairs of levels, in [0, 1]; 1 with one level."""
    overlap = level_overlap(focus)
    levels = overlap.shape[1]
    if levels == 1:
        return torch.ones_like(overlap[:, 0, 0])

    row, column = torch.triu_indices(levels, levels, 1)
    return overlap[:, row, column].mean(1)


def _check_targets(targets: Tensor | None, level_logits: Sequence[Tensor]) -> Tensor:
    """Return (B, L) targets, with unknown ones replaced by the most probable node."""
    best = torch.stack([x.argmax(-1) for x in level_logits], 1)
    if targets is None:
        return best

    if targets.shape != best.shape or targets.is_floating_point():
        raise ValueError(
            f"expected targets {tuple(best.shape)} of an integer dtype, got {tuple(targets.shape)} {targets.dtype}"
        )

    classes = torch.tensor([x.shape[-1] for x in level_logits], device=targets.device)
    if ((targets < UNKNOWN) | (targets >= classes)).any():
        raise ValueError(
            f"expected targets from -1 to one below the levels' classes {tuple(classes.tolist())}, got "
            f"{targets.amin().item()} to {targets.amax().item()}"
        )

    targets = targets.clone().to(best.device)
    return torch.where(targets == UNKNOWN, best, targets)


def _pixel_counts(segments: Tensor, count: int) -> Tensor:
    """Return (B, count) float: the number of pixels of each segment."""
    flat = segments.flatten(1)
    return torch.zeros((len(flat), count), device=flat.device).scatter_add(1, flat, torch.ones_like(flat).float())


def _to_shares(relevance: Tensor, seen: Tensor | None) -> Tensor:
    """Scale rows to a sum of 1; where nothing is relevant, all (seen) segments get equal shares."""
    total = relevance.sum(-1, keepdim=True)
    equal = torch.ones_like(relevance) if seen is None else seen.to(relevance.dtype)
    equal = equal / equal.sum(-1, keepdim=True)
    return torch.where(total > 0, relevance / total.clamp(min=torch.finfo(total.dtype).tiny), equal).float()
