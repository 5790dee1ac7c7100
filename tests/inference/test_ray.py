"""Jobs on Ray, against the same job in one process; one worker is killed."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("ray.data", reason="needs pip install 'hcast-zoo[ray]'")
import pyarrow.parquet as pq

from hcast_zoo.cli import main
from hcast_zoo.data.find import find_pictures
from hcast_zoo.inference.predictor import Predictor

pytestmark = pytest.mark.slow

COMMAND = """
import os, pathlib, sys
import hcast_zoo.inference.parquet_job as parquet_job
import hcast_zoo.inference.ray as on_ray
from hcast_zoo.cli import main

mark = pathlib.Path(sys.argv[1])

class Mortal(on_ray.PartMaker):
    def __call__(self, table):
        if table.to_pylist()[0]["number"] == 3 and not mark.exists():
            mark.touch()
            parquet_job.write_part = lambda *arguments: os.kill(os.getpid(), 9)  # its predictions are lost
        return super().__call__(table)

on_ray.PartMaker = Mortal
raise SystemExit(main(sys.argv[2:]))
"""
PIPELINE = """
import json, sys
import ray
from hcast_zoo.inference.ray import PredictBatch

ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
data = ray.data.read_binary_files(sys.argv[1], include_paths=True, file_extensions=["png"])
data = data.map_batches(
    PredictBatch,
    fn_constructor_kwargs={"source": sys.argv[2], "decoder": "top_down"},
    batch_format="pyarrow",
    batch_size=5,
    compute=ray.data.ActorPoolStrategy(size=1),
)
data.write_parquet(sys.argv[3])
"""


def run(program, *arguments):
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_job_on_ray_survives_a_killed_worker(picture_folder, tiny_weights, tmp_path, capsys):
    (picture_folder / "val/broken.png").write_bytes(b"")
    command = ["predict", str(picture_folder), "--model", str(tiny_weights), "--part-size", "4", "--output"]
    done = run(COMMAND, tmp_path / "killed", *command, tmp_path / "ray", "--on", "local", "--workers", "2")
    assert done.returncode == 1, done.stderr  # one picture is broken
    assert json.loads(done.stdout) == {"output": str(tmp_path / "ray"), "pictures": 25, "failed": 1}
    assert (tmp_path / "killed").exists()

    assert main([*command, str(tmp_path / "alone")]) == 1
    for folder in ("ray", "alone"):
        parts = sorted((tmp_path / folder).glob("*.parquet"))
        assert [part.name for part in parts] == [f"part-{number:05}.parquet" for number in range(7)]
        assert [pq.read_metadata(part).num_rows for part in parts] == [4] * 6 + [1]
    assert pq.read_table(tmp_path / "ray").equals(pq.read_table(tmp_path / "alone"))

    capsys.readouterr()
    assert main([*command, str(tmp_path / "ray")]) == 1  # one process resumes it, with nothing left to do
    assert json.loads(capsys.readouterr().out)["pictures"] == 25


def test_predictions_are_a_step_of_a_ray_pipeline(picture_folder, tiny_weights, tmp_path):
    done = run(PIPELINE, picture_folder / "val", tiny_weights, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = {row["file"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    files = find_pictures([str(picture_folder / "val")])
    assert sorted(rows) == files
    for prediction in Predictor(tiny_weights, "top_down").predict(files):
        assert rows[prediction.file]["path"] == list(prediction.path)
        assert rows[prediction.file]["path_probability"] == pytest.approx(prediction.path_probability, abs=1e-5)


def test_a_job_on_ray_needs_an_output_folder(tiny_weights, picture_folder, capsys):
    assert main(["predict", str(picture_folder), "--model", str(tiny_weights), "--on", "local"]) == 2
    assert "--on needs --output with a folder" in capsys.readouterr().err
