"""Predict many pictures into a folder of parquet files, with any number of processes, any of which can be killed.

The list of pictures is split into parts, and part n belongs to process n modulo the number of processes. A part is
renamed to its final name when complete, and is never computed again. So processes need no communication, each picture
is in exactly one part, and a job that was stopped can be resumed with another number of processes.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

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
# What a predictor gives only on request.
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
    """Write ``part-00000.parquet`` and so on; yield (pictures, failures) of each of our parts, new or existing.

    Args:
        predictor: The model.
        files: All pictures, boxes in them, or parquet files and stored shards, in the same order in every process.
        folder: Where the parts are, or will be.
        settings: Plain data that identifies the model and the decoding; a job resumes only with the same. Its
            ``made_of`` holds digests of the inputs.
        part_size: Pictures per part; all of a parquet file, or of a shard in a store, are one part.
        processes: The processes that share the work.
        kwargs: For :func:`predict_named`.

    Raises:
        ValueError: if the folder holds predictions of other pictures or settings, or other files, or another job is
            at work in it.
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
    plain = [name for name in files if not is_container(name)]
    parts = [plain[start : start + part_size] for start in range(0, len(plain), part_size)]
    return parts + [[name] for name in files if is_container(name)]


def part_file(folder: Path, number: int, parts: int) -> Path:
    """Return the file of a part, by its number from 0 and how many parts there are."""
    digits = max(5, len(str(parts - 1)))
    return folder / f"part-{number:0{digits}}.parquet"


def compute_part(predictor: Predictor, names: Sequence[str | BoxedPicture], file: Path, **kwargs) -> tuple[int, int]:
    """Write a part, unless it is there; return (pictures, failures).

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
    """Return the columns of a predictor's answers, about boxes or whole pictures."""
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
    """Write the plan of a job, or check that the folder's is the same; processes may do so at the same time."""
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
    """Write a part atomically, with the number of failed pictures in its footer."""
    failed = sum(p.error is not None for p in predictions)
    table = to_table(predictions, schema.with_metadata({"failed": str(failed)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(file, memoryview(sink.getvalue()))


def to_table(predictions: Sequence[Prediction], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Return predictions as a table, with nothing but ``file`` and ``error`` where a picture failed."""
    columns = {}
    for name in schema.names:
        columns[name] = [getattr(p, name) if p.error is None or name == "error" else None for p in predictions]
    if "node_set" in columns:
        columns["node_set"] = [found and found.to_dict() for found in columns["node_set"]]
    if "box" in columns:
        columns["box"] = [p.box and {k: as_text(v) for k, v in box_cells(p.box).items()} for p in predictions]

    columns["file"] = [p.file.encode(errors="replace").decode() for p in predictions]  # parquet's text is UTF-8
    return pa.table(columns, schema)
