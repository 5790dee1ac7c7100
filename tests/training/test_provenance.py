"""The origin that a run writes into its weights, and the model card made from it, by the commands."""

import json
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("accelerate")

from hcast_zoo.cli import main
from hcast_zoo.weights.file import load_weights, save_weights

RUN = ["--epochs", "1", "--warmup-epochs", "0", "--batch-size", "4", "--workers", "0", "--lr", "0.001"]


@pytest.fixture
def start(tiny_weights, tmp_path):
    """Write weights with a licence and an attribution, to start from."""
    weights = load_weights(tiny_weights)
    weights.metadata = {"name": "owls.start", "license": "CC-BY-SA-4.0", "attribution": "Pictures: A. Owl."}
    path = tmp_path / "start/weights.safetensors"

    path.parent.mkdir()
    save_weights(weights, path)
    return path


def train(folder, start, output, *more):
    assert main(["train", "--data", str(folder), "--model", str(start), "--output", str(output), *RUN, *more]) == 0
    return load_weights(output / "best.safetensors").metadata


@pytest.mark.slow
def test_weights_record_what_they_started_from(picture_folder, start, tmp_path, capsys):
    metadata = train(picture_folder, start, tmp_path / "run", "--title", "My owls", "--freeze", "encoder")
    assert metadata["name"] == "My owls" and metadata["base_model"] == "owls.start"
    assert (
        metadata["license"] == metadata["base_license"] == "CC-BY-SA-4.0"
        and metadata["attribution"] == "Pictures: A. Owl."
    )
    assert json.loads(metadata["settings"])["freeze"] == "encoder" and "workers" not in metadata["settings"]
    assert re.search(r"from owls\.start, at most 1 epochs.* weights of epoch 1: [\d.]+ % right", metadata["training"])
    assert metadata["data"] == "pictures: 12 pictures to train on, 12 to choose the weights."
    assert str(tmp_path) not in json.dumps(metadata)
    assert "note: licence" not in capsys.readouterr().err

    metadata = train(picture_folder, start, tmp_path / "other", "--license", "mit")
    assert (metadata["license"], metadata["base_license"]) == ("mit", "CC-BY-SA-4.0")
    assert "licence mit, but owls.start is CC-BY-SA-4.0" in capsys.readouterr().err


@pytest.mark.slow
def test_training_from_random_values_records_no_base_model(picture_folder, tmp_path):
    tiny = ["--image-size", "32", "--num-superpixels", "16", "--num-clusters", "8", "6", "4", "2"]
    metadata = train(picture_folder, "hcast_tiny", tmp_path / "run", *tiny)
    assert "from random values" in metadata["training"] and not {"base_model", "license"} & set(metadata)


@pytest.mark.slow
def test_the_card_of_a_run_loads_it(picture_folder, start, tmp_path, capsys):
    """The code of the card is run in the folder of the weights."""
    train(picture_folder, start, tmp_path / "run")
    card = tmp_path / "run/owls.md"
    command = ["evaluate", "--data", str(picture_folder), "--model", str(tmp_path / "run"), "--split", "val"]
    assert main([*command, "--card", str(card), "--card-pictures", "A. Owl, CC0"]) == 0
    text = card.read_text()
    assert "Trained from owls.start (CC-BY-SA-4.0)." in text and "Expected calibration error in percent" in text
    assert (
        "![Right answers above" in text
        and "Pictures: A. Owl, CC0" in text
        and "still gets the name of one of them" in text
    )
    assert (tmp_path / "run/owls.val.jpg").read_bytes().startswith(b"\xff\xd8")

    shutil.copy(next((picture_folder / "val").rglob("*.png")), tmp_path / "run/picture.jpg")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 1 and 'Predictor("best.safetensors")' in blocks[0]
    done = subprocess.run([sys.executable, "-c", blocks[0]], cwd=card.parent, capture_output=True, text=True)
    assert done.returncode == 0 and "path=(" in done.stdout, done.stderr

    pytest.importorskip("transformers")
    publish = ["publish", str(tmp_path / "run"), "--repo", "org/owls", "--dry-run", "--output", str(tmp_path / "repo")]
    assert main([*publish, "--evaluations", str(card.with_suffix(".json")), "--title", "Owls", "--license", "mit"]) == 0
    text = (tmp_path / "repo/README.md").read_text()
    assert "# Owls\n" in text and "license: mit" in text and (tmp_path / "repo/owls.val.jpg").exists()


def test_missing_evaluations_are_an_error(tiny_weights, tmp_path, capsys):
    pytest.importorskip("transformers")
    command = ["publish", str(tiny_weights), "--repo", "org/tiny", "--dry-run", "--output", str(tmp_path / "repo")]
    assert main([*command, "--evaluations", str(tmp_path / "none.json")]) == 2
    err = capsys.readouterr().err
    assert "none.json: no such file; `hcast-zoo evaluate" in err and not (tmp_path / "repo").exists()
