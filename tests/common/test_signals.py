"""SIGTERM and SIGHUP end a command as Ctrl-C does; the commands run as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hcast_zoo.cli import main
from hcast_zoo.common.signals import Ended, ending_as_interrupts
from hcast_zoo.data.find import find_pictures
from hcast_zoo.segments import report


def test_a_repeated_signal_interrupts_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Ended), ending_as_interrupts() as heard:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # during clean-up
    assert heard == [signal.SIGTERM] * 2 and signal.getsignal(signal.SIGTERM) is before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_as_interrupts() as heard:
            signal.raise_signal(signal.SIGHUP)
        assert heard == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_commands_run_outside_the_main_thread(capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(["info"])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.fixture
def hangup():
    """Restore SIGHUP's default: under nohup it is ignored, and commands keep ignoring it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("swallow", [False, True])
def test_an_interrupted_segment_command_leaves_no_partial_folder(
    picture_folder, tiny_weights, tmp_path, monkeypatch, capsys, number, swallow
):
    """The signal comes while the second picture's files are written; a library may swallow the interrupt."""
    files, drawn, draw = find_pictures([str(picture_folder / "val")])[:3], [], report.draw_sheet

    def end(segmented, *options):
        drawn.append(segmented)
        if len(drawn) == 2:
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt:
                if not swallow:
                    raise
                raise RuntimeError("a worker was killed") from None
        return draw(segmented, *options)

    out = tmp_path / "out"
    command = ["segment", *files, "--model", str(tiny_weights), "--output", str(out), "--write", "labels", "sheet"]
    with monkeypatch.context() as patch:
        patch.setattr(report, "draw_sheet", end)
        assert main(command) == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == f"ended by {number.name}"
    assert [p.name for p in out.iterdir()] == ["0"]

    (out / ".1.partial").mkdir()  # as SIGKILL would leave it
    (out / ".1.partial/half.png").write_bytes(b"half")
    assert main(["segment", files[1], *command[4:]]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["0", "1"] and not (out / "1/half.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("group", [True, False])
def test_an_ended_predict_with_workers_resumes(picture_folder, tiny_weights, tmp_path, number, group):
    """The signal goes to the process, or to its whole group, as from a scheduler or a terminal."""
    pytest.importorskip("pyarrow")
    pictures = find_pictures([str(picture_folder)]) * 5
    (tmp_path / "list.txt").write_text("\n".join(pictures))
    command = [sys.executable, "-m", "hcast_zoo", "predict", "--files-from", tmp_path / "list.txt"]
    command += ["--model", tiny_weights, "--output", tmp_path / "out", "--part-size", "8", "--workers", "1"]
    command = list(map(str, command))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    while process.poll() is None and len(list((tmp_path / "out").glob("*.parquet"))) < 2:
        time.sleep(0.01)

    (os.killpg if group else os.kill)(process.pid, number)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.strip(), output) == (128 + number, f"ended by {number.name}", "")

    assert not list((tmp_path / "out").glob(".*"))

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and json.loads(again.stdout)["pictures"] == len(pictures)


@pytest.mark.slow
def test_an_ended_demo_removes_its_folder(tiny_weights, tmp_path):
    pytest.importorskip("gradio")
    process = subprocess.Popen(
        [sys.executable, "-m", "hcast_zoo", "demo", "--model", str(tiny_weights)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert "http" in process.stdout.readline()
    assert list(tmp_path.glob("hcast-zoo-demo-*"))
    process.terminate()
    assert process.wait(60) == 143 and not list(tmp_path.glob("hcast-zoo-demo-*"))
