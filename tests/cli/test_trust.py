"""The commands calibrate, predict and drift together, on made-up answers of known accuracy."""

import json

import pytest
import torch

from hcast_zoo.cli import main
from hcast_zoo.evaluation import evaluate
from hcast_zoo.taxonomy.guarantee import KEY
from hcast_zoo.weights.file import load_weights, save_weights


@pytest.fixture
def answers(monkeypatch):
    """Return a function that fakes the logits and labels of 300 pictures, a share of them labelled at random."""

    def make(wrong, taxonomy, pictures=300):
        rng = torch.Generator().manual_seed(0)
        leaves = torch.randint(len(taxonomy.paths), (pictures,), generator=rng)
        labels = torch.tensor(taxonomy.paths)[leaves]
        logits = []
        for level, nodes in enumerate((2, 4, 6)):
            right = torch.eye(nodes)[labels[:, level]]
            logits.append(torch.randn(pictures, nodes, generator=rng) + 6 * right)

        mixed = torch.rand(pictures, generator=rng) < wrong
        labels[mixed] = torch.tensor(taxonomy.paths)[torch.randint(6, (int(mixed.sum()),), generator=rng)]
        monkeypatch.setattr(evaluate, "collect_logits", lambda *args, **kwargs: (logits, labels))

    return make


def test_a_promise_is_made_used_and_broken(answers, picture_folder, tiny_weights, taxonomy, tmp_path, capsys):
    output, data = str(tmp_path / "calibrated.safetensors"), ["--data", str(picture_folder), "--split", "val"]
    answers(0.02, taxonomy)
    command = ["calibrate", str(tiny_weights), *data, "--output", output, "--allow-missing"]
    assert main([*command, "--target-accuracy", "0.9", "--json"]) == 0
    promise = json.loads(capsys.readouterr().out)["guarantee"]["promise"]
    assert promise["target"] == promise["confidence"] == 0.9 <= promise["bound"]

    command = ["predict", str(picture_folder / "val"), "--model", output]
    assert main([*command, "--back-off", "auto", "--set", "0.8", "--json"]) == 0
    automatic = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main([*command, "--back-off", str(promise["threshold"]), "--json"]) == 0
    for row in map(json.loads, capsys.readouterr().out.splitlines()):
        other = next(answer for answer in automatic if answer["file"] == row["file"])
        assert {**row, "set": other["set"]} == other and 1 <= other["set"]["leaves"] <= 6
    assert main([*command, "--set", "0.8", "--output", str(tmp_path / "sets.csv")]) == 0
    assert "set,set_leaves,subtree" in (tmp_path / "sets.csv").read_text().splitlines()[0]

    capsys.readouterr()
    assert main([*command, "--back-off", "auto", "--within", "bird"]) == 2
    assert "promises were measured without within" in capsys.readouterr().err
    assert main(["info", output]) == 0
    assert json.loads(capsys.readouterr().out)["guarantee"]["promise"] == promise

    boxes = [
        {"category": "1", "conf": 1.0, "bbox": [0, 0, 0.5, 0.5]},
        {"category": "1", "conf": 1.0, "bbox": [2, 2, 1, 1]},
    ]
    names = [str(file.relative_to(picture_folder)) for file in sorted(picture_folder.rglob("*.png"))[:5]]
    document = {"images": [{"file": name, "detections": boxes} for name in names]}
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    main(["drift", output, "--data", str(picture_folder), "--boxes", str(tmp_path / "boxes.json"), "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["pictures"] == 5 and "trained on whole pictures" in captured.err

    drift = ["drift", output, *data, "--labels", "--json"]
    assert main(drift) == 0
    assert json.loads(capsys.readouterr().out)["holds"]
    answers(0.4, taxonomy)
    assert main(drift) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["name"] for check in checks if check["drifted"]] == ["accuracy of answers"]

    assert main(["drift", output, "--data", str(picture_folder / "val")]) == 1  # this model is never as sure
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].endswith("yes") and "no longer holds: 12 pictures" in captured.err


def test_no_promise_is_made_without_evidence(answers, picture_folder, tiny_weights, taxonomy, tmp_path, capsys):
    output = str(tmp_path / "out.safetensors")
    command = ["calibrate", str(tiny_weights), "--data", str(picture_folder), "--output", output, "--allow-missing"]
    answers(0.5, taxonomy)
    assert main([*command, "--target-accuracy", "0.95"]) == 2
    assert "More pictures will not help" in capsys.readouterr().err

    answers(0, taxonomy, pictures=30)
    assert main([*command, "--target-accuracy", "0.95"]) == 2
    assert "about 70 pictures would do" in capsys.readouterr().err

    answers(0, taxonomy, pictures=9)
    assert main(command) == 2
    assert "at least 10 pictures to calibrate on, got 9" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()

    picture = str(next((picture_folder / "val").rglob("*.png")))
    for options in (["--back-off", "auto"], ["--set", "0.9"]):
        assert main(["predict", picture, "--model", str(tiny_weights), *options]) == 2
        assert "run hcast-zoo calibrate" in capsys.readouterr().err


def test_other_temperatures_void_a_promise(answers, picture_folder, tiny_weights, taxonomy, tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    answers(0, taxonomy)
    data = ["--data", str(picture_folder), "--allow-missing"]
    assert main(["calibrate", str(tiny_weights), *data, "--sets", "--output", str(output)]) == 0

    weights = load_weights(output)
    assert len(json.loads(weights.metadata[KEY])["scores"]["leaves"]) == 200
    weights.calibration = type(weights.calibration).identity(3)
    save_weights(weights, output)

    picture = str(next((picture_folder / "val").rglob("*.png")))
    assert main(["predict", picture, "--model", str(output), "--set", "0.9"]) == 2
    assert "calibrated again after their promises" in capsys.readouterr().err
