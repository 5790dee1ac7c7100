"""Pictures held out for validation and test: by what they show, so that one never changes sides when it is renamed."""

import csv
import hashlib
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

from ..common.files import write_whole
from .listing import Listing, find_split

PARTS = ("train", "val", "test")
MIN_PICTURES = 3  # of a leaf, below which nothing is held out of it


def hold_out(listing: Listing, val_fraction: float = 0.0, test_fraction: float = 0.0) -> Listing:
    """Return a listing in parts, some of whose training pictures are held out for validation and test.

    Each picture has a place in [0, 1) by the hash of its content (of its group's name, if pictures are grouped), and
    within each leaf those with the lowest places are held out. So copies of a picture stay together, names and order do
    not matter, and of every leaf of three or more its fraction is held out, to within one picture, and at least one.
    More pictures of a leaf move others only as far as that demands. Parts that are there already stay as they are.

    Args:
        listing: Pictures; without parts, all count as training pictures.
        val_fraction: Part of the training pictures to validate on, in [0, 1).
        test_fraction: Part to test on.

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
        if fraction and (found := find_split(part, there)) is not None:
            raise ValueError(f"{listing.source} has a part {found!r}: leave out --{part}-fraction")

    train = find_split("train", there)
    leaves: dict[tuple, dict[str, list[int]]] = {}
    majority: dict[str, tuple] = {}
    for index, part in enumerate(splits):
        if part == train:
            unit = _unit(listing, index)
            leaf = majority.setdefault(unit, tuple(listing.paths[index]))  # all pictures of a group go with its first
            leaves.setdefault(leaf, {}).setdefault(unit, []).append(index)

    for units in leaves.values():
        order = sorted(units, key=lambda unit: (_place(unit), unit))
        places = [_place(unit) for unit in order]
        test = _count(places, test_fraction)
        held = max(
            _count(places, test_fraction + val_fraction), test + bool(val_fraction and len(order) >= MIN_PICTURES)
        )
        held = min(held, max(len(order) - 1, 0))
        for number, unit in enumerate(order[:held]):
            for index in units[unit]:
                splits[index] = "test" if number < test else "val"

    return Listing(
        source=listing.source,
        pictures=listing.pictures,
        paths=listing.paths,
        levels=listing.levels,
        splits=splits,
        groups=listing.groups,
    )


def _count(places: Sequence[float], fraction: float) -> int:
    """Return how many of the lowest places are held out: those below the fraction, to within one of its share."""
    if not fraction or len(places) < MIN_PICTURES:
        return 0
    share = fraction * len(places)
    natural = sum(place < fraction for place in places)
    return max(1, min(max(natural, math.ceil(share - 1)), math.floor(share + 1)))


def _unit(listing: Listing, index: int) -> str:
    """Return what stays together: the group, else the content."""
    if listing.groups is not None:
        return f"group {listing.groups[index]}"
    picture = listing.pictures[index]
    try:
        content = picture if isinstance(picture, bytes) else picture.read_bytes()
    except OSError:
        content = str(picture).encode("utf-8", "surrogateescape")  # what cannot be read is told later
    return hashlib.blake2b(content, digest_size=16).hexdigest()


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
