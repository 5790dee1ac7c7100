"""The paper's numbers again: checkpoints, official or ours, measured on a data set beside what was published."""

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
    """Numbers of checkpoints on a data set, in percent.

    Attributes:
        dataset: Name of the benchmark.
        pictures: How many were measured.
        expected: How many the benchmark has, or None if that is not known here.
        checkpoints: The files.
        results: For each checkpoint, decoding to metric to percent.
        mean: Decoding to metric to mean over the checkpoints.
        deviation: The same of the sample's standard deviation; None for one checkpoint.
        published: Full-path accuracies and who published them.
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
        benchmark: Whose numbers to compare with.
        checkpoints: Official files (.pth, converted in memory), or any weights of ours.
        data: Folder that ``hcast-zoo data prepare`` wrote.
        decoders: Decodings, of ``decode.DECODERS``.
        split: Part of the data set; the published numbers are of ``test``.
        device: Where the model runs.
        processes: Who does it.
        batch_size: Pictures at once.
        workers: Processes that read pictures.
        progress: Show a bar.

    Raises:
        ValueError: if the data set is another one, or a checkpoint has another tree.
        PictureError: if a picture cannot be read: numbers of other pictures are no reproduction.
    """
    if not (Path(data) / "taxonomy.json").is_file():
        raise ValueError(
            f"{data}: expected a prepared data set: hcast-zoo data prepare {benchmark.name} ARCHIVE --output {data}"
        )

    taxonomy = Taxonomy.load(Path(data) / "taxonomy.json")
    if not _is_tree_of(taxonomy, benchmark):
        raise ValueError(f"{data}: its taxonomy {taxonomy.name!r} is not that of {benchmark.title}")
    loaded = [load_checkpoint(benchmark, checkpoint, taxonomy) for checkpoint in checkpoints]  # all, before any work
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

    def over(function) -> dict[str, dict[str, float]]:
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
        mean=over(statistics.mean),
        deviation=over(statistics.stdev) if len(results) > 1 else None,
        published=benchmark.published if split == "test" else (),
    )


def _is_tree_of(taxonomy: Taxonomy, benchmark: Benchmark) -> bool:
    """Tell whether a prepared tree is the benchmark's; of one that comes with its lists, the levels are known."""
    if benchmark.tree is not None:
        return same_tree(taxonomy, load_tree(benchmark.tree))
    return dict(zip(taxonomy.levels, taxonomy.level_classes)) == benchmark.levels


def load_checkpoint(benchmark: Benchmark, source: str | Path, taxonomy: Taxonomy) -> Weights:
    """Return weights of ours, or an official checkpoint converted as the official code ran it on the benchmark.

    Raises:
        ValueError: if the checkpoint's levels are not the benchmark's.
    """
    if Path(source).suffix in (".pth", ".pt"):
        config, state = convert_official(read_checkpoint(str(source)), **benchmark.official)
        content = Weights(config, None, state)
    else:
        content = load_weights(source)

    if content.config.level_classes != taxonomy.level_classes:
        raise ValueError(
            f"{source}: its levels have {content.config.level_classes} classes, those of "
            f"{benchmark.title} {taxonomy.level_classes}"
        )

    if content.taxonomy is not None and not same_tree(content.taxonomy, taxonomy):
        raise ValueError(
            f"{source}: its taxonomy {content.taxonomy.name!r} is another tree than that of "
            f"{benchmark.title}, or in another order"
        )

    return content


def table(reproduction: Reproduction) -> list[list[str]]:
    """Return rows of text: a header, a row for each decoding (mean ± deviation) and for each published number."""
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
