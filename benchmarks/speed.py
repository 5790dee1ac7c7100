"""Time H-CAST against the transformers that people would use instead, and write the ratios to docs/speed.md.

    python benchmarks/speed.py                 # everything, about ten minutes on two cores
    python benchmarks/speed.py forward train   # some parts
    python benchmarks/speed.py --device cuda   # a GPU instead: checks, times, and writes a CSV in benchmarks/results

Every number is a ratio of medians: both sides run in turn, in one process, on the same input, with the same threads.
The spread is the smallest and largest ratio of a pair of runs. Superpixels are computed beforehand, except where they
are what is measured.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_PROC_BIND", "true")  # threads that share a core make one side wait for the other

import numpy as np
import timm
import torch
from accelerator import MODES, RESULTS, measure_device, results_name
from cost import blurred_noise, tensor_peak, time_pairs
from PIL import Image
from report import processor, table, write_section

from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.inference.engines import TorchEngine
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.graph_pooling import farthest_point_sampling
from hcast_zoo.network.model import HCast
from hcast_zoo.network.superpixels import seeds_superpixels, segment_normalized, to_uint8
from hcast_zoo.weights.file import build_model, fit_state_dict, load_weights

PHOTOGRAPHS = "hcast_lite.in1k"
RIVALS = ("deit_small_patch16_224", "vit_small_patch16_224")
OURS = {"ours": "<= 0.80", "recomputed": "<= 0.75"}  # our networks, and the targets for their peak over the rival's
LEVELS = (13, 38, 200)
PICTURE = Path(__file__).parent.parent / "tests/pictures/lion.png"
COLUMNS = ("what", "against", "ratio", "spread", "target", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)} (all)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (%(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="pairs of runs; a large batch gets fewer (%(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of speed.md (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV (%(default)s)")
    parser.add_argument("--peak", choices=(*OURS, *RIVALS), help=argparse.SUPPRESS)  # `memory` starts this script so
    gpu = parser.add_argument_group("on another device, instead of the parts")
    gpu.add_argument("--device", help="cuda; cpu for a trial")
    gpu.add_argument("--batch-size", type=int, default=256, help="the large batch; the other is 1 (%(default)s)")
    gpu.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    gpu.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="ways to run a network (all)")
    gpu.add_argument("--variant", default="hcast_small", help="our network (%(default)s)")
    args = parser.parse_args()
    if args.device:
        measure_device(args, processor())
        return
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak_memory(args.peak)))
        return

    rows = []
    for part in args.parts or PARTS:
        for row in PARTS[part](args):
            print(" | ".join(row), file=sys.stderr, flush=True)
            rows.append(row)

    write_section(args.docs, "speed.md", "measured", report(rows, args), " ".join(args.parts))
    args.results.mkdir(parents=True, exist_ok=True)
    with open(args.results / results_name(processor()), "w", newline="", encoding="utf-8") as sink:
        csv.writer(sink, lineterminator="\n").writerows([COLUMNS, *rows])


def ours(train: bool = False, **changes) -> HCast:
    """Return hcast_small; in training mode its pooling has the paper's dropout, while its rivals have no dropout."""
    torch.manual_seed(0)
    config = HCastConfig.from_variant("hcast_small", level_classes=LEVELS, **changes)
    return HCast(config).train(train)


def rival(name: str, train: bool = False, **options) -> torch.nn.Module:
    return timm.create_model(name, num_classes=LEVELS[-1], **options).train(train)


def inputs(model: HCast, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of blurred noise, and their superpixels."""
    c = model.config
    images = blurred_noise(batch, c.image_size)
    return images, segment_normalized(images, c.num_superpixels, c.mean, c.std).clone()


def compare(a: Callable, b: Callable, runs: int) -> tuple[float, float, float, float]:
    """Run a and b alternately; return the ratio a/b of medians, the smallest and largest ratio, and a's median."""
    time_pairs(a, b, 1)  # to warm up
    pairs = time_pairs(a, b, runs)
    ratios = [a_time / b_time for a_time, b_time in pairs]
    a_median, b_median = (statistics.median(times) for times in zip(*pairs))
    return a_median / b_median, min(ratios), max(ratios), a_median


def row(what: str, against: str, result: tuple[float, float, float, float], target: str = "") -> tuple[str, ...]:
    ratio, low, high, median = result
    return what, against, f"{ratio:.2f}", f"{low:.2f} to {high:.2f}", target, f"{median * 1000:.1f} ms"


@torch.inference_mode()
def forward(args):
    model = ours()
    targets = {1: "<= 0.90", 16: "<= 0.72"}
    for batch in (1, 16, 64):
        images, segments = inputs(model, batch)
        for name in RIVALS:
            other = rival(name)
            runs = max(3, args.runs * (3 if batch == 1 else 1) // (4 if batch == 64 else 1))
            result = compare(lambda: model(images, segments), lambda: other(images), runs)  # noqa: B023
            yield row(f"forward, batch {batch}", name, result, targets.get(batch, "") if name == RIVALS[0] else "")


def training_step(model: torch.nn.Module, *inputs: torch.Tensor) -> None:
    output = model(*inputs)
    logits = output.level_logits if isinstance(model, HCast) else (output,)
    target = torch.zeros(len(inputs[0]), dtype=torch.int64)
    sum(torch.nn.functional.cross_entropy(x, target) for x in logits).backward()
    model.zero_grad()


def in_bfloat16(function: Callable, *arguments) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        function(*arguments)


def train(args):
    model = ours(train=True)
    images, segments = inputs(model, 16)
    for name in RIVALS:
        other = rival(name, train=True)
        result = compare(
            lambda: training_step(model, images, segments),
            lambda: training_step(other, images),  # noqa: B023 (called at once)
            args.runs,
        )
        yield row("training step, batch 16", name, result, "<= 0.75" if name == RIVALS[0] else "")

    other = rival(RIVALS[0], train=True)
    result = compare(
        lambda: in_bfloat16(training_step, model, images, segments),
        lambda: in_bfloat16(training_step, other, images),
        args.runs,
    )
    yield row("training step, batch 16, bfloat16", f"{RIVALS[0]}, bfloat16", result)
    result = compare(
        lambda: in_bfloat16(training_step, model, images, segments),
        lambda: training_step(model, images, segments),
        args.runs,
    )
    yield row("training step, batch 16, bfloat16", "float32", result)

    saving = ours(train=True)
    saving.recompute()
    result = compare(
        lambda: training_step(saving, images, segments), lambda: training_step(model, images, segments), args.runs
    )
    yield row("training step, batch 16, --recompute", "without it", result, "<= 1.05")


@torch.inference_mode()
def hybrid(args):
    """The weights for photographs, superpixels given, against a ViT and against their stem's own classifier."""
    model = build_model(load_weights(PHOTOGRAPHS))
    stem = model.config.stem.removeprefix("timm:")
    for batch in (1, 16):
        images, segments = inputs(model, batch)
        for name in (RIVALS[0], stem):
            other = rival(name)
            result = compare(lambda: model(images, segments), lambda: other(images), args.runs)  # noqa: B023
            yield row(f"forward of {PHOTOGRAPHS}, batch {batch}", name, result)


def memory(args):
    """Peak memory of training steps: of the tensors, which is the same every time, and of the process."""
    peaks: dict[tuple[str, str], list[int]] = {}
    for name in (*OURS, RIVALS[0]):
        command = [sys.executable, __file__, "--peak", name, "--threads", str(args.threads)]
        for _ in range(3):
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            for key, peak in json.loads(output).items():
                peaks.setdefault((name, key), []).append(peak)

    for key, what in (
        ("tensors", "peak memory of the tensors of a training step, batch 16"),
        ("step", "growth of the process in training steps, batch 16"),
        ("process", "peak memory of the whole process, batch 16"),
    ):
        rival_peaks = peaks[RIVALS[0], key]
        for name, target in OURS.items():
            our_peaks = peaks[name, key]
            ratios = [our_peak / rival_peak for our_peak, rival_peak in zip(our_peaks, rival_peaks)]
            yield (
                what + ("" if name == "ours" else ", --recompute"),
                RIVALS[0],
                f"{statistics.median(our_peaks) / statistics.median(rival_peaks):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                target if key == "tensors" else "",
                f"{statistics.median(our_peaks) / 2**20:.0f} MiB",
            )


def peak_memory(name: str) -> dict[str, int]:
    """Return the peaks of training steps in this process, in bytes; ``step`` is the growth of the process."""
    model = ours(train=True)
    model.recompute(name == "recomputed")
    tensors = inputs(model, 16)
    if name not in OURS:
        model, tensors = rival(name, train=True), tensors[:1]

    before = resident_peak()
    for _ in range(3):
        training_step(model, *tensors)

    peaks = {"step": resident_peak() - before, "process": resident_peak()}
    peaks["tensors"] = tensor_peak(lambda: training_step(model, *tensors))
    return peaks


def resident_peak() -> int:
    """Return the largest resident memory of this process in bytes; getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


@torch.inference_mode()
def stages(args):
    """Where the forward pass spends its time."""
    model = ours()
    images, segments = inputs(model, 16)
    points = torch.randn(16, 196, 384)
    valid = torch.ones(16, 196, dtype=torch.bool)

    def whole():
        return model(images, segments)

    def sampling():
        farthest_point_sampling(points, 64, valid)
        farthest_point_sampling(points[:, :64], 32)
        farthest_point_sampling(points[:, :32], 16)

    yield row("farthest point sampling, batch 16", "our forward", compare(sampling, whole, args.runs), "<= 0.04")
    yield row("stem, batch 16", "our forward", compare(lambda: model.stem(images), whole, args.runs))


@torch.inference_mode()
def growth(args):
    """Larger pictures, with as many more superpixels."""
    for size in (320, 448):
        model = ours(image_size=size, num_superpixels=196 * size**2 // 224**2)
        other = rival(RIVALS[0], img_size=size)
        images, segments = inputs(model, 4)
        result = compare(lambda: model(images, segments), lambda: other(images), max(3, args.runs // 2))  # noqa: B023
        yield row(f"forward, batch 4, {size} pixels", RIVALS[0], result)


def end_to_end(args):
    """From JPEG files to paths, superpixels and loader included, against the same with a grid of squares."""
    if hasattr(os, "sched_setaffinity"):  # OpenMP bound this thread to one core, and loader workers inherit that
        os.sched_setaffinity(0, range(os.cpu_count()))

    with tempfile.TemporaryDirectory() as folder:
        pixels = np.asarray(Image.open(PICTURE).convert("RGB").resize((500, 375)))
        files = []
        for number in range(128):
            file = Path(folder) / f"{number}.jpg"
            Image.fromarray(np.roll(pixels, number * 7, (0, 1))).save(file, quality=90)
            files.append(str(file))

        predictor = Predictor("hcast_small.emoji_art")
        config = predictor.model.config.replace(image_size=224, num_superpixels=196, num_clusters=(64, 32, 16, 8))
        state = fit_state_dict(predictor.model.state_dict(), HCast(config))
        grid = Predictor("hcast_small.emoji_art")
        for changed, method in ((predictor, config.superpixels), (grid, "grid")):
            changed.model = HCast(config.replace(superpixels=method)).eval()
            changed.model.load_state_dict(state)
            changed.engine, changed.transform = TorchEngine(changed.model), eval_transform(config)

        for workers in (0, 2):
            result = compare(
                lambda: list(predictor.predict(files, 16, workers)),  # noqa: B023
                lambda: list(grid.predict(files, 16, workers)),  # noqa: B023
                max(3, args.runs // 2),
            )

            yield row(
                f"128 JPEG files to paths, batch 16, {workers} loader workers",
                "the same with a grid",
                result,
                "<= 1.11" if workers else "",
            )


def seeds(args):
    """Superpixels alone, against one forward pass of the network for the same image."""
    model = ours()
    images, segments = inputs(model, 1)
    pixels = to_uint8(images, model.config.mean, model.config.std)[0].numpy()
    with torch.inference_mode():
        result = compare(lambda: seeds_superpixels(pixels), lambda: model(images, segments), args.runs * 3)
    yield row("superpixels of one image, one core", "our forward, batch 1", result)


def startup(args):
    """The package and the command in a fresh process."""

    def run(*command):
        return lambda: subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)

    python = run("-c", "pass")
    yield row("import hcast_zoo", "an empty Python", compare(run("-c", "import hcast_zoo"), python, args.runs))
    yield row("hcast-zoo --help", "an empty Python", compare(run("-m", "hcast_zoo", "--help"), python, args.runs))
    for model in (PHOTOGRAPHS, "hcast_small.emoji_art"):
        predict = run("-m", "hcast_zoo", "predict", str(PICTURE), "--model", model)
        result = compare(predict, run("-c", "import torch"), args.runs)
        yield row(f"hcast-zoo predict, one picture, {model}", "import torch", result, "<= 1.3")


PARTS = {
    "forward": forward,
    "hybrid": hybrid,
    "train": train,
    "memory": memory,
    "stages": stages,
    "growth": growth,
    "seeds": seeds,
    "end_to_end": end_to_end,
    "startup": startup,
}


def report(rows: list[tuple[str, ...]], args: argparse.Namespace) -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, timm {timm.__version__}"
    threads = "1 thread" if args.threads == 1 else f"{args.threads} threads"
    return f"{table(COLUMNS, rows)}\n{threads}, {processor()}, {versions}."


if __name__ == "__main__":
    main()
