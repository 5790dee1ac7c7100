"""Training by the paper's recipe, on accelerate and timm; a run can be killed at any moment and goes on exactly.

The sample order, augmentation and dropout of every step are functions of the seed and the step, so a checkpoint holds
the model, the optimiser, the average weights and the number of steps, and nothing else is needed to go on.

Several processes (torchrun, ``accelerate launch``) each take every n-th batch, and average their gradients; the first
one alone prints, logs and writes.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import timm.optim
import timm.scheduler
import torch
from accelerate import Accelerator
from timm.data.mixup import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms import Grayscale
from tqdm import tqdm

from ..common.claim import claim, digest_of, own_folder
from ..common.files import write_whole
from ..common.processes import Processes, copy_buffers
from ..common.text import brief, clip
from ..data.dataset import HierarchicalDataset
from ..data.loading import SeededSampler, SuperpixelCollate, seed_everything, start_quietly
from ..data.transforms import eval_transform, normalization
from ..evaluation.evaluate import evaluate
from ..network.config import IMAGENET_MEAN, IMAGENET_STD, HCastConfig
from ..network.model import HCast
from ..weights import file as weights
from . import checkpoint
from .gpu_loader import DeviceLoader
from .losses import HierarchicalLoss, soft_targets
from .settings import CHANGEABLE, TrainConfig


class OfficialAverage(torch.nn.Module):
    """Average weights as the authors' code keeps them: a constant decay, and blocks averaged twice a step.

    Their state dict holds every block under two names, and the average walks the names. Batch norm's statistics are
    averaged too; its integer counter stays 0.

    Args:
        model: What to average.
        decay: Of a step.

    Source: timm 0.4.12's ModelEma; docs/official_differences.md, 39.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        super().__init__()
        self.module, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int | None = None) -> None:
        """Move the average towards ``model``; ``step`` is not used, as the decay is constant."""
        new = model.state_dict()
        for name, value in self.module.state_dict().items():
            for _ in range(2 if ".blocks." in name else 1):
                value.copy_(value * self.decay + (1.0 - self.decay) * new[name])


def _make_average(model: torch.nn.Module, settings: TrainConfig) -> torch.nn.Module | None:
    if not settings.ema_decay:
        return None
    if settings.paper_exact:
        return OfficialAverage(model, settings.ema_decay)
    return ModelEmaV3(model, settings.ema_decay, use_warmup=True)


class HierarchicalMixup(Mixup):
    """timm's mixup and cutmix, with the labels of every level mixed by one lambda.

    Args:
        official_boxes: Cut as timm 0.4.12 did: the box of an odd side is one pixel shorter
            (docs/official_differences.md, 40).
        kwargs: timm's arguments.

    Source: official mixup_hier.py:217-222 (docs/official_differences.md, 29).
    """

    def __init__(self, *args, official_boxes: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.official_boxes = official_boxes

    def _mix_batch(self, x: Tensor) -> float:
        if not self.official_boxes:
            return super()._mix_batch(x)
        lam, use_cutmix = self._params_per_batch()
        if lam == 1.0:
            return 1.0
        if not use_cutmix:
            mixed = x.flip(0).mul_(1.0 - lam)
            x.mul_(lam).add_(mixed)
            return lam

        height, width = x.shape[-2:]
        ratio = np.sqrt(1 - lam)
        half_height, half_width = int(height * ratio) // 2, int(width * ratio) // 2
        y, x_centre = np.random.randint(0, height), np.random.randint(0, width)
        top, bottom = max(y - half_height, 0), min(y + half_height, height)
        left, right = max(x_centre - half_width, 0), min(x_centre + half_width, width)
        x[:, :, top:bottom, left:right] = x.flip(0)[:, :, top:bottom, left:right]
        return 1.0 - (bottom - top) * (right - left) / float(height * width)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mix (B, C, H, W) images in place, and (B, L) labels (-1 for unknown) into soft targets."""
        mix = {"elem": self._mix_elem, "pair": self._mix_pair, "batch": self._mix_batch}[self.mode]
        lam = mix(images)
        targets = soft_targets(labels, self.num_classes, self.label_smoothing)
        return images, tuple(t * lam + t.flip(0) * (1.0 - lam) for t in targets)


class DivergedError(ValueError):
    """Training came to numbers that are not finite; the message names the step, the learning rate and the causes."""


class Trainer:
    """Trains a model in a folder, the run's.

    The folder holds ``run.json`` (settings, and digests of what the run was made of), ``log.jsonl`` and
    ``tensorboard/`` (losses, metrics), ``checkpoint/`` and the one before it, ``checkpoint.old/``,
    ``best.safetensors`` (highest validation FPA; with ``paper_exact``, the finest level's accuracy) and
    ``last.safetensors``.

    Args:
        config: Architecture.
        settings: How to train.
        train_set: Pictures to learn from; its transform is set here.
        val_set: Pictures that choose the best weights; its transform is set here.
        output: Folder of the run. If it holds a checkpoint, the run goes on from there.
        init: Weights to start from; the position embedding is resampled, heads of other classes are new.
        accept_changes: Go on with a run though its data, taxonomy or start weights are no longer the same.

    Raises:
        ValueError: if the folder holds a run with other settings, data, taxonomy or start weights, or is in use by
            another process; or levels disagree.
    """

    def __init__(
        self,
        config: HCastConfig,
        settings: TrainConfig,
        train_set: HierarchicalDataset,
        val_set: HierarchicalDataset,
        output: str | Path,
        init: weights.Weights | None = None,
        *,
        accept_changes: bool = False,
    ):
        if config.level_classes != train_set.taxonomy.level_classes or train_set.taxonomy != val_set.taxonomy:
            raise ValueError("model, training set and validation set must have one taxonomy")
        # Without this, accelerate would not see that torchrun started several processes on CPUs.
        several_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not has_accelerator()
        precision = settings.mixed_precision
        if settings.paper_exact and precision == "no" and torch.cuda.is_available():
            precision = "fp16"  # as the official code always computes on a GPU, with a scaler of gradients
        self.accelerator = Accelerator(mixed_precision=precision, cpu=several_on_cpu)
        self.processes = Processes(self.accelerator.process_index, self.accelerator.num_processes)
        world = self.processes.count
        if len(train_set) < settings.batch_size * world:
            raise ValueError(
                f"expected at least a batch of {settings.batch_size} pictures, got {len(train_set)} for "
                f"{world} process(es)"
            )

        self.config, self.settings, self.output = config, settings, Path(output)
        made_of = {
            "data_sha256": digest_of([train_set.digest(), val_set.digest()]),
            "taxonomy_sha256": digest_of(train_set.taxonomy.to_dict()),
            "start_weights_sha256": None if init is None else _weights_digest(init),
        }
        with own_folder(self.output, self.processes), self.accelerator.main_process_first():
            self._claim_folder(made_of, accept_changes)

        train_set.transform, val_set.transform = train_transform(config, settings), eval_transform(config)
        train_set.random_background = settings.random_background
        train_set.official_reading = val_set.official_reading = settings.paper_exact
        self.val_set, self.taxonomy = val_set, train_set.taxonomy

        seed_everything(settings.seed)
        model = self.make_model()
        if init is not None:
            model.load_state_dict(weights.fit(init.state_dict, model, settings.paper_exact), strict=False)
        self.ema = _make_average(model, settings)
        optimizer = timm.optim.create_optimizer_v2(
            model, settings.opt, lr=settings.lr * settings.batch_size * world / 512, weight_decay=settings.weight_decay
        )
        self.sampler = SeededSampler(len(train_set), settings.seed)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.loader = self._make_loader(train_set)

        if self.ema is not None:
            self.ema.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.ema)

        self.scheduler, _ = timm.scheduler.create_scheduler_v2(
            optimizer,
            "cosine",
            settings.schedule_epochs or settings.epochs,
            min_lr=settings.min_lr,
            warmup_lr=settings.warmup_lr,
            warmup_epochs=settings.warmup_epochs,
            step_on_epochs=settings.paper_exact,
            updates_per_epoch=len(self.loader),
        )
        self.loss = HierarchicalLoss(settings.kl_weight, smoothing=settings.smoothing)
        self.criterion = f"accuracy/{self.taxonomy.levels[-1]}" if settings.paper_exact else "fpa"
        self.step, self.best = 0, -1.0
        self.epoch_loss = 0.0, 0  # sum and number of this process's batches in the epoch

    def make_model(self) -> torch.nn.Module:
        """Return a new model of ``self.config``; a trainer of another network overrides this.

        It is called with images and segments, and returns an output that has ``level_logits``.
        """
        return HCast(self.config)

    def _make_loader(self, train_set: HierarchicalDataset) -> DataLoader | DeviceLoader:
        config, settings = self.config, self.settings
        mixup = make_mixup(config, settings)
        if settings.on_device:
            if self.processes.count > 1 or config.superpixels == "seeds":
                raise ValueError(
                    "on_device: expected one process, and superpixels slic or grid, which the accelerator "
                    f"can make; got {self.processes.count} and {config.superpixels}"
                )
            return DeviceLoader(
                dataset=train_set,
                config=config,
                settings=settings,
                sampler=self.sampler,
                device=self.accelerator.device,
                mixup=mixup,
            )

        collate = SuperpixelCollate(
            config=config,
            mixup=mixup,
            paper_exact=settings.paper_exact,
            cache=None if settings.augments else settings.superpixel_cache,
            device=self.accelerator.device,
        )
        return self.accelerator.prepare(
            DataLoader(
                train_set,
                settings.batch_size,
                sampler=self.sampler,
                drop_last=True,
                num_workers=settings.workers,
                persistent_workers=settings.workers > 0,
                collate_fn=collate,
                worker_init_fn=start_quietly,
            )
        )

    def _rest_of_epoch(self, done: int) -> Iterable:
        """Return the batches of the sampler's epoch without the first ``done``."""
        if isinstance(self.loader, DeviceLoader):
            return self.loader.batches(done)
        return self.accelerator.skip_first_batches(self.loader, done) if done else self.loader

    def train(self) -> float:
        """Train to the end, from the checkpoint if there is one; return the best of ``criterion``, in percent.

        Raises:
            DivergedError: if a loss or the weights are not finite; the checkpoints are of steps before.
            CheckpointError: if there are checkpoints, and all are damaged.
            ValueError: if another process trains in the folder.
        """
        with own_folder(self.output, self.processes):
            return self._train()

    def _train(self) -> float:
        self._resume()
        self._schedule()
        settings, steps = self.settings, len(self.loader)
        with self._make_board() as self.board:
            while self.step < settings.epochs * steps:
                epoch, done = divmod(self.step, steps)
                self.sampler.epoch = epoch
                mean = self._train_epoch(self._rest_of_epoch(done), epoch, done)
                loss = sum(losses := self.processes.gather(mean)) / len(losses)
                self._log({"epoch": epoch + 1, "loss": loss, "lr": self.optimizer.param_groups[0]["lr"]})
                if validate := (epoch + 1) % settings.eval_epochs == 0 or epoch + 1 == settings.epochs:
                    self._validate()
                if validate or self.step % settings.checkpoint_steps == 0:
                    self._save_checkpoint()

        return self.best

    def _train_epoch(self, loader: Iterable, epoch: int, done: int) -> float:
        self.model.train()
        if done == 0:
            self.epoch_loss = 0.0, 0
        bar = tqdm(
            loader,
            f"epoch {epoch + 1}/{self.settings.epochs}",
            len(self.loader),
            initial=done,
            disable=not self.processes.is_main,
        )

        for batch in bar:
            if self._all_have(batch):
                total, count = self.epoch_loss
                self.epoch_loss = total + self._train_step(batch), count + 1
            else:  # no picture of a batch can be read; the processes leave the step out together
                self.step += 1
            bar.set_postfix(loss=f"{self._mean_loss():.3f}")
            if self.step % self.settings.checkpoint_steps == 0 and self.step % len(self.loader):
                self._save_checkpoint()

        return self._mean_loss()

    def _mean_loss(self) -> float:
        """Return the mean loss of the epoch so far, over what was done before the run was resumed too."""
        total, count = self.epoch_loss
        return total / count if count else math.nan

    def _all_have(self, batch: dict | None) -> bool:
        if self.processes.count == 1:
            return batch is not None
        having = torch.tensor(int(batch is not None), device=self.accelerator.device)
        return int(self.accelerator.reduce(having, "sum")) == self.processes.count

    def _train_step(self, batch: dict) -> float:
        seed_everything((self.settings.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index)
        with self.accelerator.autocast():
            output = self.model(batch["images"], batch.get("segments"))
        loss = self.loss([x.float() for x in output.level_logits], batch["targets"])
        self.accelerator.backward(loss)
        if self.settings.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        rate = self.optimizer.param_groups[0]["lr"]
        self._schedule()
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=self.step)

        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", rate)
        return value

    def _check_weights(self) -> None:
        """Make sure that weights that are about to be kept are finite."""
        with torch.no_grad():
            finite = torch.stack([p.isfinite().all() for p in self.model.parameters()]).all().item()
        if not finite:
            raise self._diverged("weights are not finite", self.optimizer.param_groups[0]["lr"])

    def _diverged(self, what: str, rate: float) -> DivergedError:
        kept = "no checkpoint was written yet"
        with contextlib.suppress(checkpoint.CheckpointError):
            if found := checkpoint.find(self.output):
                kept = f"the checkpoint of step {found[1]['step']} in {found[0]} is kept"
        return DivergedError(
            f"step {self.step}: {what}, at learning rate {rate:.3g}; {kept}. Usual causes: too high a learning rate "
            "(--lr, --warmup-epochs), no limit on gradients (--clip-grad 1), half precision (--mixed-precision no), "
            "start weights or pixels that are not finite. Begin a new run with other settings, perhaps from "
            f"--model {self.output / 'best.safetensors'}"
        )

    def _schedule(self) -> None:
        """Set the learning rate of the next step."""
        if self.settings.paper_exact:  # once an epoch, one epoch late (docs/official_differences.md, 32)
            self.scheduler.step(max(self.step // len(self.loader) - 1, 0))
        else:
            self.scheduler.step_update(self.step)

    def _validate(self) -> None:
        # The official code keeps an average of the weights but never evaluates it (docs/official_differences.md, 33).
        self._check_weights()
        averaged = self.ema is not None and not self.settings.paper_exact
        model = self.ema.module if averaged else self.accelerator.unwrap_model(self.model)
        copy_buffers(model, self.processes)
        decoder = "independent" if self.settings.paper_exact else "best_path"
        metrics = evaluate(
            model,
            self.val_set,
            (decoder,),
            workers=0,
            processes=self.processes,
            superpixel_cache=self.settings.superpixel_cache,
        )[decoder]
        self._log({f"val/{key}": value for key, value in metrics.items()})
        reached = metrics.get(self.criterion, 0.0)  # not there where no picture has a label
        better = reached > self.best
        self.best = max(reached, self.best)

        if self.processes.is_main:
            content = weights.Weights(self.config, self.taxonomy, model.state_dict())
            dtype = torch.float16 if self.settings.save_half else None
            weights.save(content, self.output / "last.safetensors", dtype)
            if better:
                weights.save(content, self.output / "best.safetensors", dtype)

        self.accelerator.wait_for_everyone()

    def _make_board(self) -> contextlib.AbstractContextManager:
        if not self.processes.is_main:
            return contextlib.nullcontext()
        return SummaryWriter(str(self.output / "tensorboard"), purge_step=self.step)

    def _log(self, values: dict[str, float]) -> None:
        if not self.processes.is_main:
            return
        line = {key: value if math.isfinite(value) else None for key, value in values.items()}  # JSON has no NaN
        with open(self.output / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": self.step, **line}, allow_nan=False) + "\n")
        for key, value in values.items():
            self.board.add_scalar(key, value, self.step)
        tqdm.write(f"step {self.step}: " + ", ".join(f"{k} {v:.5g}" for k, v in values.items()), file=sys.stderr)

    def _claim_folder(self, made_of: dict, accept_changes: bool) -> None:
        """Write settings and digests, or check that the folder's run has the same."""
        told = claim(
            self.output / "run.json",
            {
                "config": self.config.to_dict(),
                "settings": dataclasses.asdict(self.settings),
                "job": {"processes": self.processes.count},
                "made_of": made_of,
            },
            holds="a run with other settings",
            mend="go on with the same, or choose another folder; other data is taken with --accept-changes",
            changeable=CHANGEABLE,
            # Settings that came with a later version count as their defaults.
            defaults={"job": {"processes": 1}, "settings": dataclasses.asdict(TrainConfig())},
            accept_changes=accept_changes,
        )
        if self.processes.is_main:
            for line in told:
                print(line, file=sys.stderr)

    def _save_checkpoint(self) -> None:
        """Write ``checkpoint/`` at once, and keep the one before: a crash leaves the old one or the new one."""
        self._check_weights()
        newest, new, previous = (
            self.output / name for name in (checkpoint.NEWEST, "checkpoint.new", checkpoint.PREVIOUS)
        )
        self.accelerator.wait_for_everyone()
        if self.processes.is_main:
            shutil.rmtree(new, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(new)
        losses = self.processes.gather(self.epoch_loss)  # every process has a file in it

        if self.processes.is_main:
            checkpoint.seal(new, {"step": self.step, "best": self.best, "epoch_losses": losses})
            if newest.exists():
                shutil.rmtree(previous, ignore_errors=True)
                os.replace(newest, previous)
            os.replace(new, newest)

    def _resume(self) -> None:
        found = self._find_checkpoint()
        if found is not None:
            folder, progress, wrong = found
            if wrong and self.processes.is_main:
                print(f"{wrong}: going on from the checkpoint before it, of step {progress['step']}", file=sys.stderr)
            try:
                self.accelerator.load_state(folder)
            except Exception as error:  # a checkpoint without hashes, or one of other versions of torch
                raise checkpoint.CheckpointError(f"{folder} cannot be loaded: {clip(error)}") from error

            self.step = progress["step"]
            self.best = progress["best"] if "best" in progress else progress["best_fpa"]  # its name in 0.1
            if "epoch_losses" in progress:
                total, count = progress["epoch_losses"][self.processes.rank]
                self.epoch_loss = total, count
            self.accelerator.wait_for_everyone()  # before the first process makes a new checkpoint of it
            if wrong and self.processes.is_main:  # else the next checkpoint would push the whole one out
                shutil.rmtree(self.output / checkpoint.NEWEST)
                os.replace(folder, self.output / checkpoint.NEWEST)

        log = self.output / "log.jsonl"
        if self.processes.is_main and log.exists():  # lines after the checkpoint will be written again
            lines = [line for line in log.read_text().splitlines() if _line_step(line) <= self.step]
            write_whole(log, "".join(line + "\n" for line in lines))

    def _find_checkpoint(self) -> tuple[Path, dict, str | None] | None:
        """Return what the first process finds, in every process."""
        found: Any = None
        if self.processes.is_main:
            try:
                found = checkpoint.find(self.output)
            except checkpoint.CheckpointError as error:
                found = error

        found = self.processes.gather(found)[0]
        if isinstance(found, checkpoint.CheckpointError):
            raise found
        return found


def has_accelerator() -> bool:
    """Return whether torch has a device that is faster than the CPU."""
    return torch.accelerator.is_available()


def train_transform(config: HCastConfig, settings: TrainConfig):
    """Return timm's training augmentation, from a PIL RGB picture to a normalised (in_chans, H, W) float32 tensor.

    Raises:
        ValueError: if timm does not know the policy.
    """
    policy = settings.auto_augment or None

    # The official code always trains with ImageNet's normalisation (docs/official_differences.md, 24).
    mean, std = normalization(config.replace(mean=IMAGENET_MEAN, std=IMAGENET_STD) if settings.paper_exact else config)
    try:
        transform = timm.data.create_transform(
            config.image_size,
            is_training=True,
            scale=(settings.crop_scale, 1.0),
            hflip=settings.hflip,
            color_jitter=settings.color_jitter,
            auto_augment=policy,
            interpolation=config.interpolation,
            mean=mean,
            std=std,
            re_prob=settings.random_erasing,
            re_mode="pixel",
            use_prefetcher=False,
        )
    except (AssertionError, KeyError, IndexError) as error:  # what timm makes of a policy that it does not know
        raise ValueError(
            f'auto_augment: expected a policy of timm, such as rand-m9-mstd0.5-inc1, or "", got '
            f"{brief(settings.auto_augment)}: {clip(error)}"
        ) from error

    _limit_posterise(transform)
    if config.in_chans == 1:  # after timm's augmentations, some of which want colours
        to_tensor = [isinstance(step, timm.data.transforms.MaybeToTensor) for step in transform.transforms].index(True)
        transform.transforms.insert(to_tensor, Grayscale(1))

    return transform


def _limit_posterise(transform) -> None:
    """Keep at least one bit where a policy would posterise to none, which Pillow 13 refuses; draws stay as they are."""
    for step in transform.transforms:
        for op in getattr(step, "ops", ()):
            if op.name.startswith("Posterize"):
                op.level_fn = functools.partial(_at_least_one_bit, op.level_fn)


def _at_least_one_bit(level_fn: Callable, level: float, hparams: dict) -> tuple[int]:
    return (max(level_fn(level, hparams)[0], 1),)


def make_mixup(config: HCastConfig, settings: TrainConfig) -> HierarchicalMixup | None:
    """Return the mixing of the settings, or None if it is off."""
    if not settings.mixup and not settings.cutmix:
        return None
    return HierarchicalMixup(
        settings.mixup,
        settings.cutmix,
        prob=settings.mix_prob,
        label_smoothing=settings.smoothing,
        num_classes=config.level_classes,
        official_boxes=settings.paper_exact,
    )


def _weights_digest(content: weights.Weights) -> str:
    """Return the SHA-256 of the architecture and of every tensor."""
    digest = hashlib.sha256(json.dumps(content.config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(content.state_dict.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _line_step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")  # the line that a kill cut short
