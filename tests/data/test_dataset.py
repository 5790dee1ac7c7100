"""Data sets from folders, tables and parquet files; batches and samplers."""

import io
import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.loading import SeededSampler, SuperpixelCollate, start_quietly
from hcast_zoo.data.pictures import PictureError
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.tree import Taxonomy


def test_a_folder_gives_pictures_with_labels(picture_folder, taxonomy):
    data = HierarchicalDataset.load(picture_folder, split="train")
    assert len(data) == 12 and data.taxonomy.level_classes == (2, 4, 6)
    picture, labels = data[0]
    assert picture.size == (40, 40) and data.taxonomy.path_names(labels.tolist()) == ("bird", "gull", "herring gull")

    same = HierarchicalDataset.load(picture_folder / "val", taxonomy)
    assert taxonomy.path_names(same[0][1].tolist()) == ("bird", "gull", "herring gull")

    Image.new("RGB", (9, 9)).save(picture_folder / "train/bird/unknown.jpg")
    data = HierarchicalDataset.load(picture_folder, taxonomy, "train")
    assert sorted(map(tuple, data.labels.tolist()))[0] == (0, -1, -1)


def write_table(folder, name):
    Image.new("RGB", (9, 9), "red").save(folder / "a.png")
    rows = [("a.png", ("bird", "owl", "barn owl"), "train"), ("b.png", ("mammal", "cat", ""), "test")]
    file = folder / name
    if name.endswith("csv"):
        lines = ["file,class,family,species,split"]
        lines += [f"{f},{','.join(p)},{s}" for f, p, s in rows]
        file.write_text("\n".join(lines))
    else:
        rows = [{"file": f, "path": [name for name in p if name], "split": s} for f, p, s in rows]
        file.write_text("\n\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_tables_give_labels_and_splits(name, tmp_path, taxonomy):
    file = write_table(tmp_path, name)
    data = HierarchicalDataset.load(file, taxonomy)
    assert data.labels.tolist() == [[0, 0, 0], [1, 2, -1]]
    assert len(HierarchicalDataset.load(file, taxonomy, "train")) == 1
    assert HierarchicalDataset.load(file, split="train").taxonomy.level_classes == (1, 1, 1)

    with pytest.warns(UserWarning, match=r"left out: .*b.png: no such file"):
        assert data[1] is None
    with pytest.raises(PictureError, match="no such file"):
        HierarchicalDataset.load(file, taxonomy, skip_broken=False)[1]


def test_several_splits_are_joined_in_order(picture_folder, tmp_path, taxonomy):
    """train+val is both, for folders and for files."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    both = HierarchicalDataset.load(picture_folder, taxonomy, "train+val")
    parts = [HierarchicalDataset.load(picture_folder, taxonomy, part) for part in ("train", "val")]
    assert both.pictures == parts[0].pictures + parts[1].pictures and len(both) == 24
    assert both.labels.tolist() == parts[0].labels.tolist() + parts[1].labels.tolist()
    with pytest.raises(ValueError, match="expected pictures of the part 'test'; its parts are train, val"):
        HierarchicalDataset.load(picture_folder, taxonomy, "train+test")

    rows = [{"file": f"{part}.png", "path": ["bird"], "split": part} for part in ("train", "val", "test")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["file,class,split", *(f"{p}.png,bird,{p}" for p in ("train", "val", "test"))]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")

    for name in ("a.jsonl", "a.csv"):
        data = HierarchicalDataset.load(tmp_path / name, split="train+val")
        assert [p.name for p in data.pictures] == ["train.png", "val.png"]

    table = pa.table({"image": [b"1", b"2", b"3"], "class": ["bird"] * 3, "split": ["train", "val", "test"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert HierarchicalDataset.load(tmp_path / "a.parquet", split="train+val").pictures == [b"1", b"2"]


def test_a_prepared_folder_is_read_with_its_taxonomy(tmp_path, taxonomy):
    """data.jsonl and taxonomy.json of a folder are read together; nodes are in the taxonomy's order."""
    taxonomy.save(tmp_path / "taxonomy.json")
    row = {"file": "deep/1.jpg", "path": list(taxonomy.path_names(taxonomy.paths[4])), "split": "train"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    data = HierarchicalDataset.load(tmp_path, split="train")
    assert data.taxonomy == taxonomy and data.labels.tolist() == [list(taxonomy.paths[4])]
    assert data.pictures == [tmp_path / "deep/1.jpg"]


def test_parquet_rows_and_backgrounds(tmp_path, taxonomy):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(file, "PNG")
    columns = {
        "image": [file.getvalue()] * 3,
        "class": ["bird", "mammal", "mammal"],
        "family": ["owl", "cat", None],
        "species": ["barn owl", "lion", None],
        "split": ["train", "test", "test"],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")

    data = HierarchicalDataset.load(tmp_path / "t.parquet", taxonomy, "test", cache=True)
    assert data.labels.tolist() == [[1, 2, 3], [1, -1, -1]]
    assert np.asarray(data[0][0]).min() == 255 and data[0][0].mode == "RGB"

    random = HierarchicalDataset.load(tmp_path / "t.parquet", taxonomy, random_background=True)
    assert len({random[0, seed][0].getpixel((0, 0)) for seed in range(5)}) == 5
    assert random[0, 7][0].getpixel((0, 0)) == random[0, 7][0].getpixel((0, 0))


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("file,colour\na.png,bird", "t.csv", "no column class, family, species"),
        ("", "t.csv", "no column file"),
        ("file,class,family,species\na.png,bird,owl,dodo", "t.csv", "a.png: no node 'dodo' at level 'species'"),
        ("file,class,family,species\n", "t.csv", "at least one picture"),
        ("{", "t.jsonl", "line 1: expected an object with file and path"),
        ('{"file": "a.png"}', "t.jsonl", "line 1: expected an object"),
        ('{"file": "a.png", "path": [0, 0, 6]}', "t.jsonl", "label 6 is out of range at level 'species'"),
        ("", "t.doc", "a file that ends in .csv, .jsonl, .parquet"),
    ],
)
def test_wrong_tables_are_explained(tmp_path, taxonomy, text, name, message):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises((ValueError, TaxonomyError), match=message):
        HierarchicalDataset.load(file, taxonomy)

    with pytest.raises(ValueError, match="no such file"):
        HierarchicalDataset.load(tmp_path / "missing.csv")


def test_batches_leave_broken_pictures_out(picture_folder, taxonomy, tiny_config):
    next((picture_folder / "val").rglob("*.png")).write_bytes(b"broken")
    data = HierarchicalDataset.load(picture_folder, taxonomy, "val", transform=eval_transform(tiny_config))
    with pytest.warns(UserWarning, match="left out"):
        batches = list(DataLoader(data, 5, collate_fn=SuperpixelCollate(tiny_config)))
    assert sum(len(b["labels"]) for b in batches) == 11
    assert batches[0]["segments"].shape == batches[0]["images"][:, 0].shape
    assert SuperpixelCollate(tiny_config)([None, None]) is None


def test_sampler_is_a_function_of_seed_and_epoch():
    sampler = SeededSampler(20, seed=3)
    first = list(sampler)
    assert first == list(sampler) and sorted(i for i, _ in first) == list(range(20))

    sampler.epoch = 1
    assert list(sampler) != first
    assert Counter(i for i, _ in sampler) == Counter(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_samples_do_not_depend_on_workers(picture_folder, taxonomy, tiny_config, workers):
    pytest.importorskip("accelerate")
    from hcast_zoo.training.augmentation import make_mixup, train_transform
    from hcast_zoo.training.settings import TrainConfig

    settings = TrainConfig()
    data = HierarchicalDataset.load(picture_folder, taxonomy, "train", transform=train_transform(tiny_config, settings))
    collate = SuperpixelCollate(tiny_config, make_mixup(tiny_config, settings))

    def batches(number):
        torch.manual_seed(number)  # torch's global random state must not matter
        return list(DataLoader(data, 4, sampler=SeededSampler(12, 0), num_workers=number, collate_fn=collate))

    for a, b in zip(batches(0), batches(workers)):
        assert torch.equal(a["images"], b["images"]) and torch.equal(a["segments"], b["segments"])
        assert all(torch.equal(x, y) for x, y in zip(a["targets"], b["targets"]))
        for target in a["targets"]:
            torch.testing.assert_close(target.sum(1), torch.ones(4))


def test_segments_follow_mixing(picture_folder, taxonomy, tiny_config):
    pytest.importorskip("accelerate")
    from hcast_zoo.network.superpixels import segment_normalized
    from hcast_zoo.training.augmentation import make_mixup
    from hcast_zoo.training.settings import TrainConfig

    data = HierarchicalDataset.load(picture_folder, taxonomy, "train", transform=eval_transform(tiny_config))
    mixup = make_mixup(tiny_config, TrainConfig(mixup=0.0, cutmix=1.0))
    samples = [data[i, 5] for i in (0, 11)]
    maps = [segment_normalized(s[0][None], 16, tiny_config.mean, tiny_config.std) for s in samples]

    mixed = SuperpixelCollate(tiny_config, mixup)(samples)
    official = SuperpixelCollate(tiny_config, mixup, paper_exact=True)(samples)

    assert torch.equal(mixed["images"], official["images"]) and not torch.equal(mixed["images"][0], samples[0][0])
    assert torch.equal(official["segments"], torch.cat(maps))
    again = segment_normalized(mixed["images"], 16, tiny_config.mean, tiny_config.std)
    assert torch.equal(mixed["segments"], again)
    assert Taxonomy.from_dict(taxonomy.to_dict()) == data.taxonomy


def test_a_worker_whose_parent_died_prints_nothing(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: printed.append(kind))
    start_quietly(0)
    for kind in (ConnectionResetError, EOFError, ValueError):
        sys.excepthook(kind, kind(), None)
    assert printed == [ValueError]
