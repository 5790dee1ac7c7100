"""Farthest point sampling and graph pooling, against the equations written out."""

import numpy as np
import pytest
import torch

from hcast_zoo.network.graph_pooling import CentroidProjection, GraphPooling, farthest_point_sampling


def reference_sampling(points: np.ndarray, number: int, valid: np.ndarray) -> list[int]:
    """Farthest point sampling as a person would write it, for one image."""
    points = points.astype(np.float64)
    chosen, nearest = [], np.linalg.norm(points - points[valid].mean(0), axis=1)
    for _ in range(number):
        chosen.append(int(np.argmax(np.where(valid, nearest, -1))))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


@pytest.mark.parametrize("seed", range(20))
def test_sampling_matches_plain_loops(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(3, 40, 6)).astype(np.float32) + 10
    valid = rng.random((3, 40)) > 0.3
    chosen = farthest_point_sampling(torch.from_numpy(points), 12, torch.from_numpy(valid))
    for image in range(3):
        assert chosen[image].tolist() == reference_sampling(points[image], 12, valid[image])


def test_sampling_chooses_distinct_valid_points():
    points, valid = torch.randn(4, 30, 5), torch.rand(4, 30) > 0.4
    number = int(valid.sum(1).min())
    for row, indices in enumerate(farthest_point_sampling(points, number, valid)):
        assert len(set(indices.tolist())) == number
        assert valid[row, indices].all()


def test_sampling_with_too_few_points_repeats_the_first_valid():
    points, valid = torch.randn(2, 6, 3), torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]).bool()
    chosen = farthest_point_sampling(points, 4, valid)
    assert set(chosen[0, :2].tolist()) == {1, 2} and chosen[0, 2:].tolist() == [1, 1]
    assert chosen[1].tolist() == [5, 5, 5, 5]


def test_copies_that_differ_by_rounding_are_one_point():
    points = torch.randn(1, 3, 8, dtype=torch.float64).repeat(1, 5, 1)
    first = farthest_point_sampling(points, 9)
    assert set(first[0, :3].tolist()) <= {0, 1, 2} and first[0, 3:].tolist() == [0] * 6

    noisy = points * (1 + 1e-7 * torch.randn_like(points))
    assert sorted((farthest_point_sampling(noisy, 9)[0, :3] % 3).tolist()) == [0, 1, 2]
    assert farthest_point_sampling(noisy, 9)[0, 3:].tolist() == [0] * 6

    assert farthest_point_sampling(torch.ones(1, 5, 8) * noisy[:, :1], 3).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_copies_are_recognised_at_any_scale(scale):
    points = torch.randn(1, 3, 8, dtype=torch.float64).repeat(1, 5, 1)
    noisy = scale * points * (1 + 1e-7 * torch.randn_like(points))
    chosen = farthest_point_sampling(noisy, 9)[0]
    assert sorted((chosen[:3] % 3).tolist()) == [0, 1, 2] and chosen[3:].tolist() == [0] * 6


def test_a_point_is_distinct_from_many_copies_of_another():
    points = torch.tensor([[1.0, 0.0]]).repeat(200, 1)
    points[150, 1] = 1e-4  # squared: 1e-8 of the norm
    assert farthest_point_sampling(points[None], 3).tolist() == [[150, 0, 0]]


def test_a_point_at_the_mean_is_not_the_start():
    assert farthest_point_sampling(torch.tensor([[[0.0], [-0.1], [0.1]]]), 3).tolist() == [[1, 2, 0]]


def test_ties_go_to_the_lowest_index():
    square = torch.tensor([[[1.0, 1], [1, -1], [-1, 1], [-1, -1]]])
    assert farthest_point_sampling(square, 4).tolist() == [[0, 1, 2, 3]]  # no point is nearer than the mean


def test_pooling_matches_its_equation():
    """Z = Z_init + fc2(P^T fc1(Z) / P^T 1), written out for one image with loops."""
    torch.manual_seed(0)
    pool = GraphPooling(24).eval()
    tokens = torch.randn(2, 1 + 10, 24)
    with torch.no_grad():
        output = pool(tokens, 4)
        hidden = pool.fc1(tokens)
        for image in range(2):
            for cluster in range(4):
                weight = output.assignment[image, :, cluster]
                average = sum(w * h for w, h in zip(weight, hidden[image, 1:])) / weight.sum()
                expected = tokens[image, 1 + output.indices[image, cluster]] + pool.fc2(average)
                torch.testing.assert_close(output.tokens[image, 1 + cluster], expected)
            torch.testing.assert_close(output.tokens[image, 0], tokens[image, 0] + pool.fc2(hidden[image, 0]))
            nodes = output.node_features[image]
            similarity = torch.cosine_similarity(nodes[:, None], nodes[output.indices[image]][None], dim=-1)
            torch.testing.assert_close(output.assignment[image], (5 * similarity).softmax(-1))


@torch.no_grad()
def test_empty_tokens_count_unless_they_are_masked():
    torch.manual_seed(0)
    pool = GraphPooling(24).eval()
    tokens, valid = torch.randn(2, 1 + 10, 24), torch.arange(10).expand(2, -1) < 7
    other = tokens.clone()
    other[:, 8:] = 0
    assert not torch.allclose(pool(tokens, 4, valid).tokens, pool(other, 4, valid).tokens)

    masked, again = (pool(x, 4, valid, mask_empty=True).tokens for x in (tokens, other))
    torch.testing.assert_close(masked, again)
    torch.testing.assert_close(masked, pool(tokens[:, :8], 4).tokens)


@pytest.mark.parametrize("options, rate", [({}, 0.1), ({"drop_rate": 0.5}, 0.5)])
@torch.no_grad()
def test_hidden_features_are_dropped_in_training(options, rate):
    torch.manual_seed(0)
    pool, tokens = GraphPooling(24, **options), torch.randn(1000, 24)
    assert (pool.train().fc1(tokens) == 0).double().mean().item() == pytest.approx(rate, abs=0.01)
    assert pool.eval().fc1(tokens).all()


@torch.no_grad()
def test_centroid_projection_matches_its_formula():
    torch.manual_seed(0)
    projection = CentroidProjection(24, num_heads=3)
    x = 1e-3 * torch.randn(2, 10, 24)  # so small that the norm's epsilon shows
    valid = torch.rand(2, 10) > 0.3
    normed = torch.nn.functional.layer_norm(x, (24,), eps=1e-6)
    attended = x + projection.attn(normed, valid)[0]

    projected = projection(x, valid)
    for image in range(2):
        expected = attended[image] - attended[image][valid[image]].mean(0) + projection.bias
        torch.testing.assert_close(projected[image][valid[image]], expected[valid[image]])


def test_init_weights_sets_every_parameter():
    pool = GraphPooling(24, device="meta").to_empty(device="cpu")
    for p in pool.parameters():
        p.data.fill_(torch.nan)
    pool.init_weights()
    assert all(p.isfinite().all() for p in pool.parameters())
    assert pool.centroid_fc.bias.std().item() == pytest.approx(0.01, rel=0.7)
