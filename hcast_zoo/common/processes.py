"""The processes of one job, as started by torchrun or ``accelerate launch``: sharing work and gathering results."""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from .text import brief, clip

PATIENCE = datetime.timedelta(days=7)  # how long a process waits for the slowest; a lost one ends the job at once


@dataclasses.dataclass(frozen=True)
class Processes:
    """The place of this process in its job; alone by default.

    Attributes:
        rank: Number of this process, from 0. Process 0 prints and writes.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, length: int) -> range:
        """Return the indices of this process, of all from 0 to ``length``; the shares are contiguous and in order."""
        return range(self.rank * length // self.count, (self.rank + 1) * length // self.count)

    def gather(self, value: Any) -> list:
        """Return the values of all processes, by rank; every process must call this, and gets the same list."""
        if self.count == 1:
            return [value]
        values: list = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def device(self, name: str) -> str:
        """Return the device of this process; with several accelerators, each process has its own."""
        name = choose_device(name)
        if self.count == 1 or name == "cpu" or ":" in name:
            return name
        return f"{name}:{os.environ.get('LOCAL_RANK', '0')}"


ALONE = Processes()


def choose_device(name: str) -> str:
    """Return a device's name; for ``auto``, the accelerator that torch finds (CUDA, MPS, XPU), otherwise ``cpu``."""
    if name != "auto":
        return name
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type


def check_device(device: str | torch.device) -> torch.device:
    """Return a device after checking that it works; ``auto`` is what :func:`choose_device` finds.

    Raises:
        ValueError: if this machine has no such device.
    """
    try:
        checked = torch.device(choose_device(device) if isinstance(device, str) else device)
        torch.zeros(1, device=checked)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(
            f"expected a device such as cpu, cuda or mps that this machine has, got {brief(str(device))}; "
            f"`hcast-zoo doctor` tells which it has ({clip(reason[0], 100)})"
        ) from error

    if checked.type == "meta":
        raise ValueError("expected a device that computes, such as cpu, cuda or mps, got 'meta'")
    return checked


@contextlib.contextmanager
def join_job() -> Iterator[Processes]:
    """Join the other processes of the job, if a launcher started several, and leave them at the end of the block.

    Results are small, so they are gathered over gloo, whatever device the models run on.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return

    dist.init_process_group("gloo", timeout=PATIENCE)
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.barrier()  # the first process serves the connections of the others, so it must not end before them
    dist.destroy_process_group()


def copy_buffers(model: torch.nn.Module, processes: Processes) -> None:
    """Copy the first process's buffers to all; without this, each keeps its own running statistics of batch norm."""
    if processes.count > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
