"""The Fashion-MNIST builder, on small IDX files written here."""

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.taxonomy.tree import Taxonomy

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    pytest.importorskip("pyarrow")
    return __import__("fashion_mnist")


@pytest.fixture
def source(recipe, monkeypatch, tmp_path):
    """Write 40 training and 10 test pictures; two files are packed, two are not."""
    rng = np.random.default_rng(0)
    folder, checksums = tmp_path / "idx", {}
    folder.mkdir()
    for part, size in (("train", 40), ("t10k", 10)):
        arrays = {"images-idx3": rng.integers(0, 256, (size, 28, 28)), "labels-idx1": np.arange(size) % 10}
        for kind, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            data, name = header + array.astype(np.uint8).tobytes(), f"{part}-{kind}-ubyte"
            checksums[name] = hashlib.sha256(data).hexdigest()
            if part == "train":
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
            arrays[kind] = array
        np.savez(tmp_path / part, **arrays)
    monkeypatch.setattr(recipe, "SHA256", checksums)
    monkeypatch.setattr(recipe, "VAL_EACH", 1)
    return folder


def test_the_build_keeps_pictures_labels_and_parts(recipe, source, tmp_path, monkeypatch, capsys):
    output = tmp_path / "made"
    monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", "--output", str(output), "--source", str(source)])
    recipe.main()
    assert capsys.readouterr().out == "{'train': 30, 'val': 10, 'test': 10} levels (2, 6, 10)\n"
    taxonomy = Taxonomy.load(output / "taxonomy.json")
    assert taxonomy.levels == ("kind", "category", "article") and "Zalando" in (output / "ATTRIBUTION.md").read_text()
    splits = ("train", "train", range(30)), ("val", "train", range(30, 40)), ("test", "t10k", range(10))
    for split, part, rows in splits:
        data = HierarchicalDataset.load(output / "fashion_mnist.parquet", taxonomy, split)
        with np.load(tmp_path / f"{part}.npz") as arrays:
            for i, row in enumerate(rows):
                picture, labels = data[i]
                assert (np.asarray(picture)[..., 0] == arrays["images-idx3"][row]).all()
                assert taxonomy.path_names(labels.tolist()) == recipe.PATHS[arrays["labels-idx1"][row]]


def test_a_damaged_or_missing_file_stops_the_build(recipe, source):
    (source / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01")
    with pytest.raises(SystemExit, match="t10k-labels-idx1-ubyte: expected sha256"):
        recipe.read_part(source, "t10k")
    (source / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(SystemExit, match=r"expected t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz"):
        recipe.read_part(source, "t10k")


def test_without_debian_another_source_is_named(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "INSTALLED", Path("nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="give its four IDX files with --source"):
        recipe.find_package(tmp_path)
