"""Metrics of segmentations, against plain loops over pixels, pairs and unions."""

import itertools

import numpy as np
import pytest
import torch

from hcast_zoo.segments.metrics import best_union_iou, boundary_recall, colour_contrast, rand_distance


def test_rand_distance_matches_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 4, (2, 5, 6))
        pairs = list(itertools.combinations(zip(a.ravel(), b.ravel()), 2))
        differ = sum((p[0] == q[0]) != (p[1] == q[1]) for p, q in pairs)
        assert rand_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(100 * differ / len(pairs))


def test_rand_distance_does_not_depend_on_label_numbers():
    a = torch.randint(0, 5, (8, 8), generator=torch.Generator().manual_seed(0))
    assert rand_distance(a, torch.tensor([7, 3, 0, 9, 1])[a]) == 0
    assert rand_distance(torch.zeros(2, 2).long(), torch.arange(4).view(2, 2)) == 100
    assert rand_distance(torch.zeros(1, 1).long(), torch.zeros(1, 1).long()) == 0
    with pytest.raises(ValueError, match="one shape"):
        rand_distance(a, a[:4])


def test_iou_matches_the_best_of_all_unions():
    rng = np.random.default_rng(1)
    for _ in range(30):
        segments, mask = rng.choice([0, 1, 2, 4, 6], (6, 6)), rng.random((6, 6)) < rng.uniform(0.1, 0.9)
        mask[0, 0] = True
        best = 0.0
        for size in range(1, 6):
            for union in itertools.combinations([0, 1, 2, 4, 6], size):
                inside = np.isin(segments, union)
                best = max(best, (inside & mask).sum() / (inside | mask).sum())
        assert best_union_iou(torch.from_numpy(segments), torch.from_numpy(mask)) == pytest.approx(100 * best)


def test_iou_of_a_mask_made_of_segments():
    segments = torch.arange(16).view(4, 4) // 4
    assert best_union_iou(segments, segments >= 2) == 100
    assert best_union_iou(torch.zeros(4, 4).long(), segments == 0) == 25
    with pytest.raises(ValueError, match="at least one pixel"):
        best_union_iou(segments, segments > 9)
    with pytest.raises(ValueError, match="bool mask"):
        best_union_iou(segments, segments)


def boundary_pixels(labels):
    """Return the pixels that differ from their right or lower neighbour."""
    height, width = labels.shape
    pixels = []
    for y, x in np.ndindex(height, width):
        right = x + 1 < width and labels[y, x] != labels[y, x + 1]
        below = y + 1 < height and labels[y, x] != labels[y + 1, x]
        if right or below:
            pixels.append((y, x))
    return pixels


def test_boundary_recall_matches_distances():
    rng = np.random.default_rng(2)
    for tolerance in (0, 1, 2):
        segments, truth = rng.integers(0, 3, (2, 9, 7)).repeat(2, 1).repeat(2, 2)
        near = boundary_pixels(segments)
        hits = [any(max(abs(y - v), abs(x - u)) <= tolerance for v, u in near) for y, x in boundary_pixels(truth)]
        measured = boundary_recall(torch.from_numpy(segments), torch.from_numpy(truth), tolerance)
        assert measured == pytest.approx(100 * np.mean(hits))


def test_boundary_recall_needs_a_boundary():
    with pytest.raises(ValueError, match="two regions"):
        boundary_recall(torch.arange(4).view(2, 2), torch.zeros(2, 2).long())
    with pytest.raises(ValueError, match="one shape"):
        boundary_recall(torch.zeros(2, 2), torch.zeros(2, 3))


def test_colour_contrast_matches_hand_made_cases():
    image = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
    assert colour_contrast(torch.tensor([[0, 0, 1, 1]]), image) == 100
    assert colour_contrast(torch.tensor([[0, 1, 1, 0]]), image) == 0  # both means are that of the image
    # Means 0 and 8/3: of a total of 16, 3 * (8/3 - 2)**2 + (0 - 2)**2 = 16/3 is between.
    assert colour_contrast(torch.tensor([[0, 3, 3, 3]]), image) == pytest.approx(100 / 3)
    assert colour_contrast(torch.tensor([[0, 1, 1, 0]]), torch.ones(3, 1, 4)) == 0
