"""What lower precision costs in accuracy and saves in time: float32, bfloat16 and int8, and torch.compile.

    pip install '.[benchmarks]'
    python benchmarks/precision.py --data emoji_art.parquet

Writes docs/precision.md. The row of bfloat16 takes long on a CPU without bfloat16 instructions; ``--limit`` takes
fewer pictures.
"""

import copy
import os

os.environ.setdefault("OMP_PROC_BIND", "true")  # threads that share a core make one side wait for the other

import report
import torch
from cost import compare, seconds
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
    parser.add_argument("--only", nargs="+", help=f"rows to measure, of {', '.join(VARIANTS)} (all)")
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
        with torch.inference_mode():
            first_call = seconds(lambda: variant(batches[0]["images"], batches[0]["segments"]))  # noqa: B023
        if name == "compiled":
            compile_time = f"; the first call took {first_call:.0f} s"

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
    truth = torch.cat([batch["labels"] for batch in batches])
    paths, reference_paths = (decode(calibration.logits(x), taxonomy).paths for x in (logits, reference))
    fpa = 100 * (paths == truth).all(1).double().mean().item()
    same = 100 * (paths == reference_paths).all(1).double().mean().item()
    change = max((a.softmax(-1) - b.softmax(-1)).abs().max().item() for a, b in zip(logits, reference))

    inputs = batches[0]["images"], batches[0]["segments"]
    time = compare(lambda: variant(*inputs), lambda: model(*inputs), args.runs)
    size = stored_bytes(variant) / stored_bytes(model)
    return f"| {name} | {fpa:.2f} | {same:.1f} % | {change:.1e} | {time} | {size:.2f} |"


@torch.inference_mode()
def run(model: nn.Module, batches: list[dict], name: str) -> tuple[torch.Tensor, ...]:
    """Return the float32 logits of every level for all pictures."""
    logits = []
    for batch in tqdm(batches, name, leave=False):
        output = model(batch["images"], batch["segments"])
        logits.append([level.float() for level in output.level_logits])
    return tuple(torch.cat(level) for level in zip(*logits))


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters; those under autocast count as bfloat16."""
    if isinstance(model, Autocast):
        return sum(2 * parameter.numel() for parameter in model.parameters())

    total = 0
    for parameter in model.parameters():
        # A parameter of torchao wraps its integers and their scales.
        tensors = [getattr(parameter, name) for name in ("qdata", "scale") if hasattr(parameter, name)] or [parameter]
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
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
    """Return a function that quantises a copy of a model."""

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
