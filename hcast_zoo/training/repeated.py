"""Repeated augmentation: the order of pictures in the official code when several processes train."""

from collections.abc import Iterator

import numpy as np
from timm.data.distributed_sampler import RepeatAugSampler

from ..data.loading import SeededSampler


class RepeatedSampler(SeededSampler):
    """Yield ``(index, seed)``: every drawn picture three times, augmented differently, spread over the processes.

    An epoch has as many samples as there are pictures, rounded down to a multiple of 256, so it covers a third of the
    pictures. The order is that of all processes together: accelerate gives one batch to each in turn.

    Args:
        length: Size of the data set.
        seed: Seed of the run; the order depends only on the epoch, as in the official code.
        processes: Number of processes.
        batch_size: Batch size of each process.

    Raises:
        ValueError: if an epoch has no batch for each process.

    Source: official main_suppix_hier.py, DeiT's RASampler, which timm has too; docs/official_differences.md, 45.
    """

    def __init__(self, length: int, seed: int, processes: int, batch_size: int):
        super().__init__(length, seed)
        self.processes, self.batch_size = processes, batch_size
        drawn = len(self._sampler(0))
        self.per_process = drawn // batch_size * batch_size
        if not self.per_process:
            raise ValueError(
                f"expected {processes} x {batch_size} pictures or more per epoch, got the {drawn * processes} that "
                f"repeated augmentation draws from {length}: take smaller batches, or fewer processes"
            )

    def _sampler(self, process: int) -> RepeatAugSampler:
        return RepeatAugSampler(range(self.length), self.processes, process)

    def __len__(self) -> int:
        return self.per_process * self.processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        orders = []
        for process in range(self.processes):
            sampler = self._sampler(process)
            sampler.set_epoch(self.epoch)
            orders.append(list(sampler)[: self.per_process])

        batches = np.array(orders).reshape(self.processes, -1, self.batch_size)
        order = batches.swapaxes(0, 1).ravel()
        rng = np.random.default_rng((self.seed, self.epoch))
        yield from zip(order.tolist(), rng.integers(2**32, size=len(order)).tolist())
