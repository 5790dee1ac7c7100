"""The tree as text and the most probable paths, by the command."""

import json

import pytest

from hcast_zoo.cli import main
from hcast_zoo.inference.predictor import Predictor
from tests.inference.test_tables import read
from tests.tiny import make_weights


def test_the_tree_counts_every_picture_once(picture_folder, tiny_weights, capsys):
    command = ["predict", str(picture_folder / "val"), "--model", str(tiny_weights), "--back-off", "0.36"]
    assert main([*command, "--json"]) == 0
    paths = [tuple(json.loads(line)["path"]) for line in capsys.readouterr().out.splitlines()]

    assert main([*command, "--tree"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[12].startswith("12 pictures")
    for level in range(3):
        for name in {path[level] for path in paths if len(path) > level}:
            count = sum(path[level : level + 1] == (name,) for path in paths)
            (line,) = [line for line in lines[13:] if f"─ {name} " in line]
            assert line.split(f"─ {name} ")[1].split(" ")[0] == str(count)

    assert main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12  # piped output has a line per picture


@pytest.mark.parametrize("within", [None, ["bird"]])
def test_top_k_ranks_the_paths(picture_folder, tmp_path, within, capsys):
    model = make_weights(tmp_path / "model.safetensors")
    options = [] if within is None else ["--within", *within]
    command = ["predict", str(picture_folder / "val"), "--model", str(model), *options]
    assert main([*command, "--top-k", "4", "--output", str(tmp_path / "out.csv")]) == 0

    predictor = Predictor(model, within=within)
    rows = read(tmp_path / "out.csv")
    for row, prediction in zip(rows, predictor.predict([row["file"] for row in rows]), strict=True):
        paths = [row[f"top_{rank}"] for rank in range(1, 5)]
        probabilities = [float(row[f"top_{rank}_probability"] or 0) for rank in range(1, 5)]
        assert paths[:2] == [" > ".join(prediction.path), " > ".join(prediction.runner_up)]
        assert probabilities[0] == pytest.approx(prediction.path_probability, abs=1e-6)
        assert probabilities == sorted(probabilities, reverse=True)
        assert (paths[3] is None) == (within is not None)  # there are three birds
        if within:
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)

    capsys.readouterr()
    assert main([*command, "--top-k", "2", "--decode", "independent"]) == 2
    assert "independent gives no probabilities to paths" in capsys.readouterr().err
