"""Calls that a newcomer gets wrong: the error says what is wrong, and what to type next."""

import re

import pytest
from PIL import Image

from hcast_zoo.cli import main


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """A folder with what a newcomer has at hand, as the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("owl", "gull"):
        for part in ("train", "val"):
            (tmp_path / "birds" / part / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), "red").save(tmp_path / "birds" / part / name / "1.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "owl.png")
    (tmp_path / "guide.pdf").write_bytes(b"%PDF-1.4\n%\n")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "birds.csv").write_text("picture name,species\nowl.png,owl\n")
    (tmp_path / "tree.csv").write_text("order,species\nowls\n")
    return tmp_path


def errors_of(capsys, *arguments):
    """Return the exit code of a call, and what it printed to stderr."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr().err
    assert "Traceback" not in printed and "[Errno" not in printed
    return code, printed


@pytest.mark.parametrize(
    "call, wrong, step",
    [
        ("", "required: COMMAND", "example: hcast-zoo predict photos"),
        ("predit owl.png", "no command 'predit'", "did you mean predict?"),
        ("owl.png", "no command 'owl.png'", "`hcast-zoo predict owl.png`"),
        ("-q predict owl.png", "unrecognized arguments: -q", "options go after the command"),
        ("predict owl.png --modle x", "unrecognized arguments: --modle x", "did you mean --model?"),
        ("train --data birds", "required: --output", "example: hcast-zoo train --data birds --output runs/birds"),
        ("data chek birds", "no command 'chek'", "did you mean check?"),
        ("convert x.pth --output y", "unrecognized arguments: --output", "example: hcast-zoo convert checkpoint.pth"),
        ("predict owl.png --decode best", "invalid choice: 'best'", "all options: hcast-zoo predict --help"),
    ],
)
def test_a_wrong_call_gets_an_example_and_a_guess(capsys, call, wrong, step):
    code, printed = errors_of(capsys, *call.split())
    assert code == 2 and wrong in printed and step in printed
    assert len(printed.splitlines()) <= 3 and printed.splitlines()[-1].endswith("--help")


@pytest.mark.parametrize(
    "call, wrong, step",
    [
        (
            "predict owl.png --model hcast_smal.emoji_art",
            "no weights 'hcast_smal.emoji_art'",
            "did you mean hcast_small",
        ),
        ("predict owl.png --model nothing", "no weights 'nothing'", "one of hcast_lite.in1k"),
        ("predict", "expected pictures", "--files-from"),
        ("predict owl.png --output owl.docx", "owl.docx: expected a file that ends in", ".csv"),
        ("predict owl.png --within lyon --model hcast_small.emoji_art", "no node 'lyon'", "did you mean .*'lion'"),
        ("predict owl.png --back-off 50", "from 0 to 1, got 50", "for 50 %, give 0.5"),
        ("predict owl.png --device gpu", "got 'gpu'", "`hcast-zoo doctor` tells"),
        ("predict --files-from list.txt", "list.txt: No such file", "check the name, which counts from"),
        ("segment owl.png --output owl.png", "owl.png: File exists", "give another name"),
        ("evaluate --data nowhere", "nowhere: no such file or folder", "check the name"),
        ("evaluate --data empty", "empty: expected at least one picture", r"end in \.jpg"),
        ("evaluate --data birds.csv", "no column file", "rename the column"),
        ("evaluate --data birds --split val", "no node 'gull' at level 'kind'", "hcast-zoo train --data birds"),
        ("evaluate --data birds --split tst", "expected a part 'tst'", "its folders are train, val"),
        ("publish hcast_tiny.emoji_art --repo birds --dry-run", "got 'birds'", "such as your-name/hcast-birds"),
        ("demo --port 80000", "got 80000", "a port from 1 to 65535"),
    ],
)
def test_wrong_input_is_told_with_the_next_step(capsys, call, wrong, step):
    if call.startswith("demo"):
        pytest.importorskip("gradio")
    code, printed = errors_of(capsys, *call.split())
    assert code == 2 and wrong in printed and re.search(step, printed), printed


@pytest.mark.parametrize(
    "picture, wrong, step",
    [
        ("nowhere.png", "nowhere.png: no such file", "names count from the current folder, {desk}"),
        ("empty", "empty: expected a picture, got a folder", "empty: no pictures here"),
        ("guide.pdf", "guide.pdf: not a picture", "Save its pictures as JPEG or PNG"),
        ("IMG_1.HEIC", "IMG_1.HEIC", "pip install 'hcast-zoo[heic]'"),
    ],
)
def test_what_is_no_picture_is_told_with_the_next_step(capsys, monkeypatch, desk, tiny_weights, picture, wrong, step):
    code, printed = errors_of(capsys, "predict", picture, "--model", tiny_weights)
    assert code == 1 and wrong in printed and step.format(desk=desk) in printed


def test_a_tree_with_an_empty_column_is_told_with_the_next_step(capsys):
    pytest.importorskip("accelerate")
    code, printed = errors_of(capsys, "train", "--data", "birds", "--taxonomy", "tree.csv", "--output", "run")
    assert code == 2 and "tree.csv: column 'species' is empty: fill it" in printed and "--levels" in printed


def test_a_run_in_the_output_of_another_one_says_how_to_go_on(capsys, tiny_weights):
    pytest.importorskip("accelerate")
    command = ["train", "--data", "birds", "--model", tiny_weights, "--output", "run", "--epochs", "1", "-q"]
    assert errors_of(capsys, *command)[0] == 0
    code, printed = errors_of(capsys, *command, "--lr", "0.5")
    assert code == 2 and "run holds" in printed and "choose another" in printed
