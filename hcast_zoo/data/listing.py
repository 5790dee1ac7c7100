"""Lists of labelled pictures, and how they are made from the rows of a table."""

import dataclasses
import itertools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..common.text import brief, clip, printable
from ..taxonomy.columns import Columns, find_columns
from ..taxonomy.names import clean_name
from ..taxonomy.paths import complete_paths
from ..taxonomy.sources import TaxonomyError
from ..taxonomy.tree import Taxonomy
from .boxes import COLUMNS, UNIT, Box, BoxedPicture, BoxGeometry, with_geometry

SPLIT_NAMES = {  # common names of each part
    "train": ("train", "training", "trainset", "train_set"),
    "val": ("val", "valid", "validation", "dev", "valset", "val_set"),
    "test": ("test", "testing", "testset", "test_set"),
}


@dataclasses.dataclass
class Listing:
    """Pictures of a source, before their names are turned into labels of a tree.

    Attributes:
        source: The file or folder that was read.
        pictures: Files, encoded pictures, or boxes in files.
        paths: One path per picture: names (or node indices), coarse to fine; None where unknown.
        levels: Names of the levels; None if they are numbered.
        splits: The part of each picture; None if the source has no parts.
        groups: The group of each picture, such as its camera; None if pictures are not grouped.
    """

    source: Path
    pictures: list[Path | bytes | BoxedPicture]
    paths: list[Sequence]
    levels: tuple[str, ...] | None = None
    splits: list[str] | None = None
    groups: list[str] | None = None

    def part(self, split: str | None) -> "Listing":
        """Return the pictures of a part, or of several (``train+val``); other common names of a part are accepted.

        Raises:
            ValueError: if there is no such part; the message names the existing ones.
        """
        if split is None:
            return self

        if self.splits is None:
            if split not in (parts := _part_folders(self.source)) and parts:
                raise ValueError(f"{self.source}: expected a part {split!r}; its folders are {', '.join(parts)}")
            raise ValueError(
                f"{self.source}: expected a part {split!r}, but these pictures are in no parts. Hold pictures out with "
                "--val-fraction 0.15, and for an unseen test set --test-fraction 0.15"
            )

        existing = list(dict.fromkeys(self.splits))
        wanted = set()
        for name in split.split("+"):
            split_name = find_split(name, existing)
            if split_name is None:
                raise ValueError(
                    f"{self.source}: expected pictures of the part {name!r}; its parts are "
                    f"{', '.join(printable(str(part)) for part in existing) or '(none)'}"
                )
            wanted.add(split_name)

        keep = [index for index, part in enumerate(self.splits) if part in wanted]
        return self.take(keep)

    def take(self, keep: Sequence[int]) -> "Listing":
        """Return the pictures with these indices."""
        return Listing(
            source=self.source,
            pictures=[self.pictures[i] for i in keep],
            paths=[self.paths[i] for i in keep],
            levels=self.levels,
            splits=None if self.splits is None else [self.splits[i] for i in keep],
            groups=None if self.groups is None else [self.groups[i] for i in keep],
        )

    @property
    def is_boxed(self) -> bool:
        """Whether pictures are boxes in files."""
        return any(isinstance(picture, BoxedPicture) for picture in self.pictures)

    def with_geometry(self, geometry: BoxGeometry) -> "Listing":
        """Return the same pictures, with a new geometry for boxes."""
        return dataclasses.replace(self, pictures=with_geometry(self.pictures, geometry))

    def taxonomy(self, strict_names: bool = False) -> Taxonomy:
        """Return the tree of these pictures' paths.

        Raises:
            TaxonomyError: if nodes are given as numbers, or with ``strict_names`` a name is below two parents.
        """
        paths: Iterable[tuple] = dict.fromkeys(map(tuple, self.paths))
        for name in itertools.chain.from_iterable(paths):
            if name is not None and not isinstance(name, str):
                raise TaxonomyError(
                    f"{self.source}: expected names of nodes, got {brief(name)}: numbers need a --taxonomy that says "
                    "what they stand for"
                )

        rows = complete_paths(path for path in paths if any(name is not None for name in path))
        name = "" if self.source.is_file() else self.source.resolve().name
        return Taxonomy.from_paths(rows, self.levels, clean_name(name), strict_names=strict_names)


def join_listings(source: Path, listings: Sequence[Listing], parts: Sequence[str | None]) -> Listing:
    """Return several listings as one.

    Args:
        source: The folder that contains all of them.
        listings: At least one.
        parts: For each listing without parts, the part of all its pictures; None if unknown.

    Raises:
        ValueError: if their levels differ.
    """
    whole = dataclasses.replace(listings[0], source=source, pictures=[], paths=[], splits=[], groups=[])
    for listing, part in zip(listings, parts, strict=True):
        if listing.levels != whole.levels:
            raise ValueError(
                f"{listing.source}: expected the levels of {listings[0].source}, {brief(whole.levels)}, got "
                f"{brief(listing.levels)}"
            )

        count = len(listing.pictures)
        whole.pictures += listing.pictures
        whole.paths += listing.paths
        whole.splits += listing.splits if listing.splits is not None else [part or ""] * count  # type: ignore[operator]
        whole.groups += listing.groups if listing.groups is not None else []  # type: ignore[operator]

    if not any(whole.splits or ()):
        whole.splits = None
    if len(whole.groups or ()) != len(whole.pictures):
        whole.groups = None

    return whole


def find_split(name: str, existing: Iterable[str]) -> str | None:
    """Return the existing part that a name stands for: the same name, in another case, or another common name."""
    parts = list(existing)
    if name in parts:
        return name

    others = next((names for names in SPLIT_NAMES.values() if name.lower() in names), (name.lower(),))
    return next((part for part in parts if isinstance(part, str) and part.lower() in others), None)


def _part_folders(source: Path) -> list[str]:
    """Return the names of a folder's sub-folders that are named after parts."""
    return sorted(child.name for child in source.iterdir() if common_split(child.name)) if source.is_dir() else []


def common_split(name: str) -> str | None:
    """Return the part that a folder or a shard is named after, such as ``train-00000-of-00004``.

    Example:
        >>> common_split("validation-00000-of-00001"), common_split("Train"), common_split("gulls")
        ('val', 'train', None)
    """
    word = re.split(r"[-.]", name.lower(), maxsplit=1)[0]
    return next((split for split, names in SPLIT_NAMES.items() if word in names), None)


def choose_columns(
    path: Path,
    header: Sequence[str],
    taxonomy: Taxonomy | None,
    levels: Sequence[str] | None = None,
    group_by: str | None = None,
) -> Columns:
    """Find the columns of a data set; warn about columns that are not used.

    With a taxonomy, the columns named after its levels are the levels. If there are none, as for a model trained on
    folders, there must be as many other columns as levels, which are taken in their order.

    Args:
        path: The file, for messages.
        header: Its columns.
        taxonomy: The tree of the labels, if there is one already.
        levels: Columns that are the levels, coarse to fine; found by their names by default.
        group_by: Column that names the group of each picture, or ``folder``.

    Raises:
        ValueError: if there is no column of pictures or of levels; the message names the columns.
    """
    try:
        columns = find_columns(header, levels, [group_by] if group_by else [])
        if columns.picture is None:
            raise ValueError(
                f"no column file (or file_name, image, path ...); it has {brief(list(header))}: rename the column with "
                "the names of the pictures"
            )

        if taxonomy is not None and levels is None:
            names = {column.lower() for column in header}
            existing = [level for level in taxonomy.levels if level.lower() in names]
            if existing:
                columns = find_columns(header, existing)
            elif len(columns.levels) != len(taxonomy.levels):
                raise ValueError(
                    f"no column {', '.join(map(printable, taxonomy.levels))}; it has {brief(list(header))}. Name the "
                    f"columns of the {len(taxonomy.levels)} levels, coarse to fine, with --levels"
                )

        if not columns.levels:
            raise ValueError(f"no column of a level; it has {brief(list(header))}: name them with --levels")
        if group_by not in (None, "folder") and group_by not in header:
            raise ValueError(f"no column {group_by} to group by; it has {brief(list(header))}")
    except TaxonomyError:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

    used = {group_by, *box_columns(header).values()}
    unused = [column for column in columns.unused if column not in used]
    if unused and levels is None and taxonomy is None:
        warnings.warn(
            f"{path}: levels are {', '.join(map(printable, columns.levels))}; not used: "
            f"{clip(', '.join(map(printable, unused)), 300)} (--levels names others)",
            stacklevel=2,
        )

    return columns


def collect(
    path: Path,
    columns: Columns,
    rows: Iterable[tuple[int, Mapping]],
    taxonomy: Taxonomy | None,
    group_by: str | None,
) -> Listing:
    """Return the listing of a table.

    Args:
        path: The file; names of pictures are relative to its folder.
        columns: Meaning of its columns.
        rows: Number of each row, and its cells by column.
        taxonomy: The tree of the labels, if there is one already.
        group_by: Column that names the group of each picture, or ``folder``.

    Raises:
        ValueError: if a cell cannot be a picture.
    """
    names = tuple(columns.levels)
    numbered = taxonomy is not None and not any(name in taxonomy.levels for name in names)
    positions = None if taxonomy is None or numbered else [taxonomy.levels.index(name) for name in names]
    listing = Listing(
        source=path,
        pictures=[],
        paths=[],
        levels=names,
        splits=None if columns.split is None else [],
        groups=None if group_by is None else [],
    )

    box_names: dict[str, str] | None = None
    for line, row in rows:
        if box_names is None:
            box_names = box_columns(row)
        picture = _picture(path, line, row[str(columns.picture)])
        listing.pictures.append(in_box(picture, row, box_names))

        labels = columns.path(row)
        if positions is not None and taxonomy is not None:
            whole: list = [None] * len(taxonomy.levels)
            for position, label in zip(positions, labels):
                whole[position] = label
            labels = whole

        listing.paths.append(labels)
        if listing.splits is not None:
            listing.splits.append(cell_text(row[str(columns.split)]))
        if listing.groups is not None and group_by != "folder":
            listing.groups.append(cell_text(row[str(group_by)]))

    return listing


def box_columns(header: Iterable[str]) -> dict[str, str]:
    """Return the columns of a box, by their names in ``COLUMNS`` and ``UNIT``; empty unless all four edges exist."""
    by_name = {column.lower(): column for column in header}
    if not all(name in by_name for name in COLUMNS):
        return {}
    return {name: by_name[name] for name in (*COLUMNS, UNIT) if name in by_name}


def in_box(picture: Path | bytes, row: Mapping, names: Mapping[str, str]) -> Path | bytes | BoxedPicture:
    """Return the picture in a row's box, or the whole picture if the table has no boxes."""
    if not names or isinstance(picture, bytes):
        return picture
    cells = {name: row[column] for name, column in names.items()}
    return BoxedPicture(picture, Box.from_row(str(picture), cells))


def cell_text(cell: object) -> str:
    """Return the text of a cell without surrounding spaces; "" for None."""
    return "" if cell is None else str(cell).strip()


def _picture(path: Path, line: int, cell: object) -> Path | bytes:
    if isinstance(cell, Mapping):  # a picture in Hugging Face's format
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
