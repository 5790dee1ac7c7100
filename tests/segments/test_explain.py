"""Explanations: focus and shares of segments, against a rollout in whole matrices."""

from itertools import pairwise

import pytest
import torch

from hcast_zoo.segments.explain import (
    agreement,
    class_token_relevance,
    explain_levels,
    explain_output,
    focus_map,
    level_overlap,
)


@pytest.fixture
def batch(images, tiny_config):
    """Three pictures of 32 pixels; in the last, superpixels 8 to 15 have no pixel."""
    images = torch.stack([images[0], images[1], images[0].flip(-1)])[:, :, 40:72, 40:72].contiguous()
    row = torch.arange(32)[:, None] // 8
    maps = (row * 4 + torch.arange(32) // 8).expand(3, 32, 32).clone()
    maps[2] %= 8
    return images, maps


def reference(weights, assignments):
    """Return the rollout, in whole matrices from the first stage on."""
    count = weights[0][0].shape[-1]
    rollout = torch.eye(count, dtype=torch.float64)
    for stage, blocks in enumerate(weights):
        for weight in blocks:
            rollout = rollout + weight[0].double() @ rollout
        if stage < len(assignments):
            tokens, clusters = assignments[stage].shape[1:]
            transfer = torch.zeros(1 + clusters, 1 + tokens, dtype=torch.float64)
            transfer[0, 0] = 1
            for m in range(clusters):
                members = assignments[stage][0, :, m].double()
                transfer[1 + m, 1:] = members / members.sum()
            rollout = transfer @ rollout
    return rollout[0, 1:]


def test_relevance_is_the_rollout():
    torch.manual_seed(0)
    sizes = (7, 5, 3)
    weights = [[torch.rand(1, 1 + n, 1 + n) for _ in range(2)] for n in sizes]
    assignments = [torch.rand(1, n, m).softmax(-1) for n, m in pairwise(sizes)]
    relevance = class_token_relevance(weights, assignments)
    assert [tuple(x.shape) for x in relevance] == [(1, n) for n in sizes]
    torch.testing.assert_close(relevance[0][0].double(), reference(weights, assignments), rtol=1e-5, atol=0)
    torch.testing.assert_close(relevance[2][0].double(), reference(weights[2:], []), rtol=1e-5, atol=0)


def test_shares_are_gradient_weighted_attention(tiny_model, batch):
    """Against gradients that the attention tensors keep, and the reference rollout."""
    images, maps = (x[:1] for x in batch)
    _, explanation = explain_levels(tiny_model, images, maps)
    for level, stage in enumerate(tiny_model.config.head_stages):
        output = tiny_model(images, maps, output_attentions=True)
        for attention in output.attentions:
            attention.retain_grad()
        output.level_logits[level].max().backward()
        used = output.attentions[:stage]
        weights = [[(a * a.grad).clamp(min=0).mean(1).detach()] for a in used]
        focus = reference(weights, output.assignments[: stage - 1])
        shares = reference(weights[-1:], [])
        for ours, theirs in ((explanation.focus[0, level], focus), (explanation.shares[level][0], shares)):
            torch.testing.assert_close(ours.double(), theirs / theirs.sum(), rtol=1e-3, atol=1e-6)


def test_an_explanation_is_a_distribution_over_what_is_seen(tiny_model, batch):
    output, explanation = explain_levels(tiny_model, *batch)
    assert [tuple(s.shape) for s in explanation.shares] == [(3, 2), (3, 4), (3, 8)] and output.attentions is not None
    for shares in (*explanation.shares, explanation.focus):
        assert (shares >= 0).all()
        torch.testing.assert_close(shares.sum(-1), torch.ones(shares.shape[:-1]))
    assert (explanation.focus[2, :, 8:] == 0).all() and (explanation.focus[0] > 0).any()

    pixels = focus_map(explanation.focus, batch[1])
    assert pixels.shape == (3, 3, 32, 32)
    torch.testing.assert_close(pixels.sum((-1, -2)), torch.ones(3, 3))
    torch.testing.assert_close(pixels[0, 0, 8:16, :8].sum(), explanation.focus[0, 0, 4])


def test_explaining_changes_neither_output_nor_model(tiny_model, batch):
    tiny_model.requires_grad_(False)
    with torch.inference_mode():
        output, explanation = explain_levels(tiny_model, *batch)
    plain = tiny_model(*batch)
    for a, b in zip(output.level_logits, plain.level_logits):
        torch.testing.assert_close(a, b)
        assert not a.requires_grad

    tiny_model.requires_grad_(True)
    _, again = explain_levels(tiny_model, *batch)
    torch.testing.assert_close(again.focus, explanation.focus)
    assert all(p.grad is None for p in tiny_model.parameters())

    _, alone = explain_levels(tiny_model, batch[0][1:2], batch[1][1:2])
    torch.testing.assert_close(alone.focus[0], explanation.focus[1], rtol=1e-3, atol=1e-6)


def test_levels_see_only_up_to_their_stage(tiny_model, batch):
    _, before = explain_levels(tiny_model, *batch, targets=torch.zeros(3, 3, dtype=torch.int64))

    with torch.no_grad():
        for parameter in tiny_model.stages[3].parameters():
            parameter += torch.randn_like(parameter)
    _, after = explain_levels(tiny_model, *batch, targets=torch.zeros(3, 3, dtype=torch.int64))
    torch.testing.assert_close(before.focus[:, 1:], after.focus[:, 1:])  # levels of stages 3 and 2
    assert (before.focus[:, 0] - after.focus[:, 0]).abs().max() > 1e-3  # the level of stage 4


def test_the_focus_is_of_the_target_and_of_the_best_node_without_one(tiny_model, batch):
    output, best = explain_levels(tiny_model, *batch)
    assert best.targets.tolist() == torch.stack([x.argmax(-1) for x in output.level_logits], 1).tolist()

    mixed = best.targets.clone()
    mixed[:, 1] = -1
    mixed[0, 2] = (mixed[0, 2] + 1) % 6

    _, other = explain_levels(tiny_model, *batch, targets=mixed)
    assert other.targets[:, 1].tolist() == best.targets[:, 1].tolist() and mixed[0, 1] == -1
    torch.testing.assert_close(other.focus[1:], best.focus[1:])
    assert (other.focus[0, 2] - best.focus[0, 2]).abs().max() > 1e-4

    for wrong in (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 3), torch.full((3, 3), 6)):
        with pytest.raises(ValueError, match="expected targets"):
            explain_levels(tiny_model, *batch, targets=wrong)


def test_other_clusters_are_explained(tiny_model, batch):
    _, explanation = explain_levels(tiny_model, *batch, num_clusters=(16, 12, 1, 1))
    assert [s.shape[1] for s in explanation.shares] == [1, 12, 16]
    assert explanation.focus.isfinite().all()
    with pytest.raises(ValueError, match="cannot choose 20 clusters from 16 tokens"):
        explain_levels(tiny_model, *batch, num_clusters=(20, 4, 2, 2))


def test_an_output_without_attentions_is_refused(tiny_model, batch):
    with pytest.raises(ValueError, match="output_attentions=True and gradients on"):
        explain_output(tiny_model(*batch), (1, 1, 1, 1), (4, 3, 2))
    with torch.no_grad():
        output = tiny_model(*batch, output_attentions=True)
    with pytest.raises(ValueError, match="gradients on"):
        explain_output(output, (1, 1, 1, 1), (4, 3, 2))


def test_without_relevance_shares_are_equal(tiny_model, batch):
    with torch.no_grad():
        for head in tiny_model.heads:
            head.weight.zero_()  # so no attention changes a score
    _, explanation = explain_levels(tiny_model, *batch)
    assert explanation.focus[0].unique().tolist() == [1 / 16] and explanation.focus[2, 0].tolist()[:8] == [1 / 8] * 8


def test_agreement_is_the_mean_overlap_of_levels():
    focus = torch.tensor(
        [[[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]], [[0.2, 0.8, 0.0], [0.6, 0.1, 0.3]]]
    )
    assert agreement(focus).tolist() == pytest.approx([1, 0, 0.3])
    torch.testing.assert_close(level_overlap(focus)[2], torch.tensor([[1, 0.3], [0.3, 1]]))
    three = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
    assert agreement(three).item() == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert agreement(focus[:, :1]).tolist() == [1, 1, 1]
