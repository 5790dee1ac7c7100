"""What a call costs: its time next to another's, called in turn, and the peak memory of its tensors."""

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def seconds(function: Callable) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def time_pairs(ours: Callable, theirs: Callable, runs: int) -> list[tuple[float, float]]:
    """Return the seconds of two functions that are called in turn, so that other work on the machine hits both."""
    return [(seconds(ours), seconds(theirs)) for _ in range(runs)]


@torch.inference_mode()
def compare(ours: Callable, theirs: Callable, runs: int) -> str:
    """Return the time of one function over another's: the median ratio of the pairs, the smallest and the largest."""
    ratios = [our_time / their_time for our_time, their_time in time_pairs(ours, theirs, runs)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def tensor_peak(function: Callable) -> int:
    """Return the largest number of bytes that the tensors of a call on the CPU hold at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()

    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in changes))


def blurred_noise(batch: int, size: int) -> Tensor:
    """Return (B, 3, size, size) float32 images, roughly normalised, the same on every call."""
    noise = torch.rand(batch, 3, size // 16, size // 16, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic")
    return (images - 0.5) / 0.25
