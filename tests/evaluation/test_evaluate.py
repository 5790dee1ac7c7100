"""Evaluation of a model on a data set."""

import pytest
import torch

from hcast_zoo.common.choices import DECODERS
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.evaluate import collect_logits, evaluate
from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.decode import decode


def test_batches_and_workers_do_not_matter(picture_folder, taxonomy, tiny_model):
    data = HierarchicalDataset.load(picture_folder, taxonomy, "val", transform=eval_transform(tiny_model.config))
    tiny_model.train()
    first, labels = collect_logits(tiny_model, data, batch_size=5, progress=False)
    second, _ = collect_logits(tiny_model, data, batch_size=12, workers=1, progress=False)
    assert tiny_model.training
    assert torch.equal(labels, data.labels)
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


def test_results_of_every_decoding_match_the_logits(picture_folder, taxonomy, tiny_model):
    data = HierarchicalDataset.load(picture_folder, taxonomy, "val", transform=eval_transform(tiny_model.config))
    results = evaluate(tiny_model, data, DECODERS, progress=False)
    assert list(results) == list(DECODERS)
    assert results["best_path"]["tice"] == results["top_down"]["tice"] == 0

    logits, labels = collect_logits(tiny_model, data, progress=False)
    right = torch.stack([x.argmax(1) for x in logits], 1) == labels
    assert results["independent"]["fpa"] == pytest.approx(100 * right.all(1).float().mean().item())
    for level, name in enumerate(taxonomy.levels):
        assert results["independent"][f"accuracy/{name}"] == pytest.approx(100 * right[:, level].float().mean().item())


def test_calibration_changes_the_weight_of_levels(picture_folder, taxonomy, tiny_model):
    data = HierarchicalDataset.load(picture_folder, taxonomy, "val", transform=eval_transform(tiny_model.config))
    calibration = Calibration((0.01, 5.0, 5.0))  # the coarsest level decides
    results = evaluate(tiny_model, data, DECODERS, calibration, progress=False)
    plain = evaluate(tiny_model, data, DECODERS, progress=False)
    assert results["independent"] == plain["independent"]
    assert results["best_path"]["accuracy/class"] == plain["independent"]["accuracy/class"]

    logits, labels = collect_logits(tiny_model, data, progress=False)
    paths = decode([x / t for x, t in zip(logits, calibration.temperatures)], taxonomy).paths
    assert results["best_path"]["fpa"] == pytest.approx(100 * (paths == labels).all(1).float().mean().item())


def test_a_data_set_without_readable_pictures_is_an_error(picture_folder, taxonomy, tiny_model):
    for file in (picture_folder / "val").rglob("*.png"):
        file.write_bytes(b"")
    data = HierarchicalDataset.load(picture_folder, taxonomy, "val", transform=eval_transform(tiny_model.config))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="none of the pictures"):
        evaluate(tiny_model, data, progress=False)
