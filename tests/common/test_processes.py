"""Several processes give the same results as one; torchrun and accelerate start them here, over gloo."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hcast_zoo.cli import main
from hcast_zoo.common.processes import ALONE, Processes, join_job

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hcast_zoo")
# The launcher for GPUs works without any; the one for CPUs would need MPI.
ACCELERATE = (
    *"-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no".split(),
    *"--dynamo_backend no --main_process_port 0 -m hcast_zoo".split(),
)
RUN = "--epochs 2 --batch-size 2 --workers 0 --warmup-epochs 1 --ema-decay 0.9 --checkpoint-steps 1".split()


def launch(*arguments, launcher=TORCHRUN, wait=True):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("length", [0, 1, 2, 5, 12, 13])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_the_whole_in_order(length, count):
    shares = [Processes(rank, count).share(length) for rank in range(count)]
    assert [i for share in shares for i in share] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_needs_no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_job() as processes:
        assert processes == ALONE and processes.is_main and processes.gather("x") == ["x"]
    assert processes.device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [Processes(3, 4).device(d) for d in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_evaluate_counts_every_picture_once(picture_folder, tiny_weights, capsys, launcher):
    """13 pictures, one of them broken: the two processes get unequal shares."""
    leaf = next(
        p
        for p in sorted((picture_folder / "val").rglob("*"))
        if p.is_dir() and not any(c.is_dir() for c in p.iterdir())
    )
    (leaf / "broken.png").write_bytes(b"")
    command = ["evaluate", "--data", str(picture_folder), "--split", "val", "--model", str(tiny_weights), "--json"]
    command.append("--allow-missing")
    assert main(command) == 0
    one, errors = capsys.readouterr()
    assert "measured on 12 of 13 pictures" in errors
    out = launch(*command, launcher=launcher)
    assert out == one and out.count("\n") == 1
    assert (json.loads(one)["pictures"], json.loads(one)["left_out"]) == (12, 1)


@pytest.mark.slow
def test_more_processes_than_pictures(picture_folder, tiny_weights, tmp_path, capsys):
    source = next((picture_folder / "val").rglob("*.png"))
    folder = tmp_path / "single" / source.parent.relative_to(picture_folder / "val")
    folder.mkdir(parents=True)
    Image.open(source).save(folder / "only.png")
    command = ["evaluate", "--data", str(tmp_path / "single"), "--model", str(tiny_weights), "--json"]
    assert main(command) == 0
    assert launch(*command) == capsys.readouterr().out


def children(process):
    """Return the ids of a process's children."""
    try:
        return [int(pid) for pid in open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()]
    except OSError:
        pytest.skip("this system does not list a process's children")


@pytest.mark.slow
def test_training_is_one_run_and_resumes_exactly(picture_folder, tiny_weights, tmp_path):
    """3 steps per epoch: 12 pictures, 2 processes, batches of 2. One run is stopped, another loses a worker."""
    command = ["train", "--data", picture_folder, "--model", tiny_weights, *RUN, "--output"]
    whole_answer = launch(*command, tmp_path / "whole")
    assert whole_answer.count("\n") == 1 and json.loads(whole_answer)["weights"].endswith("best.safetensors")
    log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [3, 3, 6, 6]
    assert len(list((tmp_path / "whole/tensorboard").iterdir())) == 1

    def start(name, launcher):
        process = launch(*command, tmp_path / name, launcher=launcher, wait=False)
        progress = tmp_path / name / "checkpoint/progress.json"
        while not progress.exists() and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None
        return process

    process = start("stopped", TORCHRUN)
    os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its workers
    process.communicate(timeout=60)
    assert json.loads((tmp_path / "stopped/checkpoint/progress.json").read_text())["step"] < 6
    again = launch(*command, tmp_path / "stopped")

    process = start("lost", TORCHRUN)
    os.kill(children(process)[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode  # the job ends when a worker is lost, instead of waiting for it
    out = launch(*command, tmp_path / "lost")

    for name, answer in (("stopped", again), ("lost", out)):
        assert json.loads(answer)["best_val_fpa"] == json.loads(whole_answer)["best_val_fpa"]
        for file in ("last.safetensors", "checkpoint/model.safetensors"):
            a, b = (load_file(tmp_path / run / file) for run in ("whole", name))
            assert all(torch.equal(a[key], b[key]) for key in a), (name, file)
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for line, whole in zip(lines, log, strict=True):  # a loss is the mean of the steps since the run resumed
            assert line == whole or (line.keys() == whole.keys() and line["step"] == whole["step"] and "loss" in line)


@pytest.mark.slow
def test_a_broken_batch_of_one_process_is_skipped_by_all(picture_folder, tiny_weights, tmp_path):
    """Neither process waits forever for the other."""
    for file in sorted((picture_folder / "train").rglob("*.png"))[:9]:
        file.write_bytes(b"")
    launch("train", "--data", picture_folder, "--model", tiny_weights, *RUN, "--output", tmp_path / "run")
    assert json.loads((tmp_path / "run/checkpoint/progress.json").read_text())["step"] == 6


@pytest.mark.slow
def test_another_number_of_processes_is_refused(picture_folder, tiny_weights, tmp_path, capsys):
    command = ["train", "--data", picture_folder, "--model", tiny_weights, *RUN, "--output", tmp_path / "run"]
    launch(*command)
    assert main([*map(str, command)]) == 2
    assert "other settings (processes 2 -> 1)" in capsys.readouterr().err


BROADCAST = """
import torch
from hcast_zoo.common.processes import copy_buffers, join_job
with join_job() as processes:
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean += 1 + processes.rank
    norm.running_var *= 5 - processes.rank
    weight = torch.nn.init.constant_(norm.weight, processes.rank)
    copy_buffers(norm, processes)
    state = [norm.running_mean.tolist(), norm.running_var.tolist(), weight.tolist()]
    states = processes.gather(state)
    if processes.is_main:
        print(states)
"""


@pytest.mark.slow
def test_buffers_are_copied_from_the_first_process(tmp_path):
    """Running statistics become those of the first process; parameters are left alone."""
    script = tmp_path / "broadcast.py"
    script.write_text(BROADCAST)
    launcher = (*TORCHRUN[: TORCHRUN.index("2") + 1], str(script))
    first, second = json.loads(launch(launcher=launcher))
    assert first == [[1, 1], [5, 5], [0, 0]]
    assert second == [[1, 1], [5, 5], [1, 1]]
