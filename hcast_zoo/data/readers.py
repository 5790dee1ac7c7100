"""Lists of labelled pictures: tables (CSV, TSV), JSONL and parquet files, and folders, all as one :class:`Listing`."""

import dataclasses
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.extras import needs_extra
from ..common.files import check_file
from ..common.formats import is_picture_name
from ..common.text import brief, clip, printable
from ..common.walk import Skipped, is_junk
from ..network import memory
from ..taxonomy.columns import Columns, find_columns
from ..taxonomy.names import clean_name
from ..taxonomy.sources import TaxonomyError, complete_paths, lines, read_table, walk
from ..taxonomy.tree import Taxonomy

PREPARED = "data.jsonl"  # the list of a folder that `hcast-zoo data prepare` wrote
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # of Hugging Face's image folders
SMALL = 2**26  # bytes that any table may unfold to
MAX_RATIO = 100  # of a table's size in memory to that on disk, above which it holds no pictures
SUFFIXES = (".csv", ".jsonl", ".parquet", ".tsv", ".txt")
SPLIT_NAMES = {  # what a part is called elsewhere
    "train": ("train", "training", "trainset", "train_set"),
    "val": ("val", "valid", "validation", "dev", "valset", "val_set"),
    "test": ("test", "testing", "testset", "test_set"),
}


@dataclasses.dataclass
class Listing:
    """Pictures of a source, before a tree turns their names into labels.

    Attributes:
        source: Where it was read from.
        pictures: Files, or encoded pictures.
        paths: Names (or node indices), coarse to fine; None where unknown.
        levels: Names of the levels; None if they are numbered.
        splits: Part of the data of each picture; None if the source has no parts.
        groups: What each picture belongs to, such as a camera; None if that was not asked for.
    """

    source: Path
    pictures: list[Path | bytes]
    paths: list[Sequence]
    levels: tuple[str, ...] | None = None
    splits: list[str] | None = None
    groups: list[str] | None = None

    def part(self, split: str | None) -> "Listing":
        """Return the pictures of a part, or of several: ``train+val``. Common other names of a part are understood.

        Raises:
            ValueError: if there is no such part; the message names those that are there.
        """
        if split is None:
            return self
        if self.splits is None:
            raise ValueError(
                f"{self.source}: expected a part {split!r}, but these pictures are in no parts. Have pictures held out "
                "by --val-fraction 0.15, and for an unseen test --test-fraction 0.15"
            )

        there = list(dict.fromkeys(self.splits))
        wanted = set()
        for name in split.split("+"):
            found = find_split(name, there)
            if found is None:
                raise ValueError(
                    f"{self.source}: expected pictures of the part {name!r}; its parts are "
                    f"{', '.join(printable(str(part)) for part in there) or '(none)'}"
                )
            wanted.add(found)

        keep = [index for index, part in enumerate(self.splits) if part in wanted]
        return self.take(keep)

    def take(self, keep: Sequence[int]) -> "Listing":
        """Return the pictures of these indices."""
        return Listing(
            source=self.source,
            pictures=[self.pictures[i] for i in keep],
            paths=[self.paths[i] for i in keep],
            levels=self.levels,
            splits=None if self.splits is None else [self.splits[i] for i in keep],
            groups=None if self.groups is None else [self.groups[i] for i in keep],
        )

    def taxonomy(self, strict_names: bool = False) -> Taxonomy:
        """Return the tree of these pictures' paths."""
        paths: Iterable[tuple] = dict.fromkeys(map(tuple, self.paths))
        if numbers := [name for path in paths for name in path if name is not None and not isinstance(name, str)]:
            raise TaxonomyError(
                f"{self.source}: expected names of nodes, got {brief(numbers[0])}: numbers need a --taxonomy that says "
                "what they stand for"
            )
        rows = complete_paths(path for path in paths if any(name is not None for name in path))
        name = "" if self.source.is_file() else self.source.resolve().name
        return Taxonomy.from_paths(rows, self.levels, clean_name(name), strict_names=strict_names)


def find_split(name: str, there: Iterable[str]) -> str | None:
    """Return which of the names of parts stands for one: itself, else in another case, else a common other name."""
    parts = list(there)
    if name in parts:
        return name
    others = next((names for names in SPLIT_NAMES.values() if name.lower() in names), (name.lower(),))
    return next((part for part in parts if isinstance(part, str) and part.lower() in others), None)


def read(
    source: str | Path,
    taxonomy: Taxonomy | None = None,
    wanted: Sequence[str] = (),
    *,
    levels: Sequence[str] | None = None,
    group_by: str | None = None,
    synonyms: Mapping[str, str] | None = None,
) -> Listing:
    """List the pictures of a folder or a file.

    Args:
        source: A folder tree, with a folder for each part or without; a folder with Hugging Face's ``metadata.csv``,
            or one that ``hcast-zoo data prepare`` wrote; a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file.
        taxonomy: Its levels name the columns, as far as they are there.
        wanted: Parts that will be asked for; they tell whether a folder's sub-folders are parts or labels.
        levels: Columns that are levels, coarse to fine.
        group_by: Column of what pictures belong to, or ``folder`` for the folder a picture is in.
        synonyms: Old name to new.

    Raises:
        ValueError: if the source is of another kind, not there, or not as expected.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if source.is_dir():
        listing = _read_folder(source, taxonomy, wanted, levels, group_by)
    else:
        listing = _read_file(source, taxonomy, levels, group_by)

    if group_by == "folder":
        listing.groups = [str(p.parent) if isinstance(p, Path) else str(i) for i, p in enumerate(listing.pictures)]
    if synonyms:
        listing.paths = [[synonyms.get(n, n) if isinstance(n, str) else n for n in path] for path in listing.paths]
    if not listing.pictures:
        raise ValueError(f"{source}: expected at least one picture, got none")

    return listing


def read_synonyms(path: str | Path) -> dict[str, str]:
    """Read a table of an old and a new name a row; chains are followed.

    Raises:
        ValueError: if there are not two columns, or names lead in a circle.
    """
    columns, table = read_table(path)
    if len(columns) != 2:
        raise ValueError(f"{path}: expected two columns, the old name and the new one, got {brief(columns)}")
    rows = [tuple(clean_name(cell) for cell in row.values()) for _, row in table]
    if [c.lower() for c in columns] != ["old", "new"]:  # then the first row is one of names
        rows.insert(0, (columns[0], columns[1]))
    found = {old: new for old, new in rows if old and new}

    for old in found:
        seen = {old}
        while found[old] in found:
            if found[old] in seen:
                raise ValueError(f"{path}: the name {brief(found[old])} leads in a circle")
            seen.add(found[old])
            found[old] = found[found[old]]

    return found


def _read_folder(
    source: Path,
    taxonomy: Taxonomy | None,
    wanted: Sequence[str],
    levels: Sequence[str] | None,
    group_by: str | None,
) -> Listing:
    if (source / PREPARED).is_file():
        return _read_file(source / PREPARED, taxonomy, levels, group_by)
    for name in METADATA:
        if (source / name).is_file():
            return _read_file(source / name, taxonomy, levels, group_by)

    parts = split_folders(source, wanted)
    if not parts:
        rows = folder_rows(source)
        return Listing(
            source=source,
            pictures=[file for file, _ in rows],
            paths=[path for _, path in rows],
            levels=tuple(levels) if levels else None,
        )

    whole = Listing(
        source=source, pictures=[], paths=[], levels=tuple(levels) if levels else None, splits=[], groups=None
    )
    for part in parts:
        inner = _read_folder(source / part, taxonomy, (), levels, group_by)
        whole.pictures += inner.pictures
        whole.paths += inner.paths
        whole.levels = inner.levels
        whole.splits = [*(whole.splits or ()), *[part] * len(inner.pictures)]
        if inner.groups is not None:
            whole.groups = [*(whole.groups or ()), *inner.groups]

    return whole


def split_folders(source: Path, wanted: Sequence[str]) -> list[str]:
    """Return the sub-folders that are parts of the data; none if they are labels.

    They are parts if one of those that are wanted is there, and at least half of them are wanted or commonly so named.
    """
    names = sorted(child.name for child in source.iterdir() if child.is_dir() and not is_junk(child.name))
    asked = [name for names in wanted for name in names.split("+")]
    found = [part for part in (find_split(name, names) for name in asked) if part is not None]
    known = {name for name in names for others in SPLIT_NAMES.values() if name.lower() in others}
    parts = known | set(found)
    return [name for name in names if name in parts] if found and 2 * len(parts) >= len(names) else []


def folder_rows(root: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the pictures of a tree of folders, sorted, each with the names of the folders that it is in."""
    skipped = Skipped()
    files = []
    for folder, _, names in walk(root, skipped):
        files += [folder / name for name in names if is_picture_name(name, skipped)]

    skipped.tell(root)
    return [(file, file.relative_to(root).parts[:-1]) for file in sorted(files)]


def _read_file(path: Path, taxonomy: Taxonomy | None, levels: Sequence[str] | None, group_by: str | None) -> Listing:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a folder, or a file that ends in {', '.join(SUFFIXES)}")
    check_file(path)
    if suffix == ".jsonl":
        return _read_jsonl(path, taxonomy, levels, group_by)
    if suffix == ".parquet":
        return _read_parquet(path, taxonomy, levels, group_by)

    header, rows = read_table(path)
    found = choose_columns(path, header, taxonomy, levels, group_by)
    return _collect(path, found, rows, taxonomy, group_by)


def choose_columns(
    path: Path,
    header: Sequence[str],
    taxonomy: Taxonomy | None,
    levels: Sequence[str] | None = None,
    group_by: str | None = None,
) -> Columns:
    """Tell what the columns of a data set are; warn of those that are not used.

    With a taxonomy, the columns of its levels; if none is there, as many others as it has levels, which are then taken
    in their order, as for a model that was trained on folders.

    Raises:
        ValueError: if there is no column of pictures or of levels; the message names the columns.
    """
    try:
        found = find_columns(header, levels, [group_by] if group_by else [])
        if found.picture is None:
            raise ValueError(f"no column file (or file_name, image, path ...); it has {brief(list(header))}")
        named = {level.lower() for level in header}
        if taxonomy is not None and levels is None:
            there = [level for level in taxonomy.levels if level.lower() in named]
            if there:
                found = find_columns(header, there)
            elif len(found.levels) != len(taxonomy.levels):
                raise ValueError(
                    f"no column {', '.join(map(printable, taxonomy.levels))}; it has {brief(list(header))}. Name the "
                    f"columns of the {len(taxonomy.levels)} levels, coarse to fine, by --levels"
                )
        if not found.levels:
            raise ValueError(f"no column of a level; it has {brief(list(header))}: name them by --levels")
        if group_by not in (None, "folder") and group_by not in header:
            raise ValueError(f"no column {group_by} to group by; it has {brief(list(header))}")
    except TaxonomyError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

    unused = [column for column in found.unused if column != group_by]
    if unused and levels is None and taxonomy is None:
        warnings.warn(
            f"{path}: levels are {', '.join(map(printable, found.levels))}; not used: "
            f"{clip(', '.join(map(printable, unused)), 300)} (--levels names others)",
            stacklevel=2,
        )
    return found


def _collect(
    path: Path,
    found: Columns,
    rows: Iterable[tuple[int, Mapping]],
    taxonomy: Taxonomy | None,
    group_by: str | None,
) -> Listing:
    names = tuple(found.levels)
    numbered = taxonomy is not None and not any(name in taxonomy.levels for name in names)
    place = None if taxonomy is None or numbered else [taxonomy.levels.index(name) for name in names]
    listing = Listing(
        source=path,
        pictures=[],
        paths=[],
        levels=names,
        splits=None if found.split is None else [],
        groups=None if group_by is None else [],
    )

    for line, row in rows:
        listing.pictures.append(_picture(path, line, row[str(found.picture)]))
        labels = found.path(row)
        if place is not None and taxonomy is not None:
            whole: list = [None] * len(taxonomy.levels)
            for level, label in zip(place, labels):
                whole[level] = label
            labels = whole
        listing.paths.append(labels)
        if listing.splits is not None:
            listing.splits.append(_text(row[str(found.split)]))
        if listing.groups is not None and group_by != "folder":
            listing.groups.append(_text(row[str(group_by)]))

    return listing


def _text(cell: object) -> str:
    return "" if cell is None else str(cell).strip()


def _picture(path: Path, line: int, cell: object) -> Path | bytes:
    if isinstance(cell, Mapping):  # Hugging Face's pictures
        if cell.get("bytes") is not None:
            return cell["bytes"]
        cell = cell.get("path")
    if cell is None:
        return b""  # read as a broken picture, which is left out
    if isinstance(cell, (bytes, bytearray)):
        return bytes(cell)
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(f"{path} line {line}: expected the name of a picture, got {brief(cell)}")
    if cell.startswith(("http://", "https://")):
        raise ValueError(
            f"{path} line {line}: expected a picture on this machine, got {brief(cell)}: download the pictures first, "
            "and name their files in a column 'file'"
        )
    return path.parent / cell.strip()


def _read_jsonl(path: Path, taxonomy: Taxonomy | None, levels: Sequence[str] | None, group_by: str | None) -> Listing:
    """Read one object a line: ``{"file": ..., "path": [coarse, ..., fine], "split": ...}``, or a key for each level."""
    lines = _json_lines(path)
    first = next(lines, None)
    if first is None:
        return Listing(path, [], [])
    lines = itertools.chain([first], lines)
    if "path" not in first[1] and "file" not in first[1] and isinstance(first[1].get("file_name"), str):
        found = choose_columns(path, list(first[1]), taxonomy, levels, group_by)
        return _collect(path, found, ((number, _Row(row)) for number, row in lines), taxonomy, group_by)

    listing = Listing(
        source=path, pictures=[], paths=[], levels=None, splits=[], groups=None if group_by is None else []
    )
    for number, row in lines:
        try:
            file, labels, part = row["file"], row["path"], row.get("split")
        except KeyError as error:
            raise ValueError(f"{path} line {number}: expected an object with file and path: {error}") from error
        if not isinstance(file, str) or not isinstance(labels, list):
            raise ValueError(
                f"{path} line {number}: expected the name of a file and a list of names, got "
                f"{brief(file)} and {brief(labels)}"
            )
        if wrong := [label for label in labels if isinstance(label, (list, dict))]:
            raise ValueError(f"{path} line {number}: expected names in path, got {brief(wrong[0])}")
        if part is not None and not isinstance(part, str):
            raise ValueError(f"{path} line {number}: expected the name of a part as split, got {brief(part)}")
        listing.pictures.append(path.parent / file)
        listing.paths.append(labels)
        listing.splits.append(part)  # type: ignore[union-attr, arg-type]
        if listing.groups is not None and group_by != "folder":
            listing.groups.append(_text(row.get(group_by)))

    if all(part is None for part in listing.splits or ()):
        listing.splits = None
    return listing


class _Row(dict):
    """A row of JSON, in which keys may be missing."""

    def __missing__(self, key: str) -> None:
        return None


def _json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    with open(path, "rb") as file:
        for number, line in enumerate(lines(file, path), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(row, dict):
                    raise TypeError(f"got {brief(row)}")
            except (ValueError, TypeError, RecursionError) as error:
                raise ValueError(f"{path} line {number}: expected an object with file and path: {error}") from error
            yield number, row


def _read_parquet(path: Path, taxonomy: Taxonomy | None, levels: Sequence[str] | None, group_by: str | None) -> Listing:
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
    return _collect(path, found, rows, taxonomy, group_by)


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
