"""Do samplers, logit adjustment and class weights help rare classes? Measured on EmojiArt, cut to a long tail.

    python benchmarks/long_tail.py --data emoji_art.parquet --output runs/long_tail

Leaves are chosen at random, and keep between 7 training pictures and 1. Accuracy is measured on the artists of the
parts val and test, each of whom drew a leaf at most once. Writes docs/long_tail.md. Rerun the same command to resume.
"""

import argparse
import collections
import csv
import dataclasses
import random
import statistics
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import report
import torch

from hcast_zoo.cli import main as run_command
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.evaluate import collect_logits
from hcast_zoo.sharing.model_card import code_version
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.weights.file import build_model, load_weights

ARMS = {
    "natural": [],
    "`--sampler sqrt`": ["--sampler", "sqrt"],
    "`--sampler balanced`": ["--sampler", "balanced"],
    "`--logit-adjustment 1`": ["--logit-adjustment", "1"],
    "`--class-weights sqrt`": ["--class-weights", "sqrt"],
    "`--class-weights balanced`": ["--class-weights", "balanced"],
}
TAIL = 2  # a leaf with at most this many training pictures belongs to the tail
LEVELS = ("group", "subgroup", "emoji")
TEXT = """# Rare classes

{data}

| training | FPA | recall of the tail ({tail} leaves of up to {few} pictures) | recall of the head ({head} leaves) |
|---|---|---|---|
{rows}

Right full paths in percent: the mean over the seeds, and in brackets each seed. The standard error is at most
{error:.1f} points for FPA and {tail_error:.1f} for the tail; all methods are measured on the same pictures.

{origin}
"""
DATA = """{leaves} leaves of EmojiArt, cut to a long tail: {counts}. That leaves {train} pictures to train on, and
{test} to test on, by artists not seen in training. Trained from `{model}` with the small recipe. {seeds}: each draws
its own leaves and its own tail."""
ORIGIN = (
    "Written by `python benchmarks/long_tail.py --data emoji_art.parquet --output runs/long_tail{options}`, {version}."
)


def cut_tail(rows: list[dict], leaves: int, seed: int) -> tuple[list[dict], dict[str, int]]:
    """Return the rows that are kept, and the number of training pictures of each leaf."""
    drawn: dict[str, list[dict]] = {}
    for row in rows:
        if row["split"] == "train":
            drawn.setdefault(row["emoji"], []).append(row)

    rng = random.Random(seed)
    most = max(map(len, drawn.values()))
    whole = sorted(name for name, pictures in drawn.items() if len(pictures) == most)
    chosen = rng.sample(whole, leaves)
    counts = {name: max(1, round(most ** (1 - place / (leaves - 1)))) for place, name in enumerate(chosen)}

    kept = []
    for name in chosen:
        kept += rng.sample(drawn[name], counts[name])
    return kept + [row for row in rows if row["split"] != "train" and row["emoji"] in counts], counts


def write_pictures(rows: list[dict], folder: Path) -> Path:
    """Write pictures and their list; return the list."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "pictures.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", *LEVELS, "split"])
        for number, row in enumerate(rows):
            name = f"{number:04}.webp"
            (folder / name).write_bytes(row["image"])
            # Accuracy is measured on both unseen artists; training chooses its weights on the first.
            table.writerow([name, *(row[level] for level in LEVELS), row["split"]])

    return folder / "pictures.csv"


def train(name: str, folder: Path, data: Path, seed: int, args: argparse.Namespace) -> Path:
    """Train an arm, or resume its training; return its folder."""
    command = ["train", "--data", str(data), "--output", str(folder), "--model", args.model, "--seed", str(seed)]
    command += ["--recipe", "small", "--view-cache", str(args.output / "views"), *ARMS[name], *args.options]
    if code := run_command(command):
        raise SystemExit(code)
    return folder


@dataclasses.dataclass
class Recall:
    """Right full paths in percent: of all pictures, of the tail and of the head; and the numbers of pictures."""

    everything: float
    tail: float
    head: float
    tested: int
    tested_tail: int


def measure(folder: Path, data: Path, counts: dict[str, int]) -> Recall:
    """Return the recall of a finished run."""
    weights = load_weights(folder / "last.safetensors")
    taxonomy = weights.taxonomy
    dataset = HierarchicalDataset.load(data, taxonomy, "val+test", transform=eval_transform(weights.config))
    logits, labels = collect_logits(build_model(weights), dataset)
    right = 100 * (decode(logits, taxonomy).paths == labels).all(1).double()
    names = taxonomy.names[-1]
    tail = torch.tensor([counts[names[label]] <= TAIL for label in labels[:, -1]])
    return Recall(
        everything=right.mean().item(),
        tail=right[tail].mean().item(),
        head=right[~tail].mean().item(),
        tested=len(right),
        tested_tail=int(tail.sum()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="parquet file of recipes/emoji_art.py")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model", default="hcast_lite.in1k", help="weights to start from (%(default)s)")
    parser.add_argument("--leaves", type=int, default=60, help="of the tree that is cut (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the leaves and the runs (%(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report (%(default)s)")
    parser.add_argument("options", nargs="*", help="more options of `hcast-zoo train`, after --")
    args = parser.parse_args()

    rows = pq.read_table(args.data).to_pylist()
    results: dict[str, list[Recall]] = {name: [] for name in ARMS}
    for seed in args.seeds:
        kept, counts = cut_tail(rows, args.leaves, seed)
        data = write_pictures(kept, args.output / f"pictures-{seed}")
        for number, name in enumerate(ARMS):
            folder = train(name, args.output / f"{number}-{seed}", data, seed, args)
            results[name].append(measure(folder, data, counts))

    lines = []
    for name, recalls in results.items():
        cells = []
        for part in ("everything", "tail", "head"):
            values = [getattr(recall, part) for recall in recalls]
            each = f" ({', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{each}")
        lines.append(f"| {name} | {' | '.join(cells)} |")

    # Every seed has the same numbers of training pictures; those of test pictures differ a little.
    spread = collections.Counter(counts.values())
    sizes = [f"{spread[size]} with {size}" for size in sorted(spread, reverse=True)]
    tail = sum(number <= TAIL for number in counts.values())
    tested = sum(recall.tested for recall in results["natural"])
    tested_tail = sum(recall.tested_tail for recall in results["natural"])
    data = DATA.format(
        leaves=args.leaves,
        counts=", ".join(sizes[:-1]) + f" and {sizes[-1]} training picture(s) each",
        train=sum(counts.values()),
        test=tested // len(args.seeds),
        model=args.model,
        seeds="One seed" if len(args.seeds) == 1 else f"{len(args.seeds)} seeds",
    )
    options = "".join(f" {word}" for word in sys.argv[sys.argv.index("--output") + 2 :])
    text = TEXT.format(
        data=textwrap.fill(data, 120, break_on_hyphens=False),
        tail=tail,
        few=TAIL,
        head=args.leaves - tail,
        rows="\n".join(lines),
        error=50 / tested**0.5,
        tail_error=50 / tested_tail**0.5,
        origin=textwrap.fill(ORIGIN.format(options=options, version=code_version()), 120, break_on_hyphens=False),
    )
    report.write(args.docs, "long_tail.md", text)


if __name__ == "__main__":
    main()
