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
# Of the levels' logits, so that in the best path the coarser levels, which count the leaves' evidence again with errors
# of their own, do not outvote the leaves. Only their ratio decides the path.
COARSE_SCALE, LEAF_SCALE = 0.5, 1.4
COARSE_CLUSTERS = (16, 8, 4, 2)  # to measure segments as few as the goals speak of


def run(model: HCast, data: dict[str, Tensor], chosen, clusters: tuple[int, ...] | None = None) -> Encoding:
    """Run the stages on cached superpixels."""
    means = SuperpixelMeans(data["features"][chosen].float(), data["descriptor"][chosen].float(), data["area"][chosen])
    segments = data["segments"][chosen].long()
    start = model.start_from_means(means, segments)
    return model.encode_tokens(*start, segments, clusters or model.config.num_clusters)


@torch.no_grad()
def encodings(model: HCast, data: dict[str, Tensor], clusters: tuple[int, ...] | None = None) -> list[Encoding]:
    return [run(model, data, slice(i, i + BATCH), clusters) for i in range(0, len(data["area"]), BATCH)]


def level_logits(model: HCast, data: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return read_heads(model, encodings(model, data))


@torch.no_grad()
def read_heads(model: HCast, found: list[Encoding]) -> tuple[Tensor, ...]:
    parts = zip(*(encoding.level_features for encoding in found))
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
    found = {}
    for level, (name, answer, scores) in enumerate(zip(teacher.taxonomy.levels, truth, logits)):
        found[name] = percent(scores.argmax(-1) == answer)
        found[f"{name}, best path"] = percent(paths[:, level] == answer)
    return found


def percent(right: Tensor) -> float:
    return round(100 * right.float().mean().item(), 1)


def measure_gates(model: HCast, data: dict[str, Tensor], found: list[Encoding]) -> dict[str, float]:
    """Measure token swap, deletion, and the segments' overlap with the cut-outs.

    Args:
        model: The network.
        data: Cached superpixels.
        found: Their :func:`encodings`.
    """
    answer = data["logits"].argmax(-1)
    leaves = read_heads(model, found)[-1].argmax(-1)
    swapped = {name: value.roll(1, 0) for name, value in data.items()}
    gates = {
        "as it is": percent(leaves == answer),
        "another picture's tokens": percent(level_logits(model, swapped)[-1].argmax(-1) == answer),
        **measure_deletion(model, data, answer),
    }
    if data["masks"].any():
        gates.update(measure_segments(found, data["masks"], model.config.num_clusters))
        gates.update(measure_segments(encodings(model, data, COARSE_CLUSTERS), data["masks"], COARSE_CLUSTERS))
    return gates


def measure_segments(found: list[Encoding], masks: Tensor, clusters: tuple[int, ...]) -> dict[str, float]:
    """Return the mean IoU of the cut-out and the best union of the segments that each stage sees."""
    gates = {}
    for stage in (2, 3, 4):
        maps = torch.cat([segment_map(e.segments, e.assignments, stage) for e in found])
        ious = [best_union_iou(m, mask) for m, mask in zip(maps, masks) if mask.any()]
        way = " > ".join(map(str, clusters[: stage - 1]))
        gates[f"IoU, {way} segments"] = round(float(np.mean(ious)), 1)
    return gates


@torch.no_grad()
def measure_deletion(model: HCast, data: dict[str, Tensor], answer: Tensor) -> dict[str, float]:
    """Hide the quarter of the superpixels that tell most of the answer, and as many others; report what is left."""
    head, area = model.heads[-1], data["area"]
    evidence = torch.cat([model.stem(data["features"][i : i + 32].float())[1] for i in range(0, len(area), 32)])
    scores = (evidence * head.weight[answer][:, None]).sum(-1) * area  # what each superpixel adds to the logit
    scores = scores.masked_fill(area == 0, float("-inf"))
    count = scores.shape[1] // 4
    order = scores.argsort(1, descending=True)
    generator = torch.Generator().manual_seed(0)
    others = order[:, count : int((area > 0).sum(1).min())]
    random_order = others.gather(1, torch.rand(others.shape, generator=generator).argsort(1))[:, :count]

    found = {}
    for name, hidden in (("looked at", order[:, :count]), ("others", random_order)):
        shown = area.scatter(1, hidden, 0.0)
        logits = level_logits(model, {**data, "area": shown})[-1]
        found[f"a quarter hidden: {name}"] = percent(logits.argmax(-1) == answer)
    return found
