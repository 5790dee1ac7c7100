"""Predict many pictures into a folder of parquet files, with any number of processes, any of which can be killed.

The list of pictures is split into parts, and part n belongs to process n modulo the number of processes. A part is
renamed to its final name when complete, and is never computed again. So processes need no communication, each picture
is in exactly one part, and a job that was stopped can be resumed with another number of processes.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.claim import claim, own_folder
from ..common.files import write_whole
from ..common.processes import ALONE, Processes
from ..data.boxes import COLUMNS, UNIT, BoxedPicture
from .prediction import Prediction
from .predictor import Predictor
from .resume import picture_key
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
    """Write ``part-00000.parquet`` and so on; yield (pictures, failures) of each part of ours, made now or before.

    Args:
        predictor: The model.
        files: All pictures, or boxes in them, in the same order in every process.
        folder: Where the parts are, or will be.
        settings: Plain data that tells the model and the decoding; a job goes on only with the same. Of them
            ``made_of`` are digests of what goes in.
        part_size: Pictures per part.
        processes: The processes that share the work.
        kwargs: For :meth:`Predictor.predict`.

    Raises:
        ValueError: if the folder holds predictions of other pictures or settings, or other files, or another job is
            at work in it.
    """
    if part_size < 1:
        raise ValueError(f"part_size: expected 1 or more, got {part_size}")
    folder = Path(folder)
    schema = SCHEMA
    if predictor.top_k is not None:
        schema = schema.append(TOP)
    if predictor.coverage is not None:
        schema = schema.append(NODE_SET)
    if any(isinstance(file, BoxedPicture) for file in files):
        schema = schema.append(BOX)

    with own_folder(folder, processes):
        claim_folder(folder, files, {**settings, "part_size": part_size}, processes)
        starts = range(0, len(files), part_size)
        digits = max(5, len(str(len(starts) - 1)))
        for number in range(processes.rank, len(starts), processes.count):
            file = folder / f"part-{number:0{digits}}.parquet"
            if not file.exists():
                part = files[starts[number] : starts[number] + part_size]
                write_part(file, list(predictor.predict(part, **kwargs)), schema)
            footer = pq.read_metadata(file)
            yield footer.num_rows, int(footer.metadata[b"failed"])


def claim_folder(
    folder: Path, files: Sequence[str | BoxedPicture], settings: dict, processes: Processes = ALONE
) -> None:
    """Write the plan of a job, or check that the folder's is the same; processes may do so at the same time."""
    digest = hashlib.sha256()
    for name in files:
        digest.update(picture_key(name).encode(errors="surrogatepass") + b"\0")
    made_of = {"pictures": len(files), "list_sha256": digest.hexdigest(), **settings.pop("made_of", {})}
    # Parts are looked for first, because a plan is written before its parts.
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
    columns = {}
    for name in schema.names:
        columns[name] = [getattr(p, name) if p.error is None or name == "error" else None for p in predictions]
    if "node_set" in columns:
        columns["node_set"] = [found and found.to_dict() for found in columns["node_set"]]
    if "box" in columns:
        columns["box"] = [p.box and {k: as_text(v) for k, v in box_cells(p.box).items()} for p in predictions]

    columns["file"] = [p.file.encode(errors="replace").decode() for p in predictions]  # parquet's text is UTF-8
    failed = sum(p.error is not None for p in predictions)
    table = pa.table(columns, schema.with_metadata({"failed": str(failed)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(file, memoryview(sink.getvalue()))
