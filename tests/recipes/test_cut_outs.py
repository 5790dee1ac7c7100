"""The parts of the cut-outs: every thing is in each, and a seed changes them."""

import collections

import pytest

pytest.importorskip("pyarrow")

from recipes.cut_outs import ARTISTS, part_of


@pytest.mark.parametrize("seed", [0, 1])
def test_each_thing_has_its_pictures_in_all_parts(seed):
    parts = [part_of({"emoji": "owl", "artist": artist}, seed) for artist in ARTISTS]
    assert collections.Counter(parts) == {"train": 5, "val": 1, "test": 1}


def test_a_seed_gives_other_parts():
    rows = [{"emoji": f"thing {number}", "artist": artist} for number in range(9) for artist in ARTISTS]
    assert [part_of(row, 0) for row in rows] != [part_of(row, 1) for row in rows]
