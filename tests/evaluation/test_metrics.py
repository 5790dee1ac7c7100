"""Metrics against the authors' evaluation, and against plain loops."""

import numpy as np
import pytest
import torch

from hcast_zoo.evaluation.metrics import (
    HierarchicalMetrics,
    full_path_accuracy,
    in_tree,
    level_accuracy,
    tree_inconsistency,
)
from hcast_zoo.evaluation.metrics import weighted_average_precision as wap
from hcast_zoo.taxonomy.tree import Taxonomy
from tests.conftest import load_npz

GOLDEN = load_npz("metrics.npz")


@pytest.mark.parametrize("name", ["aircraft", "birds", "living17"])
def test_metrics_match_the_official_evaluation(name):
    """The fixture's levels are in the model's order, fine first; so are the tree's columns."""
    levels = sum(k.startswith(f"{name}.logits_") for k in GOLDEN)
    order = list(range(levels - 1, -1, -1))
    predictions = torch.stack([torch.from_numpy(GOLDEN[f"{name}.logits_{i}"]).argmax(1) for i in order], 1)
    labels = torch.stack([torch.from_numpy(GOLDEN[f"{name}.label_{i}"]).long() for i in order], 1)
    tree = Taxonomy.from_paths([[str(row[i]) for i in order] for row in GOLDEN[f"{name}.tree"]])
    index = [{node: i for i, node in enumerate(names)} for names in tree.names]

    def recode(x):
        return torch.tensor([[index[level][str(int(n))] for level, n in enumerate(row)] for row in x])

    metrics = HierarchicalMetrics(tree)
    for start in range(0, len(labels), 16):
        metrics.update(recode(predictions[start : start + 16]), recode(labels[start : start + 16]))
    result = metrics.compute()

    assert result["fpa"] == pytest.approx(float(GOLDEN[f"{name}.fpa_mine"]), abs=1e-9)
    assert result["fpa"] == pytest.approx(float(GOLDEN[f"{name}.fpa_printed"]), abs=1e-3)
    assert result["tice"] == pytest.approx(float(GOLDEN[f"{name}.tice_mine"]), abs=1e-9)
    assert result["tice"] == pytest.approx(float(GOLDEN[f"{name}.tice_printed"]), abs=1e-3)
    assert result["wap"] == pytest.approx(float(GOLDEN[f"{name}.wap_paper"]), abs=1e-6)
    theirs = [float(GOLDEN[f"{name}.{k}"]) for k in ("acc1", "family_acc1", "manu_acc1")[:levels]]
    assert [result[f"accuracy/{level}"] for level in tree.levels] == pytest.approx(theirs[::-1], abs=1e-4)


def test_metrics_match_plain_loops(taxonomy):
    rng = np.random.default_rng(0)
    predictions, labels = (np.stack([rng.integers(0, c, 300) for c in (2, 4, 6)], 1) for _ in range(2))
    labels[rng.random(labels.shape) < 0.2] = -1
    p, y = torch.from_numpy(predictions), torch.from_numpy(labels)

    for level, value in enumerate(level_accuracy(p, y)):
        known = labels[:, level] != -1
        assert value == pytest.approx(100 * np.mean((predictions == labels)[known, level]))

    right = []
    for predicted, label in zip(predictions, labels):
        known = label != -1
        if known.any():
            right.append((predicted == label)[known].all())
    assert full_path_accuracy(p, y) == pytest.approx(100 * np.mean(right))

    outside = [tuple(row) not in taxonomy.paths for row in predictions.tolist()]
    assert tree_inconsistency(p, taxonomy) == pytest.approx(100 * np.mean(outside))


def test_tice_counts_wrong_parents_but_nothing_below_a_leaf():
    t = Taxonomy.from_paths([("animal", "cat", "lion"), ("rock",), ("plant", "moss")])
    predictions = torch.tensor([[0, 0, 0], [1, -1, -1], [1, 0, 0], [2, 1, 0], [2, 0, 0], [0, 1, -1], [-1, 0, 0]])
    assert tree_inconsistency(predictions, t) == pytest.approx(100 * 3 / 7)


def test_wap_weighs_by_classes_and_no_label_gives_nan():
    assert wap((100.0, 0.0), (1, 3)) == 25.0
    with pytest.raises(ValueError, match="zip"):
        wap((100.0, 0.0), (1, 3, 5))

    nothing = torch.full((2, 2), -1)
    assert np.isnan(full_path_accuracy(torch.zeros_like(nothing), nothing))
    assert np.isnan(level_accuracy(torch.zeros_like(nothing), nothing)).all()


def test_wrong_shapes_are_explained(taxonomy):
    metrics = HierarchicalMetrics(taxonomy)
    with pytest.raises(ValueError, match="call update first"):
        metrics.compute()
    with pytest.raises(ValueError, match=r"expected predictions and labels \(4, 3\)"):
        metrics.update(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="expected predictions and labels"):
        full_path_accuracy(torch.zeros(4), torch.zeros(4))


def test_predictions_are_checked_on_their_own_device(taxonomy):
    with torch.device("meta"):  # the default device, which must not be used
        ok = in_tree(torch.tensor([[1, 2, 4], [0, 2, 4]], device="cpu"), taxonomy)
    assert ok.tolist() == [True, False]


def test_a_level_without_labels_is_left_out():
    taxonomy = Taxonomy.from_paths([("a", "x"), ("b", "y")], ("coarse", "fine"))
    metrics = HierarchicalMetrics(taxonomy)
    metrics.update(torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, -1], [0, -1]]))
    with pytest.warns(UserWarning, match="no picture has a label at fine"):
        values = metrics.compute()
    assert values == {"fpa": 50.0, "tice": 0.0, "wap": 50.0, "accuracy/coarse": 50.0}


def test_wap_without_any_labelled_level_is_nan():
    assert np.isnan(wap((float("nan"), float("nan")), (10, 20)))
