"""Jobs that write parts: resuming, sharing between processes, and refusing another job's folder."""

import json
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("pyarrow")
import pyarrow.parquet as pq

from hcast_zoo.cli import main
from hcast_zoo.common import files as whole_files
from hcast_zoo.common.processes import Processes
from hcast_zoo.data.find import find_pictures
from hcast_zoo.inference.parquet_job import predict_parts
from hcast_zoo.inference.predictor import Predictor
from tests.common.test_processes import launch


@pytest.fixture
def files(picture_folder):
    broken = picture_folder / "val/broken.png"
    broken.write_bytes(b"")
    return find_pictures([str(picture_folder)])  # 25 pictures: six parts of four, and one of one


def read(folder):
    return pq.read_table(folder).to_pylist()


def check_parts(folder, files, predictor):
    """Check that each picture is there once, in order, with the same answer as on its own."""
    rows = read(folder)
    assert [row["file"] for row in rows] == files
    for row, prediction in zip(rows, predictor.predict(files, batch_size=1)):
        if prediction.error is not None:
            assert row["error"] == prediction.error and row["path"] is row["path_probability"] is None
        else:
            assert row["path"] == list(prediction.path) and row["error"] is None
            assert row["path_probability"] == pytest.approx(prediction.path_probability, abs=1e-6)
            assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)
    assert not [p for p in folder.iterdir() if p.suffix != ".parquet" and p.name != "_plan.json"]


def test_any_number_of_processes_fill_one_folder(files, tiny_weights, tmp_path):
    predictor = Predictor(tiny_weights)
    for count in (1, 3):
        folder = tmp_path / f"by{count}"
        counts = []
        for rank in range(count):
            counts += predict_parts(predictor, files, folder, {}, part_size=4, processes=Processes(rank, count))
        assert sum(pictures for pictures, _ in counts) == 25 and sum(failed for _, failed in counts) == 1
        check_parts(folder, files, predictor)
    assert len(list((tmp_path / "by3").glob("*.parquet"))) == 7


@pytest.mark.parametrize("crash", ["predict", "write", "rename"])
def test_a_crashed_job_resumes_with_other_processes(files, tiny_weights, tmp_path, monkeypatch, crash):
    predictor, folder = Predictor(tiny_weights), tmp_path / "out"
    made, renames, syncs, rename = [], iter(range(100)), iter(range(100)), whole_files.os.replace

    def predict(part, **kwargs):
        made.append(part)
        if crash == "predict" and len(made) == 3:
            raise KeyboardInterrupt
        return Predictor.predict(predictor, part, **kwargs)

    def replace(source, target):
        if next(renames) == 3:  # the first is that of the plan
            raise KeyboardInterrupt
        rename(source, target)

    def fsync(descriptor):
        if next(syncs) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "predict", predict)
        if crash == "rename":
            patch.setattr(whole_files.os, "replace", replace)
        if crash == "write":
            patch.setattr(whole_files.os, "fsync", fsync)
        with pytest.raises(KeyboardInterrupt):
            list(predict_parts(predictor, files, folder, {}, part_size=4))
        assert len(read(folder)) == 8  # only complete parts are readable

        crash = None
        made.clear()
        for rank in (1, 0):
            list(predict_parts(predictor, files, folder, {}, part_size=4, processes=Processes(rank, 2)))
        assert sum(map(len, made)) == 17  # nothing is done twice
    check_parts(folder, files, predictor)


def test_another_job_in_the_folder_is_refused(files, tiny_weights, tmp_path):
    predictor, folder = Predictor(tiny_weights), tmp_path / "out"
    list(predict_parts(predictor, files, folder, {"decoder": "best_path"}, part_size=20))
    for other, settings, size in (
        (files[1:], "best_path", 20),
        (files, "top_down", 20),
        (files, "best_path", 10),
        ([*files[1:], files[0]], "best_path", 20),
    ):
        with pytest.raises(ValueError, match=r"predictions of another job .*(list_sha256|decoder|part_size)"):
            list(predict_parts(predictor, other, folder, {"decoder": settings}, part_size=size))

    (folder / "_plan.json").unlink()
    with pytest.raises(ValueError, match="parquet files of something else"):
        list(predict_parts(predictor, files, folder, {"decoder": "best_path"}, part_size=20))

    with pytest.raises(ValueError, match="part_size: expected 1 or more"):
        list(predict_parts(predictor, files, tmp_path / "x", {}, part_size=0))


def test_the_job_command_reports_and_resumes(files, tiny_weights, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("\n".join(files) + "\n")
    command = ["predict", "--files-from", str(tmp_path / "list.txt"), "--model", str(tiny_weights)]
    command += ["--output", str(tmp_path / "out"), "--part-size", "10", "--back-off", "0"]
    for _ in range(2):  # the second run has nothing to do, and prints the same
        assert main(command) == 1
        captured = capsys.readouterr()
        assert json.loads(captured.out) == {"output": str(tmp_path / "out"), "pictures": 25, "failed": 1}
        assert "1 of 25 pictures failed" in captured.err
    check_parts(tmp_path / "out", files, Predictor(tiny_weights, threshold=0.0))
    assert main([*command, "--decode", "top_down"]) == 2
    assert "decoder 'best_path' -> 'top_down'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_finish_the_job_of_a_killed_one(files, tiny_weights, tmp_path):
    command = ["predict", *files, "--model", tiny_weights, "--output", tmp_path / "out", "--part-size", "1"]
    alone = subprocess.Popen([sys.executable, "-m", "hcast_zoo", *map(str, command)], stdout=subprocess.DEVNULL)
    while alone.poll() is None and len(list((tmp_path / "out").glob("*.parquet"))) < 5:
        time.sleep(0.002)
    alone.send_signal(signal.SIGKILL)
    assert alone.wait() == -signal.SIGKILL

    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.parquet")}
    assert 5 <= len(before) < 25

    out = launch(*command)
    assert json.loads(out) == {"output": str(tmp_path / "out"), "pictures": 25, "failed": 1}  # printed once
    for name, time_made in before.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == time_made

    for left in (tmp_path / "out").glob(".*"):  # left by the kill; readers ignore it
        left.unlink()
    check_parts(tmp_path / "out", files, Predictor(tiny_weights))


@pytest.mark.slow
def test_several_processes_need_an_output_folder(files, tiny_weights):
    process = launch("predict", files[0], "--model", tiny_weights, wait=False)
    assert "several processes need --output" in process.communicate(timeout=120)[1] and process.returncode
