"""Runs that diverge, are damaged, share a folder, or resume with other data or settings."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("accelerate")

from hcast_zoo.cli import main
from hcast_zoo.common import claim
from hcast_zoo.common.claim import own_folder
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.training.checkpoint import CheckpointError, find_checkpoint
from hcast_zoo.training.losses import HierarchicalLoss
from hcast_zoo.training.trainer import DivergedError
from hcast_zoo.weights.file import load_weights
from tests.training.runs import make_run, read_log, stop_at


@pytest.fixture
def make(picture_folder, taxonomy, tiny_config, tmp_path):
    def make(name="run", **settings):
        return make_run(picture_folder, taxonomy, tiny_config, tmp_path / name, **{"checkpoint_steps": 1, **settings})

    return make


@pytest.fixture
def stopped(make, tmp_path):
    """Return the folder of a run of 3 steps, stopped after 2, with a checkpoint of each."""
    stop_at(make(epochs=1), 2)
    return tmp_path / "run"


def test_a_loss_that_is_not_finite_ends_the_run(picture_folder, tiny_weights, tmp_path, monkeypatch, capsys):
    """The previous checkpoint stays, and its weights are finite."""
    command = f"train --data {picture_folder} --model {tiny_weights} --output {tmp_path / 'run'} --epochs 1".split()
    command += "--batch-size 4 --workers 0 --checkpoint-steps 1 --ema-decay 0 --lr 1e-3".split()
    calls, forward = [], HierarchicalLoss.forward

    def spoil(self, logits, targets):
        calls.append(len(calls))
        return forward(self, logits, targets) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(HierarchicalLoss, "forward", spoil)

    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step 3: the loss is nan, at learning rate " in error and "checkpoint of step 2" in error
    assert "--lr" in error and "--clip-grad" in error and "half precision" in error

    assert find_checkpoint(tmp_path / "run")[1]["step"] == 2
    for value in load_file(tmp_path / "run/checkpoint/model.safetensors").values():
        assert value.isfinite().all()


def test_weights_that_are_not_finite_are_not_kept(make, tmp_path):
    """A gradient may overflow while the loss does not."""
    run = make(epochs=1)
    step = run._train_step

    def spoil(batch):
        loss = step(batch)
        if run.step == 2:
            with torch.no_grad():
                run.model.cls_token.fill_(torch.inf)
        return loss

    run._train_step = spoil
    with pytest.raises(DivergedError, match=r"step 2: weights are not finite.*checkpoint of step 1"):
        run.train()


def test_the_log_is_json_whatever_is_logged(make, tmp_path):
    run = make()
    with run.log.open_at(0):
        run.log.write(0, {"loss": math.nan, "lr": math.inf, "val/fpa": 1.0})
    assert read_log(tmp_path / "run") == [{"step": 0, "loss": None, "lr": None, "val/fpa": 1.0}]


def test_the_loss_of_a_resumed_epoch_is_of_the_whole_epoch(make, tmp_path):
    make("whole").train()
    stop_at(make("cut"), 2)
    make("cut").train()
    assert read_log(tmp_path / "cut") == read_log(tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_leaves_no_lines(make, tmp_path):
    run = make(epochs=1)
    (tmp_path / "run/log.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"step": 3, "val')
    run.train()
    assert [("loss" in line, line["step"]) for line in read_log(tmp_path / "run")] == [(True, 3), (False, 3)]


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def set_step(file):
    file.write_text(file.read_text().replace('"step": 2', '"step": 3'))


DAMAGES = {
    "a flipped bit in the model": ("model.safetensors", flip),
    "a flipped bit in the optimizer": ("optimizer.bin", flip),
    "a truncated model": ("model.safetensors", truncate),
    "truncated random states": ("random_states_0.pkl", truncate),
    "a file that is gone": ("custom_checkpoint_0.pkl", lambda file: file.unlink()),
    "a truncated progress": ("progress.json", truncate),
    "a flipped bit in the progress": ("progress.json", flip),
    "another step in the progress": ("progress.json", set_step),
    "a progress that is a list": ("progress.json", lambda file: file.write_text("[2]")),
    "no progress": ("progress.json", lambda file: file.unlink()),
}


def test_every_damage_to_a_checkpoint_is_found(stopped, tmp_path):
    assert find_checkpoint(stopped)[1]["step"] == 2
    for name, (file, damage) in DAMAGES.items():
        run = shutil.copytree(stopped, tmp_path / name)
        damage(run / "checkpoint" / file)
        folder, progress, wrong = find_checkpoint(run)
        assert folder.name == "checkpoint.old" and progress["step"] == 1 and file in wrong, name

        shutil.rmtree(run / "checkpoint.old")
        with pytest.raises(CheckpointError, match=r"no checkpoint of this run is intact .*restore one, or delete"):
            find_checkpoint(run)


def test_the_checkpoint_before_a_damaged_one_is_taken(make, stopped, tmp_path, capsys):
    make("whole", epochs=1).train()
    flip(stopped / "checkpoint/optimizer.bin")
    capsys.readouterr()
    make(epochs=1).train()
    errors = capsys.readouterr().err
    assert "optimizer.bin has changed since it was written: resuming from the previous checkpoint, of step 1" in errors

    for name in ("last.safetensors", "checkpoint/model.safetensors", "checkpoint.old/model.safetensors"):
        a, b = (load_file(tmp_path / folder / name) for folder in ("whole", "run"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert read_log(tmp_path / "whole") == read_log(stopped)


def test_checkpoints_of_an_earlier_version_resume(make, stopped):
    """Such checkpoints have no hashes, and such runs have no digests."""
    file = stopped / "checkpoint/progress.json"
    file.write_text(json.dumps({"step": 2, "best_fpa": 12.5}))
    plan = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps({key: plan[key] for key in ("config", "settings")}))
    run = make(epochs=1)
    run._resume()
    assert (run.step, run.best) == (2, 12.5)

    truncate(stopped / "checkpoint/optimizer.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        make(epochs=1)._resume()


def test_a_broken_plan_is_explained(make, stopped):
    truncate(stopped / "run.json")
    with pytest.raises(ValueError, match=r"run.json is damaged .*restore it, or choose another folder"):
        make(epochs=1)


def test_other_data_taxonomy_or_weights_are_refused(
    make, stopped, picture_folder, taxonomy, tiny_config, tiny_weights, tmp_path, capsys
):
    init = load_weights(tiny_weights)
    with pytest.raises(ValueError, match=r"start_weights_sha256 None -> '.*--accept-changes"):
        make(init=init, epochs=1)

    moved = shutil.copytree(picture_folder, tmp_path / "moved")
    same = HierarchicalDataset.load(moved, taxonomy, "train")
    assert same.digest() == HierarchicalDataset.load(picture_folder, taxonomy, "train").digest()

    next((picture_folder / "train").rglob("*.png")).unlink()
    with pytest.raises(ValueError, match=r"\(data_sha256 '"):
        make(epochs=1)

    names = (taxonomy.names[0], taxonomy.names[1], (*taxonomy.names[2][:-1], "jackal"))
    other = Taxonomy(taxonomy.levels, names, taxonomy.parents, taxonomy.name)
    (moved / "train/mammal/dog/wolf").rename(moved / "train/mammal/dog/jackal")
    (moved / "val/mammal/dog/wolf").rename(moved / "val/mammal/dog/jackal")
    with pytest.raises(ValueError, match=r"taxonomy_sha256 '"):
        make_run(moved, other, tiny_config, stopped, epochs=1, checkpoint_steps=1)

    capsys.readouterr()
    make(epochs=1, accept_changes=True)
    assert "accepted: data_sha256" in capsys.readouterr().err
    make(epochs=1)  # the accepted data are now the run's


def test_another_version_is_reported_once(make, stopped, monkeypatch, capsys):
    monkeypatch.setattr(claim, "__version__", "99.0")
    for reported in (True, False):
        capsys.readouterr()
        make(epochs=1)
        assert ("was begun with hcast-zoo" in capsys.readouterr().err) == reported


@pytest.mark.slow
def test_a_folder_has_one_owner(picture_folder, tiny_weights, tmp_path, capsys):
    """Another process holds it; when that is killed, it is free again."""
    pytest.importorskip("pyarrow")
    code = (
        "import sys, time\nfrom hcast_zoo.common.claim import own_folder\n"
        "with own_folder(sys.argv[1]):\n print('held', flush=True)\n time.sleep(600)"
    )
    for command in (
        ["train", "--data", picture_folder, "--epochs", "1", "--batch-size", "4", "--workers", "0"],
        ["predict", next((picture_folder / "val").rglob("*.png"))],
    ):
        output = tmp_path / command[0]
        command = [*map(str, command), "--model", str(tiny_weights), "--output", str(output)]
        holder = subprocess.Popen([sys.executable, "-c", code, str(output)], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "held\n"
            assert main(command) == 2
            assert f"{output} is in use by another process: wait" in capsys.readouterr().err
        finally:
            holder.kill()
            holder.wait()
        assert main(command) == 0
        assert not (output / ".lock").exists()


def test_a_forked_process_does_not_hold_the_folder(tmp_path):
    """A worker may outlive its parent by seconds."""
    code = (
        "import os, sys, time\nfrom hcast_zoo.common.claim import own_folder\n"
        "with own_folder(sys.argv[1]):\n if os.fork() == 0:\n  time.sleep(20)\n"
        "  os._exit(0)\n print('held', flush=True)\n os.kill(os.getpid(), 9)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    holder.wait()

    with own_folder(tmp_path):
        assert (tmp_path / ".lock").exists()
