"""Pictures held out for validation and test: by what they show, so that one never changes sides when it is renamed."""

import csv
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..common.files import check_file, write_whole
from ..common.text import brief
from .listing import Listing, common_split, find_split
from .pictures import MAX_BYTES
from .readers import read

PARTS = ("train", "val", "test")
MIN_PICTURES = 3  # of a leaf, from which at least one is held out for each part


def hold_out(
    listing: Listing, val_fraction: float = 0.0, test_fraction: float = 0.0, kept: Mapping[str, str] | None = None
) -> Listing:
    """Return a listing in parts, some of whose training pictures are held out for validation and test.

    Each picture has a place in [0, 1) by the hash of its content (of its group's name, if pictures are grouped), and is
    held out if its place is below the fraction. So copies of a picture stay together, names and order do not matter,
    and a picture stays on its side whatever is added. Of a leaf of three or more, at least one picture is held out for
    each part, that with the lowest place, if none is by itself; only such a picture may change sides when its leaf
    grows, and ``kept`` keeps it too. Parts that are there already stay as they are.

    Args:
        listing: Pictures; without parts, all count as training pictures.
        val_fraction: Part of the training pictures to validate on, in [0, 1).
        test_fraction: Part to test on.
        kept: Part of each picture of an earlier list, by its whole path; see :func:`read_parts`.

    Raises:
        ValueError: if the fractions leave nothing to train on, or a part is there already.
    """
    if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"expected fractions of at least 0 that leave pictures to train on, got {val_fraction} and {test_fraction}"
        )

    splits = list(listing.splits) if listing.splits is not None else ["train"] * len(listing.pictures)
    there = dict.fromkeys(splits)
    for part, fraction in (("val", val_fraction), ("test", test_fraction)):
        if fraction and (split := find_split(part, there)) is not None:
            raise ValueError(f"{listing.source} has a part {split!r}: leave out --{part}-fraction")

    train = find_split("train", there)
    leaves: dict[tuple, dict[str, list[int]]] = {}
    majority: dict[str, tuple] = {}
    for index, part in enumerate(splits):
        if part == train:
            unit = _unit(listing, index)
            leaf = majority.setdefault(unit, tuple(listing.paths[index]))  # all pictures of a group go with its first
            leaves.setdefault(leaf, {}).setdefault(unit, []).append(index)

    for units in leaves.values():
        known = {unit: earlier for unit, indices in units.items() if (earlier := _kept(listing, indices, kept or {}))}
        for unit, side in _sides(units, test_fraction, val_fraction, known).items():
            if side != "train":
                for index in units[unit]:
                    splits[index] = side

    return dataclasses.replace(listing, splits=splits)


def _sides(units: Iterable[str], test_fraction: float, val_fraction: float, known: Mapping[str, str]) -> dict[str, str]:
    """Return the part of each unit of a leaf; those that are known keep theirs."""
    sides = dict(known)
    places = {unit: _place(unit) for unit in units}
    new = sorted(places.keys() - known.keys(), key=lambda unit: (places[unit], unit))
    for unit in new:
        below_test, below_both = places[unit] < test_fraction, places[unit] < test_fraction + val_fraction
        sides[unit] = "test" if below_test else "val" if below_both else "train"

    if len(places) >= MIN_PICTURES:
        for part, fraction in (("test", test_fraction), ("val", val_fraction)):
            free = [unit for unit in new if sides[unit] == "train"]
            if fraction and free and part not in sides.values():
                sides[free[0]] = part

    if new and "train" not in sides.values():
        sides[new[-1]] = "train"

    return sides


def _kept(listing: Listing, indices: Sequence[int], kept: Mapping[str, str]) -> str | None:
    """Return the part that an earlier list had any of these pictures in."""
    for index in indices:
        part = kept.get(os.path.abspath(str(listing.pictures[index])))
        if part is not None:
            return part
    return None


def read_parts(path: str | Path) -> dict[str, str]:
    """Return the part of each picture of a list, such as :func:`write_list` wrote, by its whole path.

    Raises:
        ValueError: if the list has no parts, or others than train, val and test.
    """
    listing = read(path)
    if listing.splits is None:
        raise ValueError(f"{path}: expected a column split")
    parts = {}
    for picture, part in zip(listing.pictures, listing.splits):
        side = find_split(part, PARTS) or common_split(part or "")
        if part and side is None:
            raise ValueError(f"{path}: expected parts {', '.join(PARTS)}, got {brief(part)}")
        if side is not None:
            parts[os.path.abspath(str(picture))] = side
    return parts


def _unit(listing: Listing, index: int) -> str:
    """Return what stays together: the group, else the content."""
    if listing.groups is not None:
        return f"group {listing.groups[index]}"
    picture = listing.pictures[index]
    try:
        content = picture if isinstance(picture, bytes) else _read(picture)
    except (OSError, ValueError):
        content = str(picture).encode("utf-8", "surrogateescape")  # what cannot be read is told later
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _read(file: Path) -> bytes:
    check_file(file, MAX_BYTES)
    return file.read_bytes()


def _place(unit: str) -> float:
    return (
        int.from_bytes(hashlib.blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=6).digest(), "big") / 2**48
    )


def write_list(listing: Listing, path: str | Path, relative: bool = True) -> None:
    """Write a listing as a CSV file that :func:`.readers.read` reads: ``file``, ``split``, and a column for each level.

    Args:
        listing: Pictures that are files.
        path: The file.
        relative: Name pictures as seen from the file's folder, else by their whole path.

    Raises:
        ValueError: if pictures are no files.
    """
    path = Path(path)
    if any(isinstance(picture, bytes) for picture in listing.pictures):
        raise ValueError(f"{listing.source}: expected pictures in files, got encoded ones: use the fractions in train")
    depth = max(map(len, listing.paths))
    levels = listing.levels or [f"level_{number + 1}" for number in range(depth)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "split", *levels])
    for index, (picture, names) in enumerate(zip(listing.pictures, listing.paths)):
        file = os.path.relpath(str(picture), path.parent) if relative else os.path.abspath(str(picture))
        part = "" if listing.splits is None else listing.splits[index]
        cells = ["" if name is None else name for name in names]
        writer.writerow([Path(file).as_posix(), part, *cells, *[""] * (depth - len(cells))])

    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))
