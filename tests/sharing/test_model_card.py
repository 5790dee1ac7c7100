"""Model cards: what they say, what the Hub reads in them, and untrusted metadata."""

import dataclasses
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hcast_zoo.cli import main
from hcast_zoo.common.choices import DECODERS
from hcast_zoo.sharing.model_card import (
    packaged_evaluations,
    read_evaluations,
    record_evaluation,
    render_card,
)
from hcast_zoo.weights.file import checksum, load_weights, packaged_weights

CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.mark.parametrize("name", list(packaged_weights()))
def test_packaged_cards_are_up_to_date(name):
    evaluations = packaged_evaluations(name)
    assert evaluations and all(e.sha256 == packaged_weights()[name]["sha256"] for e in evaluations)
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert text == render_card(load_weights(name), evaluations, name), "run hcast-zoo evaluate --card again"


def test_every_card_has_its_weights():
    assert {p.stem for p in CARDS.glob("*.md")} - {"template"} == set(packaged_weights())


def test_the_hub_reads_the_metadata(tiny_weights, evaluation):
    text = render_card(load_weights(tiny_weights), [evaluation], repo="org/tiny")
    data = ModelCard(text).data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-classification"
    assert data.eval_results[0].metric_value == 12.35 and data.eval_results[0].dataset_name == "Animals"
    assert '"org/tiny"' in text and '"hf-hub:org/tiny"' in text
    assert "| best_path | 12.35 | 0.00 | 20.00 | 50.00 |" in text
    assert "Not measured yet" in render_card(load_weights(tiny_weights))


def test_markup_in_metadata_stays_text(tiny_weights, evaluation):
    weights = load_weights(tiny_weights)
    weights.metadata = {
        "name": 'x"); import os #\n---\nlicense: mit',
        "license": "MIT\n---",
        "description": "{{ 7 * 7 }} <script>\x1b[31m`a`|",
    }
    text = render_card(weights, [dataclasses.replace(evaluation, data="<b>|\n---")])
    assert "{{ 7 \\* 7 }}" in text and "<script>" not in text and "<b>" not in text and "\x1b" not in text
    assert ModelCard(text).data.license == "other" and ModelCard(text).data.license_name == "MIT ---"
    assert 'Predictor("ximportos---license:mit")' in text


def test_evaluate_writes_the_card(picture_folder, tiny_weights, tmp_path, capsys):
    path = tmp_path / "tiny.md"
    command = ["evaluate", "--data", str(picture_folder), "--model", str(tiny_weights), "--card", str(path)]
    assert main([*command, "--split", "val"]) == 0 and main([*command, "--split", "train"]) == 0
    assert main([*command, "--split", "val", "--decode", "top_down"]) == 0

    stored = json.loads(path.with_suffix(".json").read_text())
    assert [(e["split"], list(e["results"])) for e in stored] == [
        ("train", list(DECODERS)),
        ("val", ["top_down"]),
    ]
    assert str(tmp_path) not in path.read_text() and str(tmp_path) not in json.dumps(stored)

    evaluations = read_evaluations(path.with_suffix(".json"))
    assert path.read_text() == render_card(load_weights(tiny_weights), evaluations, "tiny", file="tiny.safetensors")
    fpa = stored[1]["results"]["top_down"]["fpa"]
    assert f"| top_down | {fpa:.2f} |" in path.read_text()
    assert stored[0]["sha256"] == checksum(str(tiny_weights))


def test_results_of_other_weights_are_dropped(tiny_weights, tmp_path, evaluation):
    path = tmp_path / "tiny.md"
    record_evaluation(path, str(tiny_weights), evaluation)
    record_evaluation(path, str(tiny_weights), dataclasses.replace(evaluation, sha256="11", split="val"))
    assert [e.split for e in read_evaluations(path.with_suffix(".json"))] == ["val"]
    path.with_suffix(".json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="written by `hcast-zoo evaluate --card`"):
        read_evaluations(path.with_suffix(".json"))
