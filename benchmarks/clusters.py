"""Accuracy and time against the number of clusters, which can be changed at inference with no fine-tuning.

    pip install '.[benchmarks]'
    python benchmarks/clusters.py --data emoji_art.parquet

Writes docs/clusters.md and docs/images/clusters.png.
"""

import random
import statistics
from pathlib import Path

import report
import torch
from cost import seconds
from tqdm import tqdm

from hcast_zoo import HCast, HCastConfig
from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.weights.file import build_model, load_weights

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)

TEXT = """# Changing the number of clusters at inference

`--num-clusters` (in Python `num_clusters=`) sets the number of segments after each stage for one call, with the same
weights. More segments separate finer parts and take more time. The weights were trained with {default}.

{provenance}
{table}
![FPA and time against the number of clusters](images/clusters.png)

FPA, TICE and accuracy (of each level) in percent, decoded by `best_path`; the standard error of an FPA is {error:.1f}.
Time is that of the network's forward pass, superpixels given, relative to the training's setting: the median of
{rounds} rounds, and the quartiles. In each round every setting is timed once, in random order, on the same batch of
{batch} pictures, and compared with the training's setting in that round. The machine was running other work, so small
differences mean nothing.
"""


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds of timing (%(default)s)")
    parser.add_argument("--time-batch", type=int, default=16, help="pictures of the timed batch (%(default)s)")
    args = parser.parse_args()

    weights = load_weights(args.model)
    model, default = build_model(weights), weights.config.num_clusters
    dataset = report.load_data(args, weights)
    batches = report.load_batches(dataset, weights.config, args.batch_size)
    settings = list(dict.fromkeys(scaled(weights.config, scale) for scale in SCALES))
    ratios = time_ratios(model, batches, settings, args.rounds, args.time_batch)

    header = ["clusters", "FPA", "TICE", *weights.taxonomy.levels, "time", "quartiles"]
    metrics, quartiles, rows = {}, {}, []
    for clusters in tqdm(settings, "accuracy"):
        metrics[clusters] = measure(model, batches, weights.taxonomy, clusters)
        quartiles[clusters] = statistics.quantiles(ratios[clusters], n=4, method="inclusive")
        low, median, high = quartiles[clusters]
        mark = "**" if clusters == default else ""
        percents = [f"{value:.2f}" for key, value in metrics[clusters].items() if key != "wap"]
        name = mark + "/".join(map(str, clusters)) + mark
        rows.append([name, *percents, f"{median:.2f}", f"{low:.2f}-{high:.2f}"])

    plot(args.docs / "images" / "clusters.png", settings, metrics, quartiles, default)
    report.write(
        args.docs,
        "clusters.md",
        TEXT.format(
            default="/".join(map(str, default)),
            provenance=report.provenance(args, weights, len(dataset)),
            table=report.table(header, rows),
            error=standard_error(metrics[default]["fpa"], len(dataset)),
            rounds=args.rounds,
            batch=args.time_batch,
        ),
    )


def scaled(config: HCastConfig, scale: float) -> tuple[int, ...]:
    """Return the config's cluster counts times a factor, none above the number of tokens it is chosen from."""
    counts, tokens = [], config.num_superpixels
    for count in config.num_clusters:
        tokens = min(tokens, max(1, round(count * scale)))
        counts.append(tokens)
    return tuple(counts)


@torch.inference_mode()
def measure(model: HCast, batches: list[dict], taxonomy, clusters: tuple[int, ...]) -> dict[str, float]:
    """Return the metrics of all pictures, in percent."""
    metrics = HierarchicalMetrics(taxonomy)
    for batch in batches:
        output = model(batch["images"], batch["segments"], num_clusters=clusters)
        metrics.update(decode(output.level_logits, taxonomy).paths, batch["labels"])
    return metrics.compute()


@torch.inference_mode()
def time_ratios(
    model: HCast, batches: list[dict], settings: list[tuple[int, ...]], rounds: int, size: int
) -> dict[tuple[int, ...], list[float]]:
    """Return, for each setting and round, its time over that of the config's clusters."""
    images = torch.cat([batch["images"] for batch in batches])[:size]
    segments = torch.cat([batch["segments"] for batch in batches])[:size]
    default = model.config.num_clusters
    ratios = {clusters: [] for clusters in settings}
    for number in tqdm(range(rounds + 1), "time"):
        times = {}
        for clusters in random.sample(settings, len(settings)):
            times[clusters] = seconds(lambda: model(images, segments, num_clusters=clusters))  # noqa: B023

        if number:  # the first round warms up
            for clusters in settings:
                ratios[clusters].append(times[clusters] / times[default])

    return ratios


def standard_error(percent: float, pictures: int) -> float:
    """Return the standard error of a percentage of so many pictures."""
    return (percent * (100 - percent) / pictures) ** 0.5


def plot(path: Path, settings, metrics, quartiles, default) -> None:
    """Plot FPA and time against the number of segments that stage 2 sees."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("the plot needs matplotlib: pip install '.[benchmarks]'") from error

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [clusters[0] for clusters in settings]
    accuracy = [metrics[clusters]["fpa"] for clusters in settings]
    left.plot(x, accuracy, "o-")
    left.set_ylabel("full-path accuracy, %")
    left.set_ylim(0, 1.15 * max(accuracy) or 1)

    low, median, high = zip(*(quartiles[clusters] for clusters in settings))
    right.plot(x, median, "o-")
    right.fill_between(x, low, high, alpha=0.25)
    right.set_ylabel("time, training's clusters = 1")
    right.set_ylim(bottom=0)

    for axes in (left, right):
        axes.axvline(default[0], color="grey", linestyle=":", label="in training")
        axes.set_xlabel("segments of stage 2; the others in proportion")
        axes.grid(alpha=0.3)

    left.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
