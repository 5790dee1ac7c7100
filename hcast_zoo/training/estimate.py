"""Estimate how long a training will take on this machine, and its memory, from a few pictures and one step."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..data.dataset import HierarchicalDataset
from ..data.loading import SuperpixelCollate
from ..network.memory import VARIABLE, MemoryBudgetError, gibibytes, memory_budget
from ..network.model import HCast
from ..network.superpixels import grid_superpixels
from .losses import HierarchicalLoss
from .views import ViewSet

PICTURES = 4  # number of pictures that are timed
RUNS = 3  # of the network; the first one is slower
FEW_PICTURES = 200  # with fewer to process, the training is too short to need an estimate
FORWARD = 1 / 3  # share of the forward pass in the time of a training step
OPTIMIZER = 3  # numbers kept for each trained parameter: its gradient, and AdamW's two averages


def estimate_seconds(
    model: torch.nn.Module,
    loss: HierarchicalLoss,
    dataset: HierarchicalDataset,
    views: list[ViewSet],
    *,
    pictures: int,
    validated: int,
    workers: int,
) -> float | None:
    """Return about how many seconds a training will take; None if it is short, or no timed picture can be read.

    The model's parameters and statistics do not change. Call it under the autocast of the training.

    Args:
        model: The model to train.
        loss: Its loss.
        dataset: Training pictures, with their transform.
        views: Views that will be made first, if training uses views.
        pictures: Pictures that training will process, over all epochs.
        validated: Pictures that all validations together will process.
        workers: Processes that read pictures.
    """
    num_views = sum(len(part.missing()) for part in views)
    if num_views + pictures < FEW_PICTURES:
        return None

    collate = SuperpixelCollate(model.config, device=torch.device("cpu"))
    for first in (0, PICTURES):  # the first time, reading and cutting also load their libraries
        batch, loading = _load(dataset, collate, first)
    if batch is None:
        return None

    device = next(model.parameters()).device
    images, segments = batch["images"].to(device), batch["segments"].to(device)
    training = model.training
    model.eval()
    stem = 0.0
    if views:
        with torch.no_grad():
            pixels, tokens = images, model.config.num_superpixels
            images, stem = _timed(lambda: model.superpixel_means(pixels, segments, tokens), RUNS)

    labels = batch["labels"].to(device)
    _, step = _timed(lambda: loss(model(images, segments).level_logits, labels).backward(), RUNS)
    model.zero_grad()
    model.train(training)

    count = len(batch["labels"])  # all times are per picture from here on
    loading, stem, step = loading / count, stem / count, step / count
    if views:
        making = loading / workers + stem if workers else loading + stem
        return num_views * making + pictures * step + validated * step * FORWARD

    training_step = max(step, loading / workers) if workers else step + loading
    return pictures * training_step + validated * (loading + step * FORWARD)


def _load(dataset: HierarchicalDataset, collate: SuperpixelCollate, first: int) -> tuple[dict | None, float]:
    """Return a batch of ``PICTURES`` pictures, from index ``first`` on, and the seconds that this took."""
    indices = [index % len(dataset) for index in range(first, first + PICTURES)]
    samples, reading = _timed(lambda: [dataset[index, index] for index in indices])
    batch, cutting = _timed(lambda: collate([sample[:2] for sample in samples if sample is not None]))
    return batch, reading + cutting


def check_batch(model: HCast, pictures: int, device: torch.device, precision: AbstractContextManager) -> None:
    """Check, before the first training step, that it fits into the device's memory.

    Args:
        model: The model to train.
        pictures: Pictures that are computed at once.
        device: Where the model is.
        precision: Context of the forward pass, such as that of half precision.

    Raises:
        MemoryBudgetError: if the step needs more than is free, or more than the budget that the user has set.
    """
    fixed = OPTIMIZER * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    per_picture = saved_bytes(model, device, precision)
    needed, free = fixed + pictures * per_picture, free_memory(device)
    if needed <= free:
        return

    fitting = max(0, (free - fixed) // max(1, per_picture))
    raise MemoryBudgetError(
        f"batch_size: training on {pictures} pictures at once takes about {gibibytes(needed)} of memory, and {device} "
        f"has {gibibytes(free)} for it, enough for about {fitting}: choose a smaller --batch-size, or --accumulate N, "
        f"which computes a batch in N parts ({VARIABLE} changes the limit)"
    )


def saved_bytes(model: HCast, device: torch.device, precision: AbstractContextManager) -> int:
    """Return the bytes that a picture's forward pass keeps for the backward pass, without the parameters themselves."""
    config, side = model.config, model.config.image_size
    images = torch.zeros(1, config.in_chans, side, side, device=device)
    segments = grid_superpixels(side, side, config.num_superpixels)[None].to(device)
    # Storage to its bytes; tensors can share one, and those of the model itself count as nothing.
    kept = {x.untyped_storage().data_ptr(): 0 for x in (*model.parameters(), *model.buffers())}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    training = model.training
    model.eval()  # statistics stay as they are
    with precision, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = model(images, segments)
    model.train(training)
    del output

    return sum(kept.values())


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, or the budget that the user has set if that is less."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        import psutil  # accelerate's own dependency

        free = psutil.virtual_memory().available

    return min(free, memory_budget()) if os.environ.get(VARIABLE) else free


def as_time(seconds: float) -> str:
    """Return seconds as a text in minutes or hours, with about two digits.

    Example:
        >>> as_time(70), as_time(20_000)
        ('1 min', '5.6 h')
    """
    if seconds < 90 * 60:
        return f"{max(round(seconds / 60), 1)} min"
    return f"{seconds / 3600:.1f} h"


def _timed(function: Callable[[], Any], runs: int = 1) -> tuple[Any, float]:
    """Return a function's result, and the seconds that its fastest run took."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)

    return result, min(seconds)
