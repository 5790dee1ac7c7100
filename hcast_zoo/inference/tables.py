"""Predictions as one table: CSV, TSV, JSON, JSON lines, parquet or Excel, in our columns or those of other programs.

A row is a picture. The layouts: ``flat`` has a column for each level; ``darwin-core`` has the terms of an occurrence
(https://dwc.tdwg.org/terms); ``timelapse`` is MegaDetector's output format, which programs for camera traps read.
"""

import csv
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..common.choices import TABLE_LAYOUTS, TABLE_SUFFIXES
from ..common.extras import needs_extra
from ..common.files import whole_file
from ..common.text import printable, to_json
from ..data.boxes import COLUMNS, UNIT, Box
from ..data.detections import Detections
from .prediction import Prediction

# Ranks for which Darwin Core has a term; other levels go into identificationRemarks.
DARWIN_CORE_RANKS = ("kingdom", "phylum", "class", "order", "superfamily", "family", "subfamily", "tribe", "genus")
WHOLE_TREE = "(anything)"
EXCEL_ROWS = 1_048_576  # largest number of rows in a sheet, with the header


@dataclasses.dataclass(frozen=True)
class Source:
    """The origin of a table's predictions, and its optional columns.

    Attributes:
        model: Name of the weights, without folders.
        sha256: Checksum of their file.
        levels: Names of the taxonomy's levels, coarse to fine.
        top_k: Number of most probable paths that get columns.
        sets: Whether there are columns for the set of nodes.
        boxes: Whether there are columns for boxes.
        groups: Whether there are columns for groups.
        detections: Where the boxes are from; the timelapse format lists all pictures and boxes, even without an answer.
    """

    model: str
    sha256: str
    levels: tuple[str, ...]
    top_k: int = 0
    sets: bool = False
    boxes: bool = False
    groups: bool = False
    detections: Detections | None = None


def is_table(output: str | Path, layout: str = "flat") -> bool:
    """Return whether an output is a table by its name, and not a folder.

    Raises:
        ValueError: if its suffix is not one of a format that can be written, or the layout needs another kind of file.
    """
    suffix = Path(output).suffix.lower()
    table = suffix in TABLE_SUFFIXES
    if suffix and not table and suffix[1:].isalpha() and not Path(output).is_dir():
        raise ValueError(
            f"{output}: expected a file that ends in {', '.join(TABLE_SUFFIXES)}, or a folder's name without a suffix"
        )

    if Path(output).is_dir() and table:
        raise ValueError(f"{output}: expected a file to write, got a folder")
    if layout == "timelapse" and suffix != ".json":
        raise ValueError(f"{output}: the timelapse format is JSON: expected a file that ends in .json")
    if layout != "flat" and not table:
        raise ValueError(f"{output}: the {layout} format is a table: expected a file, not a folder")

    return table


def write_table(
    predictions: Iterable[Prediction], output: str | Path, source: Source, layout: str = "flat"
) -> tuple[int, int]:
    """Write predictions one by one; the file appears when it is complete.

    Args:
        predictions: Predictions for any number of pictures.
        output: The file; its suffix chooses the format.
        source: Their origin.
        layout: One of ``TABLE_LAYOUTS``; ``timelapse`` is always JSON.

    Returns:
        Number of pictures, and of those that failed.

    Raises:
        ValueError: if the suffix or the layout is unknown, or they do not go together.
        ImportError: if the format needs pyarrow (parquet) or openpyxl (Excel), and it is not installed.
    """
    if layout not in TABLE_LAYOUTS:
        raise ValueError(f"unknown format {layout!r}: expected one of {', '.join(TABLE_LAYOUTS)}")
    if not is_table(output, layout):
        raise ValueError(f"{output}: expected a file that ends in {', '.join(TABLE_SUFFIXES)}")

    counter = _Counter(predictions)
    if layout == "timelapse":
        writer = _write_timelapse
        rows: Iterable = counter
    else:
        make_row = darwin_core_row if layout == "darwin-core" else flat_row
        writer = WRITERS[Path(output).suffix.lower()]
        rows = (make_row(prediction, source) for prediction in counter)

    with whole_file(output) as temporary:
        writer(rows, temporary, columns(source, layout), source)

    return counter.pictures, counter.failed


def columns(source: Source, layout: str) -> list[str]:
    """Return the names of a table's columns."""
    empty = Prediction(file="")
    return list(darwin_core_row(empty, source) if layout == "darwin-core" else flat_row(empty, source))


def flat_row(prediction: Prediction, source: Source) -> dict[str, str | float | None]:
    """Return a picture's answer with a column for each level, empty below the level where the path ends.

    Columns: ``file``; for boxes, those of :func:`box_cells`; for groups, ``group`` and ``group_size``; the levels'
    names and ``LEVEL_probability``; ``path_probability``; ``stop_level`` and, with back-off, ``reason`` (why the path
    ends there); ``runner_up`` (names joined by `` > ``) and its probability; on request, ``top_1``,
    ``top_1_probability`` and so on, and ``set`` (names joined by ``; ``), ``set_leaves`` and ``subtree``; ``error``;
    ``model`` and ``model_sha256``. Probabilities are in [0, 1].
    """
    path, answered = prediction.path, prediction.error is None
    row: dict[str, str | float | None] = {"file": prediction.file}
    if source.boxes:
        row.update(box_cells(prediction.box))
    if source.groups:
        row["group"] = prediction.group
        row["group_size"] = None if prediction.group_size is None else str(prediction.group_size)

    for depth, level in enumerate(source.levels):
        row[level] = path[depth] if depth < len(path) else None
    for depth, level in enumerate(source.levels):
        row[f"{level}_probability"] = prediction.probabilities[depth] if depth < len(path) else None

    row["path_probability"] = prediction.path_probability if answered else None
    row["stop_level"] = source.levels[len(path) - 1] if path else None
    row["reason"] = prediction.reason
    row["runner_up"] = " > ".join(prediction.runner_up) or None
    row["runner_up_probability"] = prediction.runner_up_probability if prediction.runner_up else None

    for rank in range(source.top_k):
        names, probability = prediction.top[rank] if rank < len(prediction.top) else ((), None)
        row[f"top_{rank + 1}"] = " > ".join(names) or None
        row[f"top_{rank + 1}_probability"] = probability

    if source.sets:
        node_set = prediction.node_set
        row["set"] = "; ".join(node_set.nodes) if node_set else None
        row["set_leaves"] = str(node_set.leaves) if node_set else None
        row["subtree"] = (" > ".join(node_set.subtree) or WHOLE_TREE) if node_set else None

    row["error"] = prediction.error
    row["model"], row["model_sha256"] = source.model, source.sha256

    return row


def box_cells(box: Box | None) -> dict[str, str | float | None]:
    """Return the columns of a box: ``detection``, its edges and their unit, the detector's label and confidence."""
    names = ("detection", *COLUMNS, UNIT, "detector_label", "detector_confidence")
    if box is None:
        return dict.fromkeys(names)

    edges = [edge if math.isfinite(edge) else None for edge in box.edges]
    values = (box.number, *edges, "relative" if box.relative else "pixels", box.label, box.confidence)
    return dict(zip(names, values, strict=True))


def darwin_core_row(prediction: Prediction, source: Source) -> dict[str, str | float | None]:
    """Return a picture's answer as a Darwin Core occurrence that a machine has observed."""
    path = prediction.path
    by_level = {level.lower(): name for level, name in zip(source.levels, path)}
    box = prediction.box
    row: dict[str, str | float | None] = {
        "occurrenceID": prediction.file if box is None else f"{prediction.file}#{box.number}",
        "basisOfRecord": "MachineObservation",
        "scientificName": path[-1] if path else None,
        "taxonRank": source.levels[len(path) - 1].lower() if path else None,
    }
    for rank in DARWIN_CORE_RANKS:
        row[rank] = by_level.get(rank)

    if prediction.error is not None:
        remarks = [f"not identified: {prediction.error}"]
    else:
        remarks = [f"probability {prediction.path_probability:.4f}"]
        remarks += [f"{level}: {name}" for level, name in by_level.items() if level not in DARWIN_CORE_RANKS]
        if prediction.reason:
            remarks.append(prediction.reason)

    row["higherClassification"] = " | ".join(path[:-1]) or None
    row["identifiedBy"] = f"{source.model} (SHA-256 {source.sha256[:12]})"
    row["identificationVerificationStatus"] = "unverified"
    row["identificationRemarks"] = "; ".join(remarks)
    row["associatedMedia"] = prediction.file

    return row


class _Counter:
    """Yields predictions and counts them, and those that failed."""

    def __init__(self, predictions: Iterable[Prediction]):
        self.predictions, self.pictures, self.failed = predictions, 0, 0

    def __iter__(self) -> Iterator[Prediction]:
        for prediction in self.predictions:
            self.pictures += 1
            self.failed += prediction.error is not None
            yield prediction


def as_text(value: object) -> object:
    """Return a value with invalid UTF-8 replaced, as in a file name in another encoding."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _write_separated(separator: str):
    def write(rows: Iterable[dict], file: Path, names: Sequence[str], source: Source) -> None:
        with open(file, "w", encoding="utf-8", newline="") as sink:
            writer = csv.DictWriter(sink, names, delimiter=separator, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({name: as_text(value) for name, value in row.items()})

    return write


def _write_json_lines(rows: Iterable[dict], file: Path, names: Sequence[str], source: Source) -> None:
    with open(file, "w", encoding="utf-8") as sink:
        for row in rows:
            sink.write(to_json(row) + "\n")


def _write_json(rows: Iterable[dict], file: Path, names: Sequence[str], source: Source) -> None:
    with open(file, "w", encoding="utf-8") as sink:
        separator = "[\n"
        for row in rows:
            sink.write(separator + to_json(row))
            separator = ",\n"

        sink.write("[]\n" if separator == "[\n" else "\n]\n")


def _write_parquet(rows: Iterable[dict], file: Path, names: Sequence[str], source: Source) -> None:
    with needs_extra("train", "parquet files"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    schema = pa.schema([(name, _arrow_type(name, pa)) for name in names])
    with pq.ParquetWriter(file, schema, compression="zstd") as sink:
        batch: list[dict] = []
        for row in rows:
            batch.append({name: as_text(value) for name, value in row.items()})
            if len(batch) == 4096:
                sink.write_table(pa.Table.from_pylist(batch, schema))
                batch = []

        if batch:
            sink.write_table(pa.Table.from_pylist(batch, schema))


def _arrow_type(name: str, pa):
    if name in COLUMNS:
        return pa.float64()
    return pa.float32() if name.endswith(("_probability", "_confidence")) else pa.string()


def _write_excel(rows: Iterable[dict], file: Path, names: Sequence[str], source: Source) -> None:
    with needs_extra("excel", "Excel files"):
        from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet("predictions")
    sheet.freeze_panes = "B2"
    sheet.append(list(names))
    for number, row in enumerate(rows, 2):
        if number > EXCEL_ROWS:
            raise ValueError(f"a sheet of Excel holds {EXCEL_ROWS - 1:,} pictures: write .csv or .parquet")
        sheet.append([_excel_cell(row[name], sheet) for name in names])

    book.save(file)


def _excel_cell(value: object, sheet: object) -> object:
    """Return a value as a cell: text is never a formula, and has no control characters, which Excel refuses."""
    if not isinstance(value, str):
        return value

    from openpyxl.cell import WriteOnlyCell

    text = printable(str(as_text(value)))
    cell = WriteOnlyCell(sheet, value=text)
    cell.data_type = "s"
    return cell


def _write_timelapse(predictions: Iterable[Prediction], file: Path, names: Sequence[str], source: Source) -> None:
    """Write the format of MegaDetector's output.

    A whole picture is one box, classified as its path. All boxes of a detector are kept, even without an answer.
    """
    categories: dict[str, str] = {}
    kinds = {"picture": "1"} if source.detections is None else {}
    images: dict[str, dict] = {}
    boxes: dict[tuple[str, str], dict] = {}
    if source.detections is not None:
        images, boxes = _timelapse_images(source.detections, kinds)

    for number, prediction in enumerate(predictions):
        if prediction.box is not None:
            box = boxes[prediction.box.name, prediction.box.number]
            if prediction.error is not None:
                box["error"] = prediction.error
        elif prediction.error is not None:
            images[str(number)] = {"file": prediction.file, "failure": prediction.error}
            continue
        else:
            box = {"category": "1", "conf": 1.0, "bbox": [0.0, 0.0, 1.0, 1.0]}
            images[str(number)] = {"file": prediction.file, "detections": [box]}

        if prediction.path:
            key = categories.setdefault(" > ".join(prediction.path), str(len(categories) + 1))
            box["classifications"] = [[key, round(prediction.path_probability, 4)]]

    detector = "whole picture" if source.detections is None else source.detections.source.name
    document = {
        "info": {"format_version": "1.3", "detector": detector, "classifier": source.model},
        "detection_categories": {key: name for name, key in kinds.items()},
        "classification_categories": {key: name for name, key in categories.items()},
        "images": list(images.values()),
    }
    file.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _timelapse_images(
    detections: Detections, kinds: dict[str, str]
) -> tuple[dict[str, dict], dict[tuple[str, str], dict]]:
    """Return the images of a detector's file by name, and their boxes by the name of the image and their number.

    Args:
        detections: The detector's file.
        kinds: Number of each of the detector's labels; new ones are added.
    """
    images: dict[str, dict] = {}
    boxes: dict[tuple[str, str], dict] = {}
    for box in detections.boxes:
        image = images.setdefault(box.name, {"file": box.name, "detections": []})
        boxes[box.name, box.number] = _timelapse_box(box, kinds)
        image["detections"].append(boxes[box.name, box.number])

    for name in detections.names:
        failure = detections.failures.get(name)
        images.setdefault(name, {"file": name, "failure": failure} if failure else {"file": name, "detections": []})

    return images, boxes


def _timelapse_box(box: Box, kinds: dict[str, str]) -> dict:
    left, top, right, bottom = (edge if math.isfinite(edge) else None for edge in box.edges)
    numbers = [left, top, None, None]
    if None not in (left, top, right, bottom):
        numbers[2:] = [right - left, bottom - top]  # type: ignore[operator]

    return {
        "category": kinds.setdefault(box.label or "object", str(len(kinds) + 1)),
        "conf": 1.0 if box.confidence is None else box.confidence,
        "bbox": numbers,
    }


WRITERS = {
    ".csv": _write_separated(","),
    ".json": _write_json,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
    ".tsv": _write_separated("\t"),
    ".xlsx": _write_excel,
}
