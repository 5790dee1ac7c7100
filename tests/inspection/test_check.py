"""Checking a data set: copies, unreadable and blank pictures, suspect labels, and the page."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from hcast_zoo.cli import main
from hcast_zoo.inspection import scan
from hcast_zoo.inspection.duplicates import near_groups
from tests.pages import Page

pytest.importorskip("imagehash")
HOSTILE = "<img src=x onerror=alert(1)>.png"


def paint(file, number, size=(48, 40)):
    """Write a smooth picture that is unique to the number."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file)
    return file


@pytest.fixture
def birds(tmp_path):
    """Return a folder of two orders and four species in two parts, with one of each kind of problem."""
    root = tmp_path / "birds"
    for number in range(32):
        part, order, species = "val" if number >= 24 else "training", number % 2, number % 4
        paint(root / part / f"order{order}/species{species}/{number}.png", number)

    owl = root / "training/order0/species0"
    shutil.copy(owl / "0.png", root / "val/order1/species3/copy.png")
    Image.open(owl / "8.png").resize((96, 80)).save(owl / "again.jpg", quality=60)
    shutil.copy(owl / "16.png", owl / HOSTILE)
    Image.new("RGB", (48, 40), "black").save(owl / "black.png")
    paint(owl / "tiny.png", 99, (9, 9))
    (owl / "broken.jpg").write_bytes((owl / "again.jpg").read_bytes()[:300])
    (owl / "Thumbs.db").write_bytes(b"x")
    paint(root / "training/order1/owlet/100.png", 100)
    return root


def check(root, output, *options):
    """Run the command; return its exit code, its report and its page."""
    code = main(["data", "check", str(root), "--output", str(output), *options])
    return code, json.loads((output / "check.json").read_text()), (output / "index.html").read_text()


def test_every_planted_problem_is_found(birds, tmp_path, capsys):
    code, report, _ = check(birds, tmp_path / "out", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert code == 1 and printed["pictures"] == report["pictures"] == 39 and printed["counts"] == report["counts"]
    assert report["parts"] == {"training": 30, "val": 9}
    assert [entry["file"].rsplit("/")[-1] for entry in report["unreadable"]] == ["broken.jpg"]

    names = [[entry["file"].rsplit("/")[-1] for entry in group["pictures"]] for group in report["copies"]]
    assert names == [["0.png", "copy.png"], ["16.png", HOSTILE], ["8.png", "again.jpg"]]
    flags = [(group["across_parts"], group["labels_differ"], group["exact"]) for group in report["copies"]]
    assert flags == [(True, True, True), (False, False, True), (False, False, False)]
    assert [entry["file"].rsplit("/")[-1] for entry in report["blank"] + report["small"]] == ["black.png", "tiny.png"]

    assert [node["name"] for node in report["few"]] == ["owlet"]
    assert [node["name"] for node in report["untested"]["val"]] == ["owlet"]
    tree = {node["name"]: node for node in report["tree"]}
    assert tree["order0"]["pictures"] == {"training": 17, "val": 4} and len(tree["order1"]["children"]) == 3
    assert any("Thumbs.db" in note for note in report["notes"])


def test_the_page_needs_no_other_file_and_runs_nothing(birds, tmp_path):
    _, _, text = check(birds, tmp_path / "out")
    page = Page(text)
    assert page.sources and all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert not set(page.tags) & {"script", "link", "iframe"} and "url(" not in text
    for anchor in re.findall(r'href="#(\w+)"', text):
        assert f'id="{anchor}"' in text


def test_a_second_run_reads_only_what_changed(birds, tmp_path, monkeypatch):
    _, before, _ = check(birds, tmp_path / "out")
    paint(birds / "training/order0/species0/0.png", 200)

    read = []
    measure = scan.measure
    monkeypatch.setattr(scan, "measure", lambda picture, phash: read.append(picture.name) or measure(picture, phash))
    with open(tmp_path / "out/scan.jsonl", "a") as file:
        file.write('["half a line')  # left by a killed process

    _, after, _ = check(birds, tmp_path / "out")
    assert read == ["0.png"]
    assert after["counts"]["copies"] == before["counts"]["copies"] - 1


def test_labels_are_compared_with_a_model(tmp_path):
    for name, path in (("lion", "animals-nature/animal-mammal"), ("sunflower", "travel-places")):
        (tmp_path / "art" / path).mkdir(parents=True)
        shutil.copy(f"tests/pictures/{name}.png", tmp_path / "art" / path)
    paint(tmp_path / "art/no such thing/1.png", 1)

    code, report, page = check(tmp_path / "art", tmp_path / "out", "--model", "hcast_tiny.emoji_art")
    assert code == 0 and [entry["label"] for entry in report["suspects"]] == [["travel-places"]]
    assert report["suspects"][0]["answer"][0] == "animals-nature" and report["suspects"][0]["probability"] >= 0.8
    assert "no such thing" in next(iter(report["unknown_labels"])) and "model: animals-nature" in page


def test_the_extra_for_checks_is_named(birds, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert main(["data", "check", str(birds), "--output", str(tmp_path / "out")]) == 2
    assert "pip install 'hcast-zoo[check]'" in capsys.readouterr().err


@pytest.mark.parametrize("distance", [1, 8])
def test_near_groups_match_a_search_of_all_pairs(distance):
    """Every group is complete, and holds nothing else."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 200, dtype=np.uint64)
    for number in range(100, 200):  # near an earlier hash, so that chains occur
        hashes[number] = hashes[number - 70]
        for bit in rng.choice(64, rng.integers(0, 9), replace=False):
            hashes[number] ^= np.uint64(1) << np.uint64(bit)
    colours = rng.integers(0, 35, (200, 48), dtype=np.uint8)

    def alike(first, second):
        near = (int(hashes[first]) ^ int(hashes[second])).bit_count() <= distance
        return near and np.abs(colours[first].astype(int) - colours[second]).mean() <= 12

    expected, left = [], list(range(200))
    while left:
        group = [left.pop(0)]
        for member in group:  # grows while it is read
            group += [other for other in left if alike(member, other)]
            left = [other for other in left if other not in group]
        if len(group) > 1:
            expected.append(sorted(group))

    assert near_groups(hashes, colours, distance) == expected
    assert len(expected) > 5 and (distance == 1 or max(map(len, expected)) > 2)
