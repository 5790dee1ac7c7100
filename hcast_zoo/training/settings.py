"""TrainConfig: the settings of a training run, as frozen plain data."""

import dataclasses

MAX_WORKERS = 256  # processes; protects against a typing error
CHANGEABLE = {"workers", "checkpoint_steps", "superpixel_cache"}  # a run may be resumed with other values of these


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; the defaults are the paper's for fine-tuning.

    Args:
        epochs: How many epochs to train.
        schedule_epochs: Length of the cosine schedule in epochs; ``epochs`` by default. The official code uses
            300 for any number of epochs (docs/official_differences.md, 32).
        batch_size: Pictures per step on each process; even.
        opt: timm's name of an optimiser: ``adamw`` as in the paper, or ``muon``, which needs fewer epochs from scratch.
        lr: Peak learning rate for 512 pictures a step; scaled by the true number.
        warmup_lr: Learning rate of the first step, not scaled.
        min_lr: Learning rate at the end, not scaled.
        warmup_epochs: Epochs of linear growth; may be a fraction.
        weight_decay: AdamW's, on matrices.
        clip_grad: Largest L2 norm of the gradient; None for no limit.
        ema_decay: Decay of the average weights per step, with warm-up; 0 for none. They are what is evaluated and kept.
        kl_weight: Weight of the Tree-path KL loss.
        smoothing: Label smoothing.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of cutmix; 0 is off.
        mix_prob: Probability that a batch is mixed.
        auto_augment: timm's policy, or "" for none.
        color_jitter: Brightness, contrast and saturation jitter where there is no policy.
        random_erasing: Probability of erasing a rectangle.
        crop_scale: Smallest area of the random crop, as a fraction.
        hflip: Probability of a horizontal flip.
        random_background: Put transparent pictures on random colours.
        cache: Keep decoded pictures in memory.
        on_device: Keep all pictures on the accelerator, and augment them and make their superpixels (``slic`` or
            ``grid``) there: for small pictures, with which no worker keeps up.
        seed: Seed of everything.
        workers: Processes that load pictures.
        checkpoint_steps: Steps between checkpoints; there is one after each validation too.
        eval_epochs: Epochs between validations.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        superpixel_cache: Folder of the maps of pictures that come again pixel by pixel (validation; no augmentation).
        paper_exact: Train as the official code does: superpixels before mixing, ImageNet's normalisation in training,
            a learning rate that changes once an epoch, and the weights themselves, not their average, chosen by the
            accuracy at the finest level (docs/official_differences.md, 23, 24, 32, 33).
    """

    epochs: int = 100
    schedule_epochs: int | None = None
    batch_size: int = 64
    opt: str = "adamw"
    lr: float = 5e-4
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    warmup_epochs: float = 5
    weight_decay: float = 0.05
    clip_grad: float | None = None
    ema_decay: float = 0.99996
    kl_weight: float = 0.5
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_prob: float = 1.0
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.3
    random_erasing: float = 0.25
    crop_scale: float = 0.08
    hflip: float = 0.5
    random_background: bool = False
    cache: bool = False
    on_device: bool = False
    seed: int = 0
    workers: int = 2
    checkpoint_steps: int = 500
    eval_epochs: int = 1
    mixed_precision: str = "no"
    superpixel_cache: str | None = None
    paper_exact: bool = False

    def __post_init__(self):
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError(f"batch_size: expected an even number, got {self.batch_size}")
        if self.epochs < 1 or self.checkpoint_steps < 1 or self.eval_epochs < 1:
            raise ValueError("epochs, checkpoint_steps, eval_epochs: expected 1 or more")
        if not 0 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"workers: expected 0 to {MAX_WORKERS}, got {self.workers}")

        if self.on_device and (self.auto_augment or self.paper_exact):
            raise ValueError(
                'on_device: expected auto_augment "" and paper_exact off, for timm\'s policies and the '
                "official order of superpixels and mixing run on the CPU"
            )

    @property
    def augments(self) -> bool:
        """Whether pictures are changed at random, so that none comes again pixel by pixel; a flip alone does not."""
        return (
            self.crop_scale < 1
            or bool(self.auto_augment)
            or self.random_erasing > 0
            or self.random_background
            or self.color_jitter > 0
            or (self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0))
        )
