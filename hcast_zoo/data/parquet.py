"""Data sets in parquet files: encoded pictures or their files, and a column for each level."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.extras import needs_extra
from ..common.text import brief, clip
from ..network import memory
from ..taxonomy.tree import Taxonomy
from .listing import Listing, choose_columns, collect

SMALL = 2**26  # bytes that any table may unfold to
MAX_RATIO = 100  # of a table's size in memory to that on disk, above which it holds no pictures


def read_parquet(path: Path, taxonomy: Taxonomy | None, levels: Sequence[str] | None, group_by: str | None) -> Listing:
    """Read a parquet file with encoded pictures or their files, and a column for each level, as names or indices.

    A picture may be Hugging Face's ``struct<bytes, path>``, and a level its ``ClassLabel``, whose names are taken.
    """
    with needs_extra("train", "parquet files"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        # As a file, for a name would be taken for a part of a data set; its stored Arrow schema is not needed.
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            found = choose_columns(path, schema.names, taxonomy, levels, group_by)
            others = [found.split, None if group_by == "folder" else group_by]
            needed = [str(found.picture), *found.levels.values(), *(c for c in others if c is not None)]
            needed = list(dict.fromkeys(needed))
            stored = pa.schema([schema.field(name) for name in needed])
            batches = (batch.select(needed) for batch in _read_batches(file, needed, path))  # in the order of stored
            table = pa.Table.from_batches(batches, stored)
            table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: expected a complete parquet file: {clip(error)}") from error

    kinds = {name: table.schema.field(name).type for name in needed}
    kind = kinds[str(found.picture)]
    inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)} if pa.types.is_struct(kind) else {}
    if not any(map(pa.types.is_binary, (kind, *inner.values()))) and not pa.types.is_large_binary(kind):
        raise ValueError(f"{path}: expected encoded pictures (binary) in column {found.picture}, got {kind}")

    for name in needed[1:]:
        kind = kinds[name].value_type if pa.types.is_dictionary(kinds[name]) else kinds[name]
        if not (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_null(kind)
        ):
            raise ValueError(f"{path}: expected names or labels in column {brief(name)}, got {kind}")

    columns = {name: table[name].to_pylist() for name in kinds}
    for name, names in _class_labels(schema.metadata).items():
        if name in columns:
            columns[name] = [names[v] if isinstance(v, int) and 0 <= v < len(names) else None for v in columns[name]]

    rows = ((number, dict(zip(columns, cells))) for number, cells in enumerate(zip(*columns.values()), 1))
    return collect(path, found, rows, taxonomy, group_by)


def _read_batches(file: Any, columns: Sequence[str], path: Path) -> Iterator[Any]:
    """Yield record batches of an open parquet file, as long as all of them fit into the memory budget together.

    The footer tells how large columns are; what it leaves out (pages repeat a value of a dictionary without limit)
    is seen in small batches.

    Raises:
        MemoryBudgetError: if the columns are larger than the budget.
        ValueError: if a small file unfolds to very much.
    """
    chunks = [
        max(0, chunk.total_uncompressed_size)
        for group in map(file.metadata.row_group, range(file.metadata.num_row_groups))
        for chunk in map(group.column, range(group.num_columns))
        if chunk.path_in_schema.split(".")[0] in columns
    ]
    what = "its pictures and labels, all in memory,"
    memory.check(sum(chunks), str(path), what)
    rows = max(1, min(1024, memory.budget() // (8 * max(chunks, default=0) + 1)))

    taken, stored = 0, path.stat().st_size
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        taken += batch.nbytes
        memory.check(taken, str(path), what)
        if taken > max(SMALL, MAX_RATIO * stored):
            raise ValueError(
                f"{path}: {stored:,} bytes unfold to more than {taken:,}, over {MAX_RATIO} times as many: no pictures "
                "do so; do not trust this file"
            )
        yield batch


def _class_labels(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of the classes of columns, as Hugging Face's datasets notes them in a parquet file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(f["names"]) for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
