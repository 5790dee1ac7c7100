"""Back-off, against an enumeration of all prefixes."""

import itertools
import math

import numpy as np
import pytest
import torch

from hcast_zoo.common.choices import DECODERS
from hcast_zoo.taxonomy.backoff import back_off
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import Taxonomy
from tests.taxonomy.test_decode import probabilities, random_logits


def logits_for(*levels):
    """One sample whose level probabilities are the given ones."""
    return [torch.tensor([level]).log() for level in levels]


@pytest.mark.parametrize("agreement", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("mode", DECODERS)
def test_the_cut_matches_enumeration(taxonomy, mode, threshold, agreement):
    """Each prefix is tried alone: its probability is summed over all paths, and all its levels must agree."""
    logits = random_logits(taxonomy, 60, seed=8)
    decoded = decode(logits, taxonomy, mode)
    short = back_off(decoded, taxonomy, threshold, require_agreement=agreement)
    for row, probs in enumerate(zip(*probabilities(logits))):
        path = decoded.paths[row].tolist()
        best, confidence = 0, 1.0
        for depth in (1, 2, 3):
            probability = prefix_probability(taxonomy, probs, path[:depth], mode)
            agree = all(int(p.argmax()) == node for p, node in zip(probs[:depth], path))
            in_tree = any(q[:depth] == tuple(path[:depth]) for q in taxonomy.paths)
            if probability >= threshold and (not agreement or (agree and in_tree)):
                best, confidence = depth, probability
        assert short.depths[row].item() == best
        assert short.paths[row].tolist() == path[:best] + [-1] * (3 - best)
        assert short.path_probabilities[row].item() == pytest.approx(confidence, rel=1e-4)


def prefix_probability(taxonomy, probs, prefix, mode):
    if mode == "independent":
        return np.prod([p[n] for p, n in zip(probs, prefix)])
    total = part = 0.0
    for path in taxonomy.paths:
        weight = 1.0
        for level, (p, node) in enumerate(zip(probs, path)):
            siblings = [
                n
                for n in range(len(p))
                if mode == "best_path" or level == 0 or taxonomy.parents[level - 1][n] == path[level - 1]
            ]
            weight *= p[node] / p[siblings].sum()
        total += weight
        part += weight if path[: len(prefix)] == tuple(prefix) else 0.0
    return part / total


def test_reasons_say_where_and_why_a_path_stops(taxonomy):
    sure = logits_for([0.9, 0.1], [0.9, 0.04, 0.03, 0.03], [0.6, 0.3, 0.025, 0.025, 0.025, 0.025])
    decoded = decode(sure, taxonomy)
    # 0.9 * 0.9 * 0.6 of 0.9 * 0.9 * (0.6 + 0.3) and 0.001125 for all others
    assert back_off(decoded, taxonomy, 0.5).reasons == ["all levels agree, and the whole path has 66.5%, at least 50%"]
    short = back_off(decoded, taxonomy, 0.8)
    assert short.reasons == ["stops at family: down to species 'barn owl' the path has 66.5%, below 80%"]
    assert taxonomy.path_names(short.paths[0].tolist()) == ("bird", "owl")

    torn = logits_for([0.45, 0.55], [0.9, 0.04, 0.03, 0.03], [0.6, 0.3, 0.025, 0.025, 0.025, 0.025])
    short = back_off(decode(torn, taxonomy), taxonomy, 0.2)
    assert short.reasons == ["no level can be trusted: class by itself is 'mammal', not 'bird'"]
    assert short.depths.tolist() == [0] and short.path_probabilities.tolist() == [1.0]
    assert back_off(decode(torn, taxonomy), taxonomy, 0.2, require_agreement=False).depths.tolist() == [3]

    odd = logits_for([0.9, 0.1], [0.03, 0.04, 0.9, 0.03], [0.05, 0.05, 0.05, 0.75, 0.05, 0.05])
    short = back_off(decode(odd, taxonomy, "independent"), taxonomy, 0.85)
    assert short.reasons == [
        "stops at class: family 'cat' belongs to 'mammal', not to 'bird'; "
        "down to family 'cat' the path has 81.0%, below 85%"
    ]


def test_a_shallow_leaf_is_a_whole_path():
    t = Taxonomy.from_paths([("animal", "lion"), ("animal", "wolf"), ("rock",)])
    short = back_off(decode([torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2)], t), t, 0.5)
    assert short.paths.tolist() == [[1, -1]] and short.depths.tolist() == [1]
    assert short.reasons[0].startswith("all levels agree, and the whole path")


def test_a_higher_threshold_never_goes_deeper(taxonomy):
    decoded = decode(random_logits(taxonomy, 100, seed=9), taxonomy)
    depths = [back_off(decoded, taxonomy, t).depths for t in (0, 0.25, 0.5, 0.75, 1)]
    assert all((a >= b).all() for a, b in itertools.pairwise(depths)) and depths[0].sum() > depths[-1].sum()


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_threshold_is_a_probability(taxonomy, threshold):
    with pytest.raises(ValueError, match="threshold from 0 to 1, got"):
        back_off(decode(random_logits(taxonomy, 1), taxonomy), taxonomy, threshold)


def test_a_probability_that_equals_the_threshold_is_enough():
    taxonomy = Taxonomy.from_paths([("a", "x"), ("a", "y"), ("b", "z")], ("coarse", "fine"))
    decoded = decode(logits_for([0.5, 0.5], [0.25, 0.25, 0.5]), taxonomy)
    decoded.prefix_probabilities = torch.tensor([[0.75, 0.5]])
    decoded.level_choices = decoded.paths
    assert back_off(decoded, taxonomy, 0.75).depths.tolist() == [1]
    assert back_off(decoded, taxonomy, 0.5).depths.tolist() == [2]
