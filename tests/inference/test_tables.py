"""Tables of ``predict --output``, read back by each format's own reader."""

import csv
import json

import pytest

from hcast_zoo.cli import main
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.weights.file import checksum

LEVELS = ("class", "family", "species")


@pytest.fixture
def run(picture_folder, tiny_weights, tmp_path, capsys):
    """Return a function that predicts the validation pictures and a broken one; it returns exit code and file."""
    (picture_folder / "val/broken.png").write_bytes(b"")

    def call(name, *options):
        output = tmp_path / name
        pictures, model = str(picture_folder / "val"), str(tiny_weights)
        return main(["predict", pictures, "--model", model, "--output", str(output), *options]), output

    return call


def read(file):
    if file.suffix in (".csv", ".tsv"):
        with open(file, newline="", encoding="utf-8") as source:
            rows = list(csv.DictReader(source, delimiter="," if file.suffix == ".csv" else "\t"))
        return [{k: v or None for k, v in row.items()} for row in rows]
    if file.suffix == ".json":
        return json.loads(file.read_text())
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    return pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_tables_of_every_kind_hold_the_same_answers(run, suffix, tiny_weights, capsys):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    code, file = run("out" + suffix, "--back-off", "0.3")
    assert code == 1  # one picture is broken
    assert json.loads(capsys.readouterr().out) == {"output": str(file), "pictures": 13, "failed": 1}

    rows = read(file)
    predictor = Predictor(tiny_weights, threshold=0.3)
    for row, prediction in zip(rows, predictor.predict([row["file"] for row in rows]), strict=True):
        assert tuple(row[level] for level in LEVELS if row[level]) == prediction.path
        assert row["error"] == prediction.error and row["reason"] == prediction.reason
        assert row["stop_level"] == (LEVELS[len(prediction.path) - 1] if prediction.path else None)
        assert row["model"] == "tiny.safetensors" and row["model_sha256"] == checksum(str(tiny_weights))
        for level, probability in zip(LEVELS, prediction.probabilities):
            assert float(row[f"{level}_probability"]) == pytest.approx(probability, abs=1e-6)

    assert sum(row["error"] is not None for row in rows) == 1
    assert [p.name for p in file.parent.glob("*out*")] == [file.name]  # no partial file is left


def test_darwin_core_has_a_row_for_every_picture(run):
    _, file = run("occurrences.csv", "--format", "darwin-core")
    rows = read(file)
    for row in rows:
        if "not identified" in row["identificationRemarks"]:
            assert row["scientificName"] is row["taxonRank"] is None and row["occurrenceID"].endswith("broken.png")
            continue
        assert row["basisOfRecord"] == "MachineObservation" and row["taxonRank"] == "species"
        assert row["class"] in ("bird", "mammal") and row["family"] and row["order"] is None
        assert f"species: {row['scientificName']}" in row["identificationRemarks"]
        assert row["higherClassification"] == f"{row['class']} | {row['family']}"
    assert len(rows) == 13


def test_timelapse_names_the_path_of_each_picture(run):
    _, file = run("timelapse.json", "--format", "timelapse")
    document = json.loads(file.read_text())
    names = document["classification_categories"]
    answered = [image for image in document["images"] if "detections" in image]
    assert len(answered) == 12
    assert next(i["file"] for i in document["images"] if "failure" in i).endswith("broken.png")
    for image in answered:
        ((key, probability),) = image["detections"][0]["classifications"]
        assert names[key].count(" > ") == 2 and 0 < probability <= 1


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("out.xyz", [], "ends in .csv, .json"),
        ("out.csv", ["--format", "timelapse"], "ends in .json"),
        ("folder", ["--format", "darwin-core"], "expected a file, not a folder"),
    ],
)
def test_an_unsuitable_output_is_refused(run, name, options, message, capsys):
    code, file = run(name, *options)
    assert code == 2 and message in capsys.readouterr().err and not file.exists()


def test_an_interrupted_table_does_not_appear(run, monkeypatch, tmp_path):
    def stop(self, *args, **kwargs):
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict", stop)
    code, file = run("out.csv")
    assert code == 130 and not list(file.parent.glob("*out*"))
