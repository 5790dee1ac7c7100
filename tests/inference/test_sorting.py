"""``predict --sort-into``: a folder for each node, with names that every system accepts."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcast_zoo.cli import main
from hcast_zoo.inference.predictor import Prediction, Predictor
from hcast_zoo.inference.sorting import NO_ANSWER, NodeFolders, safe_name, sort_into
from hcast_zoo.taxonomy.tree import Taxonomy


def sorted_files(folder):
    """Return the real path of each file, by its path below the folder."""
    paths = {}
    for root, _, names in os.walk(folder):
        for name in names:
            if not name.startswith("."):
                path = os.path.join(root, name)
                paths[os.path.relpath(path, folder)] = os.path.realpath(path)
    return paths


@pytest.mark.parametrize("how", ["link", "copy"])
def test_each_picture_is_in_the_folder_of_its_node(how, tmp_path, capsys):
    pictures, output = tmp_path / "pictures", tmp_path / "sorted"
    ignored = shutil.ignore_patterns("*.py", "*.md", "*.jpg")
    shutil.copytree(Path(__file__).parents[1] / "pictures", pictures, ignore=ignored)
    (pictures / "broken.png").write_bytes(b"")
    model, options = "hcast_tiny.emoji_art", ["--back-off", "0.7"]
    command = ["predict", str(pictures), "--model", model, *options, "--sort-into", str(output), "--sort-as", how]
    assert main(command) == 1  # one picture is broken

    predictor = Predictor(model, threshold=0.7)
    answers = [p for p in predictor.predict(sorted(map(str, pictures.glob("*.png")))) if p.error is None]
    placed = sorted_files(output)
    assert len(placed) == len(answers) == 6
    assert len({len(p.path) for p in answers}) > 1  # some stop early

    expected = [os.path.join(*(p.path or (NO_ANSWER,)), os.path.basename(p.file)) for p in answers]
    assert sorted(placed) == sorted(expected)
    if how == "link":
        assert sorted(placed.values()) == sorted(os.path.realpath(p.file) for p in answers)
    else:
        assert all(os.path.samefile(output / path, real) for path, real in placed.items())

    assert main(command) == 1
    assert sorted_files(output) == placed  # a second run adds nothing

    capsys.readouterr()
    assert main([*command, "--decode", "independent"]) == 2
    assert "sorted with another model or other options" in capsys.readouterr().err


def test_a_folder_with_other_files_is_refused(tiny_weights, picture_folder, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    command = ["predict", str(picture_folder / "val"), "--model", str(tiny_weights), "--sort-into", str(folder)]
    assert main(command) == 2
    assert "thesis.txt: choose an empty folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_hostile_names_stay_below_the_folder(tmp_path):
    names = ["../../up", "/etc", "CON", "a/b", "a:b", "A_B", ".", "x\x1b[31m", "é", "e\u0301" * 500, NO_ANSWER]
    tree = Taxonomy.from_paths([("root", name) for name in names])
    source = tmp_path / "pictures"
    source.mkdir()
    predictions = []
    for i in range(len(names)):
        file = source / f"{i}.png"
        file.write_bytes(b"x")
        predictions.append(Prediction(str(file), path=tree.path_names((0, i))))

    output = tmp_path / "sorted"
    list(sort_into(predictions, output, tree, {"settings": {}, "made_of": {}}))
    placed = sorted_files(output)
    folders = {os.path.dirname(path).casefold() for path in placed}
    assert len(placed) == len(folders) == len(names)  # distinct even where case is ignored
    assert not any(part.startswith(".") for path in placed for part in path.split(os.sep))
    assert sorted(os.listdir(tmp_path)) == ["pictures", "sorted"]


@given(st.text())
def test_safe_names_are_valid_on_every_system(name):
    safe = safe_name(name)
    assert 0 < len(safe.encode()) <= 120
    assert safe.isprintable() and not set(safe) & set('<>:"/\\|?*') and safe[0] != "." and safe[-1] not in " ."


def test_a_path_has_its_folder_and_no_answer_too(taxonomy):
    folders = NodeFolders(taxonomy)
    assert str(folders.folder(("bird", "owl"))) == os.path.join("bird", "owl")
    assert str(folders.folder(())) == NO_ANSWER
