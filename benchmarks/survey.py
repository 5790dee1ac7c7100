"""A survey, from a detector's boxes to a table: killed and resumed; and what another geometry of boxes costs.

    python benchmarks/survey.py --data emoji_art.parquet

Scenes are EmojiArt's pictures on backgrounds of smooth noise, so that every box and label is known. Writes the measured
parts of docs/surveys.md.
"""

import csv
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import report
from PIL import Image

from hcast_zoo.data.boxes import BoxGeometry
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.weights.file import load_weights

PAGE = "surveys.md"
SIZE = (320, 240)
OBJECTS = (40, 110)  # pixels of the longer side
KILLS = (0.25, 0.5, 0.75)  # shares of the rows after which the process is killed
BAD = ((1.2, 0.2, 0.1, 0.1), (0.5, 0.5, 0.0, 0.1), (float("nan"), 0.1, 0.1, 0.1))  # boxes that cannot be cut out
MISSING_PICTURES = 5


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=2000, help="of the survey (%(default)s)")
    parser.add_argument("--compared", type=int, default=500, help="scenes to compare geometries on (%(default)s)")
    args = parser.parse_args()

    taxonomy = load_weights(args.model).taxonomy
    dataset = HierarchicalDataset.load(args.data, taxonomy, args.split)
    with tempfile.TemporaryDirectory() as folder:
        truth = make_scenes(Path(folder), dataset, args.scenes)
        options = f"--data {Path(args.data).name} --scenes {args.scenes}"
        report.write_section(args.docs, PAGE, "survey", survey(args, Path(folder), truth), options)
        text = geometries(args, Path(folder), truth, taxonomy)
        report.write_section(args.docs, PAGE, "geometry", text, f"{options} --compared {args.compared}")


def make_scenes(folder: Path, dataset: HierarchicalDataset, scenes: int) -> dict[tuple[str, str], tuple[str, ...]]:
    """Write scenes, and their boxes as MegaDetector does; return the path of each box, by file and number."""
    rng = np.random.default_rng(0)
    truth, images = {}, []
    for number in range(scenes):
        scene = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        name, detections = f"{number:05}.jpg", []
        objects = 2 if number % 4 == 0 else 1  # every fourth scene has two, side by side
        for part in range(objects):
            index = int(rng.integers(len(dataset)))
            box = paste(scene, dataset.open(index), part, objects, rng)
            detections.append({"category": "1", "conf": round(float(rng.uniform(0.3, 1)), 3), "bbox": box})
            truth[name, str(part)] = dataset.taxonomy.path_names(dataset.labels[index].tolist())

        if number % 100 == 0:
            detections.append({"category": "1", "conf": 0.2, "bbox": list(BAD[number // 100 % len(BAD)])})
        scene.save(folder / name, quality=92)
        images.append({"file": name, "detections": detections})

    whole = {"category": "1", "conf": 1.0, "bbox": [0, 0, 1, 1]}
    images += [{"file": f"gone{number}.jpg", "detections": [whole]} for number in range(MISSING_PICTURES)]
    document = {"images": images, "detection_categories": {"1": "object"}}
    (folder / "detections.json").write_text(json.dumps(document))
    return truth


def paste(scene: Image.Image, picture: Image.Image, part: int, parts: int, rng: np.random.Generator) -> list[float]:
    """Put a picture with transparency into a part of a scene; return its relative box: left, top, width, height."""
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    scale = rng.integers(*OBJECTS) / max(picture.size)
    picture = picture.resize([max(8, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    width = SIZE[0] // parts
    left = part * width + int(rng.integers(width - picture.width))
    top = int(rng.integers(SIZE[1] - picture.height))
    scene.paste(picture, (left, top), picture)
    return [left / SIZE[0], top / SIZE[1], picture.width / SIZE[0], picture.height / SIZE[1]]


def survey(args, folder: Path, truth: dict) -> str:
    """Run the survey without interruption, then killed and resumed; return a table that compares them."""
    start = time.perf_counter()
    assert predict(args, folder, "whole.csv").wait() == 1  # bad boxes
    spent = time.perf_counter() - start
    rows = read_rows(folder / "whole.csv")

    answers = folder / ".killed.csv.unfinished/answers.jsonl"
    for share in KILLS:
        process = predict(args, folder, "killed.csv")
        while process.poll() is None:
            if answers.exists() and answers.read_bytes().count(b"\n") >= share * len(rows):
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.1)

        assert process.returncode == -signal.SIGKILL and not (folder / "killed.csv").exists()
    assert predict(args, folder, "killed.csv").wait() == 1

    killed = read_rows(folder / "killed.csv")
    keys = {(row["file"], row["detection"]) for row in killed}
    same = (folder / "whole.csv").read_bytes() == (folder / "killed.csv").read_bytes()
    answered = [row for row in rows if not row["error"]]
    bad = len(rows) - len(answered)
    return report.table(
        ["survey", "measured"],
        [
            ["scenes, boxes", f"{args.scenes:,}, {len(rows):,}"],
            ["rows without interruption", f"{len(rows):,}: {len(answered):,} answered, {bad} reported as bad"],
            ["seconds, boxes per second", f"{spent:.0f}, {len(rows) / spent:.0f}"],
            ["rows after three kills (SIGKILL)", f"{len(killed):,}, of {len(keys):,} different boxes"],
            [
                "rows missing, duplicated, changed by the kills",
                f"{len(rows) - len(keys)}, {len(killed) - len(keys)}, {0 if same else 'some'}",
            ],
            ["right, whole path", f"{100 * right(answered, truth)[-1]:.1f} %"],
        ],
    )


def geometries(args, folder: Path, truth: dict, taxonomy) -> str:
    """Return the accuracy of the same weights when boxes become pictures in other ways."""
    document = json.loads((folder / "detections.json").read_text())
    few = folder / "few"
    few.mkdir()
    kept = [image for image in document["images"] if (folder / image["file"]).exists()][: args.compared]
    for image in kept:
        (few / image["file"]).symlink_to(folder / image["file"])
        image["detections"] = [box for box in image["detections"] if box["conf"] > 0.2]
    (few / "detections.json").write_text(json.dumps({**document, "images": kept}))

    def accuracy(table: str, *options: str) -> list[str]:
        assert predict(args, few, table, *options).wait() == 0
        return [f"{100 * share:.1f}" for share in right(read_rows(few / table), truth)]

    rows = []
    default = BoxGeometry()
    for padding, shape in (
        (0.0, "square"),
        (0.1, "square"),
        (0.25, "square"),
        (0.5, "square"),
        (1.0, "square"),
        (0.1, "rectangle"),
    ):
        title = f"{padding:.0%}, {shape}" + (" (default)" if BoxGeometry(padding, shape) == default else "")
        options = ["--box-padding", str(padding), "--box-shape", shape]
        rows.append([title, *accuracy(f"{padding}_{shape}.csv", *options)])

    for image in kept:
        image["detections"] = [{**box, "bbox": [0, 0, 1, 1]} for box in image["detections"]]
    (few / "detections.json").write_text(json.dumps({**document, "images": kept}))
    rows.append(["no boxes: whole scenes", *accuracy("scenes.csv")])
    return report.table(["padding, shape", *(f"{level}, %" for level in taxonomy.levels)], rows)


def predict(args, folder: Path, output: str, *options: str) -> subprocess.Popen:
    """Start `hcast-zoo predict` on the boxes of a folder."""
    command = [sys.executable, "-m", "hcast_zoo", "predict", "--quiet", "--boxes", str(folder / "detections.json")]
    command += ["--model", args.model, "--batch-size", str(args.batch_size), "--workers", "0", "--device", "cpu"]
    command += ["--output", str(folder / output), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def read_rows(file: Path) -> list[dict]:
    """Return the rows of a CSV file."""
    with open(file, newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source))


def right(rows: list[dict], truth: dict) -> list[float]:
    """Return the share of rows whose node is right at each level, coarse to fine."""
    shares = []
    for row in rows:
        path = truth[Path(row["file"]).name, row["detection"]]
        names = list(row.values())
        start = list(row).index("detector_confidence") + 1
        shares.append([names[start + depth] == name for depth, name in enumerate(path)])
    return np.mean(shares, 0).tolist()


if __name__ == "__main__":
    main()
