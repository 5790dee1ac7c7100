"""The commands, run as a user runs them."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from hcast_zoo.adaptation import adapt
from hcast_zoo.cli import main
from hcast_zoo.cli.answer_parsers import DECODERS, FEEDBACK
from hcast_zoo.cli.weight_parsers import EXPORT_FORMATS
from hcast_zoo.paper.benchmarks import BENCHMARKS
from hcast_zoo.paper.trees import load_tree, tree_names
from hcast_zoo.sharing.export import EXPORT_FORMATS as WRITTEN_FORMATS
from hcast_zoo.taxonomy import decode
from hcast_zoo.training.recipe import BY_SIZE, recipe_names
from hcast_zoo.training.settings import TrainConfig
from hcast_zoo.weights.file import load_weights, packaged_weights
from tests.conftest import FIXTURES


def test_predict_prints_a_line_or_a_record_per_picture(picture_folder, tiny_weights, capsys):
    file = next((picture_folder / "val").rglob("*.png"))
    assert main(["predict", str(file), "--model", str(tiny_weights)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{file}: ") and text.count("\n") == 1 and " > " in text and "; then " in text

    command = ["predict", str(picture_folder / "val"), "--model", str(tiny_weights), "--json"]
    assert main([*command, "--decode", "independent"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 12 and all(len(row["path"]) == len(row["probabilities"]) == 3 for row in rows)


def test_predict_continues_after_a_broken_picture(picture_folder, tiny_weights, capsys):
    broken = picture_folder / "bad\x1b[31m.png"
    broken.write_bytes(b"")
    good = next((picture_folder / "val").rglob("*.png"))
    assert main(["predict", str(broken), str(good), "nowhere.png", "--model", str(tiny_weights)]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(str(good)) and "\x1b[31m" not in captured.err
    assert "nowhere.png: no such file" in captured.err and "2 of 3 pictures failed" in captured.err

    assert main(["predict", str(broken), str(good), "--json", "--model", str(tiny_weights)]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == {"file": str(broken), "error": "not a picture, or of an unknown format"} and rows[1]["path"]


def test_evaluate_prints_a_table_or_a_record(picture_folder, tiny_weights, capsys):
    command = ["evaluate", "--data", str(picture_folder), "--split", "val", "--model", str(tiny_weights)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    metrics = ["fpa", "tice", "wap", "accuracy/class", "accuracy/family", "accuracy/species"]
    assert lines[0].split("\t") == ["decoding", *metrics]
    assert [line.split("\t")[0] for line in lines[1:]] == list(DECODERS)

    assert main([*command, "--json", "--decode", "best_path"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pictures"] == 12 and result["results"]["best_path"]["tice"] == 0


def test_pictures_left_out_are_counted(picture_folder, tiny_weights, tmp_path, capsys):
    for file in sorted((picture_folder / "val").rglob("*.png"))[:2]:
        file.write_bytes(b"")
    options = ["--data", str(picture_folder), "--split", "val"]
    command = ["evaluate", *options, "--model", str(tiny_weights), "--card", str(tmp_path / "card.md"), "--json"]
    assert main(command) == 1

    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["pictures"], result["left_out"]) == (10, 2)
    assert "measured on 10 of 12 pictures: 2 cannot be read and are left out" in captured.err
    assert "10 pictures (2 more cannot be read); percent" in (tmp_path / "card.md").read_text()
    (stored,) = json.loads((tmp_path / "card.json").read_text())
    assert (stored["pictures"], stored["left_out"]) == (10, 2)
    assert main([*command[:-1], "--allow-missing"]) == 0

    fit = ["calibrate", str(tiny_weights), *options, "--output", str(tmp_path / "x.safetensors"), "--json"]
    capsys.readouterr()
    assert main(fit) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["pictures"], result["left_out"]) == (10, 2)
    assert main([*fit, "--allow-missing"]) == 0


def test_calibrate_then_back_off_within_a_subtree(picture_folder, tiny_weights, tmp_path, capsys):
    output = tmp_path / "calibrated.safetensors"
    command = ["calibrate", str(tiny_weights), "--data", str(picture_folder), "--output", str(output)]
    assert main(command) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["of", "class", "family", "species", "path"]

    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pictures"] == 12 and result["calibration"] == load_weights(output).calibration.to_dict()
    assert main(["info", str(output)]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == result["calibration"]

    command = ["predict", str(picture_folder / "val"), "--model", str(output), "--within", "bird", "--within", "wolf"]
    assert main([*command, "--json", "--back-off", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        assert row["path"] == [] or row["path"][0] == "bird" or row["path"][-1] in ("mammal", "dog", "wolf")
    assert main([*command, "--back-off", "1"]) == 0
    assert capsys.readouterr().out.count("no level can be trusted: ") == 12


def test_adapt_writes_a_sheet_and_keeps_the_weights(picture_folder, tiny_weights, tmp_path, capsys):
    file = next((picture_folder / "val").rglob("*.png"))
    command = ["adapt", str(file), "--model", str(tiny_weights), "--output", str(tmp_path / "out")]
    stored = tiny_weights.read_bytes()
    assert main([*command, "--target", "species:wolf", "--free", "tokens", "norms", "--steps", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    changed = "share of the picture that changed segment"
    assert [line.split(":")[0] for line in lines] == ["before", "after", "wolf", changed]
    assert (tmp_path / "out" / f"{file.stem}.png").exists()

    assert main([*command, "--feedback", "agreement", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["target"] is None and min(result["losses"]) < result["losses"][0]
    assert main([*command, "--feedback", "agreement", "--contrast", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["losses"]) == len(result["losses"])
    assert tiny_weights.read_bytes() == stored


def test_train_ends_once_and_refuses_other_settings(picture_folder, tmp_path, capsys, tiny_weights):
    pytest.importorskip("accelerate")
    command = ["train", "--data", str(picture_folder), "--output", str(tmp_path / "run"), "--model", str(tiny_weights)]
    command += "--epochs 1 --batch-size 4 --workers 0 --no-cache --ema-decay 0".split()
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert load_weights(result["weights"]).config.embed_dim == 48
    assert main(command) == 0  # nothing is left to do
    assert json.loads(capsys.readouterr().out) == result

    assert main([*command, "--lr", "0.3"]) == 2
    assert "other settings (lr 0.004 -> 0.3)" in capsys.readouterr().err


def test_convert_checks_the_tree_and_info_describes_the_file(tmp_path, capsys, taxonomy):
    output = tmp_path / "converted.safetensors"
    source = str(FIXTURES / "tiny_3level_state.safetensors")
    assert main(["convert", source, str(output), "--num-heads", "3"]) == 0
    assert main(["info", str(output)]) == 0
    description = json.loads(capsys.readouterr().out)
    assert description["config"]["level_classes"] == [13, 38, 200] and description["levels"] is None

    assert main(["convert", source, str(output), "--num-heads", "3", "--dataset", "cub"]) == 0
    assert load_weights(output).taxonomy == load_tree("cub")
    assert main(["convert", source, str(output), "--num-heads", "3", "--dataset", "aircraft"]) == 2
    assert "taxonomy has (30, 70, 100) classes, the checkpoint (13, 38, 200)" in capsys.readouterr().err

    official = str(FIXTURES / "tiny_2level_state.safetensors")
    assert main(["convert", official, str(output), "--num-heads", "3", "--dataset", "living17"]) == 0
    assert load_weights(output).config.num_superpixels == 256

    taxonomy.save(tmp_path / "t.json")
    assert main(["convert", source, str(output), "--num-heads", "3", "--taxonomy", str(tmp_path / "t.json")]) == 2
    assert "taxonomy has (2, 4, 6) classes, the checkpoint (13, 38, 200)" in capsys.readouterr().err

    torch.save({"a": 1}, tmp_path / "wrong.pth")
    assert main(["convert", str(tmp_path / "wrong.pth"), str(output)]) == 2
    assert "got other values at ['a']" in capsys.readouterr().err
    assert main(["info"]) == 0
    assert {line.split("\t")[0] for line in capsys.readouterr().out.splitlines()} >= set(packaged_weights())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["predict", "x.png", "--model", "nothing"], "no weights 'nothing'"),
        (["predict"], "expected pictures, or --files-from"),
        (["evaluate", "--data", "nowhere.csv"], "no weights|nowhere.csv"),
        (["train", "--data", "nowhere", "--output", "x"], "nowhere"),
        (["train", "--output", "x"], "expected --data, or a --recipe that names the data"),
        (
            ["train", "--recipe", "cube", "--output", "x"],
            "no recipe 'cube': expected a .json file, or one of small, medium, paper, aircraft",
        ),
        (["data", "prepare", "cub", "nowhere.tgz"], "nowhere.tgz: no such file or folder: expected CUB_200_2011.tgz"),
        (
            ["repro", "cub", "--checkpoint", "x.pth", "--data", "nowhere"],
            "nowhere: expected a prepared data set: hcast",
        ),
        (
            ["predict", "x.png", "--model", "hcast_small.emoji_art", "--within", "animals"],
            "no node 'animals' in the taxonomy: did you mean .*'animals-nature'",
        ),
        (["adapt", "x.png", "--target", "dog"], "x.png: no such file"),
        (
            ["adapt", str(FIXTURES.parent / "pictures/lion.png"), "--target", "lyon"],
            "no node 'lyon' in the taxonomy: did you mean .*'lion'",
        ),
        (["adapt", "x.png", "--target", "dog", "--steps", "0"], "steps: expected an integer from 1 to 1000"),
        (["adapt", "x.png", "--target", "dog", "--radius", "nan"], "radius: expected a positive number, got nan"),
        (["predict", "x.png", "--back-off", "2"], "threshold from 0 to 1, got 2.0"),
    ],
)
def test_wrong_input_exits_with_2(arguments, message, capsys):
    if arguments[0] == "train":
        pytest.importorskip("accelerate")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and not captured.out and "Traceback" not in captured.err


def test_the_demo_names_its_extra(monkeypatch, tiny_weights, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hcast_zoo.demo.app", raising=False)
    assert main(["demo", "--model", str(tiny_weights)]) == 2
    assert "pip install 'hcast-zoo[demo]'" in capsys.readouterr().err


def test_wrong_usage_exits_with_2(capsys):
    for arguments in (
        [],
        ["fly"],
        ["segment"],
        ["adapt", "x.png"],
        ["adapt", "x.png", "--target", "dog", "--feedback", "path"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys, hcast_zoo.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'timm', 'numpy', 'PIL', 'cv2') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]" and "predict" in result.stdout


def test_choices_of_the_parser_match_the_modules():
    assert EXPORT_FORMATS == WRITTEN_FORMATS
    assert DECODERS == decode.DECODERS and FEEDBACK == adapt.FEEDBACK
    assert set(BENCHMARKS) == set(recipe_names()) - set(BY_SIZE)
    assert {b.tree for b in BENCHMARKS.values()} - {None} == set(tree_names()) - {"imagenet"}


@pytest.mark.parametrize(
    "options, label", [([], "cat"), (["--model", "hcast_small.emoji_art"], "animal")], ids=["default", "conv stem"]
)
def test_predict_imports_only_what_it_needs(options, label):
    """torchvision, timm and torch's compiler each take about as long to import as torch; predict needs none of them."""
    code = (
        "import sys; from hcast_zoo.cli import main\n"
        "code = main(['predict', *sys.argv[1:]])\n"
        "slow = ('torchvision', 'timm', 'torch._dynamo', 'huggingface_hub', 'transformers')\n"
        "print(code, [name for name in slow if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(FIXTURES.parent / "pictures" / "tabby.jpg"), *options]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert label in lines[0] and lines[1] == "0 []"


def test_help_needs_no_docstring():
    """``python -OO`` strips docstrings."""
    assert all(field.metadata["help"] for field in dataclasses.fields(TrainConfig))
    command = [sys.executable, "-OO", "-m", "hcast_zoo", "train", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"})
    assert re.search(r"--kl-weight KL_WEIGHT\s+weight of the Tree-path KL loss \(0.5\)", result.stdout)


def test_feedback_without_a_target_cannot_be_target(capsys):
    with pytest.raises(SystemExit):
        main(["adapt", "x.png", "--feedback", "target"])
    assert "choose from" in capsys.readouterr().err and FEEDBACK[0] == "target"
