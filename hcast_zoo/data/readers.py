"""Lists of labelled pictures: tables (CSV, TSV), JSONL and parquet files, and folders, all as one :class:`Listing`."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..common.files import check_file
from ..common.formats import is_picture_name
from ..common.text import brief
from ..common.walk import Skipped, is_junk
from ..network.memory import check_memory
from ..taxonomy.names import clean_name
from ..taxonomy.sources import bounded_lines, read_table, walk_tree
from ..taxonomy.tree import Taxonomy
from .listing import (
    SPLIT_NAMES,
    Listing,
    box_columns,
    cell_text,
    choose_columns,
    collect,
    common_split,
    find_split,
    in_box,
    join_listings,
)
from .parquet import read_parquet
from .pictures import picture_bytes
from .tar_shards import is_shard, shard_members

PREPARED = "data.jsonl"  # the list in a folder that `hcast-zoo data prepare` wrote
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # the table of Hugging Face's image folders
SUFFIXES = (".csv", ".jsonl", ".parquet", ".tar", ".tsv", ".txt")


def read_listing(
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
            with parquet or tar shards, or one that ``hcast-zoo data prepare`` wrote; a ``.csv``, ``.tsv``, ``.jsonl``,
            ``.parquet`` or ``.tar`` (WebDataset) file.
        taxonomy: Columns named after its levels are the levels.
        wanted: Parts that will be used; they decide whether the sub-folders of a folder are parts or labels.
        levels: Columns that are levels, coarse to fine.
        group_by: Column that names the group of each picture, or ``folder`` to group by the picture's folder.
        synonyms: New names by old ones.

    Raises:
        ValueError: if the source does not exist, is of another kind, or is malformed.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder: check the name, which counts from {os.getcwd()}")

    if source.is_dir():
        listing = _read_folder(source, taxonomy, wanted, levels, group_by)
    else:
        listing = _read_file(source, taxonomy, levels, group_by)

    if group_by == "folder":
        listing.groups = []
        for number, picture in enumerate(listing.pictures):
            listing.groups.append(str(number) if isinstance(picture, bytes) else os.path.dirname(picture))

    if synonyms:
        listing.paths = [_current_names(path, synonyms) for path in listing.paths]
    if not listing.pictures:
        raise ValueError(
            f"{source}: expected at least one picture, got none: names of pictures end in .jpg, .png, .tif ..."
        )

    return listing


def _current_names(path: Sequence, synonyms: Mapping[str, str]) -> list:
    return [synonyms.get(name, name) if isinstance(name, str) else name for name in path]


def read_synonyms(path: str | Path) -> dict[str, str]:
    """Read a table with an old and a new name per row; chains of names are followed.

    Raises:
        ValueError: if there are not two columns, or a chain is circular.
    """
    columns, table = read_table(path)
    if len(columns) != 2:
        raise ValueError(f"{path}: expected two columns, the old name and the new one, got {brief(columns)}")

    rows = [tuple(map(clean_name, row.values())) for _, row in table]
    if [c.lower() for c in columns] != ["old", "new"]:  # without a header, the first row is names, too
        rows.insert(0, (columns[0], columns[1]))
    synonyms = {old: new for old, new in rows if old and new}

    for old in synonyms:
        seen = {old}
        while synonyms[old] in synonyms:
            if synonyms[old] in seen:
                raise ValueError(f"{path}: expected chains of names that end, but {brief(synonyms[old])} is circular")
            seen.add(synonyms[old])
            synonyms[old] = synonyms[synonyms[old]]

    return synonyms


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
            return _split_by_folder(_read_file(source / name, taxonomy, levels, group_by))

    if shards := find_shards(source):
        return _read_shards(source, shards, taxonomy, levels, group_by)

    parts = split_folders(source, wanted)
    if parts:
        listings = [_read_folder(source / part, taxonomy, (), levels, group_by) for part in parts]
        return join_listings(source, listings, parts)

    rows = folder_rows(source)
    return Listing(
        source=source,
        pictures=[file for file, _ in rows],
        paths=[path for _, path in rows],
        levels=tuple(levels) if levels else None,
    )


def find_shards(source: Path) -> list[Path]:
    """Return the shards (parquet, tar) in and below a folder, sorted; none if it has pictures, which go first."""
    shards = []
    for folder, _, names in walk_tree(source):
        if any(map(is_picture_name, names)):
            return []
        shards += [folder / name for name in names if name.lower().endswith((".parquet", ".tar"))]

    return sorted(shards)


def _read_shards(
    source: Path,
    shards: Sequence[Path],
    taxonomy: Taxonomy | None,
    levels: Sequence[str] | None,
    group_by: str | None,
) -> Listing:
    """Read several shards as one; without a column for parts, file names say the part: ``train-00000-of-00004``."""
    size = sum(shard.stat().st_size for shard in shards if not is_shard(shard))
    check_memory(size, str(source), "its pictures, all in memory,")

    listings = [_read_file(shard, taxonomy, levels, group_by) for shard in shards]
    parts = [common_split(shard.name) or common_split(shard.parent.name) for shard in shards]
    return join_listings(source, listings, parts)


def _split_by_folder(listing: Listing) -> Listing:
    """Use the folders of the pictures as parts, if the listing has no parts and all folders have names of parts."""
    root = listing.source.parent
    if listing.splits is not None or not all(isinstance(picture, Path) for picture in listing.pictures):
        return listing

    folders = [Path(os.path.relpath(str(picture), root)).parts[0] for picture in listing.pictures]
    if folders and all(map(common_split, set(folders))):
        listing.splits = folders

    return listing


def split_folders(source: Path, wanted: Sequence[str]) -> list[str]:
    """Return the sub-folders that are parts of the data; none if they are labels.

    They are parts if a wanted part exists, and at least half of them are wanted or have a common name of a part.
    """
    names = sorted(child.name for child in source.iterdir() if child.is_dir() and not is_junk(child.name))
    existing = {find_split(name, names) for name in "+".join(wanted).split("+")} - {None}
    common = set(itertools.chain.from_iterable(SPLIT_NAMES.values()))
    parts = [name for name in names if name in existing or name.lower() in common]

    return parts if existing and 2 * len(parts) >= len(names) else []


def folder_rows(root: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the pictures in a tree of folders, sorted, each with the names of the folders it lies in."""
    skipped = Skipped()
    files = []
    for folder, _, names in walk_tree(root, skipped):
        files += [folder / name for name in names if is_picture_name(name, skipped)]

    skipped.warn(root)
    return [(file, file.relative_to(root).parts[:-1]) for file in sorted(files)]


def _read_file(path: Path, taxonomy: Taxonomy | None, levels: Sequence[str] | None, group_by: str | None) -> Listing:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a folder, or a file that ends in {', '.join(SUFFIXES)}")

    check_file(path)
    if suffix == ".jsonl":
        return _read_jsonl(path, taxonomy, levels, group_by)
    if suffix == ".parquet":
        return read_parquet(path, taxonomy, levels, group_by)
    if suffix == ".tar":
        return read_tar(path, taxonomy, levels, group_by)

    header, rows = read_table(path)
    columns = choose_columns(path, header, taxonomy, levels, group_by)
    return collect(path, columns, rows, taxonomy, group_by)


def _read_jsonl(path: Path, taxonomy: Taxonomy | None, levels: Sequence[str] | None, group_by: str | None) -> Listing:
    """Read one object per line: ``{"file": ..., "path": [coarse, ..., fine], "split": ...}``, or a key per level."""
    return _read_objects(path, _json_lines(path), taxonomy, levels, group_by)


def _read_objects(
    path: Path,
    rows: Iterator[tuple[int, dict]],
    taxonomy: Taxonomy | None,
    levels: Sequence[str] | None,
    group_by: str | None,
) -> Listing:
    """Return the listing of numbered JSON objects, whose labels are a ``path`` or in one key per level."""
    first = next(rows, None)
    if first is None:
        return Listing(source=path, pictures=[], paths=[])

    rows = itertools.chain([first], rows)
    keys = first[1]
    by_column = path.suffix.lower() == ".tar" or ("file" not in keys and isinstance(keys.get("file_name"), str))
    if "path" not in keys and by_column:
        columns = choose_columns(path, list(keys), taxonomy, levels, group_by)
        return collect(path, columns, ((number, _Row(row)) for number, row in rows), taxonomy, group_by)

    listing = Listing(
        source=path, pictures=[], paths=[], levels=None, splits=[], groups=None if group_by is None else []
    )
    for number, row in rows:
        file, labels, part = _file_path_split(row, f"{path} line {number}")
        listing.pictures.append(in_box(path.parent / file, row, box_columns(row)))
        listing.paths.append(labels)
        listing.splits.append(part)  # type: ignore[union-attr, arg-type]
        if listing.groups is not None and group_by != "folder":
            listing.groups.append(cell_text(row.get(group_by)))

    if all(part is None for part in listing.splits or ()):
        listing.splits = None

    return listing


def _file_path_split(row: Mapping, where: str) -> tuple[str, list, str | None]:
    """Return the values of ``file``, ``path`` and ``split``, after checking their types."""
    try:
        file, labels, part = row["file"], row["path"], row.get("split")
    except KeyError as error:
        raise ValueError(f"{where}: expected an object with file and path: {error}") from error

    if not isinstance(file, str) or not isinstance(labels, list):
        raise ValueError(
            f"{where}: expected the name of a file and a list of names, got {brief(file)} and {brief(labels)}"
        )
    for label in labels:
        if isinstance(label, (list, dict)):
            raise ValueError(f"{where}: expected names in path, got {brief(label)}")
    if part is not None and not isinstance(part, str):
        raise ValueError(f"{where}: expected the name of a part as split, got {brief(part)}")

    return file, labels, part


def read_tar(path: Path, taxonomy: Taxonomy | None, levels: Sequence[str] | None, group_by: str | None) -> Listing:
    """List the pictures of a WebDataset shard, which are read from it only when they are used.

    A picture's labels are in the JSON object of its sample, as in a row of a JSONL file; otherwise in a ``.cls`` file
    with the number of its leaf in the taxonomy; otherwise they are the folders that the picture lies in.

    Raises:
        ValueError: if the shard is damaged, or labels are missing or malformed.
    """
    pictures, objects, leaves = [], {}, {}
    for name in shard_members(path):
        if name.lower().endswith(".json"):
            objects[_sample(name)] = name
        elif name.lower().endswith(".cls"):
            leaves[_sample(name)] = name
        elif is_picture_name(name):
            pictures.append(name)

    if objects:
        return _read_objects(path, _tar_rows(path, pictures, objects), taxonomy, levels, group_by)

    listing = Listing(source=path, pictures=[path / name for name in pictures], paths=[])
    listing.levels = tuple(levels) if levels else None
    for name in pictures:
        leaf = leaves.get(_sample(name))
        if leaf is None:
            listing.paths.append(name.split("/")[:-1])
        else:
            listing.paths.append(_leaf_path(path / leaf, taxonomy))

    return listing


def _sample(name: str) -> str:
    """Return the WebDataset sample of a member: its name up to the first dot that follows its folders."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _leaf_path(file: Path, taxonomy: Taxonomy | None) -> Sequence:
    """Return the path of the leaf whose number a ``.cls`` file holds."""
    if taxonomy is None:
        raise ValueError(f"{file}: numbers of leaves need a --taxonomy that says what they stand for")

    text = picture_bytes(file)[:100].decode("utf-8", "replace").strip()
    if not text.isdecimal() or int(text) >= len(taxonomy.paths):
        raise ValueError(f"{file}: expected the number of a leaf, 0 to {len(taxonomy.paths) - 1}, got {brief(text)}")
    return taxonomy.paths[int(text)]


def _tar_rows(path: Path, pictures: Sequence[str], objects: Mapping[str, str]) -> Iterator[tuple[int, dict]]:
    """Yield the number and the JSON object of each picture, with the picture's name as ``file``."""
    for number, name in enumerate(pictures, 1):
        member = objects.get(_sample(name))
        if member is None:
            raise ValueError(f"{path}: expected a .json file beside {brief(name)}, as beside other pictures")
        row = _json_object(picture_bytes(path / member), f"{path}/{member}")
        yield number, {**row, "file": f"{path.name}/{name}"}


class _Row(dict):
    """A row of JSON; the value of a missing key is None."""

    def __missing__(self, key: str) -> None:
        return None


def _json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    with open(path, "rb") as file:
        for number, line in enumerate(bounded_lines(file, path), 1):
            if not line.strip():
                continue

            yield number, _json_object(line, f"{path} line {number}", "utf-8-sig" if number == 1 else "utf-8")


def _json_object(text: bytes, where: str, encoding: str = "utf-8") -> dict:
    try:
        row = json.loads(text.decode(encoding))
        if not isinstance(row, dict):
            raise TypeError(f"got {brief(row)}")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}: expected an object with file and path: {error}") from error
    return row
