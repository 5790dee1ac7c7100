"""HierarchicalMetric against the core's metrics."""

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.registry import METRICS
from mmpretrain.structures import DataSample

from hcast_zoo.common.choices import DECODERS
from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.integrations.mmpretrain.head import HierarchicalClsHead
from hcast_zoo.taxonomy.decode import decode


@pytest.fixture
def answers(taxonomy):
    """Return data samples with labels and answers, and the logits and labels."""
    head = HierarchicalClsHead(8, taxonomy)
    feats = tuple(3 * torch.randn(10, 8) for _ in range(4))
    labels = torch.tensor(taxonomy.paths)[torch.randint(6, (10,))]
    labels[3, 2] = -1
    samples = [DataSample() for _ in range(10)]
    for sample, label in zip(samples, labels):
        sample.set_field(label, "gt_path")
    return head.predict(feats, samples), head(feats), labels


def core_metrics(taxonomy, logits, labels, mode):
    metrics = HierarchicalMetrics(taxonomy)
    metrics.update(decode(logits, taxonomy, mode).paths, labels)
    return metrics.compute()


def evaluate(samples, batches=(4, 6), meta=None, **kwargs):
    evaluator = Evaluator(METRICS.build(dict(type="HierarchicalMetric", **kwargs)))
    evaluator.dataset_meta = meta
    start = 0
    for size in batches:
        evaluator.process(samples[start : start + size])
        start += size
    return evaluator.evaluate(start)


def test_metrics_are_the_cores(taxonomy, answers):
    samples, logits, labels = answers
    values = core_metrics(taxonomy, logits, labels, "best_path")
    expected = {f"hierarchical/{k}": pytest.approx(v) for k, v in values.items()}
    assert evaluate(samples, taxonomy=taxonomy) == expected
    assert evaluate(samples, batches=(1,) * 10, meta={"taxonomy": taxonomy.to_dict()}) == expected


def test_every_decoder_has_its_metrics(taxonomy, answers):
    samples, logits, labels = answers
    result = evaluate(samples, taxonomy=taxonomy, decoders=DECODERS, prefix="test")
    for mode in DECODERS:
        for key, value in core_metrics(taxonomy, logits, labels, mode).items():
            assert result[f"test/{mode}/{key}"] == pytest.approx(value)


def test_wrong_metric_settings_are_explained(taxonomy, answers):
    samples, _, _ = answers
    with pytest.raises(ValueError, match="unknown decoders"):
        evaluate(samples, decoders=["beam"])
    with pytest.raises(ValueError, match="has no taxonomy"):
        evaluate(samples)
    with pytest.raises(ValueError, match="no gt_path"):
        evaluate([DataSample().set_gt_label(1)], batches=(1,), taxonomy=taxonomy)
    with pytest.raises(ValueError, match="expected predictions and labels"):
        evaluate(samples, taxonomy="living17")
