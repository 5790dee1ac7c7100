"""Data sets in parquet files, with encoded pictures and a column for each level."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.extras import needs_extra
from ..common.text import brief, clip, from_json
from ..network.memory import check_memory
from ..taxonomy.tree import Taxonomy
from .listing import Listing, box_columns, choose_columns, collect

SMALL = 2**26  # bytes that any table may take in memory
MAX_RATIO = 100  # size in memory to size on disk; far above that of any table of pictures


def read_parquet(path: Path, taxonomy: Taxonomy | None, levels: Sequence[str] | None, group_by: str | None) -> Listing:
    """Read a parquet file with encoded pictures and a column for each level, as names or indices.

    A picture may be Hugging Face's ``struct<bytes, path>``, and a level its ``ClassLabel``, which gives the names.

    Raises:
        ValueError: if it is no complete parquet file, or a column is missing or of another type.
        MemoryBudgetError: if its columns do not fit into the memory budget.
    """
    with needs_extra("train", "parquet files"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        # Not by pq.read_table, which takes folders in the path, such as a=b, for partitions of a data set.
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if box_columns(schema.names):
                raise ValueError(f"{path}: boxes need pictures in files: name them in a .csv file")

            columns = choose_columns(path, schema.names, taxonomy, levels, group_by)
            needed = [str(columns.picture), *columns.levels.values()]
            if columns.split is not None:
                needed.append(columns.split)
            if group_by not in (None, "folder"):
                needed.append(str(group_by))
            needed = list(dict.fromkeys(needed))
            _check_types(path, {name: schema.field(name).type for name in needed}, str(columns.picture))

            cells: dict[str, list] = {name: [] for name in needed}
            for batch in _read_batches(file, needed, path):
                batch.validate(full=True)
                for name, values in cells.items():
                    values.extend(batch.column(name).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: expected a complete parquet file: {clip(error)}") from error

    for name, class_names in _class_labels(schema.metadata).items():
        if name in cells:
            cells[name] = [_class_name(value, class_names) for value in cells[name]]

    def rows() -> Iterator[tuple[int, dict]]:
        for number, values in enumerate(zip(*cells.values()), 1):
            yield number, dict(zip(cells, values))

    return collect(path, columns, rows(), taxonomy, group_by)


def _class_name(value: object, names: Sequence[str]) -> str | None:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _check_types(path: Path, types: Mapping[str, Any], picture: str) -> None:
    """Check the Arrow types of a parquet file's columns before their cells are read."""
    import pyarrow as pa

    kind = types[picture]
    inner = [kind.field(i).type for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    if not any(map(pa.types.is_binary, (kind, *inner))) and not pa.types.is_large_binary(kind):
        raise ValueError(f"{path}: expected encoded pictures (binary) in column {picture}, got {kind}")

    allowed = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_null)
    for name, kind in types.items():
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if name != picture and not any(test(kind) for test in allowed):
            raise ValueError(f"{path}: expected names or labels in column {brief(name)}, got {kind}")


def _read_batches(file: Any, columns: Sequence[str], path: Path) -> Iterator[Any]:
    """Yield record batches of an open parquet file, as long as all of them together fit into the memory budget.

    The footer says how large the columns are, but pages can repeat the values of a dictionary without limit. No value
    is larger than its dictionary, so the size of the dictionary limits how many rows are read at a time.

    Raises:
        MemoryBudgetError: if the columns are larger than the budget.
        ValueError: if a small file takes far more memory than its own size.
    """
    memory = Memory(path)
    prefixes = tuple(f"{column}." for column in columns)
    chunks = []
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        for chunk in map(row_group.column, range(row_group.num_columns)):
            if f"{chunk.path_in_schema}.".startswith(prefixes):
                chunks.append(chunk)

    memory.check(sum(max(0, chunk.total_uncompressed_size) for chunk in chunks))
    texts = sorted({chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"})

    for group in range(file.metadata.num_row_groups):
        largest = _largest_dictionary(path, texts, group)
        memory.check(largest)  # in case the footer is wrong
        rows = max(1, min(1024, SMALL // (1 + largest)))
        for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
            memory.take(batch.nbytes)
            yield batch


def _largest_dictionary(path: Path, columns: Sequence[str], group: int) -> int:
    """Return the size in bytes of the largest dictionary at the start of a row group's columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, read_dictionary=columns) as file:
        first = list(itertools.islice(file.iter_batches(batch_size=1, row_groups=[group], columns=columns), 1))

    largest = 0
    for column in pa.Table.from_batches(first).flatten().columns if first else []:
        for chunk in column.chunks:
            if pa.types.is_dictionary(chunk.type):
                largest = max(largest, chunk.dictionary.nbytes)

    return largest


class Memory:
    """Counts the memory that a table takes, so that a small file cannot fill it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path, self.stored = path, path.stat().st_size
        self.taken = 0

    def take(self, size: int) -> None:
        """Add a number of bytes and check the sum, as :meth:`check` does."""
        self.taken += size
        self.check(self.taken)

    def check(self, size: int) -> None:
        """Refuse a table of this size if it exceeds the budget, or is far larger than its file.

        Raises:
            MemoryBudgetError: if it does not fit into the budget.
            ValueError: if it is over ``MAX_RATIO`` times as large as the file.
        """
        if size > max(SMALL, MAX_RATIO * self.stored):
            raise ValueError(
                f"{self.path}: {self.stored:,} bytes take {size:,} or more in memory, over {MAX_RATIO} times as many, "
                "far more than any pictures; do not trust this file"
            )

        check_memory(size, str(self.path), "its pictures and labels, all in memory,")


def _class_labels(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the class names of columns, which Hugging Face's datasets stores in the metadata of a parquet file."""
    try:
        features = from_json((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(f["names"]) for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
