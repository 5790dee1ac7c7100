"""Held-out parts of a data set: fractions, stability, copies and groups."""

from collections import Counter
from pathlib import Path

import pytest

from hcast_zoo.data.listing import Listing
from hcast_zoo.data.readers import read_listing
from hcast_zoo.data.splits import hold_out, read_parts, write_list


def listing(tmp_path, leaves=(("a", 40), ("b", 14), ("c", 2)), groups=None):
    pictures, paths = [], []
    for leaf, count in leaves:
        for number in range(count):
            file = tmp_path / f"{leaf}{number}.jpg"
            file.write_bytes(f"{leaf} {number}".encode())
            pictures.append(file)
            paths.append((leaf,))
    return Listing(tmp_path, pictures, paths, None, None, groups)


def sides(held):
    """Return the part of each picture, by its bytes."""
    return {p.read_bytes(): split for p, split in zip(held.pictures, held.splits)}


def test_every_leaf_holds_out_its_fraction(tmp_path):
    held = hold_out(listing(tmp_path), 0.15, 0.1)
    count = Counter((path[0], split) for path, split in zip(held.paths, held.splits))
    for leaf, size in (("a", 40), ("b", 14)):
        assert abs(count[leaf, "test"] - 0.1 * size) <= 1 and abs(count[leaf, "val"] - 0.15 * size) <= 2
        assert count[leaf, "val"] and count[leaf, "test"]
    assert count["c", "train"] == 2


def test_parts_depend_on_bytes_and_not_on_names(tmp_path):
    before = sides(hold_out(listing(tmp_path), 0.2))

    whole = listing(tmp_path)
    for number, file in enumerate(whole.pictures):
        whole.pictures[number] = file.rename(tmp_path / f"renamed{-number}.png")
    whole = whole.take(range(len(whole.pictures) - 1, -1, -1))

    assert sides(hold_out(whole, 0.2)) == before


def test_adding_pictures_moves_no_other_picture(tmp_path):
    before = sides(hold_out(listing(tmp_path, (("a", 200),)), 0.15))
    after = sides(hold_out(listing(tmp_path, (("a", 260),)), 0.15))
    assert all(after[picture] == side for picture, side in before.items()) and len(after) == 260


def test_a_list_keeps_every_picture_in_its_part(tmp_path):
    """Even the lowest picture of a leaf without one below the threshold, which a new picture could displace."""
    small = (("d", 4), ("e", 4), ("f", 4), ("g", 4))
    first = hold_out(listing(tmp_path, small), 0.1, 0.1)
    before = sides(first)
    write_list(first, tmp_path / "first.csv")
    grown = listing(tmp_path, tuple((leaf, 60) for leaf, _ in small))

    moved = [p for p, side in sides(hold_out(grown, 0.1, 0.1)).items() if before.get(p, side) != side]
    assert moved and all(before[picture] != "train" for picture in moved)  # without the list, some would move
    kept = hold_out(grown, 0.1, 0.1, read_parts(tmp_path / "first.csv"))
    assert all(sides(kept)[picture] == side for picture, side in before.items())
    assert 10 <= kept.splits.count("val") <= 50 and 10 <= kept.splits.count("test") <= 50


def test_copies_and_groups_stay_together(tmp_path):
    whole = listing(tmp_path, (("a", 30),))
    for file in whole.pictures[10:]:
        file.write_bytes(whole.pictures[int(file.stem[1:]) % 10].read_bytes())
    held = hold_out(whole, 0.3)
    assert all(len({held.splits[i] for i in range(k, 30, 10)}) == 1 for k in range(10)) and "val" in held.splits

    groups = [str(number // 5) for number in range(40)]
    held = hold_out(listing(tmp_path, (("a", 40),), groups), 0.25)
    assert all(len(set(held.splits[k : k + 5])) == 1 for k in range(0, 40, 5)) and "val" in held.splits


def test_existing_parts_are_kept(tmp_path):
    whole = listing(tmp_path, (("a", 20),))
    whole.splits = ["train"] * 15 + ["test"] * 5
    held = hold_out(whole, 0.2)
    assert held.splits[15:] == ["test"] * 5 and 2 <= held.splits[:15].count("val") <= 4

    with pytest.raises(ValueError, match="has a part 'test'"):
        hold_out(whole, 0.2, 0.2)
    for fractions in ((0.6, 0.4), (-0.1, 0), (float("nan"), 0)):
        with pytest.raises(ValueError, match="leave pictures to train on"):
            hold_out(whole, *fractions)


def test_a_written_list_is_read_again(tmp_path):
    held = hold_out(listing(tmp_path), 0.15)
    (tmp_path / "lists").mkdir()
    write_list(held, tmp_path / "lists/list.csv")
    again = read_listing(tmp_path / "lists/list.csv")
    assert again.splits == held.splits and [p.resolve() for p in again.pictures] == held.pictures
    assert again.paths == [[name] for (name,) in held.paths] and again.levels == ("level_1",)

    with pytest.raises(ValueError, match="expected pictures in files"):
        write_list(Listing(Path("x.parquet"), [b"x"], [("a",)]), tmp_path / "x.csv")
