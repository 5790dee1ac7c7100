"""Training by the paper's recipe, on accelerate and timm; a killed run resumes exactly.

The sample order, augmentation and dropout of every step are functions of the seed and the step. So a checkpoint needs
only the model, the optimiser, the EMA and the number of steps.

Several processes (torchrun, ``accelerate launch``) each take every n-th batch, and average their gradients; only the
first one prints, logs and writes.
"""

import contextlib
import dataclasses
import math
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import timm.scheduler
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..common.claim import claim, digest_of, own_folder
from ..common.machine import choose_readers
from ..common.processes import Processes, copy_buffers
from ..common.progress import hides_bars
from ..common.text import clip
from ..data.dataset import HierarchicalDataset
from ..data.loading import SeededSampler, seed_everything
from ..data.transforms import eval_transform
from ..evaluation.evaluate import evaluate
from ..network.config import HCastConfig
from ..network.model import HCast
from ..weights.file import Weights, fit_state_dict, save_weights
from .augmentation import train_transform
from .average import make_average
from .batches import fitting_batches, make_loader, rest_of_epoch, split_batch
from .checkpoint import NEWEST, UNFINISHED, CheckpointError, agree_on_checkpoint, find_checkpoint, promote, seal
from .estimate import as_time, check_batch, estimate_seconds
from .imbalance import make_loss, sample_weights
from .optimizer import make_optimizer
from .provenance import describe_choice
from .repeated import RepeatedSampler
from .run_log import RunLog
from .settings import CHANGEABLE, TrainConfig
from .start import fit_evidence, fit_heads, freeze, load_stem, set_training
from .teacher import distillation_loss, load_teacher
from .views import FOLDER, ViewFolder, ViewSet


class DivergedError(ValueError):
    """The loss or a weight is not finite; the message names the step, the learning rate and the usual causes."""


class Trainer:
    """Trains a model in the folder of a run.

    The folder holds ``run.json`` (settings, and digests of data, taxonomy and start weights), ``log.jsonl`` and
    ``tensorboard/`` (losses, metrics), ``checkpoint/`` and the previous one, ``checkpoint.old/``,
    ``best.safetensors`` (highest validation FPA; with ``paper_exact``, highest accuracy at the finest level) and
    ``last.safetensors``.

    Args:
        config: Architecture.
        settings: How to train.
        train_set: Training pictures; their transform is set here.
        val_set: Validation pictures, which choose the best weights; their transform is set here.
        output: Folder of the run. If it holds a checkpoint, the run resumes from it.
        init: Weights to start from; the position embedding is resampled, heads with other classes are new.
        accept_changes: Resume a run even if its data, taxonomy or start weights have changed.
        facts: Metadata for the weights; see :func:`.provenance.describe_run`.

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
        init: Weights | None = None,
        *,
        accept_changes: bool = False,
        facts: dict[str, str] | None = None,
    ):
        if config.level_classes != train_set.taxonomy.level_classes or train_set.taxonomy != val_set.taxonomy:
            raise ValueError("expected a model, a training set and a validation set with the same taxonomy")

        self.accelerator = make_accelerator(settings)
        self.processes = Processes(self.accelerator.process_index, self.accelerator.num_processes)
        world = self.processes.count
        if len(train_set) < settings.batch_size * world:
            raise ValueError(
                f"expected at least a batch of {settings.batch_size} pictures, got {len(train_set)} for "
                f"{world} process(es)"
            )

        self.config, self.settings, self.output = config, settings, Path(output)
        self.facts = facts or {}
        made_of = {
            "data_sha256": digest_of([train_set.digest(), val_set.digest()]),
            "taxonomy_sha256": digest_of(train_set.taxonomy.to_dict()),
            "start_weights_sha256": None if init is None else init.digest(),
        }
        self._set_data(train_set, val_set)

        self.is_new = init is None
        self.fits_heads = settings.fit_heads and (init is None or init.taxonomy != self.taxonomy)
        model = self._start_model(init)
        self.teacher = None
        if settings.teacher:
            self.teacher = load_teacher(settings.teacher, self.taxonomy, config).to(self.accelerator.device)
        self.ema = make_average(model, settings)
        optimizer = make_optimizer(model, settings, settings.batch_size * world)

        with own_folder(self.output, self.processes), self.accelerator.main_process_first():
            self._claim_folder(made_of, accept_changes)

        readers = choose_readers(settings.batch_size, config.image_size, world)
        self.workers = readers if settings.workers is None else settings.workers
        drawn = sample_weights(train_set.labels, settings.sampler)
        self.sampler = self._make_sampler(drawn)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.views = self._open_views(model)
        self.loader = make_loader(
            self.train_set if self.views is None else self.views,
            config,
            settings,
            sampler=self.sampler,
            accelerator=self.accelerator,
            workers=self.workers,
        )
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
            self.accelerator.register_for_checkpointing(self.ema)

        self.scheduler = self._make_scheduler(optimizer)
        self.loss = make_loss(train_set.labels, config.level_classes, settings, drawn)
        self.criterion = f"accuracy/{self.taxonomy.levels[-1]}" if settings.paper_exact else "fpa"
        self.log = RunLog(self.output, self.processes.is_main, settings.trackers, dataclasses.asdict(settings))
        self.step, self.best = 0, -1.0
        self.not_better = 0  # validations since the best one
        self.epoch_loss = 0.0, 0  # sum over this process's batches in the epoch, and their number

    def _set_data(self, train_set: HierarchicalDataset, val_set: HierarchicalDataset) -> None:
        """Take the data sets, and set how their pictures are read and transformed."""
        config, settings = self.config, self.settings
        train_set.transform, val_set.transform = train_transform(config, settings), eval_transform(config)
        train_set.random_background = settings.random_background
        train_set.official_reading = val_set.official_reading = settings.paper_exact
        self.train_set, self.taxonomy = train_set, train_set.taxonomy
        self.val_set: HierarchicalDataset | ViewSet = val_set

    def _make_sampler(self, drawn: Tensor | None) -> SeededSampler:
        """Return the order of the training pictures, which are drawn with the given probabilities."""
        settings, world = self.settings, self.processes.count
        if settings.paper_exact and world > 1:  # docs/official_differences.md, 45
            return RepeatedSampler(len(self.train_set), settings.seed, world, settings.batch_size)
        return SeededSampler(len(self.train_set), settings.seed, drawn)

    def _open_views(self, model: torch.nn.Module) -> ViewSet | None:
        """Return the views to train on, if the settings ask for them; validation then uses views too."""
        settings = self.settings
        if not settings.augment_views:
            return None

        folder = ViewFolder(settings.view_cache or self.output / FOLDER, model, settings)
        self.val_set = ViewSet(self.val_set, folder)
        return ViewSet(self.train_set, folder, settings.augment_views)

    def _make_scheduler(self, optimizer: torch.optim.Optimizer) -> timm.scheduler.scheduler.Scheduler:
        settings = self.settings
        scheduler, _ = timm.scheduler.create_scheduler_v2(
            optimizer,
            "cosine",
            settings.schedule_epochs or settings.epochs,
            min_lr=settings.min_lr,
            warmup_lr=settings.warmup_lr,
            warmup_epochs=settings.warmup_epochs,
            step_on_epochs=settings.paper_exact,
            updates_per_epoch=len(self.loader),
        )
        return scheduler

    def make_model(self) -> torch.nn.Module:
        """Return a new model of ``self.config``; a trainer for another network overrides this method.

        The model takes images and segments, and returns an output that has ``level_logits``.
        """
        model = HCast(self.config)
        model.recompute(self.settings.recompute)
        return model

    def _start_model(self, init: Weights | None) -> torch.nn.Module:
        """Return the model that training starts from, with the parts to freeze frozen."""
        seed_everything(self.settings.seed)
        model = self.make_model()
        if init is None:
            load_stem(model, self.settings.stem_weights)
        else:
            model.load_state_dict(fit_state_dict(init.state_dict, model, self.settings.paper_exact), strict=False)

        freeze(model, self.settings.freeze)
        return model

    def train(self) -> float:
        """Train to the end, from the checkpoint if there is one; return the best value of ``criterion``, in percent.

        Raises:
            DivergedError: if the loss or a weight is not finite; the checkpoints of earlier steps are kept.
            CheckpointError: if there are checkpoints, but all are damaged.
            MemoryBudgetError: if a batch does not fit into the device's memory.
            ValueError: if another process is training in the folder.
        """
        with own_folder(self.output, self.processes):
            return self._train()

    def _train(self) -> float:
        self._resume()
        self._schedule()
        settings, steps = self.settings, len(self.loader)
        with self.log.open_at(self.step):
            if self._is_unfinished():
                self._check_memory()
                self._print_time()
                self._prepare()

            while self._is_unfinished():
                epoch, done = divmod(self.step, steps)
                self.sampler.epoch = epoch
                mean = self._train_epoch(rest_of_epoch(self.loader, self.accelerator, done), epoch, done)
                losses = self.processes.gather(mean)
                rate = self.optimizer.param_groups[0]["lr"]
                self.log.write(self.step, {"epoch": epoch + 1, "loss": sum(losses) / len(losses), "lr": rate})

                validate = (epoch + 1) % settings.eval_epochs == 0 or epoch + 1 == settings.epochs
                if validate:
                    self._validate()
                if validate or self.step % settings.checkpoint_steps == 0:
                    self._save_checkpoint()

        if self.views is not None and settings.view_cache is None and self.processes.is_main:
            shutil.rmtree(self.output / FOLDER, ignore_errors=True)  # a finished run no longer needs its views

        return self.best

    def _is_unfinished(self) -> bool:
        """Tell whether there are epochs left, and patience has not run out."""
        patience = self.settings.patience
        if patience is not None and self.not_better >= patience:
            return False

        return self.step < self.settings.epochs * len(self.loader)

    def _check_memory(self) -> None:
        """Raise MemoryBudgetError if a batch cannot fit; views are small, and other networks are not known here."""
        model = self.accelerator.unwrap_model(self.model)
        if self.views is not None or not isinstance(model, HCast):
            return

        pictures = math.ceil(self.settings.batch_size / self.settings.accumulate)
        check_batch(model, pictures, self.accelerator.device, self.accelerator.autocast())

    def _print_time(self) -> None:
        """Print about how long the rest of the run will take."""
        settings, model = self.settings, self.accelerator.unwrap_model(self.model)
        if not self.processes.is_main or settings.on_device or not isinstance(model, HCast):
            return

        steps = settings.epochs * len(self.loader) - self.step
        validations = math.ceil(steps / (len(self.loader) * settings.eval_epochs))
        with self.accelerator.autocast():
            seconds = estimate_seconds(
                model,
                self.loss,
                self.train_set,
                [views for views in (self.views, self.val_set) if isinstance(views, ViewSet)],
                pictures=steps * settings.batch_size,
                validated=validations * len(self.val_set),
                workers=self.workers,
            )
        if seconds is not None:
            print(f"about {as_time(seconds)} on this machine, for {steps} steps", file=sys.stderr)

    def _prepare(self) -> None:
        """Make missing views, and fit the heads of a new run."""
        model = self.accelerator.unwrap_model(self.model)
        if self.views is not None:
            for views in (self.views, self.val_set):
                views.make(model, self.workers, self.processes)

        if not self.fits_heads or self.best >= 0:
            return

        fitted_on = self.train_set if self.views is None else self.views
        if self.is_new and self.views is not None:
            fit_evidence(model, fitting_batches(fitted_on, self.config))
        fit_heads(model, fitting_batches(fitted_on, self.config), self.settings)
        if self.ema is not None:
            self.ema.module.load_state_dict(model.state_dict())
        self._validate()
        self._save_checkpoint()

    def _train_epoch(self, loader: Iterable, epoch: int, done: int) -> float:
        set_training(self.accelerator.unwrap_model(self.model), self.settings.freeze)
        if done == 0:
            self.epoch_loss = 0.0, 0

        bar = tqdm(
            loader,
            f"epoch {epoch + 1}/{self.settings.epochs}",
            len(self.loader),
            initial=done,
            disable=not self.processes.is_main or hides_bars(),
        )

        for batch in bar:
            if self._all_have(batch):
                total, count = self.epoch_loss
                self.epoch_loss = total + self._train_step(batch), count + 1
            else:  # some process has a batch without a readable picture: all processes skip the step together
                self.step += 1

            bar.set_postfix(loss=f"{self._mean_loss():.3f}")
            if self.step % self.settings.checkpoint_steps == 0 and self.step % len(self.loader):
                self._save_checkpoint()

        return self._mean_loss()

    def _mean_loss(self) -> float:
        """Return the mean loss of the epoch so far, including its steps before the run was resumed."""
        total, count = self.epoch_loss
        return total / count if count else math.nan

    def _all_have(self, batch: dict | None) -> bool:
        if self.processes.count == 1:
            return batch is not None

        count = torch.tensor(int(batch is not None), device=self.accelerator.device)
        return int(self.accelerator.reduce(count, "sum")) == self.processes.count

    def _train_step(self, batch: dict) -> float:
        seed_everything((self.settings.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index)
        parts = split_batch(batch, self.settings.accumulate)
        value = 0.0
        for number, (share, part) in enumerate(parts, 1):
            # Gradients are averaged over the processes only once, after the last part.
            with contextlib.nullcontext() if number == len(parts) else self.accelerator.no_sync(self.model):
                value += share * self._backward(part, share)

        if self.settings.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)

        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        rate = self.optimizer.param_groups[0]["lr"]
        self._schedule()
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=self.step)

        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", rate)

        return value

    def _backward(self, batch: dict, share: float) -> float:
        """Add the gradients of a part of a batch, weighted by its share of the batch; return its loss."""
        weight, temperature = self.settings.teacher_weight, self.settings.teacher_temperature
        with self.accelerator.autocast():
            output = self.model(batch["images"], batch.get("segments"))
            probabilities = None if self.teacher is None else self.teacher(batch["images"], temperature)

        logits = [x.float() for x in output.level_logits]
        loss = self.loss(logits, batch["targets"])
        if probabilities is not None:
            loss = (1 - weight) * loss + weight * distillation_loss(logits, probabilities, temperature)

        self.accelerator.backward(loss * share)
        return loss.item()

    def _check_weights(self) -> None:
        """Check that weights are finite before they are saved."""
        with torch.no_grad():
            finite = torch.stack([p.isfinite().all() for p in self.model.parameters()]).all().item()
        if not finite:
            raise self._diverged("weights are not finite", self.optimizer.param_groups[0]["lr"])

    def _diverged(self, reason: str, rate: float) -> DivergedError:
        kept = "no checkpoint was written yet"
        with contextlib.suppress(CheckpointError):
            if checkpoint := find_checkpoint(self.output):
                folder, progress, _ = checkpoint
                kept = f"the checkpoint of step {progress['step']} in {folder} is kept"

        return DivergedError(
            f"step {self.step}: {reason}, at learning rate {rate:.3g}; {kept}. Usual causes: too high a learning rate "
            "(--lr, --warmup-epochs), no limit on gradients (--clip-grad 1), half precision (--mixed-precision no), "
            "start weights or pixels that are not finite. Start a new run with other settings, for example from "
            f"--model {self.output / 'best.safetensors'}"
        )

    def _schedule(self) -> None:
        """Set the learning rate of the next step."""
        if self.settings.paper_exact:  # once an epoch, one epoch late (docs/official_differences.md, 32)
            self.scheduler.step(max(self.step // len(self.loader) - 1, 0))
        else:
            self.scheduler.step_update(self.step)

    def _validate(self) -> None:
        # The official code keeps an EMA of the weights but never evaluates it (docs/official_differences.md, 33).
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
        self.log.write(self.step, {f"val/{key}": value for key, value in metrics.items()})

        reached = metrics.get(self.criterion, 0.0)  # missing if no picture has a label
        better = reached > self.best
        self.not_better = 0 if better else self.not_better + 1
        self.best = max(reached, self.best)

        if self.processes.is_main:
            chosen = describe_choice(self.step // len(self.loader), self.criterion, reached)
            facts = {**self.facts, "training": f"{self.facts.get('training', '')} {chosen}".strip()}
            weights = Weights(config=self.config, taxonomy=self.taxonomy, state_dict=model.state_dict(), metadata=facts)
            dtype = torch.float16 if self.settings.save_half else None
            save_weights(weights, self.output / "last.safetensors", dtype)
            if better:
                save_weights(weights, self.output / "best.safetensors", dtype)

        self.accelerator.wait_for_everyone()

    def _claim_folder(self, made_of: dict, accept_changes: bool) -> None:
        """Write settings and digests, or check that the run in the folder has the same."""
        messages = claim(
            self.output / "run.json",
            {
                "config": self.config.to_dict(),
                "settings": dataclasses.asdict(self.settings),
                "job": {"processes": self.processes.count},
                "made_of": made_of,
            },
            holds="a run with other settings",
            mend="resume with the same ones, or choose another folder; --accept-changes allows other data",
            changeable=CHANGEABLE,
            # Settings that a later version added count as their defaults.
            defaults={"job": {"processes": 1}, "settings": dataclasses.asdict(TrainConfig())},
            accept_changes=accept_changes,
        )
        if self.processes.is_main:
            for message in messages:
                print(message, file=sys.stderr)

    def _save_checkpoint(self) -> None:
        """Write ``checkpoint/`` atomically and keep the previous one: a crash leaves the old one or the new one."""
        self._check_weights()
        new = self.output / UNFINISHED
        self.accelerator.wait_for_everyone()
        if self.processes.is_main:
            shutil.rmtree(new, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(new)
        losses = self.processes.gather(self.epoch_loss)  # also waits until every process has written its file

        if self.processes.is_main:
            seal(new, {"step": self.step, "best": self.best, "not_better": self.not_better, "epoch_losses": losses})
            promote(new)

    def _resume(self) -> None:
        """Load the newest intact checkpoint, if there is one."""
        checkpoint = agree_on_checkpoint(self.output, self.processes)
        if checkpoint is None:
            return

        folder, progress, problem = checkpoint
        if problem and self.processes.is_main:
            print(f"{problem}: resuming from the previous checkpoint, of step {progress['step']}", file=sys.stderr)
        try:
            self.accelerator.load_state(folder)
        except Exception as error:  # a checkpoint without hashes, or from another version of torch
            raise CheckpointError(f"{folder} cannot be loaded: {clip(error)}") from error

        self.step = progress["step"]
        self.best = progress["best"] if "best" in progress else progress["best_fpa"]  # its name in 0.1
        self.not_better = progress.get("not_better", 0)
        if "epoch_losses" in progress:
            total, count = progress["epoch_losses"][self.processes.rank]
            self.epoch_loss = total, count

        self.accelerator.wait_for_everyone()  # before the first process moves the folder
        if problem and self.processes.is_main:  # otherwise the next checkpoint would replace the intact one
            shutil.rmtree(self.output / NEWEST)
            promote(folder)


def make_accelerator(settings: TrainConfig) -> Accelerator:
    """Return accelerate's view of the devices and processes, with the precision of the settings."""
    # Without this, accelerate would not see that torchrun started several processes on CPUs.
    several_on_cpu = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    precision = settings.mixed_precision
    if settings.paper_exact and precision == "no" and torch.cuda.is_available():
        precision = "fp16"  # as the official code always does on a GPU, with gradient scaling

    return Accelerator(mixed_precision=precision, cpu=several_on_cpu)
