"""Promised accuracy: the exact binomial bound, and how often a promise holds on EmojiArt's held-out pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcast_zoo.taxonomy.backoff import back_off
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.selective import (
    Judged,
    PromiseError,
    accuracy_bound,
    binomial_tail,
    pictures_needed,
    promise_accuracy,
    split_for_promise,
)
from tests.conftest import load_npz

stats = pytest.importorskip("scipy.stats")


def emoji_art():
    """Return the 1,253 held-out pictures of two artists, with calibrated probabilities of hcast_small.emoji_art."""
    scores = load_npz("emoji_art_scores.npz")
    names = ("trust", "right_depth")
    columns = [np.concatenate([scores[f"{split}_{name}"] for split in ("val", "test")]) for name in names]
    return Judged(columns[0].astype(float), columns[1].astype(int))


@settings(max_examples=50)
@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.01, 0.99))
def test_bounds_match_scipy(total, share, probability):
    wrong = round(share * total)
    assert binomial_tail(wrong, total, probability) == pytest.approx(
        stats.binom.cdf(wrong, total, probability), abs=1e-9
    )
    exact = stats.binomtest(total - wrong, total, alternative="greater").proportion_ci(0.9, "exact").low
    assert accuracy_bound(total - wrong, total, 0.9) == pytest.approx(exact, abs=1e-7)


def test_judged_counts_match_back_off(taxonomy):
    torch.manual_seed(0)
    logits = [2 * torch.randn(200, n) for n in taxonomy.level_classes]
    labels = torch.tensor(taxonomy.paths)[torch.randint(6, (200,))]
    decoded = decode(logits, taxonomy)
    judged = Judged.of(decoded, labels, taxonomy)
    for threshold in (0.0, 0.3, 0.6, 0.9, 1.0):
        answer = back_off(decoded, taxonomy, threshold)
        wrong = ((answer.paths != labels) & (answer.paths >= 0)).any(1)
        assert judged.count(threshold) == (int((answer.depths > 0).sum()), int(wrong.sum()))


@pytest.mark.parametrize(
    "target, pictures, samples",
    [
        (0.9, 300, 100),
        pytest.param(0.9, 300, 1000, marks=pytest.mark.slow),
        pytest.param(0.95, 600, 1000, marks=pytest.mark.slow),
    ],
)
def test_promises_hold_as_often_as_they_say(target, pictures, samples):
    """Many samples of the held-out pictures each get a promise; at most a tenth may promise too much.

    The held-out pictures are the whole population here, so the true accuracy of a threshold is known exactly.
    """
    whole, rng = emoji_art(), np.random.default_rng(0)
    truth = {}
    broken, made = 0, 0
    for _ in range(samples):
        fit, test = (whole.rows(rng.integers(len(whole), size=n)) for n in (pictures // 3, pictures * 2 // 3))
        try:
            promise = promise_accuracy(fit, test, target, confidence=0.9)
        except PromiseError:
            continue
        made += 1
        if promise.threshold not in truth:
            answered, wrong = whole.count(promise.threshold)
            truth[promise.threshold] = 1 - wrong / answered
        broken += truth[promise.threshold] < target

    assert made > 0.7 * samples
    assert broken <= stats.binom.ppf(0.999, samples, 0.1)
    assert broken >= 0.01 * samples  # nor do they promise too little


def test_a_promise_records_what_it_was_tested_on():
    whole = emoji_art()
    fit, test = (whole.rows(index) for index in split_for_promise(len(whole)))
    promise = promise_accuracy(fit, test, 0.95)
    answered, wrong = test.count(promise.threshold)
    assert (promise.pictures, promise.answered, promise.wrong) == (len(test), answered, wrong)
    assert promise.bound >= 0.95 and 1 - wrong / answered > promise.bound
    assert len(fit) + len(test) == len(whole) and len(fit) == round(len(whole) / 3)


def test_too_few_pictures_say_how_many_are_needed():
    whole = emoji_art()
    few = Judged(np.full((40, 1), 0.99), np.ones(40, int))
    with pytest.raises(PromiseError, match="about 180 pictures would do"):  # 114 of them to test on
        promise_accuracy(few.rows(np.arange(13)), few.rows(np.arange(13, 40)), 0.98)

    many = Judged(np.full((180, 1), 0.99), np.ones(180, int))
    assert promise_accuracy(*(many.rows(index) for index in split_for_promise(180)), 0.98).target == 0.98

    hopeless = Judged(np.full((90, 1), 0.9), np.zeros(90, int))
    with pytest.raises(PromiseError, match="More pictures will not help"):
        promise_accuracy(hopeless, hopeless, 0.9)

    with pytest.raises(ValueError, match="between 0 and 1"):
        promise_accuracy(whole, whole, 95)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.9), st.floats(0.6, 0.99), st.floats(0.5, 0.99))
def test_the_number_of_pictures_needed_is_enough(share, target, confidence):
    rate = share * (1 - target)
    needed = pictures_needed(rate, target, confidence)
    assert stats.binom.cdf(np.ceil(rate * needed), needed, 1 - target) <= 1 - confidence + 1e-9
