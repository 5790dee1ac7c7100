"""How time and memory grow: a forward pass with leaves, levels and pixels; `hcast-zoo predict` with pictures.

    python benchmarks/growth.py                                  # all sizes, into benchmarks/results/growth*.csv
    python benchmarks/growth.py --leaves 10 1000 --pixels 96     # fewer sizes on two of the axes

The last column is the exponent of the growth since the row before: 1 is proportional.
"""

import argparse
import csv
import itertools
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from cost import tensor_peak
from PIL import Image

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.network.superpixels import segment_images
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import Taxonomy

PICTURE_COLUMNS = ("pictures", "cpu_s", "ms_a_picture", "peak_mib", "exponent")
COLUMNS = ("axis", "size", "forward_ms", "decode_ms", "decode_share", "tensors_mib", "exponent")
BATCH = 4
# Runs the command, and prints its CPU seconds and its peak memory in KiB; getrusage would count its parent's peak too.
PREDICT = """import sys, time
from hcast_zoo.cli import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(time.process_time(), peak)
sys.exit(code)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="hcast_small", help="network of the forward pass (%(default)s)")
    parser.add_argument("--leaves", type=int, nargs="*", default=[10, 100, 1000, 10_000, 100_000], help="of the tree")
    parser.add_argument("--levels", type=int, nargs="*", default=[1, 3, 10, 30], help="of the tree")
    parser.add_argument("--pixels", type=int, nargs="*", default=[96, 224, 448, 896], help="side of the image")
    parser.add_argument(
        "--pictures", type=int, nargs="*", default=[100, 1000, 10_000, 100_000], help="to predict; none skips this"
    )
    parser.add_argument("--model", default="hcast_tiny.emoji_art", help="weights to predict with (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="forward passes to time (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder (%(default)s)")
    args = parser.parse_args()

    args.results.mkdir(parents=True, exist_ok=True)
    if args.leaves or args.levels or args.pixels:
        write(args.results / "growth.csv", COLUMNS, measure(args))
    if args.pictures:
        write(args.results / "growth_pictures.csv", PICTURE_COLUMNS, measure_pictures(args))


def write(file: Path, columns: Sequence[str], rows: Iterator[dict]) -> None:
    """Write rows as CSV, and print each as it comes."""
    with open(file, "w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            print(" | ".join(str(value) for value in row.values()), flush=True)
            writer.writerow(row)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Yield a row for each size of each axis; the others stay at 224 pixels, three levels and 200 leaves."""
    sizes = [("leaves", leaves, tree(leaves, 3), 224) for leaves in args.leaves]
    sizes += [("levels", levels, tree(200, levels), 224) for levels in args.levels]
    sizes += [("pixels of a side", pixels, tree(200, 3), pixels) for pixels in args.pixels]

    before: dict = {}
    for axis, size, taxonomy, pixels in sizes:
        row = {"axis": axis, "size": size, **cost(args, taxonomy, pixels)}
        if before.get("axis") == axis:
            spent = before["forward_ms"] + before["decode_ms"], row["forward_ms"] + row["decode_ms"]
            row["exponent"] = exponent((before["size"], size), spent)
        yield row
        before = row


def measure_pictures(args: argparse.Namespace) -> Iterator[dict]:
    """Yield a row for each number of pictures: CPU time and peak memory of `hcast-zoo predict`."""
    with tempfile.TemporaryDirectory() as folder:
        names: list[str] = []
        before: dict = {}
        for number in sorted(args.pictures):
            names += make_pictures(Path(folder), len(names), number)
            name_list = Path(folder) / "list.txt"
            name_list.write_text("\n".join(names), encoding="utf-8")

            command = [sys.executable, "-c", PREDICT, "predict", "--quiet", "--workers", "0", "--model", args.model]
            command += ["--files-from", str(name_list), "--output", str(Path(folder) / f"answers-{number}")]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            spent, peak = map(float, output.splitlines()[-1].split())
            row = {
                "pictures": number,
                "cpu_s": round(spent, 1),
                "ms_a_picture": round(1000 * spent / number, 2),
                "peak_mib": round(peak / 1024),
                "exponent": exponent((before["pictures"], number), (before["cpu_s"], spent)) if before else "",
            }
            yield row
            before = row


def make_pictures(folder: Path, first: int, end: int) -> list[str]:
    """Write JPEG files of smooth noise, numbered from the first up to the end, and return their names."""
    rng = np.random.default_rng(first)
    names = []
    for number in range(first, end):
        file = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        file.parent.mkdir(exist_ok=True)
        blobs = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        blobs.resize((160, 120), Image.Resampling.BICUBIC).save(file, quality=85)
        names.append(str(file))

    return names


def tree(leaves: int, levels: int) -> Taxonomy:
    """Return a tree whose levels grow evenly from the coarsest to the leaves."""
    counts = [max(1, round(leaves ** ((level + 1) / levels))) for level in range(levels)]
    counts[-1] = leaves
    names, parents = [], []
    for level, count in enumerate(counts):
        names.append(tuple(f"{level}-{node}" for node in range(count)))
    for above, count in itertools.pairwise(counts):
        parents.append(tuple(node * above // count for node in range(count)))
    return Taxonomy(tuple(f"level {level}" for level in range(levels)), tuple(names), tuple(parents))


@torch.inference_mode()
def cost(args: argparse.Namespace, taxonomy: Taxonomy, pixels: int) -> dict:
    """Return the CPU time of a forward pass of a batch and of its decoding, and the peak memory of its tensors."""
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
    peak = tensor_peak(lambda: model(images, segments))

    return {
        "forward_ms": round(1000 * forward, 1),
        "decode_ms": round(1000 * decoding, 2),
        "decode_share": round(decoding / forward, 4),
        "tensors_mib": round(peak / 2**20, 1),
        "exponent": "",
    }


def cpu_time(function: Callable, runs: int) -> float:
    """Return the median CPU seconds of a call."""
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def exponent(sizes: Sequence[float], spent: Sequence[float]) -> float:
    """Return p if time grows as size to the power p, from two sizes and their times."""
    return round(math.log(spent[1] / spent[0]) / math.log(sizes[1] / sizes[0]), 2)


if __name__ == "__main__":
    main()
