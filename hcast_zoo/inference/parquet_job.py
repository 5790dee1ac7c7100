"""Predict many pictures into a folder of parquet files, with any number of processes, any of which can be killed.

The list of pictures is split into parts, and part n belongs to process n modulo the number of processes. A part is
renamed to its final name when complete, and is never computed again. So processes need no communication, each picture
is in exactly one part, and a job that was stopped can be resumed with another number of processes.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.claim import claim, own_folder
from ..common.files import write_whole
from ..common.processes import ALONE, Processes
from ..data.boxes import COLUMNS, UNIT, BoxedPicture
from ..data.stores import is_container
from .prediction import Prediction
from .predictor import Predictor, predict_named
from .resume import describe_list
from .sets import NodeSet
from .tables import as_text, box_cells

PLAN = "_plan.json"  # parquet readers skip names that begin with _ or .
SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        ("path", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
        ("path_probability", pa.float32()),
        ("runner_up", pa.list_(pa.string())),
        ("runner_up_probability", pa.float32()),
        ("error", pa.string()),
        ("reason", pa.string()),
    ]
)
# Columns that exist only on request.
TOP = pa.field("top", pa.list_(pa.struct([("path", pa.list_(pa.string())), ("probability", pa.float32())])))
NODE_SET = pa.field(
    "node_set",
    pa.struct([("nodes", pa.list_(pa.string())), ("leaves", pa.int32()), ("subtree", pa.list_(pa.string()))]),
)
BOX = pa.field(
    "box",
    pa.struct(
        [
            ("detection", pa.string()),
            *((edge, pa.float64()) for edge in COLUMNS),
            (UNIT, pa.string()),
            ("detector_label", pa.string()),
            ("detector_confidence", pa.float32()),
        ]
    ),
)


def predict_parts(
    predictor: Predictor,
    files: Sequence[str | BoxedPicture],
    folder: str | Path,
    settings: dict,
    *,
    part_size: int = 4096,
    processes: Processes = ALONE,
    **kwargs,
) -> Iterator[tuple[int, int]]:
    """Write ``part-00000.parquet`` and so on; yield (pictures, failures) of each part of this process, new or existing.

    Args:
        predictor: The model.
        files: All pictures, boxes in them, or parquet files and stored shards, in the same order in every process.
        folder: Folder of the parts.
        settings: Plain data that identifies the model and the decoding; a job can be resumed only with the same. Its
            ``made_of`` holds digests of the inputs.
        part_size: Pictures per part; those of a parquet file, or of a shard in a store, are always one part.
        processes: The processes that share the work.
        kwargs: For :func:`predict_named`.

    Raises:
        ValueError: if the folder holds predictions of other pictures or settings, or other files, or another job is
            using it.
    """
    parts, folder = make_parts(files, part_size), Path(folder)
    with own_folder(folder, processes):
        claim_folder(folder, files, {**settings, "part_size": part_size}, processes)
        for number in range(processes.rank, len(parts), processes.count):
            yield compute_part(predictor, parts[number], part_file(folder, number, len(parts)), **kwargs)


def make_parts(files: Sequence[str | BoxedPicture], part_size: int) -> list[list[str | BoxedPicture]]:
    """Split pictures into parts; a container is a part by itself, after the others.

    Raises:
        ValueError: if ``part_size`` is below 1.
    """
    if part_size < 1:
        raise ValueError(f"part_size: expected 1 or more, got {part_size}")

    pictures = [name for name in files if not is_container(name)]
    containers = [name for name in files if is_container(name)]
    parts = [pictures[start : start + part_size] for start in range(0, len(pictures), part_size)]
    return parts + [[name] for name in containers]


def part_file(folder: Path, number: int, parts: int) -> Path:
    """Return the file of a part, by its number from 0 and how many parts there are."""
    digits = max(5, len(str(parts - 1)))
    return folder / f"part-{number:0{digits}}.parquet"


def compute_part(predictor: Predictor, names: Sequence[str | BoxedPicture], file: Path, **kwargs) -> tuple[int, int]:
    """Write a part unless it exists; return (pictures, failures).

    Args:
        predictor: The model.
        names: Names of the pictures, or of their container.
        file: The part's file.
        kwargs: For :func:`predict_named`.
    """
    if not file.exists():
        boxes = any(isinstance(name, BoxedPicture) for name in names)
        write_part(file, list(predict_named(predictor, names, **kwargs)), schema_of(predictor, boxes))

    footer = pq.read_metadata(file)
    return footer.num_rows, int(footer.metadata[b"failed"])


def schema_of(predictor: Predictor, boxes: bool = False) -> pa.Schema:
    """Return the columns of a predictor's answers, for boxes or for whole pictures."""
    schema = SCHEMA
    if predictor.top_k is not None:
        schema = schema.append(TOP)
    if predictor.coverage is not None:
        schema = schema.append(NODE_SET)
    if boxes:
        schema = schema.append(BOX)

    return schema


def claim_folder(
    folder: Path, files: Sequence[str | BoxedPicture], settings: dict, processes: Processes = ALONE
) -> None:
    """Write the plan of a job, or check that the folder has the same; several processes may do so at once."""
    made_of = {**describe_list(files), **settings.pop("made_of", {})}
    # Look for parts first, because a plan is written before its parts.
    parts = any(p.suffix == ".parquet" for p in folder.iterdir())
    if parts and not (folder / PLAN).exists():
        raise ValueError(f"{folder} holds parquet files of something else: choose an empty folder")

    notes = claim(
        folder / PLAN,
        {"settings": settings, "made_of": made_of},
        holds="predictions of another job",
        mend="resume with the same pictures and options, or choose another folder",
    )
    if processes.is_main:
        for line in notes:
            print(line, file=sys.stderr)


def write_part(file: Path, predictions: Sequence[Prediction], schema: pa.Schema = SCHEMA) -> None:
    """Write a part, whole or not at all, with the number of failed pictures in its footer."""
    failed = sum(p.error is not None for p in predictions)
    table = to_table(predictions, schema.with_metadata({"failed": str(failed)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(file, memoryview(sink.getvalue()))


def to_table(predictions: Sequence[Prediction], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Return predictions as a table; for a picture that failed, only ``file``, ``box`` and ``error`` are filled."""
    columns: dict[str, list] = {name: [] for name in schema.names}
    for prediction in predictions:
        for name, values in columns.items():
            values.append(_cell(prediction, name))

    return pa.table(columns, schema)


def _cell(prediction: Prediction, name: str) -> Any:
    if name == "file":
        return as_text(prediction.file)  # parquet's text is UTF-8
    if name == "box":
        return prediction.box and {key: as_text(value) for key, value in box_cells(prediction.box).items()}
    if name == "error" or prediction.error is None:
        value = getattr(prediction, name)
        return value.to_dict() if isinstance(value, NodeSet) else value
    return None
