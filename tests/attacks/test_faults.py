"""Full disks, folders that cannot be written, and Ctrl-C; tests/attacks/faults.py runs longer, with random kills."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.process import BaseProcess

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("accelerate")

from hcast_zoo import Predictor
from hcast_zoo.cli import main
from hcast_zoo.common import files
from hcast_zoo.common.files import write_whole
from hcast_zoo.data.find import find_pictures
from hcast_zoo.inference.parquet_job import write_part
from hcast_zoo.sharing.model_card import record_evaluation
from hcast_zoo.weights.file import load_weights, save_weights


class FullDisk:
    """Accepts ``room`` bytes, and then raises ENOSPC."""

    def __init__(self, room: int):
        self.room = room

    def open(self, *arguments, **options):
        file = open(*arguments, **options)  # noqa: SIM115 (closed by Sink)
        write = file.write

        class Sink:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

            def write(sink, data):
                if len(data) > self.room:
                    write(data[: self.room])
                    raise OSError(errno.ENOSPC, "No space left on device")
                self.room -= len(data)
                return write(data)

        return Sink()


@pytest.fixture
def full_disk(monkeypatch):
    def fill(room: int = 30) -> None:
        monkeypatch.setattr(files, "open", FullDisk(room).open, raising=False)

    return fill


@pytest.mark.parametrize("text", ["new " * 20, b"new " * 20])
def test_a_file_is_old_or_new_after_a_full_disk(tmp_path, full_disk, text):
    file = tmp_path / "x.json"
    write_whole(file, "old")
    full_disk()
    with pytest.raises(OSError, match=r"No space left on device: .*x.json"):
        write_whole(file, text)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]

    full_disk(10**6)
    write_whole(file, text)
    assert file.read_bytes() == b"new " * 20 and list(tmp_path.iterdir()) == [file]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_every_lasting_file_is_old_or_new(tmp_path, tiny_weights, taxonomy, evaluation, full_disk):
    taxonomy.save(tmp_path / "t.json")
    record_evaluation(tmp_path / "c.md", str(tiny_weights), evaluation)
    before = {f: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()}
    weights = load_weights(tiny_weights)

    full_disk()
    for write in (
        lambda: taxonomy.save(tmp_path / "t.json"),
        lambda: save_weights(weights, tiny_weights),
        lambda: record_evaluation(tmp_path / "c.md", str(tiny_weights), evaluation),
        lambda: write_part(tmp_path / "p.parquet", []),
    ):
        with pytest.raises(OSError, match="No space left on device"):
            write()

    assert before == {f: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()}


def test_predict_resumes_after_a_full_disk(picture_folder, tiny_weights, tmp_path, full_disk, capsys):
    command = ["predict", str(picture_folder / "val"), "--model", str(tiny_weights), "--part-size", "4"]
    command += ["--output", str(tmp_path / "out")]

    full_disk(4000)  # the plan and a part
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and "part-0000" in error and error.count("\n") == 1
    done = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert "_plan.json" in done and len(done) < 4 and not [n for n in done if n.startswith(".")]

    full_disk(10**6)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 12
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


def test_a_full_disk_leaves_no_partial_segment_folder(picture_folder, tiny_weights, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    picture = find_pictures([str(picture_folder / "val")])[0]
    command = ["segment", picture, "--model", str(tiny_weights), "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr("numpy.savez_compressed", fail)  # called after the pictures are written
        assert main(command) == 2

    assert "No space left on device" in capsys.readouterr().err and list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "PICTURE", "--model", "MODEL", "--output", "OUT"],
        ["segment", "PICTURE", "--model", "MODEL", "--output", "OUT"],
        ["adapt", "PICTURE", "--target", "bird", "--steps", "1", "--model", "MODEL", "--output", "OUT"],
        ["calibrate", "MODEL", "--data", "DATA", "--output", "OUT/x.safetensors"],
        ["evaluate", "--data", "DATA/val", "--model", "MODEL", "--card", "OUT/x.md"],
        ["train", "--data", "DATA", "--model", "MODEL", "--output", "OUT", "--batch-size", "4"],
        ["publish", "MODEL", "--repo", "a/b", "--dry-run", "--output", "OUT"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_in_place_of_the_folder_is_kept(words, picture_folder, tiny_weights, tmp_path, capsys):
    """Like a read-only folder, but it fails for root too."""
    (tmp_path / "OUT").write_text("mine")
    names = {
        "PICTURE": find_pictures([str(picture_folder / "val")])[0],
        "MODEL": str(tiny_weights),
        "DATA": str(picture_folder),
        "OUT": str(tmp_path / "OUT"),
    }

    command = [words[0]]
    for word in words[1:]:
        head, slash, tail = word.partition("/")
        command.append(names.get(head, head) + slash + tail)

    assert main(command) == 2
    captured = capsys.readouterr()
    assert f"hcast-zoo {words[0]}: " in captured.err and "Traceback" not in captured.err
    assert (tmp_path / "OUT").read_text() == "mine"


@pytest.mark.parametrize("press", ["before", "after"])
def test_ctrl_c_while_workers_start_takes_effect_after(picture_folder, tiny_weights, monkeypatch, press):
    """Nothing is left behind; another thread may receive the signal."""
    predictor, end, complaints, workers = Predictor(tiny_weights), threading.Event(), [], []
    start = BaseProcess.start

    def interrupted(process):
        if press == "before" and workers:
            os.kill(os.getpid(), signal.SIGINT)
        start(process)
        if press == "after" and not workers:
            os.kill(os.getpid(), signal.SIGINT)
        workers.append(process)

    monkeypatch.setattr(BaseProcess, "start", interrupted)
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(predictor.predict(find_pictures([str(picture_folder)]), batch_size=4, workers=2))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
        end.set()
        thread.join()
    assert len(workers) == 2 and not complaints
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0  # it was asked to end, and not killed


@pytest.mark.slow
def test_ctrl_c_ends_with_one_word_and_the_job_resumes(picture_folder, tiny_weights, tmp_path):
    """The exit code is that of an interrupt, and parts are complete."""
    pictures = find_pictures([str(picture_folder)]) * 40
    (tmp_path / "list.txt").write_text("\n".join(pictures))
    words = [sys.executable, "-m", "hcast_zoo", "predict", "--files-from", str(tmp_path / "list.txt")]
    command = [*words, "--model", str(tiny_weights), "--output", str(tmp_path / "out")]
    command += "--part-size 8 --workers 1".split()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and len(list((tmp_path / "out").glob("*.parquet"))) < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # workers too, as a terminal does
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors.strip() == "interrupted" and output == ""
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and json.loads(again.stdout)["pictures"] == len(pictures)
