"""``predict --report``: one page that needs no other file and runs no code from names."""

import re

import pytest

from hcast_zoo.cli import main
from hcast_zoo.inference import gallery
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import load_weights, save_weights
from tests.pages import Page


@pytest.fixture
def report(picture_folder, tiny_weights, tmp_path):
    def write(*options, model=tiny_weights):
        output = tmp_path / "report.html"
        code = main(["predict", str(picture_folder / "val"), "--model", str(model), "--report", str(output), *options])
        return code, output.read_text(encoding="utf-8")

    return write


def test_the_page_shows_every_picture_and_the_most_doubtful_first(report, picture_folder, tiny_weights):
    (picture_folder / "val/broken<b>.png").write_bytes(b"")
    code, text = report()
    page = Page(text)
    assert code == 1 and "broken&lt;b&gt;.png" in text and "1 could not be read" in text
    assert page.tags.count("img") == 24  # twelve at the top, and each again in the tree
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "script" not in page.tags and "width=device-width" in text

    files = [str(file) for file in (picture_folder / "val").rglob("*.png") if "broken" not in file.name]
    doubts = sorted(p.path_probability for p in Predictor(tiny_weights).predict(files))
    shown = [int(s[:-1]) for s in page.captions if re.fullmatch(r"\d+%", s)][:12]
    assert shown == [round(100 * p) for p in doubts]


def test_names_cannot_inject_code(report, tiny_weights, tmp_path):
    weights = load_weights(tiny_weights)
    tree = weights.taxonomy.to_dict()
    hostile = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>']
    tree["names"][0] = hostile
    weights.taxonomy = Taxonomy.from_dict(tree)
    save_weights(weights, tmp_path / "hostile.safetensors")

    _, text = report("--back-off", "0.36", model=tmp_path / "hostile.safetensors")
    page = Page(text)
    assert "script" not in page.tags and "x" not in page.addresses
    assert "&lt;script&gt;" in text


def test_a_large_survey_shows_only_a_part(report, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "PER_NODE", 1)
    monkeypatch.setattr(gallery, "MOST_DOUBTFUL", 2)
    _, text = report("--back-off", "1")
    assert Page(text).tags.count("img") == 3
    assert "and 11 more" in text
