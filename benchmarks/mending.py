"""Can a true label mend a segmentation? Ways to adapt, on drawings over photographs, whose masks are known.

    pip install '.[benchmarks]'
    python benchmarks/mending.py --data emoji_art.parquet --photographs photographs --limit 200

Writes docs/mending.md. Each picture is a drawing of EmojiArt's test artist at a random place over a crop of a
photograph (scenes.py); the label is the drawing's. A picture takes about 10 seconds of one core.
"""

import dataclasses
import random
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import report
import torch
from adaptation import interval_text, sign_beyond_chance, stage_maps
from scenes import make_scenes
from torch import Tensor, nn
from tqdm import tqdm

from hcast_zoo.adaptation.adapt import free_parameters, mean_contrast, node_log_probability, twin
from hcast_zoo.adaptation.config import FREE
from hcast_zoo.network.model import HCast, HCastOutput
from hcast_zoo.segments.metrics import best_union_iou
from hcast_zoo.weights.file import build_model, load_weights

STEPS = 6
STEP_SIZE = 0.05  # of the norm of what moves
RADIUS = 0.2
STRONG = 0.75  # quantile of the borders between superpixels, above which an edge is strong
TEXT = """# Can a true label mend a segmentation?

{introduction}

{provenance}
{table}
{measures}

- `tokens`, `norms`, `similarity`: what moves; in `adapt --free`, these are `tokens`, `norms` and `pooling`.
- `coarse stages first`: the similarity of the last pooling moves first, then that of the one before, and so on.
- `price on edges`: the loss also has {price} times the probability that superpixels on both sides of a strong edge
  ({strong} % of the borders are weaker) share a segment. `edges alone` is that price without a label.
- `both rise` (`adapt --contrast`): a step is kept only if the target's probability rises and so does the contrast of
  the segments (the share of the variance of colour that lies between segments); else it is halved and repeated.

{verdict}
"""
INTRODUCTION = """The authors' slides show one picture, in which feedback in reverse hierarchy uncovers a whole dog.
[Adaptation](adaptation.md) moves tokens, similarities or norms until a given node is likely; on drawings over
white, the segments got no better. Here are more ways, on {count} drawings of EmojiArt's test artist over crops of
photographs, with the true leaf as the target and a wrong leaf, drawn at random, as a control. Each way takes at
most {steps} steps of {step_size}, within a radius of {radius}. `hcast_lite.in1k` cannot be measured here: a
descriptor groups its segments, and no label changes it."""
MEASURES = """*Probability* of the target, before and after, in percent. *IoU*: of the object's mask and the best
union of the segments of stages {stages}, the mean over stages and pictures; the table has its change in points,
with the 95 % interval of the mean; before, it was {before:.1f}. *Better*, *worse*: share of pictures where it rose
or fell by more than a point, in percent. *True - wrong*: how much more the true label mends than the wrong one, on
the same pictures."""


@dataclasses.dataclass
class LabelledScene:
    """A composite: (1, 3, H, W) image, (1, H, W) superpixels, (H, W) bool mask, and its true leaf."""

    image: Tensor
    segments: Tensor
    mask: Tensor
    leaf: int


@dataclasses.dataclass
class Way:
    """A way to adapt: what moves, and what the loss and the steps have to satisfy.

    Attributes:
        name: Its row.
        free: What moves, one after another, each by an equal part of the steps.
        price: Weight of superpixels that share a segment across an edge.
        contrast: A step is kept only if the contrast of the segments rises too.
        label: The target's probability is part of the loss.
    """

    name: str
    free: Sequence[str]
    price: float = 0.0
    contrast: bool = False
    label: bool = True


def make_ways(model: HCast, price: float) -> list[Way]:
    """Return the rows of the table."""
    # The last pooling reaches no head.
    poolings = [f"stages.{i}.pool.centroid_fc." for i, stage in enumerate(model.stages[:-1]) if stage.pool is not None]
    return [
        Way("tokens", ["tokens"]),
        Way("norms", ["norms"]),
        Way("similarity", ["pooling"]),
        Way("similarity, coarse stages first", poolings[::-1]),
        Way("tokens, price on edges", ["tokens"], price=price),
        Way("similarity, price on edges", ["pooling"], price=price),
        Way("tokens, edges alone", ["tokens"], price=price, label=False),
        Way("tokens, both rise", ["tokens"], contrast=True),
        Way("norms, both rise", ["norms"], contrast=True),
        Way("similarity, both rise", ["pooling"], contrast=True),
    ]


class Borders:
    """The borders between superpixels, their lengths, and which of them lie on a strong edge of the picture."""

    def __init__(self, image: Tensor, segments: Tensor):
        count = int(segments.max()) + 1
        pairs, steps = [], []
        for axis in (-1, -2):
            size = segments.shape[axis] - 1
            one, other = segments.narrow(axis, 0, size), segments.narrow(axis, 1, size)
            step = (image.narrow(axis, 0, size) - image.narrow(axis, 1, size)).abs().mean(1)
            apart = one != other
            low, high = torch.minimum(one, other)[apart], torch.maximum(one, other)[apart]
            pairs.append(low * count + high)
            steps.append(step[apart])

        keys, which = torch.cat(pairs).unique(return_inverse=True)
        length = torch.bincount(which).float()
        strength = torch.bincount(which, torch.cat(steps)) / length
        strong = strength >= strength.quantile(STRONG)
        self.one, self.other = keys[strong] // count, keys[strong] % count
        self.length = length[strong]

    def price(self, output: HCastOutput) -> Tensor:
        """Return the mean probability, over stages and borders, that both sides share a segment."""
        prices, member = [], None
        for assignment in output.assignments:
            member = assignment[0] if member is None else member @ assignment[0]
            together = (member[self.one] * member[self.other]).sum(-1)
            prices.append((together * self.length).sum() / self.length.sum())
        return torch.stack(prices).mean()


def free_values(model: HCast, scene: LabelledScene, free: str) -> dict[str, Tensor]:
    """Return the tensors that may move, by name; ``tokens`` is an offset of the superpixels' tokens."""
    if free == "tokens":
        tokens, _ = model.embed(scene.image, scene.segments, model.config.num_superpixels)
        return {"tokens": tokens[:, 1:].detach()}
    names = [name for name, _ in model.named_parameters() if name.startswith(free)]
    if free in FREE:
        names = free_parameters(model, free)
    return {name: p.detach() for name, p in model.named_parameters() if name in names}


def norm(tensors) -> float:
    """Return the norm of all tensors together."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt().item()


def moved_values(start: dict[str, Tensor], offsets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a twin of the model takes: values of parameters, and the offset of ``tokens``."""
    return {name: offset.clone() if name == "tokens" else start[name] + offset for name, offset in offsets.items()}


def run(
    model: HCast, scene: LabelledScene, start: dict[str, Tensor], offsets: dict[str, Tensor], kept: dict[str, Tensor]
) -> tuple[HCastOutput, list[Tensor]]:
    """Return the output with some tensors moved from their start, and the tensors to differentiate by.

    Args:
        model: The stored model.
        scene: The picture.
        start: Values before they move; ``tokens`` are those of the superpixels.
        offsets: How far each has moved.
        kept: What moved earlier and stays: an offset for ``tokens``, values for parameters.
    """
    leaves = {name: nn.Parameter(value) for name, value in moved_values(start, offsets).items()}
    values = {name: nn.Parameter(value) for name, value in kept.items()} | leaves
    shift = values.pop("tokens", None)
    return twin(model, values, shift)(scene.image, scene.segments), list(leaves.values())


def adapt(
    model: HCast, scene: LabelledScene, way: Way, log_probability: Callable[[HCastOutput], Tensor]
) -> HCastOutput:
    """Return the output after adapting to a target by a way; the model stays as it is."""
    borders = Borders(scene.image, scene.segments) if way.price else None

    def loss(output: HCastOutput) -> Tensor:
        value = -log_probability(output) if way.label else torch.zeros(())
        return value if borders is None else value + way.price * borders.price(output)

    def measure(output: HCastOutput) -> float:
        return mean_contrast(output, scene.image) if way.contrast else 0.0

    kept: dict[str, Tensor] = {}
    output = None
    for free in way.free:
        start = free_values(model, scene, free)
        scale, step_size = norm(start.values()), STEP_SIZE
        moved = {name: torch.zeros_like(value) for name, value in start.items()}
        output, leaves = run(model, scene, start, moved, kept)
        value = loss(output)

        for _ in range(STEPS // len(way.free)):
            gradients = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
            gradients = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients)]
            if (length := norm(gradients)) == 0:
                break

            step = step_size * scale / length
            tried = {name: offset - step * g for (name, offset), g in zip(moved.items(), gradients)}
            if (distance := norm(tried.values())) > RADIUS * scale:
                tried = {name: offset * (RADIUS * scale / distance) for name, offset in tried.items()}

            new, new_leaves = run(model, scene, start, tried, kept)
            new_value = loss(new)
            if new_value < value and (not way.contrast or measure(new) > measure(output)):
                moved, output, leaves, value = tried, new, new_leaves, new_value
            else:
                step_size /= 2

        kept |= moved_values(start, moved)

    assert output is not None
    return output.detach()


def mean_iou(output: HCastOutput, mask: Tensor) -> float:
    """Return the IoU of a mask and the best union of segments, the mean over the stages."""
    return statistics.mean(best_union_iou(labels, mask) for labels in stage_maps(output))


def subtract(values: list[float], others: list[float]) -> list[float]:
    """Return the differences of two lists of numbers for the same pictures."""
    return [value - other for value, other in zip(values, others)]


def verdict(gains: dict[str, list[float]], controls: dict[str, list[float]]) -> str:
    """Say which ways mend segments, and which of them do so more with the true label than with a wrong one."""
    mending = [name for name, values in gains.items() if sign_beyond_chance(values) > 0]
    by_label = [name for name in mending if sign_beyond_chance(subtract(gains[name], controls[name])) > 0]
    if not mending:
        return "**No way mends the segments beyond chance: we promise no mending.**"
    text = f"**Segments get better, beyond chance, with: {'; '.join(mending)}.** "
    if by_label:
        return text + f"Better than with a wrong label: {'; '.join(by_label)}."
    return text + "None of them does more with the true label than with a wrong one: what mends is the condition."


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True, help="folder of the backgrounds")
    parser.add_argument(
        "--price",
        type=float,
        default=3.0,
        help="weight of segments that cross an edge (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the wrong labels (%(default)s)")
    args = parser.parse_args()

    weights = load_weights(args.model)
    model = build_model(weights).requires_grad_(False)
    taxonomy = weights.taxonomy
    finest = len(taxonomy.levels) - 1

    scenes = [
        LabelledScene(
            image=scene.image,
            segments=model.prepare_segments(scene.image, None, weights.config.num_superpixels),
            mask=scene.mask,
            leaf=taxonomy.names[-1].index(scene.row[taxonomy.levels[-1]]),
        )
        for scene in make_scenes(args, weights.config)
    ]
    ways = make_ways(model, args.price)
    rng = random.Random(args.seed)
    before, rows = [], []
    results: dict[tuple[str, bool], list[tuple[float, float, float]]] = {}
    for scene in tqdm(scenes, "adapt"):
        with torch.no_grad():
            plain = model(scene.image, scene.segments)
        before.append(mean_iou(plain, scene.mask))
        wrong = rng.choice([i for i in range(taxonomy.level_classes[finest]) if i != scene.leaf])
        for way in ways:
            for true, leaf in ((True, scene.leaf), (False, wrong)):

                def log_probability(output: HCastOutput, leaf=leaf) -> Tensor:
                    node = (finest, leaf)
                    return node_log_probability(output.level_logits, taxonomy, node, weights.calibration).sum()

                after = adapt(model, scene, way, log_probability)
                numbers = (
                    100 * log_probability(plain).exp().item(),
                    100 * log_probability(after).exp().item(),
                    mean_iou(after, scene.mask) - before[-1],
                )
                results.setdefault((way.name, true), []).append(numbers)

    gains, controls = {}, {}
    for way in ways:
        starts, ends, gains[way.name] = map(list, zip(*results[way.name, True]))
        *_, controls[way.name] = map(list, zip(*results[way.name, False]))
        values, others = gains[way.name], controls[way.name]
        rows.append(
            [
                way.name,
                f"{statistics.mean(starts):.1f} to {statistics.mean(ends):.1f}",
                interval_text(values),
                f"{100 * statistics.mean(gain > 1 for gain in values):.0f}",
                f"{100 * statistics.mean(gain < -1 for gain in values):.0f}",
                interval_text(others),
                interval_text(subtract(values, others)) if way.label else "",
            ]
        )

    introduction = INTRODUCTION.format(count=len(scenes), steps=STEPS, step_size=STEP_SIZE, radius=RADIUS)
    stages = ", ".join(str(stage) for stage in range(2, 2 + len(plain.assignments)))
    measures = MEASURES.format(stages=stages, before=statistics.mean(before))
    header = ["way", "probability", "IoU", "better", "worse", "IoU, wrong label", "true - wrong"]
    text = TEXT.format(
        introduction=textwrap.fill(introduction, 120, break_on_hyphens=False),
        provenance=report.provenance(args, weights, len(scenes)),
        table=report.table(header, rows),
        measures=textwrap.fill(measures, 120, break_on_hyphens=False),
        price=f"{args.price:g}",
        strong=round(100 * STRONG),
        verdict=textwrap.fill(verdict(gains, controls), 120),
    )
    report.write(args.docs, "mending.md", text)


if __name__ == "__main__":
    main()
