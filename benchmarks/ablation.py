"""What is each part worth? The same small training, once as the paper has it and once for each part left out.

    python benchmarks/ablation.py --data emoji_art.parquet --taxonomy taxonomy.json --output runs/ablation

Writes docs/ablation.md before the first arm and after each. Every arm and seed is a run folder; the same command
resumes a run that was stopped and skips those that are finished. The defaults are small enough for a laptop.
"""

import argparse
import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import flat_vit
import numpy as np
import report
import torch

from hcast_zoo import HCastConfig, HierarchicalDataset, Taxonomy
from hcast_zoo.common.choices import DECODERS
from hcast_zoo.common.files import write_whole
from hcast_zoo.data.free_grain import deal_levels
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.evaluate import collect_logits
from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.sharing.model_card import code_version
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import UNKNOWN
from hcast_zoo.training.settings import TrainConfig
from hcast_zoo.training.trainer import Trainer
from hcast_zoo.weights.file import load_weights

SETTINGS = dict(
    min_lr=1e-6,
    clip_grad=1.0,
    ema_decay=0.99,
    mixup=0.0,
    cutmix=0.0,
    auto_augment="",
    color_jitter=0.0,
    random_erasing=0.0,
    crop_scale=0.6,
    random_background=True,
    cache=True,
)
MIXED = dict(mixup=0.8, cutmix=1.0)  # the paper's
ON_DEVICE = dict(on_device=True, color_jitter=0.4, crop_scale=0.5)
BASE, TEACHER = "base", "teacher"

TEXT = """# Ablation study

{settings}

This page is written by

    {command}

which trains the arms one after another, resumes one that was stopped, skips those that are finished, and rewrites this
page after each.

{numbers}## The arms

{arms}

## What this shows, and what it does not

{verdict}

{caveat}
"""
NUMBERS = """## Decoded by best_path

{accuracy}
Percentage of correct predictions, for the whole path (FPA) and for each level.

## Difference from the base

{changes}
Points, with the standard error over the test pictures; pictures and seeds are the same for both.

## By decoding

{decodings}
FPA, and in brackets TICE (predictions that are not a path of the tree; lower is better).

"""
CAVEAT = """The runs are from scratch and {epochs} long. Short runs compare mainly how training starts: a part may help
early and not late, or the reverse. The error covers the choice of test pictures, not the choice of seed{one}.
The paper's own ablations start from ImageNet weights and are much larger. On a machine with a GPU, give more epochs, 96
pixels and three seeds:

    python benchmarks/ablation.py --data emoji_art.parquet --taxonomy taxonomy.json --output runs/ablation \\
        --image-size 96 --num-superpixels 36 --num-clusters 16 8 4 4 --epochs 100 --seeds 0 1 2 \\
        --on-device --mixed-precision bf16 --batch-size 256 --opt muon --lr 2e-3
"""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        text: What differs from the base.
        config: Turns the base's config into the arm's.
        settings: Settings that differ from the base's.
        trainer: Class that trains it.
        even: Labels are cut, so that equal parts of the training pictures end at each level.
    """

    text: str
    config: Callable[[HCastConfig], HCastConfig] = lambda config: config
    settings: dict = dataclasses.field(default_factory=dict)
    trainer: type[Trainer] = Trainer
    even: bool = False


ARMS = {
    BASE: Arm("H-CAST as it is: superpixels, fine levels on early stages, Tree-path KL of weight 0.5, full labels"),
    "free_grain": Arm(
        "labels known down to the coarsest level for an equal part of the training pictures, to the next "
        "for another, and so on (`hcast-zoo data free-grain`)",
        even=True,
    ),
    "no_kl": Arm("no Tree-path KL", settings={"kl_weight": 0.0}),
    "grid": Arm("equal squares in place of superpixels", lambda config: config.replace(superpixels="grid")),
    "slic": Arm("SLIC superpixels in place of SEEDS", lambda config: config.replace(superpixels="slic")),
    "area": Arm(
        "features averaged over the area of a superpixel; the paper takes, for each cell of the feature map, the "
        "superpixel of its top-left pixel",
        lambda config: config.replace(token_pooling="area"),
    ),
    "descriptor": Arm(
        "segments grouped by colour, early features and place, not by tokens (`grouping` descriptor, area pooling)",
        lambda config: config.replace(token_pooling="area", grouping="descriptor"),
    ),
    "mixup": Arm(
        "timm's mixup and CutMix, of pictures whose superpixels are then computed on the mixture", settings=MIXED
    ),
    TEACHER: Arm("a teacher beside the labels, with half of the weight (`train --teacher`)"),
    "coarse_to_fine": Arm(
        "heads the other way round: the coarsest level on the earliest stage, the finest on the last",
        lambda config: config.replace(head_stages=config.head_stages[::-1]),
    ),
    "flat_vit": Arm(
        "a ViT with as many parameters, with one linear layer on square patches instead of the convolutional "
        "stem, and the heads of all levels on its class token (benchmarks/flat_vit.py)",
        flat_vit.flat_config,
        trainer=flat_vit.FlatTrainer,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="data set with splits train, val and test")
    parser.add_argument("--taxonomy", required=True, help=".json or .csv file")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which to train (all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs of each arm (%(default)s)")
    parser.add_argument("--model", default="hcast_tiny", help="variant (%(default)s)")
    parser.add_argument("--image-size", type=int, default=64, help="pixels of a side (%(default)s)")
    parser.add_argument("--num-superpixels", type=int, default=16, help="tokens of stage 1 (%(default)s)")
    parser.add_argument(
        "--num-clusters", type=int, nargs=4, default=[12, 8, 4, 4], help="tokens after each stage (%(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--warmup-epochs", type=float, default=1, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures per step (%(default)s)")
    parser.add_argument("--lr", type=float, default=1.2e-2, help="for 512 pictures per step (%(default)s)")
    parser.add_argument("--opt", default="adamw", help="optimiser, adamw or muon (%(default)s)")
    parser.add_argument("--teacher", default="hcast_small.emoji_art", help=f"weights, for {TEACHER} (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read pictures (%(default)s)")
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"], default="no", help="(%(default)s)")
    parser.add_argument(
        "--on-device",
        action="store_true",
        help="augment on the accelerator, more strongly, and compute SLIC superpixels there",
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report (%(default)s)")
    parser.add_argument("--page", default="ablation.md", help="name of the report (%(default)s)")
    args = parser.parse_args()

    taxonomy = Taxonomy.load(args.taxonomy)
    config = HCastConfig.from_variant(
        args.model,
        level_classes=taxonomy.level_classes,
        image_size=args.image_size,
        num_superpixels=args.num_superpixels,
        num_clusters=args.num_clusters,
    )
    if args.on_device:
        config = config.replace(superpixels="slic")

    settings = TrainConfig(
        epochs=args.epochs,
        eval_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        batch_size=args.batch_size,
        opt=args.opt,
        lr=args.lr,
        workers=args.workers,
        mixed_precision=args.mixed_precision,
        **{**SETTINGS, **(ON_DEVICE if args.on_device else {})},
    )
    test = HierarchicalDataset.load(args.data, taxonomy, "test", cache=True, skip_broken=False)
    write_report(args, taxonomy, len(test))

    for seed in args.seeds:
        for name in args.arms:
            folder = args.output / name / f"seed-{seed}"
            arm_settings = dataclasses.replace(settings, seed=seed, **ARMS[name].settings)
            if name == TEACHER:
                arm_settings = dataclasses.replace(arm_settings, teacher=args.teacher)
            measure(
                arm=ARMS[name],
                folder=folder,
                config=ARMS[name].config(config),
                settings=arm_settings,
                data=args.data,
                taxonomy=taxonomy,
                test=test,
            )
            write_report(args, taxonomy, len(test))


def measure(
    arm: Arm,
    folder: Path,
    config: HCastConfig,
    settings: TrainConfig,
    data: str,
    taxonomy: Taxonomy,
    test: HierarchicalDataset,
) -> None:
    """Train one arm to the end, unless that is done, and write its numbers to ``result.json``."""
    file = folder / "result.json"
    facts = {"config": config.to_dict(), "settings": dataclasses.asdict(settings)}
    if file.exists():
        finished = json.loads(file.read_text())
        if {key: finished[key] for key in facts} != json.loads(json.dumps(facts)):
            raise SystemExit(f"{folder} holds a finished run with other settings: choose another --output")
        return

    train_set, val_set = (HierarchicalDataset.load(data, taxonomy, split, cache=True) for split in ("train", "val"))
    if arm.even:
        train_set.labels = cut_evenly(train_set.labels, settings.seed)
    trainer = arm.trainer(config, settings, train_set, val_set, folder)
    trainer.train()

    # Nothing is chosen on the validation pictures: these are the average weights after the last step.
    model = trainer.make_model()
    state = load_weights(folder / "last.safetensors").state_dict
    model.load_state_dict({key: value.float() for key, value in state.items()})

    test.transform = eval_transform(config)
    results, right = score(model.eval().to(trainer.accelerator.device), test, taxonomy)
    result = {
        **facts,
        "parameters": flat_vit.parameters(model),
        "training_labels": (train_set.labels != UNKNOWN).sum(0).tolist(),
        "results": results,
        "right": right,
        "code": code_version(),
        "torch": torch.__version__.split("+")[0],
    }
    write_whole(file, json.dumps(result))


def cut_evenly(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Return (S, L) labels of which an equal part ends at each level."""
    levels = labels.shape[1]
    kept = torch.from_numpy(deal_levels(labels.tolist(), [Fraction(1, levels)] * levels, seed))
    return labels.masked_fill(torch.arange(levels) >= kept[:, None], UNKNOWN)


def score(model, test: HierarchicalDataset, taxonomy: Taxonomy) -> tuple[dict, dict[str, list[int]]]:
    """Return the metrics of each decoding, and for each picture whether path and levels of ``best_path`` are right."""
    logits, labels = collect_logits(model, test)
    results = {}
    for mode in DECODERS:
        paths = decode(logits, taxonomy, mode).paths
        metrics = HierarchicalMetrics(taxonomy)
        metrics.update(paths, labels)
        results[mode] = metrics.compute()
        if mode == "best_path":
            levels_right = ((paths == labels) | (labels == UNKNOWN)).int()
            right = {"path": levels_right.amin(1).tolist()} | dict(zip(taxonomy.levels, levels_right.T.tolist()))

    return results, right


def read_results(folder: Path, seeds: list[int]) -> dict[str, list[dict]]:
    """Return the results of the finished runs of each arm, in the order of the seeds."""
    results = {}
    for name in ARMS:
        files = [folder / name / f"seed-{seed}" / "result.json" for seed in seeds]
        if runs := [json.loads(file.read_text()) for file in files if file.exists()]:
            results[name] = runs
    return results


def difference(arm: list[dict], base: list[dict], key: str) -> tuple[float, float]:
    """Return by how many points an arm is right more often than the base, and the standard error over pictures.

    Pictures are compared one by one, after averaging over seeds. ``key`` is ``path`` or a level.
    """
    arm_right = np.mean([run["right"][key] for run in arm], 0)
    base_right = np.mean([run["right"][key] for run in base], 0)
    change = 100 * (arm_right - base_right)
    return float(change.mean()), float(change.std(ddof=1) / len(change) ** 0.5)


def write_report(args: argparse.Namespace, taxonomy: Taxonomy, pictures: int) -> None:
    """Write docs/ablation.md from the runs that are finished."""
    results = read_results(args.output, args.seeds)
    settings, numbers, verdict = "No arm is trained yet.", "", []
    if results:
        first_run = next(iter(results.values()))[0]
        settings = describe(first_run, taxonomy, pictures)
        numbers, verdict = make_tables(results, taxonomy)

    if missing := [f"`{name}`" for name in ARMS if name not in results]:
        verdict += ["", f"Not trained to the end yet: {', '.join(missing)}."]

    one_seed = "; there is one seed here" if len(args.seeds) == 1 else ""
    report.write(
        args.docs,
        args.page,
        TEXT.format(
            settings=settings,
            command=command(),
            numbers=numbers,
            verdict="\n".join(verdict),
            arms="\n".join(
                textwrap.fill(f"- `{name}`: {arm.text}.", 120, subsequent_indent="  ", break_on_hyphens=False)
                for name, arm in ARMS.items()
            ),
            caveat=CAVEAT.format(epochs=epochs(args.epochs), one=one_seed),
        ),
    )


def make_tables(results: dict[str, list[dict]], taxonomy: Taxonomy) -> tuple[str, list[str]]:
    """Return the tables of the finished runs, and what they show."""
    accuracy, decodings, changes, findings, clear = [], [], [], [], 0
    for name, runs in results.items():
        cells = [mean(runs, "best_path", "fpa")]
        cells += [mean(runs, "best_path", f"accuracy/{level}") for level in taxonomy.levels]
        accuracy.append([name, len(runs), f"{runs[0]['parameters'] / 1e6:.1f}", *cells])
        decodings.append([name, *(f"{mean(runs, mode, 'fpa')} ({mean(runs, mode, 'tice')})" for mode in DECODERS)])

        seeds = {run["settings"]["seed"] for run in runs}
        base = [run for run in results.get(BASE, ()) if run["settings"]["seed"] in seeds]
        if name == BASE or len(base) != len(runs):
            continue

        differences = {"FPA": difference(runs, base, "path")}
        for level in taxonomy.levels:
            differences[level] = difference(runs, base, level)
        changes.append([name, len(runs), *(f"{value:+.2f} ± {error:.2f}" for value, error in differences.values())])

        for word, sign in (("better", 1), ("worse", -1)):
            if titles := [title for title, (value, error) in differences.items() if sign * value > 2 * error]:
                findings.append(f"- `{name}` is {word} in {', '.join(titles)}.")
                clear += len(titles)

    verdict = []
    if changes:
        verdict.append(
            f"Of {len(changes) * (1 + len(taxonomy.levels))} differences from the base, {clear} are larger than two "
            f"standard errors (by chance alone, about one in twenty would be){':' if findings else '.'}"
        )
        verdict += ["", *findings]

    numbers = NUMBERS.format(
        accuracy=report.table(["arm", "seeds", "M parameters", "FPA", *taxonomy.levels], accuracy),
        changes=report.table(["arm", "seeds", "FPA", *taxonomy.levels], changes),
        decodings=report.table(["arm", *DECODERS], decodings),
    )
    return numbers, verdict


def mean(runs: list[dict], mode: str, metric: str) -> str:
    """Return the mean of a metric over runs, with the standard deviation if there are several."""
    values = [run["results"][mode][metric] for run in runs]
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


def describe(run: dict, taxonomy: Taxonomy, pictures: int) -> str:
    """Return a paragraph on how all arms were trained and measured."""
    c, s = run["config"], run["settings"]
    tokens = ", ".join(map(str, c["num_clusters"][:-1]))
    return textwrap.fill(
        f"Every arm is {c['embed_dim']} channels wide and sees {c['image_size']}x{c['image_size']} pixels as "
        f"{c['num_superpixels']} tokens ({c['superpixels']}), which H-CAST pools to {tokens}. It is trained from "
        f"scratch for {epochs(s['epochs'])} of {run['training_labels'][0]:,} pictures, {s['batch_size']} per step, "
        f"with {s['opt']}, the same schedule and the same seeds, and measured on the {pictures} test pictures of "
        f"{taxonomy.name or 'the data'} with the EMA weights after the last step. Code: {run['code']}, torch "
        f"{run['torch']}.",
        120,
    )


def epochs(number: int) -> str:
    """Return a number of epochs in words."""
    return f"{number} epoch{'s' if number > 1 else ''}"


def command() -> str:
    """Return the command line, without the paths of this machine."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python benchmarks/ablation.py", *words])


if __name__ == "__main__":
    main()
