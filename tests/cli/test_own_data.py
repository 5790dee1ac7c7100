"""From a user's own data to trained weights, and predictions with odd trees and lists."""

import csv
import json

import pytest
import torch
from PIL import Image

from hcast_zoo.cli import main
from hcast_zoo.network.model import HCast
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import Weights, load_weights, save_weights
from tests.tiny import TRAIN, make_config


@pytest.fixture
def birds(tmp_path):
    """Return a folder of two orders and four species, eight pictures each, not split into parts."""
    for number in range(32):
        order, species = number % 2, number % 4
        file = tmp_path / f"birds/order{order}/species{species}/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (8 * number, 90 * order, 60 * species)).save(file)
    return tmp_path / "birds"


def test_split_writes_a_list(birds, tmp_path, capsys):
    command = ["data", "split", str(birds), "--output", str(tmp_path / "list.csv"), "--val-fraction", "0.25", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)

    with open(tmp_path / "list.csv") as file:
        rows = list(csv.DictReader(file))
    assert (
        report["pictures"] == len(rows) == 32 and report["parts"]["val"] == sum(r["split"] == "val" for r in rows) >= 4
    )

    held = {(r["level_1"], r["level_2"]) for r in rows if r["split"] == "val"}
    assert held == {(f"order{n % 2}", f"species{n}") for n in range(4)}


def test_a_folder_without_parts_names_the_option(birds, tmp_path, capsys):
    pytest.importorskip("accelerate")
    assert main(["train", "--data", str(birds), "--output", str(tmp_path / "run"), *TRAIN]) == 2
    assert "--val-fraction 0.15" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_becomes_a_card_in_two_commands(birds, tmp_path, capsys):
    pytest.importorskip("accelerate")
    run, held = str(tmp_path / "run"), ["--val-fraction", "0.2", "--test-fraction", "0.2"]
    assert main(["train", "--data", str(birds), "--output", run, *held, *TRAIN]) == 0
    assert main(["evaluate", "--model", run, "--split", "test", "--card", str(tmp_path / "card.md"), "--json"]) == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out.splitlines()[-1])
    assert results["pictures"] >= 4 and results["results"]["best_path"]["tice"] == 0
    assert "--split test" in (tmp_path / "card.md").read_text()
    assert load_weights(run).calibration is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_trains_without_a_taxonomy(birds, tmp_path, kind, capsys):
    pytest.importorskip("accelerate")
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(birds.rglob("*.png"), key=lambda file: int(file.stem))
    table = {
        "order": [file.parts[-3] for file in files],
        "species": [file.parts[-2] for file in files],
        "split": ["val" if number % 8 > 3 else "train" for number in range(32)],
    }
    if kind == "parquet":
        pq.write_table(pa.table({"image": [file.read_bytes() for file in files], **table}), tmp_path / "d.parquet")
    else:
        rows = zip(map(str, files), *table.values())
        lines = ["file;order;species;split", *(";".join(row) for row in rows)]
        (tmp_path / "d.csv").write_text("\n".join(lines), "utf-16")
    run = str(tmp_path / "run")
    assert main(["train", "--data", str(tmp_path / f"d.{kind}"), "--output", run, *TRAIN]) == 0
    assert load_weights(run).taxonomy.levels == ("order", "species")


def test_a_list_saved_on_windows_is_read(birds, tmp_path, tiny_weights, capsys):
    files = [str(file) for file in sorted(birds.rglob("*.png"))[:2]]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*files, ""]).encode())
    assert main(["predict", "--files-from", str(tmp_path / "list.txt"), "--model", str(tiny_weights)]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == files


def test_a_level_with_one_node_lifts_no_answer(tmp_path, capsys):
    """All nodes are below "thing", so that level says nothing; it may not raise the mean of the path to "rock"."""
    paths = [("thing", "rock"), ("thing", "animal", "cat"), ("thing", "animal", "dog")]
    taxonomy = Taxonomy.from_paths(paths, ("all", "kind", "species"))
    config = make_config(level_classes=taxonomy.level_classes)
    state = HCast(config).state_dict()
    kind = taxonomy.names[1].index("rock")
    for level, probabilities in enumerate(([1.0], [0.45 if node == kind else 0.55 for node in (0, 1)], [0.5, 0.5])):
        state[f"heads.{level}.weight"].zero_()
        state[f"heads.{level}.bias"].copy_(torch.tensor(probabilities).log())

    weights, picture = tmp_path / "tiny.safetensors", tmp_path / "a.png"
    save_weights(Weights(config, taxonomy, state, {"name": "tiny"}), weights)
    Image.new("RGB", (40, 40), "grey").save(picture)

    assert main(["predict", str(picture), "--model", str(weights), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    # sqrt(0.55 * 0.5) = 0.52 is more than 0.45; with the first level it would be 0.65 against 0.67.
    assert answer["path"][:2] == ["thing", "animal"]

    state["heads.1.bias"].copy_(torch.tensor([0.6 if node == kind else 0.4 for node in (0, 1)]).log())
    save_weights(Weights(config, taxonomy, state, {"name": "tiny"}), weights)
    assert main(["predict", str(picture), "--model", str(weights), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == ["thing", "rock"]


def test_a_column_that_is_not_a_level_is_reported(tmp_path, capsys):
    """Each column is a level by default, so one that does not belong doubles the names below it."""
    table = tmp_path / "drawn.csv"
    rows = [f"{n}.png,artist {n // 4},kind {n % 2},thing {n % 4}\n" for n in range(8)]
    table.write_text("file,artist,kind,thing\n" + "".join(rows))
    assert main(["data", "check", str(table), "--output", str(tmp_path / "page")]) in (0, 1)
    notes = capsys.readouterr().err
    assert "level 'kind': 2 names are below several parents" in notes and "Name the levels with --levels" in notes
