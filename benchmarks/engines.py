"""Measure engines and precisions: accuracy, the network's time, and the time from file to path.

    pip install '.[benchmarks,engines]'
    python benchmarks/engines.py --data emoji_art.parquet

Writes the tables of docs/engines.md. A row that this machine cannot compute says why.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import report
import timm
import torch
from accelerator import RIVAL, Network
from cost import compare
from tqdm import tqdm

from hcast_zoo.common.choices import PRECISIONS
from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.inference.engines import OFFERED, OpenVinoEngine, make_engine, onnx_session
from hcast_zoo.inference.graph import example
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.weights.file import Weights, build_model, load_weights, save_weights

PAGE = "engines.md"
MEASURED = """| engine | precision | FPA | same path as torch | largest change of a probability | network | end to end |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

`{model}` on {pictures} pictures of {data}; network at batch size {batch}; {files} files, median of {runs} pairs,
on {cpu}, {threads} threads, torch {torch}.
"""
LARGE = """| engine | precision | network, to `torch` `fp32` | network, to deit_small | end to end, to `torch` `fp32` |
| --- | --- | --- | --- | --- |
{rows}

Network at batch size {batch}; {files} files, median of {runs} pairs, on {cpu}, {threads} threads, torch {torch}.
"""


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs to time (%(default)s)")
    parser.add_argument("--files", type=int, default=500, help="picture files to time end to end (%(default)s)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="to measure (all)")
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=("measured", "large"),
        default=("measured", "large"),
        help="of the page: accuracy and time of the weights, and time at 224 pixels (both)",
    )
    args = parser.parse_args()
    weights = load_weights(args.model)
    dataset = report.load_data(args, weights)
    facts = {
        "batch": args.batch_size,
        "files": args.files,
        "runs": args.runs,
        "cpu": report.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
    }
    options = report.options_text()

    with tempfile.TemporaryDirectory() as folder:
        files = write_files(dataset, Path(folder), args.files)
        if "measured" in args.tables:
            facts |= {"model": args.model, "pictures": len(dataset), "data": weights.taxonomy.name}
            rows = "\n".join(measure_all(weights, dataset, files, args))
            report.write_section(args.docs, PAGE, "measured", MEASURED.format(rows=rows, **facts), options)

        if "large" in args.tables:
            rows = "\n".join(measure_large(weights, files, Path(folder), args))
            report.write_section(args.docs, PAGE, "large", LARGE.format(rows=rows, **facts), options)


def measure_all(weights: Weights, dataset, files: list[str], args) -> Iterator[str]:
    """Yield the rows of the table of accuracy and time."""
    batches = report.load_batches(dataset, weights.config, args.batch_size)
    base = Predictor(args.model)
    reference = run(make_engine(build_model(weights)), batches)
    for engine, precision in offered(args.precisions):
        yield measure(engine, precision, base, files, batches, reference, args)


def offered(precisions: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of engine and precision that are offered and asked for."""
    pairs = []
    for engine, engine_precisions in OFFERED.items():
        pairs += [(engine, precision) for precision in engine_precisions if precision in precisions]
    return pairs


def write_files(dataset, folder: Path, number: int) -> list[str]:
    """Write pictures of a data set as JPEG files, starting over until there are enough."""
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
    paths, reference_paths = (decode(base.calibration.logits(x), base.taxonomy).paths for x in (logits, reference))
    metrics = HierarchicalMetrics(base.taxonomy)
    metrics.update(paths, truth)
    same = 100 * (paths == reference_paths).all(1).double().mean().item()
    change = max((a.softmax(-1) - b.softmax(-1)).abs().max().item() for a, b in zip(logits, reference))

    inputs = batches[0]["images"], batches[0]["segments"]
    network = compare(lambda: predictor.engine(*inputs), lambda: base.engine(*inputs), args.runs)
    end_to_end = compare(lambda: list(predictor.predict(files)), lambda: list(base.predict(files)), args.runs)
    return (
        f"| `{engine}` | `{precision}` | {metrics.compute()['fpa']:.2f} | {same:.2f} % | {change:.1e} | {network} | "
        f"{end_to_end} |"
    )


def measure_large(weights: Weights, files: list[str], folder: Path, args) -> Iterator[str]:
    """Yield the rows of the table at 224 pixels."""
    config = HCastConfig.from_variant("hcast_small", level_classes=weights.config.level_classes)
    file = folder / "large.safetensors"
    torch.manual_seed(0)
    save_weights(Weights(config, weights.taxonomy, HCast(config).state_dict(), {"name": "large"}), file)
    base, (images, segments) = Predictor(file), example(config, args.batch_size)

    for engine, precision in offered(args.precisions):
        try:
            predictor = Predictor(file, engine=engine, precision=precision)
            predictor.engine(images, segments)  # the first call compiles, and compares with torch
            rival = make_rival(engine, precision, images, folder / f"{RIVAL}.onnx")
        except (ImportError, ValueError) as error:
            yield f"| `{engine}` | `{precision}` | {error} | | |"
            continue

        def ours(predictor=predictor):
            return predictor.engine(images, segments)

        network = compare(ours, lambda: base.engine(images, segments), args.runs)
        to_rival = "-" if rival is None else compare(ours, rival, args.runs)
        end_to_end = compare(lambda: list(predictor.predict(files)), lambda: list(base.predict(files)), args.runs)  # noqa: B023
        yield f"| `{engine}` | `{precision}` | {network} | {to_rival} | {end_to_end} |"


def make_rival(engine: str, precision: str, images: torch.Tensor, file: Path) -> Callable | None:
    """Return a function that runs timm's network on some images through an engine; None for int8."""
    if precision == "int8":
        return None
    network = timm.create_model(RIVAL).eval()
    if engine == "torch":
        rival = Network(network, precision)
        return lambda: rival(images)

    if not file.exists():
        torch.onnx.export(network, (images,), file, dynamo=True, verbose=False)
    if engine == "onnxruntime":
        session = onnx_session(file)
        return lambda: session.run(None, {session.get_inputs()[0].name: images.numpy()})

    compiled = OpenVinoEngine(file, precision, levels=1).compiled
    return lambda: compiled([images.numpy()])


@torch.inference_mode()
def run(engine, batches: list[dict]) -> tuple[torch.Tensor, ...]:
    """Return the logits of every level for all pictures."""
    logits = [engine(batch["images"], batch["segments"]).level_logits for batch in tqdm(batches, leave=False)]
    return tuple(torch.cat(level) for level in zip(*logits))


if __name__ == "__main__":
    main()
