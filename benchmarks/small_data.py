"""How well does the small recipe do on a few hundred pictures, next to simple classifiers of the same frozen features?

    for seed in 0 1 2; do
        python recipes/cut_outs.py --emoji emoji_art.parquet --output cut_outs/$seed --split --seed $seed
    done
    python benchmarks/small_data.py --data cut_outs/* --output runs/small_data

Writes docs/small_data_NAME.md, where NAME is the folder above the data. Every arm, split and seed is a run folder; the
same command resumes, and skips those that are finished. Settings were chosen on the validation pictures of the first
split; test pictures are only measured.
"""

import argparse
import json
import statistics
import sys
import textwrap
from pathlib import Path

import report
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hcast_zoo.cli import main as run_command
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.evaluate import evaluate
from hcast_zoo.network.stems import weighted_mean
from hcast_zoo.sharing.model_card import code_version
from hcast_zoo.training.recipe import recipe_by_size
from hcast_zoo.training.settings import TrainConfig
from hcast_zoo.training.views import AUGMENTATIONS, ViewFolder, ViewSet
from hcast_zoo.weights.file import build_model, load_weights

VIEWS = "views"  # folder of augmented features, for all arms
START = "hcast_lite.in1k"
ARMS = {
    f"`{START}`, small recipe": ["--model", START],
    "`hcast_lite`: the frozen stem alone, small recipe": ["--model", "hcast_lite"],
    f"`{START}`, all but the stem (`--freeze stem --epochs 4`)": [
        "--model",
        START,
        "--freeze",
        "stem",
        "--epochs",
        "4",
    ],
}
TEXT = """# A few hundred pictures

{data}

| method | validation | test | test, of each split and seed |
|---|---|---|---|
{rows}

Full-path accuracy in percent; the simple classifiers predict the leaf, which determines the path. One picture of a test
set is {picture:.1f} points; the standard error of a mean is at most {error:.1f}. The simple classifiers read the frozen
stem's last features (the 1,280 that EfficientNet-Lite0's own classifier reads), averaged over the picture.

{origin}
"""
ORIGIN = "Written by `python benchmarks/small_data.py --data {name}/* --output runs/small_data{options}`, {version}."


def train(name: str, options: list[str], data: Path, seed: int, args: argparse.Namespace) -> Path:
    """Train an arm with a seed, unless that is done already; return its folder."""
    folder = args.output / f"{''.join(c if c.isalnum() else '_' for c in name)}_{data.name}_{seed}"
    if not (folder / "done").exists():
        command = ["train", "--data", str(data), "--output", str(folder), "--seed", str(seed), "--recipe", "small"]
        command += ["--view-cache", str(args.output / VIEWS)]
        if code := run_command([*command, *options, *args.options]):
            raise SystemExit(code)
        (folder / "done").touch()

    return folder


def measure(folder: Path, parts: dict[str, HierarchicalDataset]) -> dict[str, float]:
    """Return the full-path accuracy of a finished run on the validation and test pictures."""
    weights = load_weights(folder)
    model = build_model(weights)
    fpa = {}
    for part in ("val", "test"):
        parts[part].transform = eval_transform(weights.config)
        fpa[part] = evaluate(model, parts[part], ("best_path",), progress=False)["best_path"]["fpa"]

    return fpa


def simple_classifiers(parts: dict[str, HierarchicalDataset], output: Path) -> dict[str, dict[str, float]]:
    """Return the accuracy of simple classifiers on the frozen stem's features, averaged over each picture."""
    weights = load_weights(START)
    model = build_model(weights)
    settings = recipe_by_size(len(parts["train"]), pretrained_stem=True, name="small").settings
    augmentation = {name: settings[name] for name in AUGMENTATIONS if name in settings}
    folder = ViewFolder(output / VIEWS, model, TrainConfig(**augmentation))
    size = getattr(model.stem.body, "head_hidden_size", model.stem.body.num_features)

    features, labels = {}, {}
    for part, dataset in parts.items():
        dataset.transform = eval_transform(weights.config)
        views = ViewSet(dataset, folder)
        views.make(model)
        batch = ViewSet.collate([views[index] for index in range(len(views))])
        superpixels = batch["images"]
        features[part] = weighted_mean(superpixels.features, superpixels.area)[:, 0, -size:].numpy()
        labels[part] = batch["labels"][:, -1].numpy()

    accuracy = {}
    for name, classifier in (
        ("1-NN by cosine", KNeighborsClassifier(1, metric="cosine")),
        ("logistic regression", make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))),
    ):
        classifier.fit(features["train"], labels["train"])
        accuracy[name] = {part: 100 * classifier.score(features[part], labels[part]) for part in ("val", "test")}

    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folder trees in parts train, val and test")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs of each arm (%(default)s)")
    parser.add_argument("--arms", type=int, nargs="+", default=range(len(ARMS)), help="which to train, from 0 (all)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report (%(default)s)")
    parser.add_argument("options", nargs="*", help="more options of `hcast-zoo train`, after --")
    args = parser.parse_args()

    results: dict[str, list[dict[str, float]]] = {}
    for data in args.data:
        parts = {"train": HierarchicalDataset.load(data, split="train")}
        for part in ("val", "test"):
            parts[part] = HierarchicalDataset.load(data, parts["train"].taxonomy, part)

        for name, accuracy in simple_classifiers(parts, args.output).items():
            results.setdefault(name, []).append(accuracy)
        for number in args.arms:
            name, options = list(ARMS.items())[number]
            for seed in args.seeds:
                folder = train(name, options, data, seed, args)
                results.setdefault(name, []).append(measure(folder, parts))

    rows = []
    for name, accuracies in results.items():
        val = statistics.mean(accuracy["val"] for accuracy in accuracies)
        test = statistics.mean(accuracy["test"] for accuracy in accuracies)
        each = ", ".join(f"{accuracy['test']:.1f}" for accuracy in accuracies)
        rows.append(f"| {name} | {val:.1f} | {test:.1f} | {each} |")

    count = len(parts["test"])
    levels = " > ".join(map(str, parts["train"].taxonomy.level_classes))
    sizes = ", ".join(f"{len(dataset)} in {part}" for part, dataset in parts.items())
    name = args.data[0].parent.name
    options = "".join(f" {word}" for word in sys.argv[sys.argv.index("--output") + 2 :])
    origin = ORIGIN.format(name=name, options=options, version=code_version())
    text = TEXT.format(
        data=f"{name}, {len(args.data)} splits of the same pictures: {sizes}; levels of {levels} nodes; seeds "
        f"{', '.join(map(str, args.seeds))}.",
        rows="\n".join(rows),
        picture=100 / count,
        error=50 / (count * len(args.data)) ** 0.5,
        origin=textwrap.fill(origin, 120, break_on_hyphens=False),
    )
    report.write(args.docs, f"small_data_{name}.md", text)
    (args.output / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
