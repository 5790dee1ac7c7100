"""How time and memory grow with leaves, levels and pixels: CPU time of a forward pass and of decoding, by size.

    python benchmarks/growth.py                                  # all sizes, into benchmarks/results/growth.csv
    python benchmarks/growth.py --leaves 10 1000 --pixels 96

A last column gives the exponent from the row before: 1 is a straight line.
"""

import argparse
import csv
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.network.superpixels import segment_images
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import Taxonomy

COLUMNS = ("axis", "size", "forward_ms", "decode_ms", "decode_share", "tensors_mib", "exponent")
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="hcast_small", help="of the network (%(default)s)")
    parser.add_argument("--leaves", type=int, nargs="*", default=[10, 100, 1000, 10_000, 100_000])
    parser.add_argument("--levels", type=int, nargs="*", default=[1, 3, 10, 30])
    parser.add_argument("--pixels", type=int, nargs="*", default=[96, 224, 448, 896])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/growth.csv")
    args = parser.parse_args()

    rows: list[dict] = []
    for row in measure(args):
        if rows and rows[-1]["axis"] == row["axis"]:
            row["exponent"] = round(exponent(rows[-1], row), 2)
        print(" | ".join(str(value) for value in row.values()), flush=True)
        rows.append(row)

    args.output.parent.mkdir(parents=True, exist_ok=True)
    with open(args.output, "w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Yield a row for each size of each axis; the others stay at 224 pixels, three levels and 200 leaves."""
    for leaves in args.leaves:
        yield {"axis": "leaves", "size": leaves, **cost(args, tree(leaves, 3), 224)}
    for levels in args.levels:
        yield {"axis": "levels", "size": levels, **cost(args, tree(200, levels), 224)}
    for pixels in args.pixels:
        yield {"axis": "pixels of a side", "size": pixels, **cost(args, tree(200, 3), pixels)}


def tree(leaves: int, levels: int) -> Taxonomy:
    """Return a tree whose levels grow evenly from the coarsest to the leaves."""
    counts = [max(1, round(leaves ** ((level + 1) / levels))) for level in range(levels)]
    counts[-1] = leaves
    names = tuple(tuple(f"{level}-{node}" for node in range(count)) for level, count in enumerate(counts))
    parents = []
    for above, count in itertools.pairwise(counts):
        parents.append(tuple(node * above // count for node in range(count)))
    return Taxonomy(tuple(f"level {level}" for level in range(levels)), names, tuple(parents))


@torch.inference_mode()
def cost(args: argparse.Namespace, taxonomy: Taxonomy, pixels: int) -> dict:
    """Return the CPU time of a forward pass of a batch and of its decoding, and the peak of the pass's tensors."""
    config = HCastConfig.from_variant(
        args.variant,
        level_classes=tuple(map(len, taxonomy.names)),
        image_size=pixels,
        num_superpixels=max(64, 196 * pixels**2 // 224**2),
    )
    torch.manual_seed(0)
    model = HCast(config).eval()
    images = torch.rand(BATCH, 3, pixels, pixels)
    segments = segment_images(images, config.replace(superpixels="grid")).contiguous()
    logits = list(model(images, segments).level_logits)
    decode(logits, taxonomy)

    forward = cpu_time(lambda: model(images, segments), args.runs)
    decoding = cpu_time(lambda: decode(logits, taxonomy), args.runs)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(images, segments)
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    peak = max(itertools.accumulate(event.nbytes() for event in changes))

    return {
        "forward_ms": round(1000 * forward, 1),
        "decode_ms": round(1000 * decoding, 2),
        "decode_share": round(decoding / forward, 4),
        "tensors_mib": round(peak / 2**20, 1),
        "exponent": "",
    }


def cpu_time(function: Callable, runs: int) -> float:
    """Return the median seconds of CPU of a call."""
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def exponent(before: dict, after: dict) -> float:
    """Return the power of the size by which the time of the forward pass and decoding grows."""
    spent = [row["forward_ms"] + row["decode_ms"] for row in (before, after)]
    return math.log(spent[1] / spent[0]) / math.log(after["size"] / before["size"])


if __name__ == "__main__":
    main()
