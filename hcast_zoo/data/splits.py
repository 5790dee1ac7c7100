"""Hold pictures out for validation and test, by their content, so that renaming a picture does not change its part."""

import csv
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..common.files import write_whole
from ..common.text import brief
from .boxes import COLUMNS, UNIT, BoxedPicture
from .listing import Listing, common_split, find_split
from .pictures import picture_bytes
from .readers import read_listing

PARTS = ("train", "val", "test")
MIN_PICTURES = 3  # a leaf with this many pictures or more gives at least one to each part


def hold_out(
    listing: Listing, val_fraction: float = 0.0, test_fraction: float = 0.0, kept: Mapping[str, str] | None = None
) -> Listing:
    """Return a listing with parts, in which some training pictures are held out for validation and test.

    The hash of a picture's bytes (of its group's name, if pictures are grouped) gives a number in [0, 1), and the
    picture is held out if the number is below the fraction. So copies of a picture stay together, names and order do
    not matter, and a picture keeps its part when others are added. If a leaf of three or more pictures has none below
    the fraction, the one with the lowest number is held out. Only such a picture can change its part when its leaf
    grows; ``kept`` prevents that. Existing parts do not change.

    Args:
        listing: Pictures; without parts, all count as training pictures.
        val_fraction: Fraction of the training pictures for validation, in [0, 1).
        test_fraction: Fraction of the training pictures for testing, in [0, 1).
        kept: Part of each picture of an earlier list, by absolute path; see :func:`read_parts`.

    Raises:
        ValueError: if the fractions leave nothing to train on, or a part exists already.
    """
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"expected fractions of at least 0 that leave pictures to train on, got {val_fraction} and {test_fraction}"
        )

    splits = list(listing.splits) if listing.splits is not None else ["train"] * len(listing.pictures)
    existing = dict.fromkeys(splits)
    for part, fraction in (("val", val_fraction), ("test", test_fraction)):
        if fraction and (split := find_split(part, existing)) is not None:
            raise ValueError(f"{listing.source} has a part {split!r}: leave out --{part}-fraction")

    train = find_split("train", existing)
    leaves: dict[tuple, dict[str, list[int]]] = {}
    leaf_of: dict[str, tuple] = {}
    for index, part in enumerate(splits):
        if part == train:
            unit = _unit(listing, index)
            leaf = leaf_of.setdefault(unit, tuple(listing.paths[index]))  # a group belongs to its first picture's leaf
            leaves.setdefault(leaf, {}).setdefault(unit, []).append(index)

    for units in leaves.values():
        earlier = {}
        for unit, indices in units.items():
            if earlier_part := _earlier_part(listing, indices, kept or {}):
                earlier[unit] = earlier_part

        for unit, part in _choose_parts(units, test_fraction, val_fraction, earlier).items():
            if part != "train":
                for index in units[unit]:
                    splits[index] = part

    return dataclasses.replace(listing, splits=splits)


def _choose_parts(
    units: Iterable[str], test_fraction: float, val_fraction: float, earlier: Mapping[str, str]
) -> dict[str, str]:
    """Return the part of each unit of a leaf; those in ``earlier`` keep theirs."""
    parts = dict(earlier)
    numbers = {unit: _number(unit) for unit in units}
    new = sorted(numbers.keys() - earlier.keys(), key=lambda unit: (numbers[unit], unit))
    for unit in new:
        if numbers[unit] < test_fraction:
            parts[unit] = "test"
        elif numbers[unit] < test_fraction + val_fraction:
            parts[unit] = "val"
        else:
            parts[unit] = "train"

    if len(numbers) >= MIN_PICTURES:
        for part, fraction in (("test", test_fraction), ("val", val_fraction)):
            free = [unit for unit in new if parts[unit] == "train"]
            if fraction and free and part not in parts.values():
                parts[free[0]] = part

    if new and "train" not in parts.values():
        parts[new[-1]] = "train"

    return parts


def _earlier_part(listing: Listing, indices: Sequence[int], kept: Mapping[str, str]) -> str | None:
    """Return the part of the first of these pictures that an earlier list contains."""
    for index in indices:
        part = kept.get(os.path.abspath(str(listing.pictures[index])))
        if part is not None:
            return part

    return None


def read_parts(path: str | Path) -> dict[str, str]:
    """Return the part of each picture of a list, such as :func:`write_list` writes, by absolute path.

    Raises:
        ValueError: if the list has no parts, or parts other than train, val and test.
    """
    listing = read_listing(path)
    if listing.splits is None:
        raise ValueError(f"{path}: expected a column split")

    parts = {}
    for picture, name in zip(listing.pictures, listing.splits):
        part = find_split(name, PARTS) or common_split(name or "")
        if name and part is None:
            raise ValueError(f"{path}: expected parts {', '.join(PARTS)}, got {brief(name)}")
        if part is not None:
            parts[os.path.abspath(str(picture))] = part

    return parts


def _unit(listing: Listing, index: int) -> str:
    """Return a key that is equal for pictures that stay together: the group, or else a hash of the bytes."""
    if listing.groups is not None:
        return f"group {listing.groups[index]}"

    picture = listing.pictures[index]
    try:
        data = picture if isinstance(picture, bytes) else picture_bytes(Path(picture))  # for a box, the whole picture
    except (OSError, ValueError):  # reported when the picture is used
        data = str(picture).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _box_cells(picture: object) -> list:
    if not isinstance(picture, BoxedPicture):
        return [""] * (len(COLUMNS) + 1)
    return [*map(repr, picture.box.edges), "relative" if picture.box.relative else "pixels"]


def _number(unit: str) -> float:
    """Return the number in [0, 1) that decides the part of a unit."""
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def write_list(listing: Listing, path: str | Path, relative: bool = True) -> None:
    """Write a listing as CSV that :func:`.readers.read_listing` reads: ``file``, ``split``, and a column per level.

    Args:
        listing: Pictures that are files.
        path: The file.
        relative: Write names of pictures relative to the file's folder; otherwise absolute paths.

    Raises:
        ValueError: if pictures are not files.
    """
    path = Path(path)
    if any(isinstance(picture, bytes) for picture in listing.pictures):
        raise ValueError(
            f"{listing.source}: expected pictures in files, got encoded ones: use the fractions with `hcast-zoo train`"
        )

    depth = max(map(len, listing.paths))
    levels = listing.levels or [f"level_{number + 1}" for number in range(depth)]

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    box_header = (*COLUMNS, UNIT) if listing.is_boxed else ()
    writer.writerow(["file", "split", *box_header, *levels])

    for index, (picture, names) in enumerate(zip(listing.pictures, listing.paths)):
        file = os.path.relpath(str(picture), path.parent) if relative else os.path.abspath(str(picture))
        part = "" if listing.splits is None else listing.splits[index]
        cells = ["" if name is None else name for name in names]
        box = _box_cells(picture) if box_header else []
        writer.writerow([Path(file).as_posix(), part, *box, *cells, *[""] * (depth - len(cells))])

    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))
