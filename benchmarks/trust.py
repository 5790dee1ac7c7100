"""Measure promised accuracies, conformal sets, drift, and calibration on few pictures, all on held-out artists.

    pip install '.[benchmarks]'
    python benchmarks/trust.py --data emoji_art.parquet

Writes the measured parts of docs/trust.md.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import report
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.drift import check_drift, check_promise
from hcast_zoo.evaluation.evaluate import collect_logits
from hcast_zoo.evaluation.hierarchical import hierarchical_metrics
from hcast_zoo.taxonomy.calibration import calibration_errors, cross_fitted_errors, fit_calibration
from hcast_zoo.taxonomy.conformal import conformal_quantile, leaf_sets, set_scores, subtree_depths, subtree_scores
from hcast_zoo.taxonomy.decode import path_probabilities
from hcast_zoo.taxonomy.guarantee import measure_guarantee
from hcast_zoo.taxonomy.rollup import path_indices
from hcast_zoo.taxonomy.selective import Judged, PromiseError, promise_accuracy
from hcast_zoo.weights.file import build_model, load_weights

PAGE = "trust.md"
SPLITS = 1000
GREY_STEP = 2  # every second test picture is made grey


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--val-split", default="val", help="part by the other artist (%(default)s)")
    parser.add_argument("--cache", type=Path, help="folder that keeps the model's answers for the next run")
    args = parser.parse_args()

    weights = load_weights(args.model)
    artists = {
        "val": collect(args, weights, args.val_split),
        "test": collect(args, weights, args.split),
    }
    grey = collect(args, weights, args.split, make_grey, GREY_STEP)

    options = f"--data {Path(args.data).name}"
    for key, text in (
        ("promises", promises(weights, artists)),
        ("sets", sets(weights, artists)),
        ("drift", drift(weights, artists, grey)),
        ("few", few(weights, artists)),
        ("metrics", metrics(weights, artists["test"])),
    ):
        report.write_section(args.docs, PAGE, key, text, options)


def make_grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


def collect(
    args, weights, split: str, change: Callable | None = None, step: int = 1
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return logits and labels of every ``step``-th picture of a split, changed by ``change`` if there is one."""
    name = split if change is None else f"{split}_{change.__name__}"
    file = args.cache and args.cache / f"{name}.safetensors"
    if file and file.exists():
        tensors = load_file(file)
        labels = tensors.pop("labels")
        return tuple(tensors[str(level)] for level in range(len(tensors))), labels

    transform = eval_transform(weights.config)
    dataset = HierarchicalDataset.load(args.data, weights.taxonomy, split)
    dataset.transform = transform if change is None else lambda picture: transform(change(picture))
    dataset.pictures, dataset.labels = dataset.pictures[::step], dataset.labels[::step]
    collected = collect_logits(build_model(weights), dataset, args.batch_size)
    if file:
        logits, labels = collected
        save_file({str(level): values for level, values in enumerate(logits)} | {"labels": labels}, file)
    return collected


def promises(weights, artists: dict) -> str:
    """Return what each artist's pictures promise, and how often the other artist's keep it."""
    taxonomy, rows = weights.taxonomy, []
    for name, other in (("val", "test"), ("test", "val")):
        for target in (0.9, 0.95, 0.98):
            try:
                calibration, guarantee = measure_guarantee(*artists[name], taxonomy, name, "", target)
            except PromiseError as error:
                rows.append([name, f"{target:.0%}", "none", "", "", str(error).rpartition(". ")[2]])
                continue

            promise = guarantee.promise
            logits, labels = artists[other]
            judged = Judged.of(calibration.decode(logits, taxonomy), labels, taxonomy)
            answered, wrong = judged.count(promise.threshold)
            here = f"{promise.answered} of {promise.pictures}, {100 * (1 - promise.wrong / promise.answered):.1f} %"
            there = f"{answered} of {len(judged)}, {100 * (1 - wrong / answered):.1f} %"
            rows.append([name, f"{target:.0%}", f"{promise.threshold:g}", here, there, ""])

    header = ["calibrated on", "target", "threshold", "answered, right: tested on", "the other artist", "remark"]
    return f"{report.table(header, rows)}\n{broken_promises(weights, artists)}"


def broken_promises(weights, artists: dict) -> str:
    """Return how often promises are too high, over samples of all held-out pictures, which are the population here."""
    parts = [judge(weights, *artist) for artist in artists.values()]
    population = Judged(
        np.concatenate([part.trust for part in parts]), np.concatenate([part.right_depth for part in parts])
    )
    rng, rows = np.random.default_rng(0), []
    for target, pictures in ((0.9, 300), (0.9, 1200), (0.95, 600), (0.95, 1200)):
        made = broken = 0
        thresholds = []
        for _ in range(SPLITS):
            fit = population.rows(rng.integers(len(population), size=pictures // 3))
            test = population.rows(rng.integers(len(population), size=pictures * 2 // 3))
            try:
                promise = promise_accuracy(fit, test, target)
            except PromiseError:
                continue

            made += 1
            thresholds.append(promise.threshold)
            answered, wrong = population.count(promise.threshold)
            broken += 1 - wrong / answered < target

        rows.append([f"{target:.0%}", pictures, made, broken, f"{np.median(thresholds):g}"])

    return report.table(["target", "pictures", "promises in 1,000 samples", "too high", "median threshold"], rows)


def judge(weights, logits, labels) -> Judged:
    """Return how far each decoded path is right, and how far it can be trusted."""
    return Judged.of(weights.calibration.decode(logits, weights.taxonomy), labels, weights.taxonomy)


def sets(weights, artists: dict) -> str:
    """Return the coverage and the size of sets and subtrees."""
    taxonomy, calibration = weights.taxonomy, weights.calibration
    all_logits, all_labels = zip(*artists.values())
    logits = [torch.cat(level) for level in zip(*all_logits)]
    labels = torch.cat(all_labels)
    split = len(artists["val"][1])
    leaves = path_indices(labels, taxonomy)
    decoded = calibration.decode(logits, taxonomy)
    temperature = calibration.path_temperature
    probabilities = path_probabilities(calibration.logits(logits), taxonomy, path_temperature=temperature)
    scores = {"set": set_scores(probabilities, leaves), "subtree": subtree_scores(decoded, labels)}

    rng, rows = np.random.default_rng(0), []
    for coverage in (0.8, 0.9, 0.95):
        for kind, values in scores.items():
            covered = []
            for _ in range(SPLITS):
                mixed = rng.permutation(values)
                covered.append((mixed[400:] <= conformal_quantile(mixed[:400], coverage)).mean())

            across = [
                (values[split:] <= conformal_quantile(values[:split], coverage)).mean(),
                (values[:split] <= conformal_quantile(values[split:], coverage)).mean(),
            ]

            quantile = conformal_quantile(values, coverage)
            if kind == "set":
                sizes = leaf_sets(probabilities, quantile).sum(-1).double()
                size = f"{sizes.mean():.1f} leaves, median {sizes.median():.0f}"
            else:
                depths = subtree_depths(decoded, quantile)
                counts = torch.bincount(depths, minlength=len(taxonomy.levels) + 1)
                size = " / ".join(f"{100 * share:.0f} %" for share in (counts.double() / len(depths)).tolist())

            low, high = np.percentile(covered, [2.5, 97.5])
            rows.append(
                [
                    f"{coverage:.0%}",
                    kind,
                    f"{100 * np.mean(covered):.2f} ({100 * low:.1f} to {100 * high:.1f})",
                    " / ".join(f"{100 * share:.1f}" for share in across),
                    size,
                ]
            )

    header = ["asked", "form", "covered, 1,000 random splits", "val > test / test > val", "size"]
    return report.table(header, rows)


def drift(weights, artists: dict, grey: tuple) -> str:
    """Return whether another artist's pictures, and pictures in grey, are found to have drifted."""
    taxonomy, rows = weights.taxonomy, []
    calibration, guarantee = measure_guarantee(*artists["test"], taxonomy, "test", "", 0.95)
    for name, (logits, labels) in (("val, the other artist", artists["val"]), ("test in grey", grey)):
        decoded = calibration.decode(logits, taxonomy)
        checks = check_drift(guarantee, decoded.path_probabilities.numpy(), decoded.paths.numpy(), taxonomy)
        promise = check_promise(guarantee, Judged.of(decoded, labels, taxonomy))
        for index, check in enumerate((*checks, promise)):
            title = "" if index else name
            verdict = "**drifted**" if check.drifted else "no"
            rows.append([title, check.name, f"{check.before:.3f}", f"{check.now:.3f}", f"{check.p_value:.4f}", verdict])

    return report.table(["new pictures", "of", "before", "now", "p", "drifted"], rows)


def few(weights, artists: dict) -> str:
    """Return calibration errors for fits to few pictures."""
    taxonomy, rows = weights.taxonomy, []
    logits, labels = artists["val"]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for pictures in (10, 25, 50, 100, 200, len(labels)):
        chosen = order[:pictures]
        part = [x[chosen] for x in logits], labels[chosen]
        calibration = fit_calibration(*part, taxonomy)
        same = calibration_errors(*part, taxonomy, calibration)["ece/path"]
        crossed = cross_fitted_errors(*part, taxonomy)["ece/path"]
        test = calibration_errors(*artists["test"], taxonomy, calibration)
        rows.append(
            [
                pictures,
                f"{calibration.path_temperature:.2f}",
                f"{same:.2f}",
                f"{crossed:.2f}",
                f"{test['ece/path']:.2f}",
                f"{test[f'ece/{taxonomy.levels[-1]}']:.2f}",
            ]
        )

    before = calibration_errors(*artists["test"], taxonomy)
    finest = taxonomy.levels[-1]
    rows.insert(0, ["none", "1", "", "", f"{before['ece/path']:.2f}", f"{before[f'ece/{finest}']:.2f}"])
    header = ["pictures", "path temperature", "ECE on themselves", "cross-fitted", "path on test", f"{finest} on test"]
    return report.table(header, rows)


def metrics(weights, artist: tuple) -> str:
    """Return the hierarchical metrics of an artist's pictures, with their intervals."""
    logits, labels = artist
    decoded = weights.calibration.decode(logits, weights.taxonomy)
    measured = hierarchical_metrics(decoded.paths, labels, weights.taxonomy, decoded.path_probabilities)
    rows = []
    for name, metric in measured.items():
        assert not math.isnan(metric.value), name
        rows.append([name.replace("_", " "), f"{metric.value:.2f}", f"{metric.low:.2f} to {metric.high:.2f}"])
    return report.table(["metric", "value", "95 % interval"], rows)


if __name__ == "__main__":
    main()
