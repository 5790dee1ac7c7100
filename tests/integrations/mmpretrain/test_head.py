"""Head and loss: the logits, losses and paths are the core's."""

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from hcast_zoo.integrations.mmpretrain.head import HierarchicalClsHead
from hcast_zoo.integrations.mmpretrain.loss import HierarchicalLoss
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.training.losses import HierarchicalLoss as CoreLoss
from hcast_zoo.training.losses import soft_targets


@pytest.fixture
def head(taxonomy) -> HierarchicalClsHead:
    return HierarchicalClsHead(48, taxonomy)


@pytest.fixture
def feats() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(4, 48) for _ in range(4))


def samples(labels) -> list[DataSample]:
    result = [DataSample() for _ in labels]
    for sample, label in zip(result, labels):
        sample.set_field(torch.tensor(label), "gt_path")
    return result


LABELS = [[0, 0, 1], [1, 3, 5], [0, 1, -1], [1, -1, -1]]


def test_levels_read_their_stages(head, feats):
    logits = head(feats)
    assert [x.shape[1] for x in logits] == [2, 4, 6]
    for level, stage in enumerate((3, 2, 1)):
        assert torch.equal(logits[level], head.heads[level](feats[stage]))


@pytest.mark.parametrize("levels", [1, 2, 4, 5])
def test_any_number_of_levels_is_accepted(feats, levels):
    head = HierarchicalClsHead(48, level_classes=range(1, levels + 1), decoder="independent")
    assert [x.shape[1] for x in head(feats)] == list(range(1, levels + 1))
    assert head.predict(feats)[0].pred_path.shape == (levels,)


def test_loss_is_the_cores(head, feats):
    loss = head.loss(feats, samples(LABELS))
    assert set(loss) == {"loss"}
    assert torch.equal(loss["loss"], CoreLoss()(head(feats), torch.tensor(LABELS)))


def test_mixed_targets_are_smoothed_as_in_the_core(taxonomy, feats):
    """Smoothing mixed targets equals mixing smoothed targets, which is the core's order."""
    head = HierarchicalClsHead(48, taxonomy, loss=dict(type="HierarchicalLoss", smoothing=0.1, loss_weight=2.0))
    classes, labels = taxonomy.level_classes, torch.tensor(LABELS)
    mixed = [0.3 * t + 0.7 * t.flip(0) for t in soft_targets(labels, classes)]
    data = [DataSample().set_gt_score(row) for row in torch.cat(mixed, -1)]
    smoothed = [0.3 * t + 0.7 * t.flip(0) for t in soft_targets(labels, classes, smoothing=0.1)]
    expected = 2 * CoreLoss()(head(feats), smoothed)
    assert torch.allclose(head.loss(feats, data)["loss"], expected, rtol=1e-6)


def test_hard_targets_are_smoothed_by_the_core(feats, head):
    expected = CoreLoss(smoothing=0.1)(head(feats), torch.tensor(LABELS))
    assert torch.equal(HierarchicalLoss(smoothing=0.1)(head(feats), torch.tensor(LABELS)), expected)


@pytest.mark.parametrize("decoder", ["best_path", "top_down", "independent"])
def test_predictions_are_decoded_as_in_the_core(taxonomy, feats, decoder):
    head = HierarchicalClsHead(48, taxonomy, decoder=decoder)
    given = samples(LABELS)
    predicted = head.predict(feats, given)
    assert [a is b for a, b in zip(predicted, given)] == [True] * 4
    logits = head(feats)
    expected = decode(logits, taxonomy, decoder)
    for row, sample in enumerate(predicted):
        assert sample.pred_score.ndim == 1 and torch.equal(sample.pred_score, logits[-1][row].softmax(-1))
        assert sample.pred_label.tolist() == [int(logits[-1][row].argmax())]
        assert torch.equal(sample.pred_path, expected.paths[row])
        assert torch.equal(sample.pred_path_score, expected.path_probabilities[row])
        assert torch.equal(sample.pred_runner_up, expected.runner_up[row])


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(), "expected a taxonomy, or level_classes"),
        (dict(level_classes=(2, 0), decoder="independent"), "level_classes with at least one level"),
        (dict(level_classes=(2, 4)), "the decoder 'best_path' needs a taxonomy"),
        (dict(level_classes=(2, 4), decoder="beam"), "unknown decoder 'beam'"),
        (dict(level_classes=(2, 4), in_indices=(3,), decoder="independent"), "in_indices: expected one for each of 2"),
        (dict(taxonomy="oxford_flowers"), "no taxonomy 'oxford_flowers'.*cub"),
    ],
)
def test_wrong_head_configs_fail_when_built(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type="HierarchicalClsHead", in_channels=48, **kwargs))


def test_levels_that_disagree_with_the_taxonomy_are_refused(taxonomy):
    with pytest.raises(ValueError, match=r"level_classes \(2, 4, 7\) disagree .*'animals'.*\(2, 4, 6\)"):
        HierarchicalClsHead(48, taxonomy, level_classes=(2, 4, 7))
    assert HierarchicalClsHead(48, taxonomy, level_classes=[2, 4, 6]).level_classes == (2, 4, 6)


def test_unlabelled_and_out_of_range_samples_are_refused(head, feats):
    with pytest.raises(ValueError, match="no gt_path"):
        head.loss(feats, [DataSample().set_gt_label(1) for _ in range(4)])
    with pytest.raises(ValueError, match="label 9 of sample 0 is out of range"):
        head.loss(feats[:1] * 4, samples([[0, 0, 9]] * 4))


def test_too_few_outputs_are_refused(head, feats):
    with pytest.raises(ValueError, match="the backbone gave 2"):
        head(feats[:2])


def test_a_shallow_leaf_ends_the_path():
    taxonomy = Taxonomy.from_paths([("a", "b"), ("a", "c"), ("d",)], ("one", "two"))
    head = HierarchicalClsHead(8, taxonomy)
    with torch.no_grad():
        head.heads[0].bias.copy_(torch.tensor([0.0, 50.0]))
    sample = head.predict(tuple(torch.zeros(1, 8) for _ in range(4)))[0]
    assert sample.pred_path.tolist() == [1, -1] and sample.pred_level_scores.isnan().tolist() == [False, True]
