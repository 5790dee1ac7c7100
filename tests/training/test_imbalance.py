"""Imbalanced data sets: samplers, priors and class weights, against counts and torch's own losses."""

import collections

import pytest
import torch
import torch.nn.functional as F

from hcast_zoo.data.loading import SeededSampler
from hcast_zoo.training.imbalance import class_weights, level_priors, sample_weights
from hcast_zoo.training.losses import HierarchicalLoss

# 40 of one leaf, 8 of another, 2 known only to the first level.
LABELS = torch.tensor([[0, 0]] * 40 + [[0, 1]] * 8 + [[1, -1]] * 2)


@pytest.mark.parametrize(("sampler", "expected"), [("balanced", (1, 1, 1)), ("sqrt", (40**0.5, 8**0.5, 2**0.5))])
def test_classes_are_drawn_in_proportion(sampler, expected):
    """Counted over a hundred epochs; drawing an epoch again gives the same pictures."""
    drawn = SeededSampler(len(LABELS), 3, sample_weights(LABELS, sampler))
    counts = collections.Counter()
    for drawn.epoch in range(100):
        epoch = list(drawn)
        assert epoch == list(drawn) and len(epoch) == len(LABELS)
        counts.update(tuple(LABELS[index].tolist()) for index, _ in epoch)
    for leaf, weight in zip(((0, 0), (0, 1), (1, -1)), expected):
        assert counts[leaf] / counts.total() == pytest.approx(weight / sum(expected), abs=0.02)


def test_natural_draws_each_once():
    assert sample_weights(LABELS, "natural") is None
    assert sorted(index for index, _ in SeededSampler(5, 0)) == [0, 1, 2, 3, 4]


def test_priors_and_weights_follow_the_counts():
    coarse, fine = level_priors(LABELS, (2, 3))
    assert coarse.tolist() == pytest.approx([0.96, 0.04])
    assert fine.tolist() == pytest.approx([40 / 49, 8 / 49, 1 / 49])  # a class without pictures counts as one
    balanced = class_weights([coarse, fine], "balanced")
    assert (balanced[0] * coarse).tolist() == pytest.approx([0.5, 0.5])
    even = level_priors(LABELS, (2, 3), sample_weights(LABELS, "balanced"))
    assert even[0].tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-4)  # two of the three classes are below the first


def test_the_loss_uses_priors_and_weights():
    """As torch's cross-entropy of adjusted logits, with its own class weights."""
    logits = [torch.randn(6, 2), torch.randn(6, 3)]
    labels = torch.tensor([[0, 0], [0, 1], [1, -1], [0, 2], [1, 2], [0, 1]])
    priors, weights = [torch.tensor([0.9, 0.1]), torch.tensor([0.7, 0.2, 0.1])], [torch.rand(2), torch.rand(3)]
    loss = HierarchicalLoss(0.0, priors=priors, adjustment=1.5, class_weights=weights)
    expected = sum(
        F.cross_entropy(x + 1.5 * prior.log(), label, weight=weight, ignore_index=-1)
        for x, prior, weight, label in zip(logits, priors, weights, labels.T)
    )
    torch.testing.assert_close(loss(logits, labels), expected)
