"""Batches of a training run: from pictures, from views, or from the accelerator's memory."""

import copy
from collections.abc import Callable, Iterable, Iterator

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.dataset import HierarchicalDataset
from ..data.loading import SeededSampler, SuperpixelCollate, start_quietly
from ..data.transforms import eval_transform
from ..network.config import HCastConfig
from .augmentation import make_mixup
from .gpu_loader import DeviceLoader
from .settings import TrainConfig
from .views import ViewSet

FITTING_BATCH = 32  # pictures per batch when heads are fitted


def make_loader(
    dataset: HierarchicalDataset | ViewSet,
    config: HCastConfig,
    settings: TrainConfig,
    *,
    sampler: SeededSampler,
    accelerator: Accelerator,
    workers: int,
) -> DataLoader | DeviceLoader:
    """Return the batches to train on; their length is that of an epoch.

    Args:
        dataset: Training pictures with their transform, or their views.
        config: Architecture.
        settings: Batch size and augmentation.
        sampler: Order and seeds of the pictures.
        accelerator: Moves batches to the device, and gives each process its share.
        workers: Processes that load pictures.

    Raises:
        ValueError: if pictures shall be kept on the accelerator, and several processes train or their superpixels
            cannot be computed there.
    """
    mixup = make_mixup(config, settings)
    if settings.on_device:
        if accelerator.num_processes > 1 or config.superpixels == "seeds":
            raise ValueError(
                "on_device: expected one process, and superpixels slic or grid, which can be computed on the "
                f"accelerator; got {accelerator.num_processes} and {config.superpixels}"
            )
        assert isinstance(dataset, HierarchicalDataset)  # TrainConfig does not allow on_device with views
        return DeviceLoader(
            dataset=dataset,
            config=config,
            settings=settings,
            sampler=sampler,
            device=accelerator.device,
            mixup=mixup,
        )

    collate: Callable = ViewSet.collate
    if isinstance(dataset, HierarchicalDataset):
        collate = SuperpixelCollate(
            config=config,
            mixup=mixup,
            paper_exact=settings.paper_exact,
            cache=None if settings.augments else settings.superpixel_cache,
            device=accelerator.device,
        )

    return accelerator.prepare(
        DataLoader(
            dataset,
            settings.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=collate,
            worker_init_fn=start_quietly,
        )
    )


def rest_of_epoch(loader: DataLoader | DeviceLoader, accelerator: Accelerator, done: int) -> Iterable:
    """Return the batches of the sampler's epoch after the first ``done``."""
    if isinstance(loader, DeviceLoader):
        return loader.batches(done)
    return accelerator.skip_first_batches(loader, done) if done else loader


def fitting_batches(dataset: HierarchicalDataset | ViewSet, config: HCastConfig) -> Iterator[dict | None]:
    """Yield batches to fit heads on: every picture once, as evaluation sees it, or all augmented views."""
    if isinstance(dataset, HierarchicalDataset):
        unaugmented = copy.copy(dataset)
        unaugmented.transform = eval_transform(config)
        yield from DataLoader(unaugmented, FITTING_BATCH, collate_fn=SuperpixelCollate(config))
        return

    for view in range(dataset.count):
        order = [(index, view) for index in range(len(dataset))]
        yield from DataLoader(dataset, FITTING_BATCH, sampler=order, collate_fn=ViewSet.collate)


def split_batch(batch: dict, count: int) -> list[tuple[float, dict]]:
    """Cut a batch into ``count`` parts of nearly equal size; return each with its share of the batch."""
    if count == 1:
        return [(1.0, batch)]

    size = len(batch["labels"])
    step = -(-size // count)
    parts = []
    for start in range(0, size, step):
        rows = slice(start, start + step)
        part: dict = {}
        for key, value in batch.items():
            part[key] = tuple(level[rows] for level in value) if isinstance(value, tuple) else value[rows]

        parts.append((len(part["labels"]) / size, part))

    return parts
