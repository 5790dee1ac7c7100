"""Boxes from the table to the weights, and from there to evaluation and prediction, with the same geometry."""

import csv
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from hcast_zoo.cli import main
from hcast_zoo.data.boxes import KEY, BoxedPicture, BoxGeometry
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.detections import box_listing, read_detections
from hcast_zoo.data.readers import read_listing
from hcast_zoo.data.splits import hold_out, write_list
from hcast_zoo.taxonomy import prior
from hcast_zoo.weights.file import load_weights
from tests.tiny import TRAIN

COLOURS = {("bird", "owl"): (200, 30, 30), ("bird", "gull"): (30, 200, 30), ("cat", "lion"): (30, 30, 200)}


@pytest.fixture
def table(tmp_path):
    """Write a table of 24 boxes, two in each of 12 pictures, each of one colour on grey; return it."""
    rows = []
    for number in range(12):
        picture = Image.new("RGB", (100, 60), (128, 128, 128))
        for part in range(2):
            path = list(COLOURS)[(number + part) % 3]
            box = (50 * part + 10 + number, 15, 50 * part + 35 + number % 5, 45)
            picture.paste(COLOURS[path], box)
            rows.append([f"{number}.png", *box, *path])
        picture.save(tmp_path / f"{number}.png")
    file = tmp_path / "boxes.csv"
    with open(file, "w", newline="") as sink:
        csv.writer(sink).writerows([("image_path", "xmin", "ymin", "xmax", "ymax", "kind", "species"), *rows])
    return file


def test_a_table_of_boxes_is_a_data_set(table, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the edges are not reported as unused columns
        listing = read_listing(table)
    assert listing.levels == ("kind", "species") and listing.is_boxed and len(listing.pictures) == 24
    dataset = HierarchicalDataset.from_listing(listing.with_geometry(BoxGeometry(0.0, "rectangle")))
    for index, path in enumerate(listing.paths):
        assert (np.asarray(dataset[index][0]) == COLOURS[tuple(path)]).all()  # nothing but the box
    wider = HierarchicalDataset.from_listing(listing.with_geometry(BoxGeometry(0.5, "rectangle")))
    assert wider.digest() != dataset.digest()

    parted = hold_out(listing, 0.3)
    parts = {}
    for picture, split in zip(parted.pictures, parted.splits):
        parts.setdefault(str(picture), set()).add(split)
    assert set.union(*parts.values()) == set(parted.splits) and len(set(parted.splits)) == 2

    write_list(parted, tmp_path / "list.csv")
    again = read_listing(tmp_path / "list.csv")
    assert [p.box.edges for p in again.pictures] == [p.box.edges for p in listing.pictures]
    assert again.splits == parted.splits and again.paths == parted.paths


def test_detections_take_their_pictures_labels(table, tmp_path):
    for number in range(3):
        folder = tmp_path / "tree" / ("owl" if number % 2 else "gull")
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{number}.png").rename(folder / f"{number}.png")

    detections = [{"category": "1", "conf": 0.9, "bbox": [0.1, 0.25, 0.25, 0.5]}] * 2
    images = [{"file": f"{'owl' if n % 2 else 'gull'}/{n}.png", "detections": detections} for n in range(2)]
    (tmp_path / "detected.json").write_text(json.dumps({"images": images, "detection_categories": {"1": "animal"}}))

    detected = read_detections(tmp_path / "detected.json")
    listing, without = box_listing(read_listing(tmp_path / "tree"), detected.choose(0.5, ["animal"]), tmp_path / "tree")
    assert without == 1 and [tuple(path) for path in listing.paths] == [("gull",)] * 2 + [("owl",)] * 2
    assert all(isinstance(picture, BoxedPicture) for picture in listing.pictures)

    with pytest.raises(ValueError, match="no box has the label 'person'; there are animal"):
        detected.choose(0.5, ["person"])


@pytest.mark.slow
def test_one_geometry_from_training_to_prediction(table, tmp_path, capsys):
    pytest.importorskip("accelerate")
    run = tmp_path / "run"
    options = ["--val-fraction", "0.3", "--box-padding", "0.2", "--box-min-size", "20", "--crop-mode", "pad"]
    assert main(["train", "--data", str(table), "--output", str(run), *options, *TRAIN]) == 0
    assert "boxes padded by 20.0% at each edge, square, 20 pixels at least; stored" in capsys.readouterr().err
    weights = load_weights(run)
    assert json.loads(weights.metadata[KEY]) == {"padding": 0.2, "shape": "square", "min_size": 20}
    assert (weights.config.crop_mode, weights.config.crop_pct) == ("pad", 1.0)
    shares = prior.read_trained(weights.metadata, weights.taxonomy)

    assert sum(shares) == pytest.approx(1, abs=1e-3) and torch.isfinite(torch.tensor(shares)).all()

    assert main(["evaluate", "--model", str(run), "--split", "val", "--json"]) == 0  # from the run's own list
    captured = capsys.readouterr()
    measured = json.loads(captured.out.splitlines()[-1])
    assert "warning" not in captured.err and 0 < measured["pictures"] < 24

    assert main(["predict", "--boxes", str(table), "--model", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    answers = [json.loads(line) for line in captured.out.splitlines()]
    assert len(answers) == 24 and "warning" not in captured.err

    with open(run / "pictures.csv", newline="") as source:
        rows = {(row["file"].rpartition("/")[2], float(row["xmin"])): row for row in csv.DictReader(source)}
    right = []
    for answer in answers:
        row = rows[answer["box"]["name"], answer["box"]["edges"][0]]
        if row["split"] == "val":
            right.append(answer["path"] == [row["kind"], row["species"]])
    assert len(right) == measured["pictures"]
    assert 100 * sum(right) / len(right) == pytest.approx(measured["results"]["best_path"]["fpa"], abs=1e-3)

    assert main(["predict", "--boxes", str(table), "--model", str(run), "--box-padding", "0"]) == 2

    # Fine-tuning keeps the geometry.
    again = [*TRAIN[2:], "--model", str(run), "--val-fraction", "0.3"]
    assert main(["train", "--data", str(table), "--output", str(tmp_path / "again"), *again]) == 0
    assert load_weights(tmp_path / "again").metadata[KEY] == weights.metadata[KEY]
