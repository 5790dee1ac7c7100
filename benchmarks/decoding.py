"""Decoding that can be trusted: decoders compared, calibration, back-off and restriction, on held-out pictures.

    pip install '.[benchmarks]'
    python benchmarks/decoding.py --data emoji_art.parquet

Writes docs/decoding.md and docs/images/coverage.png.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import report
import torch
from torch import Tensor

from hcast_zoo import HierarchicalMetrics, Predictor, Taxonomy
from hcast_zoo.common.choices import DECODERS
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.evaluation.evaluate import collect_logits
from hcast_zoo.taxonomy.backoff import back_off
from hcast_zoo.taxonomy.calibration import Calibration, calibration_errors, fit_calibration
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import UNKNOWN
from hcast_zoo.weights.file import build_model, load_weights

matplotlib.use("Agg")
from matplotlib import pyplot

THRESHOLDS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
SHARES = (10, 25, 50, 75, 100)  # percent of the pictures
EXAMPLES = Path(__file__).parent.parent / "tests/pictures"
EXAMPLE_THRESHOLD = 0.5
PICTURE = Path("images/coverage.png")

TEXT = """# Decoding that can be trusted

Every level predicts its own probabilities. A decoder combines them into one path, calibration turns them into rates of
correct answers, back-off stops where the model is unsure, and restriction excludes what is impossible.

```bash
hcast-zoo calibrate MODEL --data pictures.parquet --split val --output calibrated.safetensors
hcast-zoo predict picture.png --model calibrated.safetensors --back-off 0.5 --within animals-nature --within pizza
```

{provenance}
## Decoders

{decoders}
In percent. `best_path` and `top_down` always give a path of the tree; `independent`, the paper's, decodes each level by
itself. A temperature never changes a level's own choice or a path of `top_down`; it can change a path of `best_path`,
which multiplies levels.

## Calibration

A temperature for each level, fitted by maximum likelihood, and one for the product of the levels in `best_path`, which
counts the evidence that levels share more than once. They are stored in the weights' metadata (`calibration`); without
it, all are 1. These were fitted on: {fitted_on}.

{calibration}
ECE: expected calibration error in percent, 15 bins, for each level's own choice and for the path by `best_path`. The
temperatures were fitted on the data of the first pair of columns; the second pair is the measurement.

## Back-off

`--back-off THRESHOLD` stops at the deepest level that can be trusted: down to it, every level's own choice is the node
of the path, and the calibrated probability of the path so far is at least the threshold. The answer says why it stops
there. Without the first condition (`require_agreement=False` in Python), only the probability decides. With `--back-off
{example_threshold}`:

```text
{examples}
```

{back_off}
*Answered*: pictures whose answer reaches the level, in percent. *Right*: of these, those whose path is right down to
it. *All right*: non-empty answers without a wrong node.

![Accuracy against coverage]({picture})

Left: accuracy against coverage of each level, as the threshold goes from 0 to 1; where the solid line is not above the
dashed one, requiring agreement gains no more than a higher threshold. Right: how often the paths of a bin of
probability are right, before and after calibration; on the diagonal, probabilities are calibrated.

### Which confidence separates right from wrong paths

{selective}
Accuracy of whole paths (FPA, in percent), over the most confident part of the pictures, by three confidences.

## Restriction

`--within NODE`, which can be repeated, decodes as if the tree had only the leaves at or below these nodes, so
probabilities are renormalised over them. A node can be at any level; write `level:name` if the name occurs at several.

{restriction}
FPA in percent by `best_path`, if the true node of a level is known in advance.
"""


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--val-split", default="val", help="part to calibrate on, if the weights are not calibrated (%(default)s)"
    )
    args = parser.parse_args()

    weights = load_weights(args.model)
    model, taxonomy = build_model(weights), weights.taxonomy
    dataset = report.load_data(args, weights)
    held_out = HierarchicalDataset.load(args.data, taxonomy, args.val_split, transform=dataset.transform)
    val = collect_logits(model, held_out, args.batch_size)
    test = collect_logits(model, dataset, args.batch_size)
    calibration = weights.calibration or fit_calibration(*val, taxonomy, f"{taxonomy.name}, split {args.val_split}")
    draw(args.docs / PICTURE, *test, taxonomy, calibration)
    report.write(
        args.docs,
        "decoding.md",
        TEXT.format(
            provenance=report.provenance(args, weights, len(test[1])),
            fitted_on=calibration.fitted_on,
            picture=PICTURE.as_posix(),
            decoders=decoder_table(*test, taxonomy, calibration),
            calibration=calibration_table(val, test, taxonomy, calibration),
            example_threshold=EXAMPLE_THRESHOLD,
            examples=example_lines(args.model, calibration),
            back_off=back_off_table(*test, taxonomy, calibration),
            selective=selective_table(*test, taxonomy, calibration),
            restriction=restriction_table(*test, taxonomy, calibration),
        ),
    )


def decoder_table(logits: Sequence[Tensor], labels: Tensor, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """Return the metrics of every decoder, and of the default after calibration."""
    decodings = [(f"`{mode}`", mode, logits) for mode in DECODERS]
    decodings.append(("`best_path`, calibrated", "best_path", calibration.logits(logits)))
    rows = []
    for name, mode, level_logits in decodings:
        metrics = HierarchicalMetrics(taxonomy)
        metrics.update(decode(level_logits, taxonomy, mode).paths, labels)
        rows.append([name, *(f"{value:.2f}" for key, value in metrics.compute().items() if key != "wap")])
    return report.table(["decoding", "FPA", "TICE", *taxonomy.levels], rows)


def calibration_table(val: tuple, test: tuple, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """Return temperatures, and calibration errors before and after, on the data of the fit and on the test data."""
    columns = []
    for logits, labels in (val, test):
        columns.append(calibration_errors(logits, labels, taxonomy, None))
        columns.append(calibration_errors(logits, labels, taxonomy, calibration))

    rows = []
    for key, temperature in zip(columns[0], (*calibration.temperatures, calibration.path_temperature)):
        rows.append([key.removeprefix("ece/"), f"{temperature:.3f}", *(f"{column[key]:.2f}" for column in columns)])
    return report.table(["of", "temperature", "ECE held out", "calibrated", "ECE", "calibrated"], rows)


def example_lines(model: str, calibration: Calibration) -> str:
    """Return the answers for the example pictures, and why each stops where it does."""
    predictor = Predictor(model, threshold=EXAMPLE_THRESHOLD)
    predictor.calibration = calibration
    lines = []
    for answer in predictor.predict(sorted(EXAMPLES.glob("*.png"))):
        lines += [f"{Path(answer.file).name}: {' > '.join(answer.path) or 'no answer'}", f"    {answer.reason}"]
    return "\n".join(lines)


def back_off_table(logits: Sequence[Tensor], labels: Tensor, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """Return how many pictures are answered at each level, and how many of these are right, for each threshold."""
    decoded = decode_calibrated(logits, taxonomy, calibration)
    rows = []
    for agreement in (True, False):
        for threshold in THRESHOLDS:
            answer = back_off(decoded, taxonomy, threshold, require_agreement=agreement)
            answered, right = coverage(answer.paths, labels)
            wrong = ((answer.paths != labels) & (answer.paths != UNKNOWN)).any(1)
            all_right = number(percent(~wrong[answer.depths > 0]))
            cells = [f"{share:.1f} / {number(accuracy)}" for share, accuracy in zip(answered, right)]
            rows.append([f"{threshold:g}", "yes" if agreement else "no", *cells, all_right])

    level_titles = [f"{level}: answered / right" for level in taxonomy.levels]
    return report.table(["threshold", "levels agree", *level_titles, "all right"], rows)


def decode_calibrated(logits: Sequence[Tensor], taxonomy: Taxonomy, calibration: Calibration, **options):
    """Decode by best_path with the temperatures of a calibration."""
    return decode(calibration.logits(logits), taxonomy, path_temperature=calibration.path_temperature, **options)


def coverage(paths: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    """Return, for each level, the percent of pictures answered down to it, and of these the percent that is right."""
    reached = paths != UNKNOWN
    right = (paths == labels).long().cumprod(1).bool()
    answered, accuracy = [], []
    for level in range(paths.shape[1]):
        answered.append(percent(reached[:, level]))
        accuracy.append(percent(right[reached[:, level], level]))
    return answered, accuracy


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def percent(truth: Tensor) -> float:
    """Return the percentage that is true; NaN for no values."""
    return 100 * truth.double().mean().item()


def selective_table(logits: Sequence[Tensor], labels: Tensor, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """Return the accuracy over the most confident pictures, by several confidences."""
    calibrated = decode_calibrated(logits, taxonomy, calibration)
    plain = decode(logits, taxonomy)
    finest = taxonomy.levels[-1]
    confidences = {
        "path, calibrated": (calibrated.paths, calibrated.path_probabilities),
        "path": (plain.paths, plain.path_probabilities),
        f"{finest}'s own": (plain.paths, plain.level_probabilities[:, -1].nan_to_num(0)),
    }
    rows = []
    for name, (paths, confidence) in confidences.items():
        right = (paths == labels).all(1)[confidence.argsort(descending=True, stable=True)]
        counts = [max(1, len(right) * share // 100) for share in SHARES]
        rows.append([name, *(f"{percent(right[:count]):.1f}" for count in counts)])

    return report.table(["confidence", *(f"{share} %" for share in SHARES)], rows)


def restriction_table(logits: Sequence[Tensor], labels: Tensor, taxonomy: Taxonomy, calibration: Calibration) -> str:
    """Return FPA if the true node of a level is known in advance."""
    unrestricted = (decode_calibrated(logits, taxonomy, calibration).paths == labels).all(1)
    rows = [["nothing", f"{percent(unrestricted):.2f}"]]
    for level, name in enumerate(taxonomy.levels[:-1]):
        right = []
        for node in labels[:, level].unique().tolist():
            if node == UNKNOWN:
                continue
            below = labels[:, level] == node
            within = [f"{name}:{taxonomy.names[level][node]}"]
            decoded = decode_calibrated([x[below] for x in logits], taxonomy, calibration, within=within)
            right.append((decoded.paths == labels[below]).all(1))

        rows.append([name, f"{percent(torch.cat(right)):.2f}"])

    return report.table(["known", "FPA"], rows)


def draw(path: Path, logits: Sequence[Tensor], labels: Tensor, taxonomy: Taxonomy, calibration: Calibration) -> None:
    """Plot accuracy against coverage, and accuracy against the probability of a path."""
    decoded, plain = decode_calibrated(logits, taxonomy, calibration), decode(logits, taxonomy)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for agreement, style in ((True, "-"), (False, "--")):
        points = []
        for threshold in torch.linspace(0, 1, 101).tolist():
            answer = back_off(decoded, taxonomy, threshold, require_agreement=agreement)
            points.append(coverage(answer.paths, labels))

        for level, name in enumerate(taxonomy.levels):
            curve = [(answered[level], accuracy[level]) for answered, accuracy in points if answered[level] > 1]
            label = name + (", levels agree" if agreement else ", probability alone")
            left.plot(*zip(*curve), style, color=f"C{level}", label=label)

    left.set(xlabel="answered, % (above 1 %)", ylabel="right of these, %", xlim=(0, 100), ylim=(0, 100))
    left.legend(fontsize=8)
    left.grid(alpha=0.3)

    for name, paths in (("before calibration", plain), ("after calibration", decoded)):
        bins = reliability(paths.path_probabilities, (paths.paths == labels).all(1))
        right.plot(*zip(*bins), "o-", label=name, markersize=4)
    right.plot([0, 100], [0, 100], ":", color="grey")
    right.set(xlabel="probability of the path, %", ylabel="right, %", xlim=(0, 100), ylim=(0, 100))
    right.legend(fontsize=8)
    right.grid(alpha=0.3)

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same bytes from the same numbers


def reliability(confidence: Tensor, right: Tensor, bins: int = 10) -> list[tuple[float, float]]:
    """Return the mean confidence and accuracy, in percent, of the bins that hold ten pictures or more."""
    index = (confidence * bins).ceil().long().clamp(1, bins)
    points = []
    for number in range(1, bins + 1):
        members = index == number
        if members.sum() >= 10:
            points.append((percent(confidence[members]), percent(right[members])))
    return points


if __name__ == "__main__":
    main()
