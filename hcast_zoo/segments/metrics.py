"""Segmentation metrics: how much two segmentations differ, and how well one separates objects from background."""

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Labels = TypeVar("Labels", np.ndarray, Tensor)


def rand_distance(first: Tensor, second: Tensor) -> float:
    """Return the percentage of pixel pairs that are in one segment of one segmentation and in two of the other.

    This is 100 minus the Rand index in percent; it does not depend on how segments are numbered.

    Args:
        first: (H, W) integer labels from 0.
        second: (H, W) integer labels from 0.

    Returns:
        In [0, 100]; 0 for a single pixel.

    Raises:
        ValueError: if the shapes differ.

    Source: Rand, Objective Criteria for the Evaluation of Clustering Methods, 1971.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected segmentations of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")

    first, second = first.flatten().long(), second.flatten().long()
    width = int(second.max()) + 1
    together = torch.bincount(first * width + second).square().sum()  # ordered pairs, including each pixel with itself
    apart = torch.bincount(first).square().sum() + torch.bincount(second).square().sum() - 2 * together
    pairs = len(first) * (len(first) - 1)
    return 100 * apart.item() / pairs if pairs else 0.0


def best_union_iou(segments: Tensor, mask: Tensor) -> float:
    """Return the intersection over union, in percent, of a mask and the best-fitting union of segments.

    The best union consists of all segments whose fraction inside the mask is above some value, so at most one union per
    segment is evaluated.

    Args:
        segments: (H, W) integer labels from 0.
        mask: (H, W) bool.

    Returns:
        In (0, 100].

    Raises:
        ValueError: if the shapes differ, or no pixel is in the mask.
    """
    if segments.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"expected a bool mask of the segments' shape {tuple(segments.shape)}, got {tuple(mask.shape)} {mask.dtype}"
        )

    if not mask.any():
        raise ValueError("expected a mask with at least one pixel")

    labels, mask = segments.flatten().long(), mask.flatten()
    size = torch.bincount(labels)
    inside = torch.bincount(labels[mask], minlength=len(size))
    order = (inside / size.clamp(min=1)).argsort(descending=True, stable=True)
    union = mask.sum() + (size - inside)[order].cumsum(0)

    return 100 * (inside[order].cumsum(0) / union).max().item()


def colour_contrast(segments: Tensor, image: Tensor) -> float:
    """Return the share of the pixels' variance of colour that is between segments, in percent (eta squared).

    Args:
        segments: (H, W) int64 segment of each pixel.
        image: (C, H, W) float, in any scale.

    Returns:
        In [0, 100]; 0 for an image of one colour.
    """
    colours = image.flatten(1).T.double()  # [pixels, C]
    labels = segments.flatten()
    total = (colours - colours.mean(0)).square().sum()
    if total == 0:
        return 0.0

    count = int(labels.max()) + 1
    sums = colours.new_zeros(count, colours.shape[1]).index_add_(0, labels, colours)
    means = sums / torch.bincount(labels, minlength=count).clamp(min=1)[:, None]
    within = (colours - means[labels]).square().sum()
    return 100 * (1 - within / total).clamp(0, 1).item()


def boundary_recall(segments: Tensor, truth: Tensor, tolerance: int = 1) -> float:
    """Return the percentage of true boundary pixels with a segment boundary nearby.

    Args:
        segments: (H, W) integer labels.
        truth: (H, W) integer labels, or a bool mask.
        tolerance: Largest distance in pixels, along rows and columns.

    Returns:
        In [0, 100].

    Raises:
        ValueError: if the shapes differ, or the truth has no boundary.

    Source: Martin, Fowlkes, Malik, Learning to Detect Natural Image Boundaries, 2004, with a square instead of a disc.
    """
    if segments.shape != truth.shape:
        raise ValueError(f"expected segmentations of one shape, got {tuple(segments.shape)} and {tuple(truth.shape)}")

    drawn, true = boundaries(segments), boundaries(truth)
    if not true.any():
        raise ValueError("expected a truth of at least two regions")

    near = F.max_pool2d(drawn[None].float(), 2 * tolerance + 1, stride=1, padding=tolerance)[0] > 0
    return 100 * (near & true).sum().item() / true.sum().item()


def boundaries(labels: Labels, width: int = 1) -> Labels:
    """Return (H, W) bool: pixels whose neighbour ``width`` pixels to the right or below is in another segment.

    Args:
        labels: (H, W) integers or bool, a tensor or an array.
        width: In pixels.
    """
    edge = labels != labels  # False everywhere, of the same kind and on the same device
    edge[:-width] |= labels[width:] != labels[:-width]
    edge[:, :-width] |= labels[:, width:] != labels[:, :-width]
    return edge
