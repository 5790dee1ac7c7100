"""Reproduce the paper's numbers: evaluate checkpoints, official or ours, and compare with the published numbers."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from ..common.processes import ALONE, Processes
from ..data.dataset import HierarchicalDataset
from ..data.transforms import eval_transform
from ..evaluation.evaluate import evaluate
from ..taxonomy.tree import Taxonomy
from ..weights.file import Weights, build_model, load_weights
from ..weights.official import convert_official, read_checkpoint
from .benchmarks import Benchmark
from .trees import load_tree, same_tree

# How the official code answers: each level's own choice (docs/official_differences.md, 34).
OFFICIAL_DECODER = "independent"


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """Metrics of checkpoints on a data set, in percent.

    Attributes:
        dataset: Name of the benchmark.
        pictures: Number of pictures measured.
        expected: Number of pictures of the benchmark, or None if not known.
        checkpoints: The files.
        results: For each checkpoint, ``{decoding: {metric: percent}}``.
        mean: ``{decoding: {metric: mean over the checkpoints}}``.
        deviation: The same with the sample standard deviation; None for one checkpoint.
        published: Full-path accuracies and their sources.
    """

    dataset: str
    pictures: int
    expected: int | None
    checkpoints: tuple[str, ...]
    results: tuple[dict[str, dict[str, float]], ...]
    mean: dict[str, dict[str, float]]
    deviation: dict[str, dict[str, float]] | None
    published: tuple[tuple[float, str], ...]


def reproduce(
    benchmark: Benchmark,
    checkpoints: Sequence[str | Path],
    data: str | Path,
    decoders: Sequence[str],
    *,
    split: str = "test",
    device: str = "cpu",
    processes: Processes = ALONE,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = True,
) -> Reproduction:
    """Evaluate checkpoints, such as those of several seeds, on a prepared data set.

    Args:
        benchmark: The data set whose published numbers to compare with.
        checkpoints: Official files (.pth, converted in memory), or weights of hcast-zoo.
        data: Folder that ``hcast-zoo data prepare`` wrote.
        decoders: Names of decoders, from ``DECODERS``.
        split: Split to evaluate; the published numbers are for ``test``.
        device: Where the model runs.
        processes: The processes that share the work.
        batch_size: Pictures per batch.
        workers: Processes that read pictures.
        progress: Show a progress bar.

    Raises:
        ValueError: if the folder holds another data set, or a checkpoint has another tree.
        PictureError: if a picture cannot be read: without it, the numbers would not be comparable.
    """
    if not (Path(data) / "taxonomy.json").is_file():
        raise ValueError(
            f"{data}: expected a prepared data set: hcast-zoo data prepare {benchmark.name} ARCHIVE --output {data}"
        )

    taxonomy = Taxonomy.load(Path(data) / "taxonomy.json")
    if not _is_tree_of(taxonomy, benchmark):
        raise ValueError(f"{data}: expected the tree of {benchmark.title}, got another, named {taxonomy.name!r}")

    # Load all before the first evaluation, so that a wrong checkpoint is reported at once.
    loaded = [load_checkpoint(benchmark, checkpoint, taxonomy) for checkpoint in checkpoints]
    results = []
    for weights in loaded:
        dataset = HierarchicalDataset.load(
            data, taxonomy, split, transform=eval_transform(weights.config), skip_broken=False
        )
        model = build_model(weights, processes.device(device))
        results.append(
            evaluate(
                model,
                dataset,
                decoders,
                weights.calibration,
                processes=processes,
                batch_size=batch_size,
                workers=workers,
                progress=progress,
            )
        )

    def aggregate(function) -> dict[str, dict[str, float]]:
        table: dict[str, dict[str, float]] = {}
        for mode, metrics in results[0].items():
            table[mode] = {}
            for name in metrics:
                table[mode][name] = function([result[mode][name] for result in results])

        return table

    return Reproduction(
        dataset=benchmark.name,
        pictures=len(dataset),
        expected=benchmark.pictures.get(split),
        checkpoints=tuple(map(str, checkpoints)),
        results=tuple(results),
        mean=aggregate(statistics.mean),
        deviation=aggregate(statistics.stdev) if len(results) > 1 else None,
        published=benchmark.published if split == "test" else (),
    )


def _is_tree_of(taxonomy: Taxonomy, benchmark: Benchmark) -> bool:
    """Tell whether a prepared tree is the benchmark's; if the tree came with lists, only its levels are compared."""
    if benchmark.tree is not None:
        return same_tree(taxonomy, load_tree(benchmark.tree))

    return dict(zip(taxonomy.levels, taxonomy.level_classes)) == benchmark.levels


def load_checkpoint(benchmark: Benchmark, source: str | Path, taxonomy: Taxonomy) -> Weights:
    """Return weights of hcast-zoo, or an official checkpoint, converted with the official settings for the benchmark.

    Raises:
        ValueError: if the checkpoint's levels are not the benchmark's.
    """
    if Path(source).suffix in (".pth", ".pt"):
        config, state = convert_official(read_checkpoint(str(source)), **benchmark.official)
        weights = Weights(config=config, taxonomy=None, state_dict=state)
    else:
        weights = load_weights(source)

    if weights.config.level_classes != taxonomy.level_classes:
        raise ValueError(
            f"{source}: expected levels with the classes of {benchmark.title}, {taxonomy.level_classes}, got "
            f"{weights.config.level_classes}"
        )

    if weights.taxonomy is not None and not same_tree(weights.taxonomy, taxonomy):
        raise ValueError(
            f"{source}: expected the tree of {benchmark.title} with nodes in its order, got the taxonomy "
            f"{weights.taxonomy.name!r}, which differs"
        )

    return weights


def table(reproduction: Reproduction) -> list[list[str]]:
    """Return rows of text: a header, then one row per decoding (mean ± deviation) and per published number."""
    columns = list(next(iter(reproduction.mean.values())))
    rows = [["", *columns]]
    for mode, means in reproduction.mean.items():
        row = [mode]
        for column in columns:
            deviation = f" ± {reproduction.deviation[mode][column]:.2f}" if reproduction.deviation else ""
            row.append(f"{means[column]:.2f}{deviation}")
        rows.append(row)

    for fpa, source in reproduction.published:
        rows.append([f"published ({source})", *(f"{fpa:.2f}" if column == "fpa" else "-" for column in columns)])

    return rows
