"""Settings for this machine: how many processes read pictures, and how many pictures the model gets at once."""

import dataclasses
import os
import shutil

MAX_READERS = 8  # these read as fast as a model computes; more would only wait
FEW_PICTURES = 64  # for this many or fewer, workers take longer to start than they save
SHARED_MEMORY = "/dev/shm"  # through which workers pass their batches; often only 64 MB in a container


@dataclasses.dataclass(frozen=True)
class Loading:
    """How pictures are loaded; no answer depends on it.

    Attributes:
        batch_size: Pictures per forward pass.
        workers: Processes that read pictures; 0 if this process reads them.
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
    """Return how to load pictures on this machine; values that are given are kept.

    Args:
        pictures: Number of pictures.
        image_size: Height and width of the model's input in pixels.
        device: Where the model runs, such as ``cpu`` or ``cuda:1``.
        batch_size: By default 16 on the CPU, and 64 elsewhere.
        workers: By default all processors but one, or a quarter of them if the model runs on the CPU; none for few
            pictures; never more than 8, or than shared memory has room for.
        share: Number of processes of the job on this machine.
    """
    on_cpu = device.partition(":")[0] == "cpu"
    if batch_size is None:
        batch_size = 16 if on_cpu else 64
    if workers is None:
        available = processors() // max(1, share)
        workers = available // 4 if on_cpu else available - 1
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
