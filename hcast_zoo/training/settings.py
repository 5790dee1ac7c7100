"""TrainConfig: the settings of a training run, as frozen plain data."""

import dataclasses
from collections.abc import Collection
from typing import Any

from ..common.choices import CLASS_WEIGHTS, FREEZE, SAMPLERS, TRACKERS
from ..common.text import brief

MAX_WORKERS = 256  # processes; guards against typing errors
# A run can be resumed with other values of these.
CHANGEABLE = {"workers", "recompute", "checkpoint_steps", "superpixel_cache", "view_cache", "save_half", "track"}


def option(default: Any, help: str, choices: Collection[str] | None = None) -> Any:
    """Return a field with a default, the help text of its command-line option, and the allowed values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; the defaults are the paper's for fine-tuning.

    Each field's help text, which ``hcast-zoo train --help`` prints, says what it does.
    """

    epochs: int = option(100, "epochs to train")
    schedule_epochs: int | None = option(
        None,
        "length of the cosine schedule in epochs; by default that of the training. The official code uses 300 for any "
        "number of epochs (docs/official_differences.md, 32)",
    )
    batch_size: int = option(64, "pictures per step on each process; even")
    opt: str = option(
        "adamw",
        "optimiser, by timm's name: adamw as in the paper, or muon, which needs fewer epochs from scratch",
    )
    lr: float = option(5e-4, "peak learning rate for 512 pictures per step; scaled to the actual number")
    warmup_lr: float = option(1e-6, "learning rate of the first step, not scaled")
    min_lr: float = option(1e-5, "learning rate at the end, not scaled")
    warmup_epochs: float = option(5, "epochs of linear warm-up; may be a fraction")
    weight_decay: float = option(0.05, "weight decay, applied to matrices only")
    layer_decay: float | None = option(
        None, "factor of the learning rate from each layer to the one before it, such as 0.75; None for one rate"
    )
    freeze: str = option(
        "none",
        "part to freeze, with batch norms in evaluation mode: none, stem (a pretrained one), or encoder (all but "
        "the heads: a linear probe)",
        choices=FREEZE,
    )
    stem_lr: float | None = option(None, "peak learning rate of a pretrained stem, scaled as --lr is; --lr by default")
    stem_weights: str | None = option(
        None,
        "source of a new model's pretrained stem: hcast-zoo weights with the same stem, a file of timm's model, timm "
        "(to download it), or none; by default packaged weights that have it, else timm",
    )
    fit_heads: bool = option(
        False, "start heads from a logistic regression on the features of the training pictures, not at random"
    )
    accumulate: int = option(1, "parts in which each batch is computed, one after the other, to save memory")
    recompute: bool = option(
        False, "compute norms, GELU and dropout again in the backward pass, to save a fifth of the memory"
    )
    clip_grad: float | None = option(None, "maximum L2 norm of the gradient; None for no limit")
    ema_decay: float = option(
        0.99996,
        "decay of the EMA of the weights per step, with warm-up; 0 for none. The EMA is evaluated and kept",
    )
    kl_weight: float = option(0.5, "weight of the Tree-path KL loss")
    smoothing: float = option(0.1, "label smoothing")
    teacher: str | None = option(
        None,
        "model to learn from in addition to the labels: timm:NAME, a classifier of the leaves, or H-CAST weights with "
        "the same tree",
    )
    teacher_weight: float = option(0.5, "share of the teacher in the loss, 0 to 1")
    teacher_temperature: float = option(2.0, "temperature that divides the logits of teacher and student")
    sampler: str = option(
        "natural",
        "how often pictures are drawn: natural, all equally; balanced, all classes equally; sqrt, in between",
        choices=SAMPLERS,
    )
    logit_adjustment: float = option(
        0.0,
        "strength of logit adjustment by the share of each class in the training pictures; 1 as published, 0 is off",
    )
    class_weights: str = option(
        "none",
        "weight of a class in each level's cross-entropy: none, balanced (the inverse of its share), or sqrt, its root",
        choices=CLASS_WEIGHTS,
    )
    mixup: float = option(0.8, "alpha of mixup; 0 is off")
    cutmix: float = option(1.0, "alpha of cutmix; 0 is off")
    mix_prob: float = option(1.0, "probability that a batch is mixed")
    auto_augment: str = option("rand-m9-mstd0.5-inc1", 'timm\'s policy, or "" for none')
    color_jitter: float = option(0.3, "strength of brightness, contrast and saturation jitter, if there is no policy")
    random_erasing: float = option(0.25, "probability of erasing a rectangle")
    crop_scale: float = option(0.08, "smallest area of the random crop, as a fraction")
    hflip: float = option(0.5, "probability of a horizontal flip")
    augment_views: int = option(
        0,
        "augmented views per picture: a frozen stem computes their features once, and epochs take them in turn; 0 "
        "augments on the fly",
    )
    view_cache: str | None = option(None, "folder for the views; by default in the run's folder")
    random_background: bool = option(False, "put transparent pictures on a random background colour")
    cache: bool = option(False, "keep decoded pictures in memory")
    on_device: bool = option(
        False,
        "keep all pictures on the accelerator, and augment them and compute superpixels (slic or grid) there; "
        "for small pictures, which workers cannot load fast enough",
    )
    seed: int = option(0, "seed of all random numbers")
    workers: int | None = option(None, "processes that load pictures; by default the number of processors, at most 8")
    checkpoint_steps: int = option(500, "steps between checkpoints; there is also one after each validation")
    eval_epochs: int = option(1, "epochs between validations")
    patience: int | None = option(None, "stop after this many validations without improvement; None for never")
    track: str = option(
        "tensorboard", "trackers besides log.jsonl: tensorboard, wandb, mlflow, several joined by +, or none"
    )
    mixed_precision: str = option("no", '"no", "bf16" or "fp16"')
    save_half: bool = option(False, "store the weights in float16, half as large and less exact")
    superpixel_cache: str | None = option(
        None,
        "folder that caches the superpixels of pictures that recur unchanged (in validation, or without augmentation)",
    )
    paper_exact: bool = option(
        False,
        "train as the official code does: superpixels computed before mixing, on bytes that wrap around; ImageNet's "
        "normalisation in training; a learning rate that changes once per epoch; cutmix with its boxes; pictures "
        "neither turned upright nor put on a background; fp16 on a GPU; and the weights themselves, not their EMA, "
        "chosen by accuracy at the finest level (docs/official_differences.md, 21, 23, 24, 32, 33, 39, 40, 41, 42, 43)",
    )

    def __post_init__(self):
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(f"batch_size: expected an even number, got {self.batch_size}")
        if self.epochs < 1 or self.checkpoint_steps < 1 or self.eval_epochs < 1:
            raise ValueError("epochs, checkpoint_steps, eval_epochs: expected 1 or more")
        if self.workers is not None and not 0 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"workers: expected 0 to {MAX_WORKERS}, got {self.workers}")

        for field in dataclasses.fields(self):
            choices = field.metadata.get("choices")
            if choices and getattr(self, field.name) not in choices:
                raise ValueError(
                    f"{field.name}: expected one of {', '.join(choices)}, got {brief(getattr(self, field.name))}"
                )

        if not 1 <= self.accumulate <= self.batch_size:
            raise ValueError(f"accumulate: expected 1 to the batch size, {self.batch_size}, got {self.accumulate}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience: expected 1 or more, or None, got {self.patience}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: expected a factor in (0, 1], got {self.layer_decay}")
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"track: expected {', '.join(TRACKERS)} or none, got {brief(unknown[0])}")
        if not (0 <= self.teacher_weight <= 1 and self.teacher_temperature > 0):
            raise ValueError(
                "teacher_weight, teacher_temperature: expected a share from 0 to 1 and a positive number, got "
                f"{self.teacher_weight} and {self.teacher_temperature}"
            )

        self._check_views()

        if self.on_device and (self.auto_augment or self.paper_exact):
            raise ValueError(
                'on_device: expected auto_augment "" and paper_exact off, because timm\'s policies and the '
                "official order of superpixels and mixing run on the CPU"
            )

    def _check_views(self) -> None:
        """Check that the other settings allow views."""
        if self.augment_views < 0:
            raise ValueError(f"augment_views: expected 0 or more, got {self.augment_views}")
        if not self.augment_views:
            return

        if self.freeze == "none":
            raise ValueError(
                "augment_views: expected freeze stem or encoder, because the features of a stem in training change"
            )
        if self.mixes or self.on_device or self.paper_exact:
            raise ValueError("augment_views: expected mix_prob 0, on_device and paper_exact off: views are not mixed")
        if self.teacher:
            raise ValueError("augment_views: expected 0 with a teacher, which needs the pictures themselves")

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers."""
        return [] if self.track == "none" else self.track.split("+")

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed."""
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def augments(self) -> bool:
        """Whether pictures are changed at random, so that none recurs unchanged; flips alone do not count."""
        return (
            self.crop_scale < 1
            or bool(self.auto_augment)
            or self.random_erasing > 0
            or self.random_background
            or self.color_jitter > 0
            or self.mixes
        )
