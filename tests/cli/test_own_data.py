import csv
import json

import pytest
from PIL import Image

from hcast_zoo.cli import main

TINY = ["--model", "hcast_tiny", "--image-size", "32", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "4"]
TINY += ["--workers", "0", "--num-superpixels", "16", "--num-clusters", "8", "6", "4", "2"]


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
    told = json.loads(capsys.readouterr().out)
    with open(tmp_path / "list.csv") as file:
        rows = list(csv.DictReader(file))
    assert told["pictures"] == len(rows) == 32 and told["parts"]["val"] == sum(r["split"] == "val" for r in rows) >= 4
    assert {(r["level_1"], r["level_2"]) for r in rows if r["split"] == "val"} == {
        (f"order{n % 2}", f"species{n}") for n in range(4)
    }


def test_pictures_in_no_parts_say_what_to_do(birds, tmp_path, capsys):
    pytest.importorskip("accelerate")
    assert main(["train", "--data", str(birds), "--output", str(tmp_path / "run"), *TINY]) == 2
    assert "--val-fraction 0.15" in capsys.readouterr().err


@pytest.mark.slow
def test_from_a_folder_to_a_card_in_two_commands(birds, tmp_path, capsys):
    pytest.importorskip("accelerate")
    run, held = str(tmp_path / "run"), ["--val-fraction", "0.2", "--test-fraction", "0.2"]
    assert main(["train", "--data", str(birds), "--output", run, *held, *TINY]) == 0
    assert main(["evaluate", "--model", run, "--split", "test", "--card", str(tmp_path / "card.md"), "--json"]) == 0
    captured = capsys.readouterr()
    results = json.loads(captured.out.splitlines()[-1])
    assert results["pictures"] >= 4 and results["results"]["best_path"]["tice"] == 0
    assert "--split test" in (tmp_path / "card.md").read_text()
    from hcast_zoo.weights.file import load_weights

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
    assert main(["train", "--data", str(tmp_path / f"d.{kind}"), "--output", run, *TINY]) == 0
    from hcast_zoo.weights.file import load_weights

    assert load_weights(run).taxonomy.levels == ("order", "species")


def test_a_list_saved_on_windows_is_read(birds, tmp_path, tiny_weights, capsys):
    files = [str(file) for file in sorted(birds.rglob("*.png"))[:2]]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*files, ""]).encode())
    assert main(["predict", "--files-from", str(tmp_path / "list.txt"), "--model", str(tiny_weights)]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == files
