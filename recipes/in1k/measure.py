"""What is measured on held-out pictures: agreement with the teacher, and the gates that segments must pass."""

import numpy as np
import torch
from teacher import Teacher
from torch import Tensor

from hcast_zoo.network.encoder import Encoding
from hcast_zoo.network.model import HCast, segment_map
from hcast_zoo.network.stems import SuperpixelMeans
from hcast_zoo.segments.metrics import best_union_iou
from hcast_zoo.taxonomy.decode import decode

BATCH = 32
# Factors of the levels' logits. The coarser levels count the leaves' evidence again, with errors of their own; with
# these factors they do not outvote the leaves in the best path. Only the ratio of the two decides the path.
COARSE_SCALE, LEAF_SCALE = 0.5, 1.4
COARSE_CLUSTERS = (16, 8, 4, 2)  # segments are measured at these counts too


def run(model: HCast, data: dict[str, Tensor], chosen, clusters: tuple[int, ...] | None = None) -> Encoding:
    """Run the stages on cached superpixels."""
    means = SuperpixelMeans(data["features"][chosen].float(), data["descriptor"][chosen].float(), data["area"][chosen])
    segments = data["segments"][chosen].long()
    start = model.start_from_means(means, segments)
    return model.encode_tokens(*start, segments, clusters or model.config.num_clusters)


@torch.no_grad()
def encodings(model: HCast, data: dict[str, Tensor], clusters: tuple[int, ...] | None = None) -> list[Encoding]:
    """Return the stages' output for all pictures, a batch at a time."""
    return [run(model, data, slice(i, i + BATCH), clusters) for i in range(0, len(data["area"]), BATCH)]


def level_logits(model: HCast, data: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the logits of every level for all pictures."""
    return read_heads(model, encodings(model, data))


@torch.no_grad()
def read_heads(model: HCast, encoded: list[Encoding]) -> tuple[Tensor, ...]:
    """Return the logits of every level from the stages' output."""
    parts = zip(*(encoding.level_features for encoding in encoded))
    return model.forward_heads(tuple(torch.cat(level) for level in parts))


@torch.no_grad()
def weigh_levels(model: HCast) -> None:
    """Scale the heads to the levels' weights in the best path."""
    for head in model.heads:
        scale = LEAF_SCALE if head is model.heads[-1] else COARSE_SCALE
        head.weight *= scale
        head.bias *= scale


def agreement(model: HCast, data: dict[str, Tensor], teacher: Teacher, coarse_scale: float = 1.0) -> dict[str, float]:
    """Return how often each level's answer is the teacher's, in percent: of its head, and of the best path."""
    *coarse, leaves = level_logits(model, data)
    logits = [*(coarse_scale * level for level in coarse), leaves]
    truth = [level.argmax(-1) for level in teacher.roll_up(data["logits"])]
    paths = decode(logits, teacher.taxonomy, "best_path").paths
    percents = {}
    for level, (name, answer, scores) in enumerate(zip(teacher.taxonomy.levels, truth, logits)):
        percents[name] = percent(scores.argmax(-1) == answer)
        percents[f"{name}, best path"] = percent(paths[:, level] == answer)
    return percents


def percent(right: Tensor) -> float:
    """Return the percentage that is true."""
    return round(100 * right.float().mean().item(), 1)


def measure_gates(model: HCast, data: dict[str, Tensor], encoded: list[Encoding]) -> dict[str, float]:
    """Measure token swap, deletion, and the segments' overlap with the cut-outs.

    Args:
        model: The network.
        data: Cached superpixels.
        encoded: Their :func:`encodings`.
    """
    answer = data["logits"].argmax(-1)
    leaves = read_heads(model, encoded)[-1].argmax(-1)
    swapped = {name: value.roll(1, 0) for name, value in data.items()}
    gates = {
        "as it is": percent(leaves == answer),
        "another picture's tokens": percent(level_logits(model, swapped)[-1].argmax(-1) == answer),
        **measure_deletion(model, data, answer),
    }
    if data["masks"].any():
        gates.update(measure_segments(encoded, data["masks"], model.config.num_clusters))
        gates.update(measure_segments(encodings(model, data, COARSE_CLUSTERS), data["masks"], COARSE_CLUSTERS))
    return gates


def measure_segments(encoded: list[Encoding], masks: Tensor, clusters: tuple[int, ...]) -> dict[str, float]:
    """Return the mean IoU of the cut-out and the best union of the segments that each stage sees."""
    gates = {}
    for stage in (2, 3, 4):
        maps = torch.cat([segment_map(batch.segments, batch.assignments, stage) for batch in encoded])
        ious = [best_union_iou(labels, mask) for labels, mask in zip(maps, masks) if mask.any()]
        counts = " > ".join(map(str, clusters[: stage - 1]))
        gates[f"IoU, {counts} segments"] = round(float(np.mean(ious)), 1)
    return gates


@torch.no_grad()
def measure_deletion(model: HCast, data: dict[str, Tensor], answer: Tensor) -> dict[str, float]:
    """Hide the quarter of the superpixels that add most to the answer, or as many others; return the agreement left."""
    head, area = model.heads[-1], data["area"]
    evidence = torch.cat([model.stem(features.float())[1] for features in data["features"].split(BATCH)])
    scores = (evidence * head.weight[answer][:, None]).sum(-1) * area  # what each superpixel adds to the logit
    scores = scores.masked_fill(area == 0, float("-inf"))
    count = scores.shape[1] // 4
    order = scores.argsort(1, descending=True)
    generator = torch.Generator().manual_seed(0)
    others = order[:, count : int((area > 0).sum(1).min())]
    random_order = others.gather(1, torch.rand(others.shape, generator=generator).argsort(1))[:, :count]

    gates = {}
    for name, hidden in (("looked at", order[:, :count]), ("others", random_order)):
        shown = area.scatter(1, hidden, 0.0)
        logits = level_logits(model, {**data, "area": shown})[-1]
        gates[f"a quarter hidden: {name}"] = percent(logits.argmax(-1) == answer)
    return gates
