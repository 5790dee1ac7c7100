"""Does test-time adaptation help? Adapt to predicted, true and wrong labels, and measure labels and segments.

    pip install '.[benchmarks]'
    python benchmarks/adaptation.py --data emoji_art.parquet

Writes docs/adaptation.md and its picture. Pictures need an alpha channel, which is the mask of the object. On two
cores, each row takes about a second per picture; ``--limit`` takes fewer pictures.
"""

import dataclasses
import statistics
import textwrap
from math import comb
from pathlib import Path

import numpy as np
import report
import torch
from torch import Tensor
from torchvision import transforms as tv
from tqdm import tqdm

from hcast_zoo import Taxonomy
from hcast_zoo.adaptation.adapt import Adaptation, adapt, node_log_probability
from hcast_zoo.adaptation.config import AdaptConfig
from hcast_zoo.adaptation.report import adapt_picture, draw_sheet
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.evaluation.evaluate import collect_logits
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCastOutput
from hcast_zoo.segments.metrics import best_union_iou, rand_distance
from hcast_zoo.taxonomy.calibration import Calibration, fit_calibration
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.weights.file import Weights, build_model, load_weights

EXAMPLE = "tests/pictures/helicopter.png"

TEXT = """# Test-time adaptation in reverse hierarchy

Recognition can correct the segmentation that it was read from: a loss on the label is back-propagated from its head
through the poolings to the superpixels, a few gradient steps are taken there, and the picture is fed forward again.
**The authors of H-CAST show one example of this idea and released no code. What follows is our interpretation.**

```bash
hcast-zoo adapt picture.png --target lion --output out    # a node at any level; before and after in out/picture.png
hcast-zoo adapt picture.png --feedback path               # what was predicted; or entropy, or agreement
```

```python
from hcast_zoo.adaptation.adapt import adapt
from hcast_zoo.adaptation.config import AdaptConfig

adaptation = adapt(model, image, taxonomy, "dog", config=AdaptConfig(free=("tokens",), steps=5))
with adaptation.applied(model) as adapted:   # the adapted model, for this picture; `model` itself never changes
    output = adapted(image)
```

- **Feedback.** `target`: the probability of a node, summed over all paths through it, as in `best_path` decoding.
  `path`: the probability of the predicted path. `entropy`: the mean entropy of the levels. `agreement`: the probability
  that levels, drawn independently, form a path of the tree.
- **What may change** (`free`). `tokens` (the default): the features of the superpixels that enter stage 1, without the
  class token, through which the answer could bypass the segments. `pooling`: the weights that decide which cluster a
  token is in. `norms`: scales and shifts of the layer norms in the stages. Everything else is fixed, as are the heads.
- **Steps.** Normalised gradient descent: each step is `step_size` times the norm of what changes, so one setting works
  for all kinds. The step with the lowest loss is kept, so the loss never ends higher than it started.
- **Trust region.** All steps together stay within `radius` times that norm.
- **Contrast** (`--contrast`, off by default). Keep a step only if it also raises the contrast of the segments; else
  halve it. Segments then fit the object better, by 2.5 to 3.2 points of IoU on composites, and as much so with a wrong
  label: [Can a true label mend a segmentation?](mending.md)
- **Stored weights** are never modified: a copy of the model's structure holds the tensors that change and shares the
  rest. Several threads can adapt and predict with one model at the same time. A loss or gradient that is not finite
  stops the adaptation with an error.

![Before and after]({picture})

`hcast-zoo adapt {example} --model {model} --target {target} --output DIR`

A segment has one hue in all stages, before and after; one that was not there before is grey. Orange is what belongs to
another segment than before, where segments are paired by the pixels that they share. `--dark` draws on dark paper.

The default is `hcast_small.emoji_art`. With `hcast_lite.in1k`, `adapt` stops with an error, because nothing that may
change affects its labels: its class token starts from the superpixels' evidence, and its segments are grouped by a
descriptor.

One picture shows what adaptation can do, not what it does on average; the average is measured below.

## Measured

{provenance}
{steps} steps of {step_size}, radius {radius}. Probabilities are calibrated on: {calibrated}.

### Adapting to what the model itself says

{table_self}
FPA by `best_path`, in percent. *Mended*: pictures whose path was wrong before and is right after; *broken*: the
reverse. *p* is from the exact sign test of FPA before and after.

{verdict_self}

### Adapting to a given label

{table_target} *Probability* of the target, before and after (means, in percent), and the share of pictures where it
*rises*: the best step is kept, so it can never fall. *Path*: pictures whose whole path is right afterwards, in percent;
before, it was {fpa}. *IoU*: of the object's mask and the best union of the segments of stages {stages}, mean change in
points, with the 95 % interval of the mean; before, it was {iou_before}. *Better* and *worse*: pictures where the mean
over these stages rose or fell by more than a point. *Moved*: pixel pairs that were in one segment before and are in two
afterwards, or the reverse, in percent, by stage. The wrong label is drawn at random for each picture, as a control:
whatever it does to the segments, any label does.

{verdict_target}
"""


@dataclasses.dataclass
class Case:
    """One row of a table: a kind of feedback, and what may change."""

    name: str
    free: str
    feedback: str = "target"
    level: int | None = None  # of the true label; with feedback "target", None stands for a wrong label


@dataclasses.dataclass
class Result:
    """What one case did to one picture, before and after. IoU and change have one number per stage, in percent."""

    right: tuple[bool, bool]
    probability: tuple[float, float] | None
    iou: tuple[list[float], list[float]] | None
    change: list[float]


def main() -> None:
    defaults = AdaptConfig()
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--val-split", default="val", help="part to calibrate on, if the weights are not calibrated (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="of gradient descent (%(default)s)")
    parser.add_argument(
        "--step-size", type=float, default=defaults.step_size, help="times the norm of what changes (%(default)s)"
    )
    parser.add_argument(
        "--radius", type=float, default=defaults.radius, help="limit of all steps, times that norm (%(default)s)"
    )
    parser.add_argument("--example", default=EXAMPLE, help="picture to show (%(default)s)")
    parser.add_argument("--example-target", default="helicopter", help="node to adapt it to (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the wrong labels (%(default)s)")
    args = parser.parse_args()

    weights = load_weights(args.model)
    model = build_model(weights)
    dataset = report.load_data(args, weights)
    dataset.skip_broken = False
    calibration = weights.calibration or calibrate(args, weights, model)
    cases = make_cases(weights.taxonomy)
    rng = np.random.default_rng(args.seed)
    results: dict[str, list[Result]] = {case.name: [] for case in cases}

    for index in tqdm(range(len(dataset)), "adapt", smoothing=0.05):
        image, labels = dataset[index]
        segments = model.prepare_segments(image[None], None, weights.config.num_superpixels)
        mask = object_mask(dataset, index, weights.config)
        wrong = wrong_leaf(labels.tolist(), weights.taxonomy, rng)
        for case in cases:
            adaptation = adapt(
                model,
                image[None],
                weights.taxonomy,
                choose_target(case, labels, wrong),
                feedback=case.feedback,
                config=AdaptConfig(free=(case.free,), steps=args.steps, step_size=args.step_size, radius=args.radius),
                segments=segments,
                calibration=calibration,
            )
            results[case.name].append(measure(adaptation, labels, mask, weights.taxonomy, calibration))

    write_report(args, weights, calibration, cases, results)


def make_cases(taxonomy: Taxonomy) -> list[Case]:
    """Return the rows of both tables; a name has the target and what may change."""
    finest = len(taxonomy.levels) - 1
    leaf = taxonomy.levels[finest]
    cases = [Case("predicted path", free, "path") for free in ("tokens", "pooling", "norms")]
    cases += [Case("entropy", "tokens", "entropy"), Case("agreement", "tokens", "agreement")]
    for index in reversed(range(len(taxonomy.levels))):
        cases.append(Case(f"true {taxonomy.levels[index]}", "tokens", level=index))
    cases += [Case(f"true {leaf}", free, level=finest) for free in ("pooling", "norms")]
    cases += [Case(f"wrong {leaf}", free) for free in ("tokens", "norms")]

    for case in cases:
        case.name = f"{case.name} | `{case.free}`"
    return cases


def choose_target(case: Case, labels: Tensor, wrong: tuple[int, int]) -> tuple[int, int] | None:
    """Return the node, as level and index, that a case adapts to; None if it adapts to the model's own answer."""
    if case.feedback != "target":
        return None
    if case.level is None:
        return wrong
    return case.level, labels[case.level].item()


def calibrate(args, weights: Weights, model) -> Calibration:
    """Fit on held-out pictures, as `hcast-zoo calibrate` does."""
    transform = report.eval_transform(weights.config)
    held_out = HierarchicalDataset.load(args.data, weights.taxonomy, args.val_split, transform=transform)
    logits, labels = collect_logits(model, held_out)
    return fit_calibration(logits, labels, weights.taxonomy, f"{weights.taxonomy.name}, split {args.val_split}")


def object_mask(dataset: HierarchicalDataset, index: int, config: HCastConfig) -> Tensor | None:
    """Return (H, W) bool, the picture's alpha channel resized as for the model; None if it shows no outline."""
    picture = dataset.open(index)
    if picture.mode != "RGBA":
        return None
    resize = tv.Compose([tv.Resize(int(config.image_size / config.crop_pct)), tv.CenterCrop(config.image_size)])
    mask = torch.from_numpy(np.array(resize(picture.getchannel("A")))) > 127
    return mask if mask.any() and not mask.all() else None


def wrong_leaf(labels: list[int], taxonomy: Taxonomy, rng: np.random.Generator) -> tuple[int, int]:
    """Return the level and the index of a random leaf that is not the true one."""
    finest = len(labels) - 1
    others = [i for i in range(taxonomy.level_classes[finest]) if i != labels[finest]]
    return finest, int(rng.choice(others))


def stage_maps(output: HCastOutput) -> list[Tensor]:
    """Return the (H, W) segments of the stages after the superpixels."""
    return [output.segment_map(stage)[0] for stage in range(2, len(output.assignments) + 2)]


def measure(
    adaptation: Adaptation, labels: Tensor, mask: Tensor | None, taxonomy: Taxonomy, calibration: Calibration
) -> Result:
    """Compare labels and segments before and after adaptation."""
    right, probabilities, ious = [], [], []
    before, after = stage_maps(adaptation.before), stage_maps(adaptation.after)
    for output, maps in ((adaptation.before, before), (adaptation.after, after)):
        path = decode(calibration.logits(output.level_logits), taxonomy).paths[0]
        right.append(bool((path == labels).all()))
        if adaptation.node is not None:
            log_probability = node_log_probability(output.level_logits, taxonomy, adaptation.node, calibration)
            probabilities.append(log_probability.exp().item())
        if mask is not None:
            ious.append([best_union_iou(segments, mask) for segments in maps])

    return Result(
        right=tuple(right),
        probability=tuple(probabilities) or None,
        iou=tuple(ious) or None,
        change=[rand_distance(old, new) for old, new in zip(before, after)],
    )


def write_report(args, weights, calibration: Calibration, cases: list[Case], results: dict[str, list[Result]]) -> None:
    """Write docs/adaptation.md and its picture."""
    first = results[cases[0].name]
    fpa = 100 * statistics.mean(r.right[0] for r in first)
    rows_self = [self_row(c.name, results[c.name]) for c in cases if c.feedback != "target"]
    rows_target = [target_row(c.name, results[c.name]) for c in cases if c.feedback == "target"]
    masked = [r.iou[0] for r in first if r.iou is not None]
    if len(masked) < 2:
        raise SystemExit("expected at least two pictures whose alpha channel separates object and background")

    picture = Path("images/adaptation.png")
    draw_example(args, args.docs / picture)
    report.write(
        args.docs,
        "adaptation.md",
        TEXT.format(
            picture=picture.as_posix(),
            model=weights.metadata.get("name") or Path(args.model).name,
            example=args.example if args.example == EXAMPLE else Path(args.example).name,
            target=args.example_target,
            provenance=report.provenance(args, weights, len(first)),
            steps=args.steps,
            step_size=args.step_size,
            radius=args.radius,
            calibrated=calibration.fitted_on,
            fpa=f"{fpa:.2f}",
            table_self=report.table(["feedback", "free", "FPA before", "after", "mended", "broken", "p"], rows_self),
            verdict_self=textwrap.fill(verdict_self(results[cases[0].name]), 120),
            table_target=report.table(
                ["target", "free", "probability", "after", "rises", "path", "IoU", "better", "worse", "moved"],
                rows_target,
            ),
            stages=", ".join(map(str, range(2, 2 + len(first[0].change)))),
            iou_before=", ".join(f"{statistics.mean(v):.1f}" for v in zip(*masked)),
            verdict_target=textwrap.fill(verdict_target(cases, results), 120),
        ),
    )


def self_row(name: str, results: list[Result]) -> list[str]:
    """Return a row of the table of adapting to what the model itself says."""
    before, after, mended, broken = flips(results)
    return [
        *name.split(" | "),
        f"{before:.2f}",
        f"{after:.2f}",
        str(mended),
        str(broken),
        f"{sign_test(mended, broken):.2f}",
    ]


def flips(results: list[Result]) -> tuple[float, float, int, int]:
    """Return FPA before and after, in percent, and the numbers of paths that were mended and broken."""
    before = 100 * statistics.mean(r.right[0] for r in results)
    after = 100 * statistics.mean(r.right[1] for r in results)
    mended = sum(r.right == (False, True) for r in results)
    broken = sum(r.right == (True, False) for r in results)
    return before, after, mended, broken


def sign_test(mended: int, broken: int) -> float:
    """Return the two-sided p of so uneven a split, if mending and breaking were equally likely."""
    total, few = mended + broken, min(mended, broken)
    return min(1.0, 2 * sum(comb(total, k) for k in range(few + 1)) / 2**total)


def target_row(name: str, results: list[Result]) -> list[str]:
    """Return a row of the table of adapting to a given label."""
    before = 100 * statistics.mean(r.probability[0] for r in results)
    after = 100 * statistics.mean(r.probability[1] for r in results)
    rises = 100 * statistics.mean(r.probability[1] > r.probability[0] for r in results)
    gains = np.array([np.subtract(r.iou[1], r.iou[0]) for r in results if r.iou is not None])  # [pictures, stages]
    means = gains.mean(1)
    moved = np.mean([r.change for r in results], 0)

    return [
        *name.split(" | "),
        f"{before:.2f}",
        f"{after:.2f}",
        f"{rises:.1f}",
        f"{100 * statistics.mean(r.right[1] for r in results):.2f}",
        ", ".join(interval_text(stage) for stage in gains.T.tolist()),
        f"{100 * (means > 1).mean():.1f}",
        f"{100 * (means < -1).mean():.1f}",
        " / ".join(f"{share:.1f}" for share in moved),
    ]


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval."""
    return statistics.mean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5


def interval_text(values: list[float]) -> str:
    """Return the mean and its 95 % interval as text."""
    mean, half = interval(values)
    return f"{mean:+.2f} ± {half:.2f}"


def sign_beyond_chance(values: list[float]) -> int:
    """Return 1 or -1 if the 95 % interval of the mean lies above or below 0; 0 if it holds 0."""
    mean, half = interval(values)
    return 0 if abs(mean) <= half else 1 if mean > 0 else -1


def verdict_self(results: list[Result]) -> str:
    """Say in words what adapting to the predicted path does to FPA."""
    before, after, mended, broken = flips(results)
    p = sign_test(mended, broken)
    effect = "raises FPA" if after > before else "lowers FPA"
    if p >= 0.05:
        effect = "does not change FPA beyond chance"
    return (
        f"Adapting to the predicted path {effect} here ({before:.2f} to {after:.2f}; {mended} mended, {broken} "
        f"broken, p = {p:.2f})."
    )


def mean_gains(results: list[Result]) -> list[float]:
    """Return the change of each picture's IoU, its mean over the stages; pictures without a mask are left out."""
    return [statistics.mean(r.iou[1]) - statistics.mean(r.iou[0]) for r in results if r.iou is not None]


def verdict_target(cases: list[Case], results: dict[str, list[Result]]) -> str:
    """Say in words what adapting to the true label does to the segments, and whether a wrong label does the same."""
    true = next(c for c in cases if c.name.startswith("true") and c.free == "tokens")
    wrong = next(c for c in cases if c.name.startswith("wrong") and c.free == "tokens")
    gains = mean_gains(results[true.name])
    differences = [gain - control for gain, control in zip(gains, mean_gains(results[wrong.name]))]
    rises = 100 * statistics.mean(r.probability[1] > r.probability[0] for r in results[true.name])

    effect = {
        1: "mends the segmentation",
        -1: "worsens the segmentation",
        0: "neither mends nor worsens the segmentation beyond chance",
    }[sign_beyond_chance(gains)]
    control = {
        1: "more than a wrong label does",
        -1: "less than a wrong label does",
        0: "not measurably differently from a wrong label",
    }[sign_beyond_chance(differences)]
    return (
        f"Adapting the tokens to the {true.name.split(' |')[0]} raises its probability in {rises:.1f} % of the "
        f"pictures, and {effect} on average (mean IoU over the stages {interval_text(gains)} points), {control} "
        f"(difference {interval_text(differences)})."
    )


def draw_example(args, path: Path) -> None:
    """Draw one picture before and after adaptation."""
    adapted = adapt_picture(Predictor(args.model), args.example, args.example_target)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(adapted).save(path, optimize=True)


if __name__ == "__main__":
    main()
