"""Temperatures and calibration errors, against plain loops, a grid and LBFGS."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from hcast_zoo.taxonomy.calibration import (
    Calibration,
    calibration_errors,
    expected_calibration_error,
    fit_calibration,
    fit_temperature,
)
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.weights.file import WeightsError, load_weights, save_weights
from tests.taxonomy.test_decode import random_logits


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_ece_matches_a_plain_loop(bins):
    rng = np.random.default_rng(0)
    confidence = np.append(rng.random(400), [0.0, 1.0, 1 / bins])
    right = rng.random(403) < confidence**2
    total = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if i == 0:
            inside |= confidence == 0
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())

    ours = expected_calibration_error(torch.from_numpy(confidence), torch.from_numpy(right), bins)
    assert ours == pytest.approx(100 * total)


def test_ece_by_hand():
    assert expected_calibration_error(torch.tensor([0.75] * 4), torch.tensor([1, 1, 1, 0]).bool()) == 0
    assert expected_calibration_error(torch.tensor([1.0, 1.0]), torch.tensor([True, False])) == 50
    assert math.isnan(expected_calibration_error(torch.zeros(0), torch.zeros(0).bool()))
    with pytest.raises(ValueError, match="from 0 to 1"):
        expected_calibration_error(torch.tensor([math.nan]), torch.tensor([True]))
    with pytest.raises(ValueError, match=r"\(S,\)"):
        expected_calibration_error(torch.zeros(2), torch.zeros(3).bool())


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_matches_a_grid_and_lbfgs(true):
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3000, 6, generator=rng)
    labels = torch.multinomial((logits / true).softmax(-1), 1, generator=rng)[:, 0]
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(true, rel=0.1)

    grid = np.geomspace(0.1, 10, 2000)
    losses = [F.cross_entropy(logits.double() / t, labels).item() for t in grid]
    assert fitted == pytest.approx(grid[int(np.argmin(losses))], rel=0.003)

    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.double() / log_t.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fitted == pytest.approx(log_t.exp().item(), rel=1e-4)


def test_temperatures_have_limits():
    logits = torch.eye(3)
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(0.02)  # every picture right
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(50)  # every picture wrong
    assert fit_temperature(logits, torch.tensor([-1, -1, -1])) == 1  # no label known


def test_fitted_calibration_calibrates(taxonomy):
    """Levels that are independent given the path, and over-confident: fitting finds by how much."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.tensor(taxonomy.paths)[torch.randint(6, (4000,), generator=rng)]
    logits = []
    for level, (classes, factor) in enumerate(zip(taxonomy.level_classes, (1.0, 2.0, 4.0))):
        noisy = F.one_hot(labels[:, level], classes) + torch.randn(4000, classes, generator=rng)
        logits.append(factor * noisy)  # for factor 1, the likelihood ratio of two nodes is exp(difference)

    fitted = fit_calibration(logits, labels, taxonomy, "toy")
    # Nodes of one level are not equally frequent, so the true temperatures are only near the factors.
    assert fitted.temperatures == pytest.approx((1.0, 2.0, 4.0), rel=0.15) and fitted.fitted_on == "toy"

    before, after = (calibration_errors(logits, labels, taxonomy, c) for c in (None, fitted))
    assert list(after) == ["ece/class", "ece/family", "ece/species", "ece/path"]
    assert after["ece/species"] < before["ece/species"] / 3 and after["ece/path"] < before["ece/path"] / 3
    assert torch.equal(*(torch.stack([x.argmax(-1) for x in z]) for z in (logits, fitted.logits(logits))))


def test_path_temperature_applies_to_the_products(taxonomy):
    logits = random_logits(taxonomy, 20, seed=10)
    hot, cold = decode(logits, taxonomy, path_temperature=2.0), decode(logits, taxonomy)
    assert torch.equal(hot.paths, cold.paths)

    for row in range(20):
        products = [
            math.prod(x[row].softmax(-1)[n].item() for x, n in zip(logits, path)) ** 0.5 for path in taxonomy.paths
        ]
        assert hot.path_probabilities[row].item() == pytest.approx(max(products) / sum(products), rel=1e-4)

    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive path_temperature"):
            decode(logits, taxonomy, path_temperature=wrong)


def test_unknown_labels_are_left_out(taxonomy):
    logits = random_logits(taxonomy, 200, seed=11)
    labels = torch.tensor(taxonomy.paths)[torch.arange(200) % 6].clone()
    known = fit_calibration([x[:100] for x in logits], labels[:100], taxonomy)
    labels[100:, 1:] = -1  # now only the coarsest level is known
    partly = fit_calibration(logits, labels, taxonomy)
    assert partly.temperatures[1:] == known.temperatures[1:] and partly.temperatures[0] != known.temperatures[0]

    labels[:] = -1
    assert fit_calibration(logits, labels, taxonomy).temperatures == (1, 1, 1)
    assert all(math.isnan(e) for e in calibration_errors(logits, labels, taxonomy).values())


def test_calibration_is_saved_with_the_weights(tiny_weights, tmp_path):
    weights = load_weights(tiny_weights)
    assert weights.calibration is None  # a file written before calibration existed
    weights.calibration = Calibration((0.5, 1.0, 2.0), 1.5, "pictures, split val")
    save_weights(weights, tmp_path / "calibrated.safetensors")
    again = load_weights(tmp_path / "calibrated.safetensors")
    assert again.calibration == weights.calibration and again.metadata == weights.metadata
    assert all(torch.equal(v, again.state_dict[k]) for k, v in weights.state_dict.items())


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "invalid calibration"),
        ("[1, 2, 3]", "expected a calibration as a JSON object"),
        ('{"temperatures": [1, 2]}', "temperatures of 3 levels, got 2"),
        ('{"temperatures": [1, 2, 0]}', "expected positive temperatures"),
        ('{"temperatures": [1, 2, NaN]}', "expected positive temperatures"),
        ('{"temperatures": 1}', "expected a list of temperatures"),
        ('{"temperatures": [1, 2, 3], "bias": 1}', "expected a calibration"),
    ],
)
def test_broken_calibrations_are_explained(tiny_weights, text, message):
    weights = load_weights(tiny_weights)
    metadata = {"config": json.dumps(weights.config.to_dict()), "calibration": text}
    save_file(weights.state_dict, tiny_weights, metadata)
    with pytest.raises(WeightsError, match=message):
        load_weights(tiny_weights)


def test_wrong_shapes_are_explained(taxonomy):
    logits = random_logits(taxonomy, 4)
    with pytest.raises(ValueError, match=r"expected labels \(4, 3\)"):
        fit_calibration(logits, torch.zeros(4, 2, dtype=torch.int64), taxonomy)
    with pytest.raises(ValueError, match="logits of 2 levels, got 3"):
        Calibration((1.0, 1.0)).logits(logits)
    logits[0][1, 0] = math.nan
    with pytest.raises(ValueError, match=r"rows \[1\] are not finite"):
        fit_calibration(logits, torch.zeros(4, 3, dtype=torch.int64), taxonomy)


def test_a_confidence_on_the_edge_of_a_bin_is_in_the_lower_one():
    """Bins are (i / n, (i + 1) / n]; 0 is in the first."""
    right = torch.tensor([True, False])
    assert expected_calibration_error(torch.tensor([0.5, 0.6]), right, bins=2) == pytest.approx(55)
    assert expected_calibration_error(torch.tensor([0.5, 0.4]), right, bins=2) == pytest.approx(5)
    assert expected_calibration_error(torch.tensor([0.0, 1.0]), ~right, bins=2) == pytest.approx(0)
    assert expected_calibration_error(torch.tensor([0.0, 0.4]), right, bins=2) == pytest.approx(30)
