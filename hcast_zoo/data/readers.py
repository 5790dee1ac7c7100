"""Lists of labelled pictures: CSV, JSONL and parquet files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..common.extras import needs_extra
from ..common.text import brief, clip, printable
from ..taxonomy.sources import read_table, trim_path
from ..taxonomy.tree import Taxonomy


def read_csv(path: Path, taxonomy: Taxonomy | None, split: str | None) -> Iterator[tuple[Path, list[str]]]:
    """Read rows of a CSV file with a column ``file``, a column a level, and ``split`` if one is asked for.

    The level columns are those named as the taxonomy's levels, else all others. Files are relative to the CSV file.
    """
    columns, table = read_table(path)
    levels = taxonomy.levels if taxonomy else [c for c in columns if c not in ("file", "split")]
    _require(path, columns, ["file", *levels, *(["split"] if split else [])])
    for line, row in table:
        if split is None or row["split"] in split.split("+"):
            yield path.parent / row["file"], trim_path([row[c] for c in levels], f"{path} line {line}")


def read_jsonl(path: Path, taxonomy: Taxonomy | None, split: str | None) -> Iterator[tuple[Path, list]]:
    """Read one object a line: ``{"file": ..., "path": [coarse, ..., fine], "split": ...}``."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue

            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                file, labels, part = row["file"], row["path"], row.get("split")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path} line {number}: expected an object with file and path: {error}") from error

            if not isinstance(file, str) or not isinstance(labels, list):
                raise ValueError(
                    f"{path} line {number}: expected the name of a file and a list of names, got "
                    f"{brief(file)} and {brief(labels)}"
                )

            if split is None or part in split.split("+"):
                yield path.parent / file, labels


def read_parquet(path: Path, taxonomy: Taxonomy | None, split: str | None) -> Iterator[tuple[bytes, list]]:
    """Read a parquet file with a column ``image`` of encoded pictures, a column a level, and perhaps ``split``."""
    with needs_extra("train", "parquet files"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        # As a file, for a name would be taken for a part of a data set; its stored Arrow schema is not needed.
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            levels = taxonomy.levels if taxonomy else [c for c in columns if c not in ("image", "split")]
            needed = ["image", *levels, *(["split"] if split else [])]
            _require(path, columns, needed)
            table = file.read(columns=needed)
            table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: expected a complete parquet file: {clip(error)}") from error

    kinds = {name: table.schema.field(name).type for name in needed}
    if not (pa.types.is_binary(kinds["image"]) or pa.types.is_large_binary(kinds["image"])):
        raise ValueError(f"{path}: expected encoded pictures (binary) in column image, got {kinds['image']}")

    for name in needed[1:]:
        kind = kinds[name].value_type if pa.types.is_dictionary(kinds[name]) else kinds[name]
        if not (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_null(kind)
        ):
            raise ValueError(f"{path}: expected names or labels in column {brief(name)}, got {kind}")

    if split is not None:
        if not pa.types.is_string(table.schema.field("split").type):
            table = table.set_column(table.column_names.index("split"), "split", table["split"].cast(pa.string()))
        table = table.filter(pq.filters_to_expression([("split", "in", split.split("+"))]))

    return zip(table["image"].to_pylist(), map(list, zip(*(table[c].to_pylist() for c in levels))))


def _require(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [c for c in needed if c not in columns]:
        raise ValueError(f"{path}: no column {', '.join(map(printable, missing))}; it has {brief(columns)}")
