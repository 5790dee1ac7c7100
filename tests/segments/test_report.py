"""Segmenting a picture: the record, the files, and the command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hcast_zoo import Predictor, Taxonomy
from hcast_zoo.cli import main
from hcast_zoo.data.pictures import PictureError
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.segments.explain import explain_levels
from hcast_zoo.segments.report import draw_sheet, free_folder, segment_picture, write_folder
from hcast_zoo.weights.file import Weights, save_weights


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a b.png")
    return tmp_path / "a b.png"


@pytest.mark.parametrize("decoder", ["best_path", "independent"])
def test_a_segmented_picture_is_the_prediction_and_its_explanation(picture, tiny_weights, tiny_model, decoder):
    predictor = Predictor(tiny_weights, decoder)
    segmented = segment_picture(predictor, picture)
    expected = next(predictor.predict([picture]))
    assert segmented.prediction.path == expected.path
    assert segmented.prediction.probabilities == pytest.approx(expected.probabilities)
    assert [r.level for r in segmented.readings] == ["class", "family", "species"]
    assert [r.stage for r in segmented.readings] == [4, 3, 2] and [len(r.shares) for r in segmented.readings] == [
        2,
        4,
        8,
    ]

    names = predictor.taxonomy.names
    targets = torch.tensor([[level.index(node) for level, node in zip(names, expected.path)]])
    images = eval_transform(tiny_model.config)(Image.open(picture))[None]
    _, explanation = explain_levels(tiny_model, images, targets=targets)
    for reading, shares in zip(segmented.readings, explanation.shares):
        np.testing.assert_allclose(reading.shares, shares[0], atol=1e-5)
        assert reading.focus.shape == (32, 32) and reading.focus.sum() == pytest.approx(1, abs=1e-5)

    assert 0 <= segmented.agreement <= 1
    record = segmented.to_dict()
    assert record["segments"] == [len(np.unique(m)) for m in segmented.segmentation.maps]
    assert json.loads(json.dumps(record))["levels"][0]["node"] == expected.path[0]


def test_levels_below_an_early_end_are_left_open(picture, tiny_config, tiny_model, tmp_path):
    shallow = Taxonomy.from_paths([("stone",), ("bird", "owl", "barn owl"), ("bird", "gull", "herring gull")])
    config = tiny_config.replace(level_classes=shallow.level_classes)
    model = type(tiny_model)(config)
    with torch.no_grad():
        model.heads[0].bias.copy_(torch.tensor([50.0, 0.0]))  # always a stone
    path = tmp_path / "shallow.safetensors"
    save_weights(Weights(config, shallow, model.state_dict()), path)

    segmented = segment_picture(Predictor(path), picture)
    assert segmented.prediction.path == ("stone",)
    assert [r.node for r in segmented.readings] == ["stone", None, None] and segmented.readings[
        1
    ].text == "level_2: left open"
    assert draw_sheet(segmented).width > 1000


def test_the_folder_holds_every_part_or_those_chosen(picture, tiny_weights, tmp_path):
    segmented = segment_picture(Predictor(tiny_weights), picture)
    folder = write_folder(segmented, tmp_path / "out")
    assert folder.name == "a_b"
    stages, levels = range(1, 5), range(1, 4)
    assert {p.name for p in folder.iterdir()} == {
        "sheet.png",
        "segments.npz",
        *(f"level_{n}.focus.png" for n in levels),
        *(f"stage_{n}.{kind}.png" for n in stages for kind in ("labels", "average", "boundaries")),
    }

    with np.load(folder / "segments.npz") as file:
        names = {f"{name}_{n}" for n in levels for name in ("share", "focus")}
        assert set(file.files) == {f"stage_{n}" for n in stages} | names
        for stage in stages:
            with Image.open(folder / f"stage_{stage}.labels.png") as labels:
                assert labels.size == (60, 40)
                assert np.array_equal(np.asarray(labels).astype(int) - 1, file[f"stage_{stage}"])
        assert (file["stage_1"][:, :10] == -1).all() and (file["stage_1"][:, 10:50] >= 0).all()
        assert file["share_3"].sum() == pytest.approx(1, abs=1e-5) and (file["focus_1"][:, :10] == 0).all()

    only = write_folder(segmented, tmp_path / "out", ("sheet",))
    assert only.name == "a_b-2" and [p.name for p in only.iterdir()] == ["sheet.png"]


def test_folder_names_are_distinct_and_safe(tmp_path):
    def make_folder(output, file):
        folder = free_folder(output, file)
        folder.mkdir(parents=True)
        return folder

    output = tmp_path / "new" / "out"
    names = [make_folder(output, f).name for f in ("x/lion.png", "y/lion.jpg", "lion.png", "..png", "/a/:.png")]
    assert names == ["lion", "lion-2", "lion-3", "picture", "_"]
    (output / "cat").write_text("someone's file")
    assert free_folder(output, "cat.png").name == "cat-2"
    assert (output / "cat").read_text() == "someone's file"


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((40, 40, 3), np.uint8), np.zeros((1, 1, 3), np.uint8), np.full((4, 90, 3), 255, np.uint8)],
    ids=["black", "one pixel", "thin"],
)
def test_fewer_segments_than_clusters_can_be_drawn(pixels, tiny_weights, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    predictor = Predictor(tiny_weights, num_clusters=(16, 16, 16, 16))
    segmented = segment_picture(predictor, tmp_path / "plain.png")
    assert segmented.segmentation.maps[3].max() < 16 and np.isfinite(segmented.agreement)
    assert draw_sheet(segmented).height > 400


def test_an_answer_that_is_not_finite_is_an_error(picture, tiny_weights):
    predictor = Predictor(tiny_weights)
    predictor.transform = lambda p: torch.full((3, 32, 32), torch.nan)
    with pytest.raises(PictureError, match="not finite"):
        segment_picture(predictor, picture)


def test_the_segment_command_continues_after_a_bad_picture(picture_folder, tiny_weights, tmp_path, capsys):
    files = [
        str(picture_folder / "val/bird/owl/barn owl/0.png"),
        str(tmp_path / "bad\x1b[31m.png"),
        str(picture_folder / "val/bird/owl/snowy owl/0.png"),
        "nowhere.png",
    ]
    (tmp_path / "bad\x1b[31m.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    command = ["segment", *files, "--model", str(tiny_weights), "--output", str(out), "--write", "sheet"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert [line.split(" -> ")[1] for line in captured.out.splitlines()] == [str(out / "0"), str(out / "0-2")]
    assert "nowhere.png: no such file\n2 of 4 pictures failed" in captured.err and "\x1b[31m" not in captured.err

    assert sorted(p.name for p in out.rglob("*")) == ["0", "0-2", "sheet.png", "sheet.png"]
    assert main([*command, "--json", "--num-clusters", "4", "2", "1", "1"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["output"] == str(out / "0-3") and rows[0]["segments"][1] <= 4 and rows[0]["segments"][3] == 1
    assert rows[3] == {"file": "nowhere.png", "error": "no such file"}


def test_within_and_back_off_apply_to_segments(picture, tiny_weights, tmp_path, capsys):
    command = ["segment", str(picture), "--model", str(tiny_weights), "--output", str(tmp_path / "out")]
    command += ["--json", "--write", "sheet"]
    assert main([*command, "--within", "family:dog"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == ["mammal", "dog", "wolf"] and row["levels"][2]["node"] == "wolf"

    assert main([*command, "--back-off", "1"]) == 0  # no picture is certain
    row = json.loads(capsys.readouterr().out)
    assert row["path"] == [] and row["reason"] and [r["node"] for r in row["levels"]] == [None] * 3


def test_an_output_that_is_a_file_is_explained(picture, tiny_weights, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert main(["segment", str(picture), "--model", str(tiny_weights), "--output", str(tmp_path / "out")]) == 2
    assert str(tmp_path / "out") in capsys.readouterr().err


@pytest.mark.parametrize(
    "counts, message",
    [
        ("20 4 2 2", "cannot choose 20 clusters from 16 tokens"),
        ("4 8 2 2", "cannot choose 8 clusters from 4 tokens"),
        ("4 4 2 0", "four integers of 1 or more"),
        ("-1 1 1 1", "four integers of 1 or more"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "segment", "evaluate"])
def test_wrong_numbers_of_clusters_are_explained(
    command, counts, message, picture_folder, tiny_weights, tmp_path, capsys
):
    where = {
        "predict": [str(picture_folder)],
        "segment": [str(picture_folder), "--output", str(tmp_path / "out")],
        "evaluate": ["--data", str(picture_folder), "--split", "val"],
    }[command]
    assert main([command, *where, "--model", str(tiny_weights), "--num-clusters", *counts.split()]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_another_count_of_clusters_is_refused(tiny_weights, tiny_model):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "a.png", "--model", str(tiny_weights), "--num-clusters", "4", "2"])
    assert stop.value.code == 2

    for wrong in ((), (4, 2, 2), 4, (4.0, 2, 2, 2), "4222"):
        with pytest.raises(ValueError, match="expected four integers of 1 or more"):
            Predictor(tiny_weights, num_clusters=wrong)
        with pytest.raises(ValueError, match="expected four integers of 1 or more"):
            tiny_model(torch.zeros(1, 3, 32, 32), num_clusters=wrong)


def test_clusters_change_answers_in_every_command(picture_folder, taxonomy, tiny_model, tmp_path, capsys):
    with torch.no_grad():
        for parameter in (*tiny_model.stages.parameters(), *tiny_model.heads.parameters()):
            parameter *= 4  # so that attention, and so the clusters, matter
    path = tmp_path / "decided.safetensors"
    save_weights(Weights(tiny_model.config, taxonomy, tiny_model.state_dict()), path)
    files = sorted(str(p) for p in (picture_folder / "val").rglob("*.png"))[:3]

    images = torch.stack([eval_transform(tiny_model.config)(Image.open(f)) for f in files])
    with torch.no_grad():
        logits = tiny_model(images, num_clusters=(12, 6, 3, 1)).level_logits
    expected = Predictor(path).decode(list(logits))

    assert main(["predict", *files, "--model", str(path), "--json", "--num-clusters", *"12 6 3 1".split()]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, answer in zip(rows, expected, strict=True):
        assert row["path_probability"] == pytest.approx(answer.path_probability, abs=1e-5)

    plain = [p.path_probability for p in Predictor(path).predict(files)]
    assert any(abs(row["path_probability"] - p) > 1e-4 for row, p in zip(rows, plain))

    evaluate = ["evaluate", "--data", str(picture_folder), "--split", "val", "--model", str(path), "--json"]
    assert main([*evaluate, "--num-clusters", "12", "6", "3", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["num_clusters"] == [12, 6, 3, 1]
    assert main([*evaluate, "--num-clusters", "12", "6", "3", "1", "--card", "x.md"]) == 2
