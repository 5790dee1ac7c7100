"""What this machine offers: how many processes read pictures, and how many pictures go through the model at once."""

import dataclasses
import os
import shutil

MAX_READERS = 8  # more do not feed a model faster than it computes
FEW_PICTURES = 64  # up to so many, workers take longer to start than they save
SHARED_MEMORY = "/dev/shm"  # where workers leave their batches; in a container often 64 MB


@dataclasses.dataclass(frozen=True)
class Loading:
    """How pictures are loaded; it changes no answer.

    Attributes:
        batch_size: Pictures per forward pass.
        workers: Processes that read pictures; 0 for none but this one.
    """

    batch_size: int
    workers: int


def choose_loading(
    pictures: int,
    image_size: int,
    device: str,
    batch_size: int | None = None,
    workers: int | None = None,
    share: int = 1,
) -> Loading:
    """Return how to load pictures on this machine; what is given is kept.

    Args:
        pictures: How many there are.
        image_size: Height and width of the model's input in pixels.
        device: Where the model runs, such as ``cpu`` or ``cuda:1``.
        batch_size: By default 16 on the CPU, and 64 elsewhere.
        workers: By default most of the processors if the model runs elsewhere, a quarter if it needs them itself, none
            for few pictures, and no more than shared memory has room for.
        share: Processes of the job on this machine.
    """
    on_cpu = device.partition(":")[0] == "cpu"
    if batch_size is None:
        batch_size = 16 if on_cpu else 64
    if workers is None:
        mine = processors() // max(1, share)
        workers = mine // 4 if on_cpu else mine - 1
        workers = min(workers, MAX_READERS, _room(batch_size, image_size)) if pictures > FEW_PICTURES else 0

    return Loading(batch_size, max(0, workers))


def choose_readers(batch_size: int, image_size: int, share: int = 1) -> int:
    """Return how many processes should read and augment pictures for a training; see :func:`choose_loading`."""
    return max(0, min(processors() // max(1, share), MAX_READERS, _room(batch_size, image_size)))


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _room(batch_size: int, image_size: int) -> int:
    """Return for how many workers shared memory has room: each holds up to three batches of pixels and segments."""
    if not os.path.isdir(SHARED_MEMORY):
        return MAX_READERS
    batch = batch_size * image_size**2 * (3 * 4 + 8)  # bytes: float32 channels, int64 segments
    return shutil.disk_usage(SHARED_MEMORY).free // (3 * batch)
