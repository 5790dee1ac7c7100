"""What lower precision costs in accuracy and brings in time: float32, bfloat16 and int8, and torch.compile.

    pip install '.[benchmarks]'
    python benchmarks/precision.py --data emoji_art.parquet

Writes docs/precision.md. On a CPU without bfloat16 instructions that row alone takes long; ``--limit`` takes fewer
pictures.
"""

import copy
import os
import statistics
import time

os.environ.setdefault("OMP_PROC_BIND", "true")  # threads that share a core make one side wait for the other

import report
import torch
from timm.utils.model import reparameterize_model
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from tqdm import tqdm

from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.weights.file import build_model, load_weights

TEXT = """# Lower precision

{provenance}
| precision | FPA | same path as float32 | largest change of a probability | time | file |
| --- | --- | --- | --- | --- | --- |
{table}

*FPA* by `best_path`, in percent. *Time* of a forward pass at batch {batch}, superpixels given, relative to float32:
median of {runs} alternating pairs, smallest and largest; on {cpu}. A CPU without bfloat16 or int8 instructions is slow
at them; there, only the accuracy is informative. *File*: size of the stored parameters, relative to float32.

- `folded`: each batch norm of the stem folded into its convolution, by timm's `reparameterize_model(model)`.
- `compiled`: `torch.compile(model)`, one graph without breaks{compile_time}.
- `bfloat16`: under `torch.autocast(..., torch.bfloat16)`. Farthest point sampling stays in float64.
- `int8 weights`, `int8`: the linear layers quantised by torchao's `quantize_`: weights only, or (dynamically)
  activations too.
"""


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="pairs of runs to time (%(default)s)")
    parser.add_argument("--only", nargs="+", help="rows to measure (all)")
    args = parser.parse_args()
    weights = load_weights(args.model)
    model = build_model(weights)
    dataset = report.load_data(args, weights)
    batches = report.load_batches(dataset, weights.config, args.batch_size)
    calibration = weights.calibration or Calibration.identity(len(weights.config.level_classes))
    reference = run(model, batches, "float32")
    rows, compile_time = [], "; not measured here"
    for name, make in VARIANTS.items():
        if args.only and name not in args.only:
            continue
        variant = make(model)
        start = time.perf_counter()
        with torch.inference_mode():
            variant(batches[0]["images"], batches[0]["segments"])
        if name == "compiled":
            compile_time = f"; the first call took {time.perf_counter() - start:.0f} s"
        rows.append(
            measure(
                name=name,
                variant=variant,
                model=model,
                batches=batches,
                reference=reference,
                calibration=calibration,
                taxonomy=weights.taxonomy,
                args=args,
            )
        )

    report.write(
        args.docs,
        "precision.md",
        TEXT.format(
            provenance=report.provenance(args, weights, len(dataset)),
            table="\n".join(rows),
            batch=args.batch_size,
            runs=args.runs,
            cpu=report.processor(),
            compile_time=compile_time,
        ),
    )


def measure(name, variant, model, batches, reference, calibration, taxonomy, args) -> str:
    """Return a row of the table."""
    logits = run(variant, batches, name)
    truth = torch.cat([b["labels"] for b in batches])
    paths = [decode(calibration.logits(x), taxonomy).paths for x in (logits, reference)]
    fpa = 100 * (paths[0] == truth).all(1).double().mean().item()
    same = 100 * (paths[0] == paths[1]).all(1).double().mean().item()
    change = max((a.softmax(-1) - b.softmax(-1)).abs().max().item() for a, b in zip(logits, reference))
    ratios = compare(variant, model, batches[0], args.runs)

    return (
        f"| {name} | {fpa:.2f} | {same:.1f} % | {change:.1e} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {stored(variant) / stored(model):.2f} |"
    )


@torch.inference_mode()
def run(model: nn.Module, batches: list[dict], name: str) -> tuple[torch.Tensor, ...]:
    """Return the float32 logits of every level for all pictures."""
    logits = [
        [x.float() for x in model(b["images"], b["segments"]).level_logits] for b in tqdm(batches, name, leave=False)
    ]
    return tuple(torch.cat(level) for level in zip(*logits))


@torch.inference_mode()
def compare(variant: nn.Module, model: nn.Module, batch: dict, runs: int) -> list[float]:
    """Return the ratios of time of pairs of runs."""
    ratios = []
    for _ in range(runs):
        seconds = []
        for m in (variant, model):
            start = time.perf_counter()
            m(batch["images"], batch["segments"])
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])

    return ratios


def stored(model: nn.Module) -> int:
    """Return the bytes of a model's parameters."""
    if isinstance(model, Autocast):
        return sum(p.numel() * 2 for p in model.parameters())
    total = 0
    for parameter in model.parameters():
        inner = [getattr(parameter, n) for n in ("qdata", "scale") if hasattr(parameter, n)]
        total += sum(t.numel() * t.element_size() for t in (inner or [parameter]))
    return total


class Autocast(nn.Module):
    """A model under autocast to bfloat16."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return self.model(*inputs)


def quantized(config):
    def make(model: nn.Module) -> nn.Module:
        model = copy.deepcopy(model)
        quantize_(model, config)
        return model

    return make


VARIANTS = {
    "float32": copy.deepcopy,
    "folded": reparameterize_model,
    "compiled": torch.compile,
    "int8 weights": quantized(Int8WeightOnlyConfig()),
    "int8": quantized(Int8DynamicActivationInt8WeightConfig()),
    "bfloat16": Autocast,
}


if __name__ == "__main__":
    main()
