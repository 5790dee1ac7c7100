"""Conformal sets: against crepes, and their coverage over random splits of EmojiArt's held-out pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hcast_zoo.taxonomy.conformal import (
    Scores,
    conformal_quantile,
    cover,
    fewest_scores,
    leaf_sets,
    set_scores,
    subtree_depths,
    subtree_scores,
)
from hcast_zoo.taxonomy.decode import decode, path_probabilities
from hcast_zoo.taxonomy.tree import Taxonomy
from tests.conftest import load_npz

stats = pytest.importorskip("scipy.stats")


def random_answers(taxonomy, pictures, seed=0):
    """Return labels, and logits that are correlated with them."""
    rng = torch.Generator().manual_seed(seed)
    leaves = torch.randint(len(taxonomy.paths), (pictures,), generator=rng)
    labels = torch.tensor(taxonomy.paths)[leaves]
    logits = []
    for level, classes in enumerate(taxonomy.level_classes):
        noise = torch.randn(pictures, classes, generator=rng)
        logits.append(noise + 2 * torch.nn.functional.one_hot(labels[:, level].clamp(min=0), classes))
    return logits, leaves, labels


@pytest.mark.parametrize("level", [None, 0])
def test_sets_match_crepes(taxonomy, level):
    crepes = pytest.importorskip("crepes", reason="needs crepes: pip install 'hcast-zoo[test]'")
    logits, leaves, _ = random_answers(taxonomy, 400)
    probabilities = path_probabilities(logits, taxonomy)
    old, new = probabilities[:300], probabilities[300:]
    scores = set_scores(old, leaves[:300])
    groups = np.array(taxonomy.paths)[:, level or 0]

    classifier = crepes.ConformalClassifier()
    bins = {} if level is None else {"bins": groups[leaves[:300]]}
    classifier.fit(scores, **bins)
    columns = []
    for leaf, column in enumerate(1 - new.double().numpy().T):
        bins = {} if level is None else {"bins": np.full(100, groups[leaf])}
        columns.append(classifier.predict_set(column[:, None], confidence=0.8, smoothing=False, **bins))
    expected = np.hstack(columns)

    stored = Scores(leaves=leaves[:300].tolist(), sets=scores, subtrees=scores)
    quantiles, _ = stored.quantiles(0.8, taxonomy, level)
    chosen = (1 - new.double() <= quantiles).numpy()  # without the most probable leaf, which crepes does not add
    assert (chosen == expected.astype(bool)).all()

    assert 0 < chosen.mean() < 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(0.05, 0.95))
def test_the_quantile_has_the_rank_that_the_theory_asks_for(scores, coverage):
    quantile = conformal_quantile(np.array(scores), coverage)
    at_most = sum(score <= quantile for score in scores)
    if np.isinf(quantile):
        assert len(scores) < fewest_scores(coverage)
    else:
        assert at_most / (len(scores) + 1) >= coverage - 1e-9


def test_subtrees_hold_the_label_exactly_when_its_score_is_low(taxonomy):
    logits, _, labels = random_answers(taxonomy, 300)
    decoded = decode(logits, taxonomy)
    scores = subtree_scores(decoded, labels)
    for quantile in (0.0, 0.3, 0.7, 0.95, float("inf")):
        depths = subtree_depths(decoded, quantile)
        level = torch.arange(3)
        held = ((decoded.paths == labels) | (level >= depths[:, None])).all(1)
        assert held.tolist() == (scores <= quantile).tolist()


@pytest.mark.parametrize("kind", ["set", "subtree"])
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_coverage_over_a_thousand_splits(kind, coverage):
    """With exchangeable pictures, the distribution of the coverage over splits is known for any model.

    With n scores and m new pictures, the number covered is beta-binomial with k = ceil((n + 1) coverage).
    """
    fixture = load_npz("emoji_art_scores.npz")
    scores = np.concatenate([fixture[f"{split}_{kind}_scores"] for split in ("val", "test")])
    rng, n = np.random.default_rng(0), 400
    m = len(scores) - n
    covered = []
    for _ in range(1000):
        mixed = rng.permutation(scores)
        covered.append((mixed[n:] <= conformal_quantile(mixed[:n], coverage)).sum())

    k = int(np.ceil((n + 1) * coverage - 1e-9))
    law = stats.betabinom(m, k, n + 1 - k)
    assert np.mean(covered) / m >= coverage - 3 * law.std() / m / np.sqrt(1000)
    low, high = law.ppf([0.005, 0.995])
    outside = np.mean([not low <= c <= high for c in covered])
    ties = len(scores) - len(np.unique(scores))
    if ties < 10:  # of scores that tie, more than k lie at or below the quantile
        assert outside <= 0.02
    assert np.mean(np.array(covered) < low) <= 0.015


def test_coverage_holds_in_each_group():
    fixture = load_npz("emoji_art_scores.npz")
    scores, groups = (
        np.concatenate([fixture[f"{split}_{name}"] for split in ("val", "test")]) for name in ("set_scores", "group")
    )
    rng, covered = np.random.default_rng(0), {group: [] for group in np.unique(groups)}
    for _ in range(300):
        order = rng.permutation(len(scores))
        old, new = order[:600], order[600:]
        for group, shares in covered.items():
            quantile = conformal_quantile(scores[old][groups[old] == group], 0.9)
            shares.append((scores[new][groups[new] == group] <= quantile).mean())

    assert len(covered) == 5
    assert all(np.mean(shares) >= 0.895 for shares in covered.values())


@given(st.data())
def test_cover_is_exact_and_smallest(data):
    tree = Taxonomy.from_paths(
        [("a", "b", "c"), ("a", "b", "d"), ("a", "e"), ("f", "g", "h"), ("f", "g", "i"), ("j",)], ("x", "y", "z")
    )
    leaves = data.draw(st.lists(st.booleans(), min_size=6, max_size=6))
    nodes = cover(leaves, tree)
    below = [sum(path[level] == index for level, index in nodes) for path in tree.paths]
    assert below == [int(leaf) for leaf in leaves]  # each leaf once, and no other
    for level, index in nodes:  # none could give way to its parent
        if level:
            parent = tree.parents[level - 1][index]
            assert not all(leaf for path, leaf in zip(tree.paths, leaves) if path[level - 1] == parent)


def test_the_most_probable_leaf_is_in_every_set(taxonomy):
    logits, _, _ = random_answers(taxonomy, 50)
    probabilities = path_probabilities(logits, taxonomy)
    sets = leaf_sets(probabilities, 0.0)
    assert sets.sum(1).tolist() == [1] * 50
    assert (sets.int().argmax(1) == probabilities.argmax(1)).all()
