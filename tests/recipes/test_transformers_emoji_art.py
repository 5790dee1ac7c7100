"""The recipe for transformers' Trainer, for one step on the pictures of tests/pictures."""

import json
import sys
from pathlib import Path

import pytest

from hcast_zoo.weights.file import load_weights

PICTURES = Path(__file__).parents[1] / "pictures"


@pytest.mark.slow
def test_one_step(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    tree = load_weights("hcast_tiny.emoji_art").taxonomy
    rows = []
    for picture in sorted(PICTURES.glob("*.png")):
        path = tree.path_names(tree.path_to(*tree.find(picture.stem.replace("_", " "))))
        for split in ("train", "val", "test"):
            rows.append({"image": picture.read_bytes(), "split": split, **dict(zip(tree.levels, path))})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "emoji_art.parquet")
    tree.save(tmp_path / "taxonomy.json")

    options = "--init hcast_tiny.emoji_art --max-steps 1 --batch-size 3 --workers 0".split()
    command = ["recipe", "--data", str(tmp_path), "--output", str(tmp_path / "run"), *options]
    monkeypatch.setattr(sys, "argv", command)
    from recipes.transformers_emoji_art import main

    main()
    metrics = json.loads("{" + capsys.readouterr().out.rpartition("{")[2])
    assert 0 <= metrics["test_fpa"] <= 100
    assert load_weights(tmp_path / "run").taxonomy == tree
