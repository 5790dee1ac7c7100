"""From samples to batches: seeded order, superpixels in the workers, and workers that stop quietly."""

import itertools
import os
import random
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..common.signals import ENDING, replaced
from ..network.config import HCastConfig
from ..network.superpixels import segment_images, wrapped_seeds
from .superpixel_cache import SuperpixelCache


class SeededSampler(Sampler):
    """Yields ``(index, seed)``; order and seeds depend only on the run's seed and the epoch.

    Args:
        length: Size of the data set.
        seed: Seed of the run.
        weights: (length,) relative frequency of each sample, drawn with replacement; by default, every sample once per
            epoch.
    """

    def __init__(self, length: int, seed: int, weights: Tensor | None = None):
        self.length, self.seed, self.epoch = length, seed, 0
        self.weights = None if weights is None else weights.double().numpy()

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.weights is None:
            order = rng.permutation(self.length)
        else:
            order = rng.choice(self.length, self.length, p=self.weights / self.weights.sum())

        yield from zip(order.tolist(), rng.integers(2**32, size=self.length).tolist())


class SuperpixelCollate:
    """Stacks samples, mixes them and computes their superpixels, all in the loader's worker.

    Superpixels are computed on the mixed image. Differs from official: there, and with ``paper_exact``, images are
    mixed after their superpixels are computed (docs/official_differences.md, 23).

    Args:
        config: The model's config, which defines the superpixels.
        mixup: Called with images and labels, returns mixed images and soft targets.
        paper_exact: Compute superpixels before mixing.
        cache: Folder that caches the superpixels of images that recur unchanged; see :class:`SuperpixelCache`.
        device: The model's device. On an accelerator, the model computes SLIC itself, and batches have no ``segments``.
    """

    def __init__(
        self,
        config: HCastConfig,
        mixup: Callable | None = None,
        paper_exact: bool = False,
        cache: str | Path | None = None,
        device: torch.device | None = None,
    ):
        self.config, self.mixup, self.paper_exact = config, mixup, paper_exact
        self.left_to_model = (
            device is not None
            and device.type != "cpu"
            and config.superpixels == "slic"
            and cache is None
            and not paper_exact
        )
        self.cache = None if cache is None else SuperpixelCache(cache, config)

    def __call__(self, batch: list[tuple | None]) -> dict[str, Tensor | tuple[Tensor, ...]] | None:
        """Return ``images`` (B, C, H, W), ``segments`` (B, H, W) int64, ``labels`` (B, L) int64, and ``targets``.

        The targets are the labels, or what ``mixup`` makes of them. There are no ``segments`` if the model computes
        them. Samples that are None are dropped; if all are None, the result is None.
        """
        samples = [s for s in batch if s is not None]
        if self.mixup is not None and len(samples) % 2:  # mixing needs pairs
            samples.pop()
        if not samples:
            return None

        images = torch.stack([s[0] for s in samples])
        labels = targets = torch.stack([s[1] for s in samples])
        segments = self._segments(images) if self.paper_exact else None

        if self.mixup is not None:
            if len(samples[0]) == 3:
                seed_augmentations(samples[0][2] ^ 0x5EED)  # independent of the sample's own random stream
            images, targets = self.mixup(images, labels)

        collated: dict[str, Tensor | tuple[Tensor, ...]] = {"images": images, "labels": labels, "targets": targets}
        if not self.left_to_model:
            collated["segments"] = self._segments(images) if segments is None else segments

        return collated

    def _segments(self, images: Tensor) -> Tensor:
        if self.cache is not None:
            return self.cache(images)

        c = self.config
        if self.paper_exact and c.superpixels == "seeds" and c.in_chans == 3:
            return wrapped_seeds(images, c.num_superpixels, c.mean, c.std)
        return segment_images(images, self.config).contiguous()


def seed_augmentations(seed: int) -> None:
    """Seed the three random generators on the CPU, for one picture.

    ``torch.manual_seed`` also asks every kind of accelerator, which takes longer than reading a small picture.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed the random generators of the CPU and of all accelerators."""
    seed_augmentations(seed)
    torch.manual_seed(seed)


def start_quietly(worker: int) -> None:
    """Keep a loader's worker silent when its parent ends, for example after Ctrl-C; used as ``worker_init_fn``.

    Otherwise the multiprocessing thread that transfers tensors prints a traceback. Errors of the worker itself are not
    affected, because torch passes them to the parent.
    """

    def hook(kind, error, traceback, before=sys.excepthook):
        if not issubclass(kind, (ConnectionError, EOFError)):
            before(kind, error, traceback)

    sys.excepthook = hook
    # A scheduler signals all processes of a job; the parent would report a worker that was killed by a signal.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def read_ahead(dataset: Dataset, batch_size: int, threads: int) -> Iterator[list]:
    """Yield batches, as lists of items in order, while threads read the next one.

    Decoders, OpenCV's superpixels and torch release the interpreter's lock, so reading overlaps with the model even in
    a single process.

    Args:
        dataset: A data set with a length, whose items several threads can read at the same time.
        batch_size: Items per batch; at most two batches are in memory.
        threads: Number of threads.
    """
    indices = iter(range(len(dataset)))  # type: ignore[arg-type]
    with ThreadPoolExecutor(threads) as pool:
        try:
            pending = deque(pool.submit(dataset.__getitem__, i) for i in itertools.islice(indices, 2 * batch_size))
            while pending:
                batch = [pending.popleft().result() for _ in range(min(batch_size, len(pending)))]
                pending.extend(pool.submit(dataset.__getitem__, i) for i in itertools.islice(indices, batch_size))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


def start_workers(loader: DataLoader) -> Iterator:
    """Return ``iter(loader)``, deferring SIGINT, SIGTERM and SIGHUP until all workers have started.

    An interrupt in between leaves an incomplete iterator that cannot stop its workers, or is lost in a fork. Blocking
    the signal does not help: it is delivered to another thread, and Python still raises in this one.
    """
    if loader.num_workers == 0:
        return iter(loader)

    received: list[int] = []
    try:
        with replaced((signal.SIGINT, *ENDING), lambda number, _: received.append(number)):
            return iter(loader)
    finally:
        if received:
            signal.raise_signal(received[0])
