"""The steps of farthest point sampling on a GPU: one Triton kernel, one program per image.

In plain torch each centre takes five small kernels, hundreds of launches in a forward pass. Here they are one. It is an
operator of torch, so ``torch.compile`` keeps it as it is, and a CUDA graph records it.
"""

import torch
from torch import Tensor

try:  # transformers requires every package that remote code imports, except inside a try
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("sampling on a GPU in one launch needs Triton: pip install triton") from error


@torch.library.custom_op("hcast_zoo::choose_centres", mutates_args=())
def choose_centres(distances: Tensor, nearest: Tensor, same: Tensor, num_samples: int) -> Tensor:
    """Choose the point that is farthest from those chosen before, again and again; ties go to the lowest index.

    Args:
        distances: (B, N, N) float, squared, between points.
        nearest: (B, N) float, squared distance to the start; negative for points that are never chosen.
        same: (B, 1) float, squared distance of points that count as one.
        num_samples: How many to choose, M.

    Returns:
        (B, M) int64 indices.
    """
    batch, points = nearest.shape
    chosen = torch.empty(batch, num_samples, dtype=torch.int64, device=nearest.device)
    if batch:
        _choose[(batch,)](
            distances.contiguous(),
            nearest.contiguous(),
            same.contiguous(),
            chosen,
            points=points,
            samples=num_samples,
            WIDTH=triton.next_power_of_2(points),
        )
    return chosen


@choose_centres.register_fake
def _(distances: Tensor, nearest: Tensor, same: Tensor, num_samples: int) -> Tensor:
    return torch.empty(len(nearest), num_samples, dtype=torch.int64, device=nearest.device)


@triton.jit
def _choose(distances, nearest, same, chosen, points, samples, WIDTH: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < points
    limit = tl.load(same + image)
    left = tl.load(nearest + image * points + column, mask=inside, other=-float("inf"))
    for step in range(samples):
        # With NaN among the values, the index of the largest may be out of range.
        farthest = tl.minimum(tl.argmax(left, 0), points - 1)
        tl.store(chosen + image * samples + step, farthest.to(tl.int64))
        row = tl.load(distances + (image * points + farthest) * points + column, mask=inside, other=0.0)
        left = tl.minimum(left, tl.where(row <= limit, 0.0, row))
