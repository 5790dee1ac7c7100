"""Measure engines and precisions: end-to-end time, and accuracy.

    pip install '.[benchmarks,engines]'
    python benchmarks/engines.py --data emoji_art.parquet

Writes docs/engines.md. A row that this machine cannot compute says why.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_PROC_BIND", "true")  # threads that share a core make one side wait for the other

import report
import torch
from tqdm import tqdm

from hcast_zoo.common.choices import PRECISIONS
from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.inference.engines import OFFERED, make_engine
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.weights.file import build_model, load_weights

TEXT = """# Engines

<!-- not run: exports take long; tests/inference/test_engines.py runs the same -->
```bash
pip install 'hcast-zoo[engines]'
hcast-zoo predict birds --model runs/birds/best.safetensors --engine auto --verbose   # the fastest one here
hcast-zoo predict birds --model runs/birds/best.safetensors --output out.csv --engine openvino
hcast-zoo evaluate --data birds --split test --model runs/birds/best.safetensors --engine onnxruntime
```

`--engine` and `--precision` choose what computes the logits. The model is exported once ([export.md](export.md)) and
cached in huggingface_hub's assets cache, by the weights' SHA-256 and the versions of torch and ONNX; OpenVINO keeps its
compiled model beside it. The first batch is also computed by torch: an engine whose probabilities differ by more than
1e-3 (`fp32`), 0.1 (`bf16`) or 0.2 (`int8`) is refused, and `auto` chooses the fastest of the others. `--verbose` prints
the differences, the share of equal labels and the times. Superpixels, segment maps and explanations always come from
OpenCV and torch.

| engine | `fp32` | `bf16` | `int8` |
| --- | --- | --- | --- |
| `torch` | yes, the default | autocast | torchao: weights, and activations dynamically |
| `onnxruntime` (CPU) | yes | no | no |
| `openvino` (CPU) | yes | if the processor has bfloat16 instructions | no |

## Measured

{provenance}
| engine | precision | FPA | same path as torch | largest change of a probability | network | end to end |
| --- | --- | --- | --- | --- | --- | --- |
{table}

*FPA* with `best_path`, in percent. *Network*: time of a forward pass at batch size {batch}, without superpixels;
*end to end*: time of `Predictor.predict` on {files} picture files, with decoding and superpixels. Both are relative
to torch in `fp32`: median of {runs} alternating pairs, with smallest and largest, on {cpu}, {threads} thread(s).
"""


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs to time (%(default)s)")
    parser.add_argument("--files", type=int, default=500, help="picture files, end to end (%(default)s)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="to measure (all)")
    args = parser.parse_args()
    weights = load_weights(args.model)
    model = build_model(weights)
    dataset = report.load_data(args, weights)
    batches = report.load_batches(dataset, weights.config, args.batch_size)
    reference = run(make_engine(model), batches)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(dataset, Path(folder), args.files)
        base = Predictor(args.model)
        for engine, precisions in OFFERED.items():
            for precision in (p for p in precisions if p in args.precisions):
                rows.append(measure(engine, precision, base, files, batches, reference, args))

    report.write(
        args.docs,
        "engines.md",
        TEXT.format(
            provenance=report.provenance(args, weights, len(dataset)),
            table="\n".join(rows),
            batch=args.batch_size,
            files=len(files),
            runs=args.runs,
            cpu=report.processor(),
            threads=torch.get_num_threads(),
        ),
    )


def write_files(dataset, folder: Path, number: int) -> list[str]:
    """Write pictures of a data set as JPEG files, again and again until there are enough."""
    files = []
    for index in range(number):
        file = folder / f"{index}.jpg"
        dataset.open(index % len(dataset)).convert("RGB").save(file, quality=90)
        files.append(str(file))

    return files


def measure(engine, precision, base, files, batches, reference, args) -> str:
    """Return a row of the table."""
    try:
        predictor = Predictor(args.model, engine=engine, precision=precision)
        logits = run(predictor.engine, batches)
    except (ImportError, ValueError) as error:
        return f"| `{engine}` | `{precision}` | {error} | | | | |"

    truth = torch.cat([batch["labels"] for batch in batches])
    paths = [decode(base.calibration.logits(x), base.taxonomy).paths for x in (logits, reference)]
    metrics = HierarchicalMetrics(base.taxonomy)
    metrics.update(paths[0], truth)
    same = 100 * (paths[0] == paths[1]).all(1).double().mean().item()
    change = max((a.softmax(-1) - b.softmax(-1)).abs().max().item() for a, b in zip(logits, reference))

    one = batches[0]["images"], batches[0]["segments"]
    network = compare(lambda: predictor.engine(*one), lambda: base.engine(*one), args.runs)
    whole = compare(lambda: list(predictor.predict(files)), lambda: list(base.predict(files)), args.runs)
    return (
        f"| `{engine}` | `{precision}` | {metrics.compute()['fpa']:.2f} | {same:.2f} % | {change:.1e} | {network} | "
        f"{whole} |"
    )


@torch.inference_mode()
def run(engine, batches: list[dict]) -> tuple[torch.Tensor, ...]:
    """Return the logits of every level for all pictures."""
    logits = [engine(batch["images"], batch["segments"]).level_logits for batch in tqdm(batches, leave=False)]
    return tuple(torch.cat(level) for level in zip(*logits))


@torch.inference_mode()
def compare(ours, theirs, runs: int) -> str:
    """Return the time of one function over another's, called in turn: median, smallest and largest."""
    ratios = []
    for _ in range(runs):
        seconds = []
        for function in (ours, theirs):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])

    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
