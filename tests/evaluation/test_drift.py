"""Drift: false alarms are rare enough, and a shift is noticed."""

import numpy as np
import pytest
from scipy import stats

from hcast_zoo.evaluation import drift
from hcast_zoo.evaluation.drift import check_drift, check_promise, permutation_test
from hcast_zoo.taxonomy.guarantee import Guarantee
from hcast_zoo.taxonomy.selective import Judged, Promise
from hcast_zoo.weights.file import find_weights, read_weights
from tests.conftest import load_npz


@pytest.fixture(scope="module")
def tree():
    return read_weights(find_weights("hcast_tiny.emoji_art"), tensors=False).taxonomy


def pictures(split):
    scores = load_npz("emoji_art_scores.npz")
    return scores[f"{split}_confidence"].astype(float), scores[f"{split}_answer"].astype(int)


def make_guarantee(confidences, answers, promise=None):
    return Guarantee("data", "2026-01-01", len(answers), (1.0,), promise, None, tuple(confidences), tuple(answers))


def test_halves_of_one_artist_do_not_drift(tree, monkeypatch):
    monkeypatch.setattr(drift, "PERMUTATIONS", 300)
    confidences, answers = pictures("test")
    paths, rng, alarms = np.array(tree.paths), np.random.default_rng(0), 0
    for seed in range(4):
        old, new = np.split(rng.permutation(len(answers)), 2)

        checks = check_drift(
            make_guarantee(confidences[old], answers[old]), confidences[new], paths[answers[new]], tree, seed
        )
        alarms += any(check.drifted for check in checks)
    assert alarms == 0


def test_lower_certainty_and_other_subjects_are_drift(tree, monkeypatch):
    monkeypatch.setattr(drift, "PERMUTATIONS", 400)
    confidences, answers = pictures("test")
    known = make_guarantee(confidences[::2], answers[::2])
    paths = np.array(tree.paths)[answers[1::2]]
    less_sure = check_drift(known, confidences[1::2] * 0.8, paths, tree)
    assert [check.drifted for check in less_sure] == [True, False, False, False]

    animals = paths[:, 0] == 0
    other_things = check_drift(known, confidences[1::2][animals], paths[animals], tree)
    assert other_things[1].name == "group mix (share of animals-nature)" and other_things[1].now == 1
    assert other_things[1].drifted and other_things[2].drifted


def test_ks_matches_scipy():
    rng = np.random.default_rng(0)
    old, new = rng.random(150), rng.random(200) ** 1.2
    exact = stats.ks_2samp(old, new, method="exact")
    assert drift._ks(old, new) == pytest.approx(exact.statistic)
    assert permutation_test(old, new, drift._ks, rng) == pytest.approx(exact.pvalue, abs=0.05)


def test_labels_show_that_a_promise_is_broken():
    promise = Promise(0.95, 0.9, 0.5, 400, 400, 10, 0.96)
    trust = np.full((200, 1), 0.9)

    right = np.ones(200, int)
    right[:8] = 0
    assert not check_promise(make_guarantee([], [], promise), Judged(trust, right)).drifted

    right[:30] = 0
    check = check_promise(make_guarantee([], [], promise), Judged(trust, right))
    assert check.drifted and check.now == pytest.approx(0.85)
    assert check.p_value == pytest.approx(stats.binom.sf(29, 200, 0.05), abs=1e-9)

    assert check_promise(make_guarantee([], []), Judged(trust, right)) is None
