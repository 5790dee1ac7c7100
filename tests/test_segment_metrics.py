import itertools

import numpy as np
import pytest
import torch

from hcast_zoo.segment_metrics import best_union_iou, rand_distance


def test_rand_distance_against_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 4, (2, 5, 6))
        pairs = list(itertools.combinations(zip(a.ravel(), b.ravel()), 2))
        differ = sum((p[0] == q[0]) != (p[1] == q[1]) for p, q in pairs)
        assert rand_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(100 * differ / len(pairs))


def test_rand_distance_does_not_depend_on_numbers():
    a = torch.randint(0, 5, (8, 8), generator=torch.Generator().manual_seed(0))
    assert rand_distance(a, torch.tensor([7, 3, 0, 9, 1])[a]) == 0
    assert rand_distance(torch.zeros(2, 2).long(), torch.arange(4).view(2, 2)) == 100
    assert rand_distance(torch.zeros(1, 1).long(), torch.zeros(1, 1).long()) == 0
    with pytest.raises(ValueError, match="one shape"):
        rand_distance(a, a[:4])


def test_iou_against_all_unions():
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
