"""Estimate how long a training will take on this machine, from a few pictures and one training step."""

import time
from collections.abc import Callable
from typing import Any

import torch

from ..data.dataset import HierarchicalDataset
from ..data.loading import SuperpixelCollate
from .losses import HierarchicalLoss
from .views import ViewSet

PICTURES = 4  # number of pictures that are timed
FEW_PICTURES = 200  # with fewer to process, the training is too short to need an estimate
FORWARD = 1 / 3  # share of the forward pass in the time of a training step


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

    The model's parameters and statistics do not change.

    Args:
        model: The model to train.
        loss: Its loss.
        dataset: Training pictures, with their transform.
        views: Views that will be made first, if training uses views.
        pictures: Pictures that training will process, over all epochs.
        validated: Pictures that all validations together will process.
        workers: Processes that read pictures.
    """
    made = sum(len(part.missing()) for part in views)
    if made + pictures < FEW_PICTURES:
        return None

    samples, reading = _timed(lambda: [dataset[index, index] for index in range(min(PICTURES, len(dataset)))])
    collate = SuperpixelCollate(model.config, device=torch.device("cpu"))
    batch, cutting = _timed(lambda: collate([sample[:2] for sample in samples if sample is not None]))
    if batch is None:
        return None

    device = next(model.parameters()).device
    images, segments = batch["images"].to(device), batch["segments"].to(device)
    training = model.training
    model.eval()
    stem = 0.0
    if views:
        with torch.no_grad():
            images, stem = _timed(lambda: model.superpixel_means(images, segments, model.config.num_superpixels))

    _, step = _timed(lambda: loss(model(images, segments).level_logits, batch["labels"].to(device)).backward())
    model.zero_grad()
    model.train(training)

    count = len(batch["labels"])
    loading, stem, step = (reading + cutting) / count, stem / count, step / count
    each = loading / workers + stem if workers else loading + stem
    if views:
        return made * each + pictures * step + validated * step * FORWARD

    feeding = max(step, loading / workers) if workers else step + loading
    return pictures * feeding + validated * (loading + step * FORWARD)


def as_time(seconds: float) -> str:
    """Return seconds as a text in minutes or hours, with about two digits.

    Example:
        >>> as_time(70), as_time(20_000)
        ('1 min', '5.6 h')
    """
    if seconds < 90 * 60:
        return f"{max(round(seconds / 60), 1)} min"
    return f"{seconds / 3600:.1f} h"


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start
