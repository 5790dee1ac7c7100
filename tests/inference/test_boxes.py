"""Boxes in pictures: read from detectors' files, cropped as in training, and answered row by row."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hcast_zoo.cli import main
from hcast_zoo.data.boxes import Box, BoxedPicture, BoxGeometry, crop_edges
from hcast_zoo.data.detections import read_detections
from hcast_zoo.data.pictures import PictureError, read_picture
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.weights.file import load_weights, save_weights

SIZE = (120, 80)


@pytest.fixture
def scenes(tmp_path):
    """A folder with two pictures, and detections in them as MegaDetector's JSON."""
    folder = tmp_path / "scenes"
    (folder / "site").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("site/a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).save(folder / name)
    boxes = {
        "site/a.png": [(0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 0.4, 0.4)],
        "b.png": [(0.0, 0.0, 1.0, 1.0), (1.2, 0.2, 0.3, 0.3), (0.2, 0.2, 0.0, 0.3), (float("nan"), 0, 0.5, 0.5)],
        "gone.png": [(0.1, 0.1, 0.2, 0.2)],
    }
    images = []
    for name, edges in boxes.items():
        detections = [{"category": "1", "conf": 0.9 - 0.1 * i, "bbox": list(box)} for i, box in enumerate(edges)]
        images.append({"file": name, "detections": detections})
    images[1]["detections"] += [{"category": "2", "conf": 0.05, "bbox": [0.3, 0.3, 0.1]}]
    images += [
        {"file": "empty.png", "detections": []},
        {"file": "broken.png", "failure": "image access"},
        {"no": "file"},
    ]
    document = {"images": images, "detection_categories": {"1": "animal", "2": "person"}}
    (folder / "detections.json").write_text(json.dumps(document))
    return folder


def rows_of(file: Path) -> list[dict]:
    with open(file, newline="") as source:
        return list(csv.DictReader(source))


def test_each_box_gets_an_answer_or_an_error(scenes, tiny_weights, tmp_path, capsys):
    """The answer is the one for the cropped picture."""
    output = tmp_path / "out.csv"
    command = ["predict", "--boxes", str(scenes / "detections.json"), "--model", str(tiny_weights)]
    assert main([*command, "--output", str(output)]) == 1
    errors = capsys.readouterr().err
    assert "an image without a file" in errors and "trained on whole pictures" in errors and "padded by 10.0%" in errors

    rows = rows_of(output)
    assert len(rows) == 8 and len({(row["file"], row["detection"]) for row in rows}) == 8
    expected = ("", "", "", "0% of it is in the picture", "above 0", "finite", "four numbers", "no such file")
    for row, part in zip(rows, expected, strict=True):
        assert part in row["error"] and bool(row["error"]) == bool(part)
    assert rows[0]["detector_label"] == "animal" and float(rows[1]["detector_confidence"]) == pytest.approx(0.8)
    assert rows[1]["xmin"] == "0.5" and rows[1]["box_unit"] == "relative"

    whole = read_picture(scenes / "site/a.png")
    cut = whole.crop(crop_edges(Box("a", (0.1, 0.1, 0.4, 0.4), relative=True), BoxGeometry(), SIZE))
    (expected,) = Predictor(tiny_weights).predict([cut])
    assert tuple(rows[0][level] for level in Predictor(tiny_weights).taxonomy.levels) == expected.path
    assert float(rows[0]["path_probability"]) == pytest.approx(expected.path_probability, rel=1e-5)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "tsv", "xlsx"])
def test_other_tables_have_the_same_rows(suffix, scenes, tiny_weights, tmp_path):
    if suffix == "xlsx":
        openpyxl = pytest.importorskip("openpyxl")
    command = ["predict", "--boxes", str(scenes / "detections.json"), "--model", str(tiny_weights), "--output"]
    for name in ("out.csv", f"out.{suffix}"):
        assert main([*command, str(tmp_path / name)]) == 1
    expected = [(row["file"], row["detection"], row["error"]) for row in rows_of(tmp_path / "out.csv")]

    file = tmp_path / f"out.{suffix}"
    if suffix == "jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    elif suffix == "json":
        rows = json.loads(file.read_text())
    elif suffix == "tsv":
        with open(file, newline="") as source:
            rows = list(csv.DictReader(source, delimiter="\t"))
    elif suffix == "parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(file).to_pylist()
        assert rows[0]["xmin"] == 0.1 and rows[5]["xmin"] is None
    else:
        header, *cells = openpyxl.load_workbook(file).active.iter_rows(values_only=True)
        rows = [dict(zip(header, row)) for row in cells]
    assert [(row["file"], row["detection"], row["error"] or "") for row in rows] == expected


def test_timelapse_keeps_all_boxes(scenes, tiny_weights, tmp_path, capsys):
    """Boxes without an answer and pictures without a box stay as they are in the detector's file."""
    output = tmp_path / "out.json"
    command = ["predict", "--boxes", str(scenes / "detections.json"), "--model", str(tiny_weights)]
    options = ["--box-confidence", "0.65", "--box-labels", "animal", "--format", "timelapse"]
    assert main([*command, *options, "--output", str(output)]) == 1
    assert "2 of 8 boxes left out" in capsys.readouterr().err

    document = json.loads(output.read_text())
    before = json.loads((scenes / "detections.json").read_text())["images"]
    images = {image["file"]: image for image in document["images"]}
    assert [image["file"] for image in document["images"]][:3] == ["site/a.png", "b.png", "gone.png"]

    assert images["broken.png"]["failure"] == "image access" and images["empty.png"]["detections"] == []
    for image in before[:3]:
        boxes = images[image["file"]]["detections"]
        assert len(boxes) == len(image["detections"])
        assert np.allclose(boxes[0]["bbox"], image["detections"][0]["bbox"])
        assert boxes[0]["conf"] == image["detections"][0]["conf"]

    assert ["classifications" in box for box in images["b.png"]["detections"]] == [True, False, False, False, False]
    assert document["detection_categories"] == {"1": "animal", "2": "person"}


def test_coco_and_tables_of_boxes_give_the_same_answers(scenes, tiny_weights, tmp_path):
    """The boxes are in pixels, in COCO's JSON and in DeepForest's columns."""
    edges = [(12, 8, 48, 32), (60, 40, 108, 72)]
    annotations = [
        {"id": 50 + i, "image_id": 7, "category_id": 3, "bbox": [left, top, right - left, bottom - top]}
        for i, (left, top, right, bottom) in enumerate(edges)
    ]
    coco = {
        "images": [{"id": 7, "file_name": "site/a.png", "width": 120, "height": 80}],
        "annotations": [*annotations, {"id": 60, "image_id": 8, "bbox": [0, 0, 5, 5]}],
        "categories": [{"id": 3, "name": "bird"}],
    }
    (scenes / "coco.json").write_text(json.dumps(coco))
    lines = ["image_path,xmin,ymin,xmax,ymax,label,score"]
    lines += [f"site/a.png,{','.join(map(str, box))},bird,0.5" for box in edges]
    (scenes / "deepforest.csv").write_text("\n".join(lines))

    answers = {}
    for name, code in (("detections.json", 1), ("coco.json", 1), ("deepforest.csv", 0)):
        output = tmp_path / f"{name}.csv"
        command = ["predict", "--boxes", str(scenes / name), "--model", str(tiny_weights), "--output", str(output)]
        assert main(command) == code
        answers[name] = [row["path_probability"] for row in rows_of(output)[:2]]
    for values in answers.values():
        assert np.allclose(np.array(values, float), np.array(answers["coco.json"], float), rtol=1e-5)
    assert rows_of(tmp_path / "coco.json.csv")[0]["detection"] == "50"

    coco["images"][0].update(width=240, height=160)  # boxes made for a copy of another size
    (scenes / "coco.json").write_text(json.dumps(coco))
    boxed = read_detections(scenes / "coco.json").boxes[0]
    with pytest.raises(PictureError, match="for a picture of 240 x 160 pixels, and this one has 120 x 80"):
        read_picture(BoxedPicture(scenes / "site/a.png", boxed))


@pytest.mark.parametrize(
    "edges, geometry, expected",
    [
        ((10, 10, 30, 20), BoxGeometry(0, "rectangle"), (10, 10, 30, 20)),
        ((10, 10, 30, 20), BoxGeometry(0, "square"), (10, 5, 30, 25)),
        ((10, 10, 30, 20), BoxGeometry(0.5, "rectangle"), (0, 5, 40, 25)),
        ((10, 10, 12, 12), BoxGeometry(0, "square", 20), (1, 1, 21, 21)),
        ((110, 70, 120, 80), BoxGeometry(0.5, "square"), (100, 60, 120, 80)),  # shifted to fit inside
        ((-5, 0, 15, 20), BoxGeometry(0, "rectangle"), (0, 0, 15, 20)),  # cut at the edge
        ((0, 30, 120, 50), BoxGeometry(0, "square"), (0, 0, 120, 80)),  # as far as the picture goes
    ],
)
def test_boxes_are_padded_squared_and_shifted(edges, geometry, expected):
    assert crop_edges(Box("a", edges), geometry, SIZE) == expected


def test_the_weights_geometry_is_used_or_refused(scenes, tiny_weights, tmp_path, capsys):
    weights = load_weights(tiny_weights)
    weights.metadata.update(BoxGeometry(0.3, "rectangle", 16).to_metadata())
    save_weights(weights, tiny_weights)

    command = ["predict", "--boxes", str(scenes / "detections.json"), "--model", str(tiny_weights), "--json"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "warning" not in captured.err

    cut = read_picture(scenes / "site/a.png").crop(
        crop_edges(Box("a", (0.1, 0.1, 0.4, 0.4), relative=True), BoxGeometry(0.3, "rectangle", 16), SIZE)
    )
    (expected,) = Predictor(tiny_weights).predict([cut])
    probability = json.loads(captured.out.splitlines()[0])["path_probability"]
    assert probability == pytest.approx(expected.path_probability, rel=1e-5)

    assert main([*command, "--box-padding", "0.1"]) == 2
    errors = capsys.readouterr().err
    assert "padded by 30.0% at each edge, rectangle, 16 pixels" in errors and "padded by 10.0%" in errors

    assert main(["predict", str(scenes / "b.png"), "--model", str(tiny_weights)]) == 0
    assert "trained on boxes padded by 30.0%" in capsys.readouterr().err


def test_a_job_of_boxes_has_the_rows_of_the_table(scenes, tiny_weights, tmp_path):
    import pyarrow.parquet as pq

    command = ["predict", "--boxes", str(scenes / "detections.json"), "--model", str(tiny_weights)]
    assert main([*command, "--output", str(tmp_path / "job"), "--part-size", "3"]) == 1

    (tmp_path / "job/part-00001.parquet").unlink()  # as if it had been killed
    assert main([*command, "--output", str(tmp_path / "job"), "--part-size", "3"]) == 1
    assert main([*command, "--output", str(tmp_path / "out.csv")]) == 1

    rows = pq.read_table(tmp_path / "job").to_pylist()
    assert [(r["file"], r["box"]["detection"], r["error"] or "") for r in rows] == [
        (r["file"], r["detection"], r["error"]) for r in rows_of(tmp_path / "out.csv")
    ]

    assert main([*command, "--output", str(tmp_path / "job"), "--part-size", "3", "--box-padding", "0.5"]) == 2


def test_a_report_and_folders_of_boxes_are_written(scenes, tiny_weights, tmp_path):
    command = ["predict", "--boxes", str(scenes / "detections.json"), "--model", str(tiny_weights)]
    assert main([*command, "--report", str(tmp_path / "page.html"), "--sort-into", str(tmp_path / "sorted")]) == 1
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") >= 6 and "3 pictures labelled, 5 could not be read" in page
    assert sorted(file.name for file in (tmp_path / "sorted").rglob("*.png")) == ["a.png", "b.png"]


BATCHES = """
import sys, time
import hcast_zoo.inference.predictor as p
plain = p.Predictor._forward
def slow(self, readable):
    time.sleep(0.15)
    return plain(self, readable)
p.Predictor._forward = slow
from hcast_zoo.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_killed_table_resumes(kind, tiny_weights, tmp_path):
    """Killed three times by SIGKILL; the table is that of one run."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(60):
        files.append(tmp_path / f"{number:02}.png")
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(files[-1])
    files[7].write_bytes(b"broken")
    (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
    command = ["predict", "--files-from", str(tmp_path / "list.txt"), "--model", str(tiny_weights), "--batch-size", "4"]
    whole, output = tmp_path / f"whole.{kind}", tmp_path / f"killed.{kind}"
    assert main([*command, "--output", str(whole)]) == 1

    waiting, kills, lines = tmp_path / f".killed.{kind}.unfinished/answers.jsonl", 0, 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", BATCHES, *command, "--output", str(output)])
        while process.poll() is None:
            now = len(waiting.read_bytes().splitlines()) if waiting.exists() else 0
            if now >= lines + 9 and kills < 3:
                process.send_signal(signal.SIGKILL)
                kills, lines = kills + 1, now
            time.sleep(0.02)
        if process.returncode != -signal.SIGKILL:
            break
        assert not output.exists()
        with open(waiting, "a") as file:
            file.write('{"file": "half a li')  # what a full disk leaves

    assert kills == 3 and process.returncode == 1
    assert output.read_bytes() == whole.read_bytes()
    assert not waiting.parent.exists()


def test_unfinished_answers_belong_to_their_run(tiny_weights, picture_folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out.csv"
    command = ["predict", str(picture_folder), "--model", str(tiny_weights), "--output", str(output)]
    command += ["--batch-size", "4"]
    forward, calls = Predictor._forward, []

    def stop(self, readable):
        calls.append(len(readable))
        if len(calls) > 2:
            raise KeyboardInterrupt
        return forward(self, readable)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_forward", stop)
        assert main(command) == 130

    assert main([*command, "--back-off", "0.5"]) == 2
    errors = capsys.readouterr().err
    assert "unfinished run with other pictures or options" in errors and ".out.csv.unfinished" in errors

    assert main(command) == 0
    assert not (tmp_path / ".out.csv.unfinished").exists() and len(rows_of(output)) == 24


@pytest.mark.parametrize(
    "document, rows",
    [
        ("[]", None),
        ("{}", None),
        ('{"images": 5}', None),
        ('{"images": [' + "[" * 5000 + "]" * 5000 + "]}", None),
        ('{"images": []}', None),
        ('{"images": [5, {"file": 3}, {"file": "a", "detections": 7}]}', None),
        ('{"images": [{"file": "b.png", "detections": [7, {}, {"bbox": "abcd", "conf": "x"}]}]}', 3),
        ('{"images": [{"file": "b.png", "detections": [{"bbox": [1e999, 0, "1", true], "conf": NaN}]}]}', 1),
        ('{"images": [{"file": "\\u0000\\ud800/\\u001b[31m", "detections": [{"bbox": [0, 0, 1, 1]}]}]}', 1),
        ('{"images": [{"file": "site", "detections": [{"bbox": [0, 0, 1, 1], "category": {"a": []}}]}]}', 1),
        (
            '{"images": [{"id": [], "file_name": "b.png"}], "categories": 3, "annotations": [{"image_id": []}, 5]}',
            1,
        ),
    ],
)
@pytest.mark.parametrize("output", ["out.csv", "out.json", "job"])
def test_hostile_detections_give_a_message(document, rows, output, scenes, tiny_weights, tmp_path, capsys):
    """About the file (exit code 2), or about each box (1)."""
    file = scenes / "hostile.json"
    file.write_text(document)
    command = ["predict", "--boxes", str(file), "--model", str(tiny_weights), "--output", str(tmp_path / output)]
    options = ["--format", "timelapse"] if output == "out.json" else []
    assert main([*command, *options]) == (2 if rows is None else 1)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and "\x1b" not in captured.err
    if rows is not None:
        counts = json.loads(captured.out)
        assert (counts["pictures"], counts["failed"]) == (rows, rows)
    if rows is not None and output == "out.json":
        json.loads((tmp_path / output).read_text(), parse_constant=pytest.fail)  # NaN is not valid JSON
