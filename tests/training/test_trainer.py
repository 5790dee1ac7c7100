"""Training runs: what they write, how they resume, and what the official quirks change."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.scheduler import CosineLRScheduler
from torchvision import transforms as tv

pytest.importorskip("accelerate")

from hcast_zoo.data.pictures import read_picture
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.segments.report import segment_picture
from hcast_zoo.training.augmentation import HierarchicalMixup, train_transform
from hcast_zoo.training.losses import soft_targets
from hcast_zoo.training.settings import TrainConfig
from hcast_zoo.training.trainer import Trainer
from hcast_zoo.weights.file import load_weights
from tests.training.runs import make_run, read_log, stop_at


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_mixes_every_level_alike(mode):
    mixup = HierarchicalMixup(0.8, 1.0, mode=mode, label_smoothing=0.1, num_classes=(2, 4))
    labels = torch.tensor([[0, 3], [1, 0], [1, -1], [0, 2]])
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).clone()
    original = soft_targets(labels, (2, 4), 0.1)
    mixed, targets = mixup(images.clone(), labels)
    for row in range(4):
        # The share of the other picture in the pixels is its share in the labels of every level.
        share = ((mixed[row] - images[row]) / (images[3 - row] - images[row])).mean().item()
        for target, clean in zip(targets, original):
            expected = (1 - share) * clean[row] + share * clean[3 - row]
            torch.testing.assert_close(target[row], expected, atol=1e-4, rtol=0)


def test_a_run_learns_and_writes_its_files(picture_folder, taxonomy, tiny_config, tmp_path):
    options = dict(auto_augment="", color_jitter=0.0, random_erasing=0.0, crop_scale=0.9, mixup=0.0, cutmix=0.0)
    options |= dict(epochs=12, lr=0.6, ema_decay=0.5, smoothing=0.0)
    run = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", **options)
    best = run.train()
    log = read_log(tmp_path / "run")
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 12 and losses[-1] < 0.75 * losses[0]
    fpa = [entry["val/fpa"] for entry in log if "val/fpa" in entry]
    assert best == max(fpa) and best > 100 / 6

    weights = load_weights(tmp_path / "run/best.safetensors")
    assert weights.taxonomy == taxonomy and weights.config == tiny_config
    assert weights.state_dict["cls_token"].dtype == torch.float32
    assert any((tmp_path / "run/tensorboard").iterdir())
    for value in load_weights(tmp_path / "run/last.safetensors").state_dict.values():
        assert value.isfinite().all()


@pytest.mark.parametrize("opt", ["adamw", "muon"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(picture_folder, taxonomy, tiny_config, tmp_path, opt):
    """Stopped by an exception in the same process, at and between checkpoints."""
    whole = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "whole", opt=opt)
    whole.train()
    for stop in (1, 3, 4, 5):
        folder = tmp_path / f"cut{stop}"
        stop_at(make_run(picture_folder, taxonomy, tiny_config, folder, opt=opt), stop)
        make_run(picture_folder, taxonomy, tiny_config, folder, opt=opt).train()

        for name in ("last.safetensors", "checkpoint/model.safetensors"):
            a, b = load_file(tmp_path / "whole" / name), load_file(folder / name)
            assert all(torch.equal(a[k], b[k]) for k in a), (stop, name)
        assert [line["step"] for line in read_log(folder)] == [line["step"] for line in read_log(tmp_path / "whole")]


def test_a_run_killed_between_the_renames_resumes(picture_folder, taxonomy, tiny_config, tmp_path):
    run = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run")
    run.train()
    log = read_log(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoint.old")
    os.replace(tmp_path / "run/checkpoint", tmp_path / "run/checkpoint.old")
    (tmp_path / "run/log.jsonl").open("a").write('{"step": 6, "cut')
    again = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run")
    again.train()
    assert again.step == 6 and again.best == run.best
    assert read_log(tmp_path / "run") == log


def test_an_unreadable_batch_skips_its_step(picture_folder, taxonomy, tiny_config, tmp_path):
    for file in sorted((picture_folder / "train").rglob("*.png"))[2:]:
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="left out"):
        run = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", batch_size=2)
        run.train()
    assert run.step == 12


def test_another_run_in_the_folder_is_refused(picture_folder, taxonomy, tiny_config, tmp_path):
    make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run")
    make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", workers=1, checkpoint_steps=7)
    with pytest.raises(ValueError, match=r"other settings \(drop_path_rate 0.0 -> 0.2; lr 0.1 -> 0.3\)"):
        make_run(picture_folder, taxonomy, tiny_config.replace(drop_path_rate=0.2), tmp_path / "run", lr=0.3)


def test_training_starts_from_weights_of_another_size(picture_folder, taxonomy, tiny_config, tiny_weights, tmp_path):
    init = load_weights(tiny_weights)
    run = make_run(picture_folder, taxonomy, tiny_config.replace(image_size=48), tmp_path / "run", init)
    assert torch.equal(run.model.heads[2].weight, init.state_dict["heads.2.weight"])
    assert run.model.pos_embed.shape[1] == 37
    assert torch.equal(run.ema.module.cls_token, init.state_dict["cls_token"])


def test_wrong_settings_are_explained(picture_folder, taxonomy, tiny_config, tmp_path):
    for wrong, message in (
        (dict(batch_size=3), "even"),
        (dict(epochs=0), "1 or more"),
        (dict(batch_size=64), "at least a batch of 64 pictures, got 12"),
    ):
        with pytest.raises(ValueError, match=message):
            make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", **wrong)
    with pytest.raises(ValueError, match="with the same taxonomy"):
        make_run(picture_folder, taxonomy, tiny_config.replace(level_classes=(2, 3)), tmp_path / "run")


def test_weight_decay_excludes_tokens_and_norms(picture_folder, taxonomy, tiny_config, tmp_path):
    run = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run")
    names = {id(p): n for n, p in run.model.named_parameters()}
    decayed = {names[id(p)] for g in run.optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert "heads.0.weight" in decayed and "stages.0.blocks.0.attn.qkv.weight" in decayed
    assert not {"cls_token", "pos_embed", "norm.weight", "heads.0.bias"} & decayed


def test_magnitude_noise_beyond_the_scale_is_accepted(tiny_config):
    transform = train_transform(tiny_config, TrainConfig(auto_augment="rand-m10-mstd9"))
    assert transform(Image.effect_noise((40, 40), 80).convert("RGB")).shape == (3, 32, 32)


@pytest.mark.parametrize("mean", [(0.5,), (0.485, 0.456, 0.406)])
def test_a_model_of_one_channel_trains_and_answers(picture_folder, taxonomy, tiny_config, tmp_path, mean):
    config = tiny_config.replace(in_chans=1, mean=mean, std=mean)
    make_run(picture_folder, taxonomy, config, tmp_path / "run", epochs=1, warmup_epochs=0.5).train()

    predictor = Predictor(tmp_path / "run/last.safetensors")
    picture = next((picture_folder / "val").rglob("*.png"))
    assert len(next(predictor.predict([picture])).path) == 3

    average = sum(mean) / len(mean)
    seen = predictor.transform(read_picture(picture)) * average + average
    grey = tv.Compose([tv.Grayscale(1), tv.Resize(32, tv.InterpolationMode.BICUBIC), tv.ToTensor()])
    torch.testing.assert_close(seen, grey(read_picture(picture)), atol=2 / 255, rtol=0)  # rounded in another order

    assert len(segment_picture(predictor, picture).readings) == 3


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_resumes_exactly(picture_folder, tmp_path):
    """The command with workers is killed by SIGKILL at three moments; the weights come out the same."""

    def command(output):
        start = [sys.executable, "-m", "hcast_zoo", "train", "--data", str(picture_folder), "--output", str(output)]
        size = "--model hcast_tiny --image-size 32 --num-superpixels 16 --num-clusters 8 4 2 2 --workers 1".split()
        return [*start, *size, *"--epochs 3 --batch-size 4 --warmup-epochs 1 --checkpoint-steps 1".split()]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    kills = 0
    for _ in range(6):
        process = subprocess.Popen(
            command(tmp_path / "cut"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        before = progress(tmp_path / "cut")
        while progress(tmp_path / "cut") < before + 2 and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None and kills < 3:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if process.returncode == 0:
            break
    assert kills == 3 and process.returncode == 0

    for name in ("last.safetensors", "best.safetensors", "checkpoint/model.safetensors"):
        a, b = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert all(torch.equal(a[k], b[k]) for k in a), name


def progress(folder):
    try:
        return json.loads((folder / "checkpoint/progress.json").read_text())["step"]
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


class TestPaperExact:
    """The official code's quirks, which are off unless asked for."""

    def test_learning_rate_follows_the_official_loop(self, picture_folder, taxonomy, tiny_config, tmp_path):
        """Set per epoch, one epoch late, on a cosine of another length, with timm's scheduler."""
        rates = {}
        for exact in (True, False):
            options = dict(epochs=5, warmup_epochs=2, warmup_lr=1e-3, schedule_epochs=15, paper_exact=exact)
            run = make_run(picture_folder, taxonomy, tiny_config, tmp_path / str(exact), **options)
            step, rates[exact] = run._train_step, []

            def record(batch, run=run, step=step, seen=rates[exact]):
                seen.append(run.optimizer.param_groups[0]["lr"])
                return step(batch)

            run._train_step = record
            run.train()

        peak, steps = 0.1 * 4 / 512, 3
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
        scheduler = CosineLRScheduler(optimizer, t_initial=15, lr_min=1e-5, warmup_t=2, warmup_lr_init=1e-3)
        official = []
        for epoch in range(5):
            official += [optimizer.param_groups[0]["lr"]] * steps
            scheduler.step(epoch)

        assert rates[True] == pytest.approx(official)
        assert official[0] == official[3] != official[6] and len(set(rates[False])) == 5 * steps

    def test_a_stopped_run_resumes_exactly(self, picture_folder, taxonomy, tiny_config, tmp_path):
        def run(name):
            return make_run(picture_folder, taxonomy, tiny_config, tmp_path / name, epochs=2, paper_exact=True)

        run("whole").train()
        stop_at(run("cut"), 4)
        run("cut").train()
        a, b = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
        assert all(torch.equal(a[key], b[key]) for key in a)

    @pytest.mark.parametrize("exact", [True, False])
    def test_raw_weights_are_kept_by_the_finest_accuracy(self, picture_folder, taxonomy, tiny_config, tmp_path, exact):
        """Without it, the averaged weights are kept, by full-path accuracy."""
        run = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", paper_exact=exact)
        best = run.train()
        kept = load_weights(tmp_path / "run/last.safetensors").state_dict["cls_token"]
        raw, average = (m.state_dict()["cls_token"] for m in (run.model, run.ema.module))
        assert torch.equal(kept, raw) == exact and torch.equal(kept, average) == (not exact)
        log = read_log(tmp_path / "run")
        name = "accuracy/species" if exact else "fpa"
        assert run.criterion == name and best == max(x[f"val/{name}"] for x in log if "val/fpa" in x)

    def test_training_normalises_as_imagenet(self, taxonomy, tiny_config):
        """Whatever the config says."""
        other = tiny_config.replace(mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192))
        plain = dict(auto_augment="", color_jitter=0.0, random_erasing=0.0, hflip=0.0, crop_scale=1.0)
        grey = Image.new("RGB", (32, 32), (128, 128, 128))
        for exact, config in ((True, tiny_config), (False, other)):
            normalised = train_transform(other, TrainConfig(**plain, paper_exact=exact))(grey)[:, 0, 0]
            expected = (128 / 255 - torch.tensor(config.mean)) / torch.tensor(config.std)
            torch.testing.assert_close(normalised, expected)


def test_weights_are_float32_unless_half_is_asked_for(picture_folder, taxonomy, tiny_config, tmp_path):
    for half, dtype in ((False, torch.float32), (True, torch.float16)):
        run = make_run(picture_folder, taxonomy, tiny_config, tmp_path / str(half), epochs=1, save_half=half)
        run.train()
        assert load_weights(tmp_path / str(half) / "last.safetensors").state_dict["cls_token"].dtype == dtype


def test_a_batch_in_parts_has_the_same_gradients(picture_folder, taxonomy, tiny_config, tmp_path):
    """Dropout and batch norms are as in evaluation; a smaller part counts for its share."""
    config = tiny_config.replace(pool_drop_rate=0.0)
    gradients = []
    for parts in (1, 3):
        run = make_run(
            picture_folder, taxonomy, config, tmp_path / f"run{parts}", accumulate=parts, mix_prob=0.0, batch_size=8
        )
        run.sampler.epoch = 0
        run.optimizer.zero_grad = lambda: None
        run.model.eval()
        run._train_step(next(iter(run.loader)))
        gradients.append([p.grad.clone() for p in run.model.parameters() if p.grad is not None])

    for whole, cut in zip(*gradients):
        torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-3)


def test_patience_ends_a_run_and_keeps_it_ended(picture_folder, taxonomy, tiny_config, tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr("hcast_zoo.training.trainer.evaluate", lambda *_, **__: {"best_path": {"fpa": next(scores)}})

    def step(run, batch):
        run.step += 1
        return 1.0

    monkeypatch.setattr(Trainer, "_train_step", step)
    settings = dict(epochs=9, patience=2)
    assert make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", **settings).train() == 30.0
    again = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", **settings)
    assert again.train() == 30.0 and again.step == 4 * 3
    assert next(scores) == 40.0  # the fifth validation never ran


def test_a_tracker_that_is_not_installed_is_named(picture_folder, taxonomy, tiny_config, tmp_path, monkeypatch):
    from hcast_zoo.training import run_log

    monkeypatch.setattr(run_log.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="--track wandb: pip install wandb"):
        make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", track="wandb")
    with pytest.raises(ValueError, match="track: expected tensorboard, wandb, mlflow or none, got 'comet'"):
        make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", track="comet")


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_trackers_get_an_id_for_resuming(tracker, picture_folder, taxonomy, tiny_config, tmp_path, monkeypatch):
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    make_run(picture_folder, taxonomy, tiny_config, tmp_path / "run", track=f"tensorboard+{tracker}").train()
    assert (tmp_path / f"run/{tracker}.id").read_text()
