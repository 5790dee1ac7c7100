"""What ``speed.py --device`` measures: pictures per second, latency, and the shares of sampling and superpixels.

Results are checked before anything is timed: the sampling kernel against plain torch, and every way to run a network
against eager float32. A way that is wrong, or not available on this device, is reported and not timed.
"""

import csv
import itertools
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from cost import blurred_noise
from torch import Tensor, nn

from hcast_zoo.inference.engines import TOLERANCE
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.graph_pooling import choose_step_by_step, farthest_point_sampling, load_kernel
from hcast_zoo.network.model import HCast
from hcast_zoo.network.superpixels import segment_images

FIXTURES = Path(__file__).parents[1] / "tests/fixtures"
RESULTS = Path(__file__).parent / "results"
RIVAL = "deit_small_patch16_224"
LEVELS = (13, 38, 200)
MODES = ("eager", "compiled", "graph")
COLUMNS = (
    "model",
    "mode",
    "precision",
    "batch",
    "pictures_per_second",
    "median_ms",
    "p99_ms",
    "spread_ms",
    "of_rival",
    "share",
)
TARGETS = """Targets on a GPU: sampling at most 5 % of the forward pass, SLIC at most 10 %; latency at batch 1 at most
1.3 times deit_small's; at the large batch, at least 1.2 times as many pictures per second as deit_small."""


class Network(nn.Module):
    """A network, under bfloat16 autocast if asked, that returns the finest logits.

    Inputs are images (B, 3, H, W) and, for our network, segments (B, H, W).
    """

    def __init__(self, model: nn.Module, precision: str):
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, *inputs: Tensor) -> Tensor:
        low = self.precision == "bf16"
        # CUDA graphs need autocast without its cache of converted weights.
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            output = self.model(*inputs)
        return (output.level_logits[-1] if isinstance(self.model, HCast) else output).float()


def networks(variant: str, device: torch.device) -> dict[str, nn.Module]:
    """Return our network, which takes superpixels as input, the same with SLIC inside, and the one to compare with."""
    torch.manual_seed(0)
    config = HCastConfig.from_variant(variant, level_classes=LEVELS)
    ours = HCast(config).eval()
    with_slic = HCast(config.replace(superpixels="slic")).eval()
    with_slic.load_state_dict(ours.state_dict())
    models = {variant: ours, f"{variant}, SLIC": with_slic, RIVAL: timm.create_model(RIVAL, num_classes=LEVELS[-1])}
    return {name: model.eval().to(device) for name, model in models.items()}


def make_inputs(model: nn.Module, batch: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return images of blurred noise and, unless the network computes them, superpixels."""
    images = blurred_noise(batch, 224).to(device)
    if not isinstance(model, HCast) or model.config.superpixels == "slic":
        return (images,)
    return images, segment_images(images, model.config.replace(superpixels="slic")).contiguous()


def in_mode(network: nn.Module, inputs: tuple[Tensor, ...], mode: str) -> Callable[[], Tensor]:
    """Return a function that runs the network on the inputs in a mode of ``MODES``."""
    if mode == "eager":
        return lambda: network(*inputs)
    if mode == "compiled":
        compiled = torch.compile(network, dynamic=False)
        return lambda: compiled(*inputs)

    if inputs[0].device.type != "cuda":
        raise ValueError("CUDA graphs need a CUDA device")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(*inputs)
    torch.cuda.current_stream().wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = network(*inputs)

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def times(function: Callable, device: torch.device, runs: int) -> list[float]:
    """Return the seconds of each of a number of calls, to the moment when the device has finished."""
    for _ in range(2):
        function()

    seconds = []
    for _ in range(runs):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        seconds.append(time.perf_counter() - start)

    return seconds


def check_sampling(device: torch.device) -> Iterator[str]:
    """Yield lines that say whether the centres are those of the authors' code, and the kernel's those of plain torch.

    Raises:
        SystemExit: if any centre differs.
    """
    wrong = count = 0
    for name in ("tiny_2level", "tiny_3level"):
        with np.load(FIXTURES / f"{name}_tensors.npz") as tensors:
            for stage in range(1, 5):
                points = torch.from_numpy(tensors[f"stage{stage}_out"])[:, 1:].to(device)
                valid = torch.from_numpy(~tensors[f"stage{stage}_pad_mask"]).to(device)
                expected = torch.from_numpy(tensors[f"pool{stage}_inds"])
                centres = farthest_point_sampling(points, expected.shape[1], valid).cpu()
                wrong += int((centres != expected).any())
                count += 1

    yield f"sampling on {device.type}: {count - wrong} of {count} fixtures give the authors' centres"
    if wrong:
        raise SystemExit("the centres differ: nothing is timed")

    kernel = load_kernel() if device.type == "cuda" else None
    if kernel is None:
        yield "the sampling kernel is not used here: it needs a GPU and Triton"
        return

    points = torch.randn(256, 196, 384, device=device, dtype=torch.float64)
    distances, norms = torch.cdist(points, points).square(), points.square().sum(-1)
    arguments = distances, norms, 1e-10 * norms.amax(1, keepdim=True), 64
    same = torch.equal(kernel(*arguments), choose_step_by_step(*arguments))
    yield f"the kernel and plain torch choose {'the same' if same else 'OTHER'} centres of 256 random pictures"
    if not same:
        raise SystemExit("the centres differ: nothing is timed")


def results_name(machine: str) -> str:
    """Return the name of the CSV file of a machine's results."""
    return f"speed-{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.csv"


def measure(args, device: torch.device, tell: Callable[[str], None]) -> list[dict]:
    """Return a row for each network, mode and batch that can be run here."""
    models, rows = networks(args.variant, device), []
    for batch in dict.fromkeys((1, args.batch_size)):
        runs = args.runs * (10 if batch == 1 else 1)
        for mode in args.modes:
            seconds: dict[str, list[float]] = {}
            for name, model in models.items():
                inputs = make_inputs(model, batch, device)
                try:
                    call = in_mode(Network(model, args.precision), inputs, mode)
                    change = (call().softmax(-1) - Network(model, "fp32")(*inputs).softmax(-1)).abs().max().item()
                except Exception as error:  # compilers raise many types
                    tell(f"{name}, {mode}, batch {batch}: not timed: {str(error).splitlines()[0][:200]}")
                    continue
                if not change <= TOLERANCE[args.precision]:
                    tell(f"{name}, {mode}, batch {batch}: not timed: probabilities are off by {change:.2g}")
                    continue
                seconds[name] = times(call, device, runs)

            for name, ours in seconds.items():
                rows.append(make_row(name, mode, args.precision, batch, ours, seconds.get(RIVAL)))
                tell(" | ".join(map(str, rows[-1].values())))

    return rows


def make_row(name: str, mode: str, precision: str, batch: int, seconds: list[float], rival: list[float] | None) -> dict:
    """Return a row of the table for the times of a network; ``of_rival`` is empty if the rival was not timed."""
    median = statistics.median(seconds)
    ratio = "" if rival is None else f"{median / statistics.median(rival):.3f}"
    numbers = (f"{batch / median:.1f}", f"{1000 * median:.3f}", f"{1000 * np.percentile(seconds, 99):.3f}")
    spread = f"{1000 * min(seconds):.3f} to {1000 * max(seconds):.3f}"
    return dict(zip(COLUMNS, (name, mode, precision, batch, *numbers, spread, ratio)))


def shares(args, device: torch.device) -> Iterator[tuple[str, int, str]]:
    """Yield an operation, the batch size, and its time as a share of the eager forward pass on given superpixels."""
    model = networks(args.variant, device)[args.variant]
    c = model.config
    for batch in dict.fromkeys((1, args.batch_size)):
        inputs = make_inputs(model, batch, device)
        network = Network(model, args.precision)
        points = torch.randn(batch, c.num_superpixels, c.embed_dim, device=device)
        tokens = (c.num_superpixels, *c.num_clusters)

        def sampling(points=points, tokens=tokens):
            for before, after in itertools.pairwise(tokens[:4]):
                farthest_point_sampling(points[:, :before], after)

        slic_config = c.replace(superpixels="slic")
        whole = statistics.median(times(lambda: network(*inputs), device, args.runs))  # noqa: B023
        for operation, function in (
            ("farthest point sampling", sampling),
            ("SLIC", lambda: segment_images(inputs[0], slic_config)),  # noqa: B023
        ):
            part = statistics.median(times(function, device, args.runs))
            yield operation, batch, f"{100 * part / whole:.1f} %"


@torch.inference_mode()
def measure_device(args, processor: str, tell: Callable[[str], None] = print) -> Path:
    """Check and time everything, report each line with ``tell``, and write the table; return its file."""
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor
    started = time.perf_counter()
    tell(f"{name}, torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}")
    for line in check_sampling(device):
        tell(line)

    rows = measure(args, device, tell)
    for operation, batch, share in shares(args, device):
        tell(f"{operation}, batch {batch}: {share} of the eager forward pass")
        rows.append(dict(model=args.variant, mode=operation, precision=args.precision, batch=batch, share=share))
    tell(TARGETS)

    args.results.mkdir(parents=True, exist_ok=True)
    file = args.results / results_name(name)
    with open(file, "w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    tell(f"{file.name}, in {time.perf_counter() - started:.0f} s")
    return file
