"""Tar shards, as WebDataset packs them, against the same pictures as files."""

import json

import numpy as np
import pytest

from hcast_zoo.cli import main
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.pictures import PictureError, content_digest, open_picture
from hcast_zoo.data.readers import read_listing
from tests.archives import write_tar


@pytest.fixture
def samples(picture_folder, taxonomy):
    """(key, picture, path of names, leaf) of each validation picture, sorted."""
    root = picture_folder / "val"
    leaves = {taxonomy.path_names(path): leaf for leaf, path in enumerate(taxonomy.paths)}
    samples = []
    for number, file in enumerate(sorted(root.rglob("*.png"))):
        path = file.relative_to(root).parts[:-1]
        samples.append((f"{number:06}", file.read_bytes(), path, leaves[path]))
    return samples


def layouts(samples):
    """Map the name of a layout to the files of a shard."""
    by_json, by_leaf, by_folder = {}, {}, {}
    for key, picture, path, leaf in samples:
        by_json |= {f"./{key}.png": picture, f"./{key}.json": json.dumps({"path": path}).encode()}
        by_leaf |= {f"{key}.png": picture, f"{key}.cls": f"{leaf}\n".encode()}
        by_folder |= {f"{'/'.join(path)}/{key}.png": picture}
    by_columns = {**by_json}
    for key, _, path, _ in samples:
        row = dict(zip(("order", "family", "species"), path))
        by_columns[f"./{key}.json"] = json.dumps(row).encode()
    return {"json": by_json, "columns": by_columns, "cls": by_leaf, "folders": by_folder}


@pytest.mark.parametrize("layout", ["json", "columns", "cls", "folders"])
def test_a_shard_is_the_same_data_set_as_its_files(layout, samples, taxonomy, picture_folder, tmp_path):
    shard = write_tar(tmp_path / "birds-0000.tar", layouts(samples)[layout])
    packed = HierarchicalDataset.load(shard, taxonomy)
    plain = HierarchicalDataset.from_folder(picture_folder / "val", taxonomy)
    assert len(packed) == len(plain) == 12
    assert packed.labels.tolist() == plain.labels.tolist()
    for index in reversed(range(len(plain))):  # single pictures, in any order
        picture, other = packed[index][0], plain[index][0]
        assert np.array_equal(np.asarray(picture), np.asarray(other))
        assert content_digest(packed.pictures[index]) == content_digest(plain.pictures[index])


def test_shards_are_parts_by_their_names(samples, taxonomy, tmp_path):
    files = layouts(samples)["folders"]
    names, folder = list(files), tmp_path / "shards"
    folder.mkdir()
    for part, chosen in {"train-0000": names[:5], "train-0001": names[5:9], "val-0000": names[9:]}.items():
        write_tar(folder / f"{part}.tar", {name: files[name] for name in chosen})
    listing = read_listing(folder, taxonomy)
    assert len(listing.part("train").pictures) == 9 and len(listing.part("val").pictures) == 3


def test_evaluate_and_predict_answer_as_for_files(samples, tiny_weights, picture_folder, tmp_path, capsys):
    shard = write_tar(tmp_path / "birds-0000.tar", layouts(samples)["folders"])
    reports = []
    for data in (shard, picture_folder / "val"):
        assert main(["evaluate", "--data", str(data), "--model", str(tiny_weights), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        report.pop("data", None)
        reports.append(report)
    assert reports[0] == reports[1]

    answers = []
    for source in (shard, picture_folder / "val"):
        assert main(["predict", str(source), "--model", str(tiny_weights), "--json"]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [row["file"] for row in answers[0]] == [f"{shard}/{name}" for name in layouts(samples)["folders"]]
    for row, other in zip(*answers):
        del row["file"], other["file"]
        assert row == other


def test_damaged_shards_are_explained(samples, taxonomy, tmp_path, tiny_weights, capsys):
    shard = write_tar(tmp_path / "birds.tar", layouts(samples)["folders"])
    with pytest.raises(PictureError, match="no such file"):
        open_picture(f"{shard}/none.png")

    with pytest.raises(ValueError, match=r"number of a leaf, 0 to \d+, got 'x'"):
        HierarchicalDataset.load(write_tar(tmp_path / "x.tar", {"1.png": samples[0][1], "1.cls": b"x"}), taxonomy)
    with pytest.raises(ValueError, match=r"x.tar/1.json: expected an object"):
        HierarchicalDataset.load(write_tar(tmp_path / "x.tar", {"1.png": samples[0][1], "1.json": b"["}), taxonomy)
    with pytest.raises(ValueError, match=r"expected a .json file beside '2.png'"):
        files = {"1.png": b"", "1.json": b'{"path": ["a"]}', "2.png": b""}
        HierarchicalDataset.load(write_tar(tmp_path / "y.tar", files), taxonomy)

    data = shard.read_bytes()
    for broken in (data[: len(data) // 2 + 1], b"no tar", data[:100]):
        shard.write_bytes(broken)
        with pytest.raises(ValueError, match="expected a complete tar file"):
            read_listing(shard, taxonomy)
        assert main(["predict", str(shard), "--model", str(tiny_weights)]) == 2
        assert "expected a complete tar file" in capsys.readouterr().err
