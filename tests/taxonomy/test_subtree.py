"""Decoding within a part of the tree, against enumerations and walks."""

import itertools

import numpy as np
import pytest
import torch

from hcast_zoo.common.choices import DECODERS
from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.decode import decode, node_probabilities
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.subtree import Subtree
from hcast_zoo.taxonomy.tree import Taxonomy
from tests.taxonomy.test_decode import probabilities, random_logits

# Nodes, and the leaves below them.
CASES = [
    (["bird"], {"barn owl", "snowy owl", "herring gull"}),
    (["cat", "wolf"], {"lion", "tiger", "wolf"}),
    (["class:mammal", "family:gull"], {"lion", "tiger", "wolf", "herring gull"}),
    (["species:lion"], {"lion"}),
    (["bird", "owl", "snowy owl"], {"barn owl", "snowy owl", "herring gull"}),
]


def remaining(taxonomy, leaves):
    return [path for path in taxonomy.paths if taxonomy.path_names(path)[-1] in leaves]


@pytest.mark.parametrize("nodes, leaves", CASES, ids=lambda names: "+".join(names) if isinstance(names, list) else "")
def test_best_path_matches_enumeration(taxonomy, nodes, leaves):
    logits = random_logits(taxonomy, 30, seed=4)
    decoded = decode(logits, taxonomy, within=nodes)
    paths = remaining(taxonomy, leaves)
    kept = [sorted({p[level] for p in paths}) for level in range(3)]

    for row, probs in enumerate(zip(*probabilities(logits))):
        scores = {path: np.prod([p[n] for p, n in zip(probs, path)]) for path in paths}
        ranked = sorted(scores, key=scores.get, reverse=True)
        total = sum(scores.values())

        assert tuple(decoded.paths[row].tolist()) == ranked[0]
        assert decoded.path_probabilities[row].item() == pytest.approx(scores[ranked[0]] / total, rel=1e-4)
        assert tuple(decoded.runner_up[row].tolist()) == (ranked[1] if len(ranked) > 1 else (-1, -1, -1))

        for level, node in enumerate(ranked[0]):
            share = probs[level][node] / probs[level][kept[level]].sum()
            assert decoded.level_probabilities[row, level].item() == pytest.approx(share, rel=1e-4)
            prefix = sum(s for path, s in scores.items() if path[: level + 1] == ranked[0][: level + 1]) / total
            assert decoded.prefix_probabilities[row, level].item() == pytest.approx(prefix, rel=1e-4)
            choice = max(kept[level], key=lambda n: probs[level][n])
            assert decoded.level_choices[row, level].item() == choice


@pytest.mark.parametrize("nodes, leaves", CASES, ids=lambda names: "+".join(names) if isinstance(names, list) else "")
def test_top_down_matches_a_walk(taxonomy, nodes, leaves):
    logits = random_logits(taxonomy, 30, seed=5)
    decoded = decode(logits, taxonomy, "top_down", within=nodes)

    for row, probs in enumerate(zip(*probabilities(logits))):
        alive, path, probability = remaining(taxonomy, leaves), [], 1.0
        for level, p in enumerate(probs):
            children = {path[level] for path in alive}
            node = max(children, key=lambda n: p[n])
            probability *= p[node] / sum(p[n] for n in children)
            path.append(node)
            alive = [q for q in alive if q[level] == node]

        assert decoded.paths[row].tolist() == path
        assert decoded.path_probabilities[row].item() == pytest.approx(probability, rel=1e-4)


def test_independent_chooses_among_the_nodes_below(taxonomy):
    logits = random_logits(taxonomy, 30, seed=6)
    nodes, leaves = CASES[2]
    decoded = decode(logits, taxonomy, "independent", within=nodes)
    kept = [sorted({p[level] for p in remaining(taxonomy, leaves)}) for level in range(3)]

    for row, probs in enumerate(zip(*probabilities(logits))):
        tuples = {}
        for path in itertools.product(*kept):
            tuples[path] = np.prod([p[node] / p[nodes].sum() for p, node, nodes in zip(probs, path, kept)])
        best = max(tuples, key=tuples.get)
        assert tuple(decoded.paths[row].tolist()) == best
        assert decoded.path_probabilities[row].item() == pytest.approx(tuples[best], rel=1e-4)


@pytest.mark.parametrize("mode", DECODERS)
def test_all_nodes_change_nothing_and_one_leaf_is_certain(taxonomy, mode):
    logits = random_logits(taxonomy, 20, seed=7)
    whole, all_nodes = decode(logits, taxonomy, mode), decode(logits, taxonomy, mode, within=["bird", "mammal"])
    assert torch.equal(whole.paths, all_nodes.paths)
    torch.testing.assert_close(whole.path_probabilities, all_nodes.path_probabilities)

    one = decode(logits, taxonomy, mode, within=["wolf"])
    assert (one.paths == torch.tensor(taxonomy.labels(("mammal", "dog", "wolf")))).all()
    assert one.path_probabilities.tolist() == pytest.approx([1.0] * 20)
    assert one.runner_up_probabilities.tolist() == [0] * 20


def test_levels_below_shallow_leaves_are_dropped():
    t = Taxonomy.from_paths([("animal", "lion"), ("animal", "wolf"), ("rock",), ("sand",)])
    logits = [torch.tensor([[1.0, 0.0, 0.5]]), torch.zeros(1, 2)]
    for mode in DECODERS:
        d = decode(logits, t, mode, within=["rock", "sand"])
        assert d.paths.tolist() == [[2, -1]]
        assert d.path_probabilities.item() == pytest.approx(np.exp(0.5) / (np.exp(0.5) + 1), rel=1e-5)
        assert d.level_probabilities[0, 1].isnan() and d.prefix_probabilities[0, 1].isnan()
        assert d.runner_up.tolist() == [[1, -1]]

    mixed = Subtree.below(t, ["wolf", "rock"])
    assert mixed.kept == ((0, 1), (1,)) and mixed.taxonomy.path_names(mixed.taxonomy.paths[0]) == ("animal", "wolf")


def test_wrong_nodes_are_explained(taxonomy):
    logits = random_logits(taxonomy, 1)
    with pytest.raises(TaxonomyError, match="no node 'wulf' in the taxonomy: did you mean 'wolf'"):
        decode(logits, taxonomy, within=["bird", "wulf"])
    with pytest.raises(TaxonomyError, match="at least one node to restrict to, got none"):
        decode(logits, taxonomy, within=[])
    with pytest.raises(TaxonomyError, match="expected a list of nodes"):
        decode(logits, taxonomy, within="bird")


def test_a_subtree_decodes_as_its_nodes_do(taxonomy, monkeypatch):
    logits, nodes = random_logits(taxonomy, 10, seed=8), ["mammal", "family:gull"]
    subtree = Subtree.below(taxonomy, nodes)
    paths = [decode(logits, taxonomy, mode, within=nodes) for mode in DECODERS]
    shares = [node_probabilities(logits, taxonomy, mode, within=nodes) for mode in DECODERS]
    monkeypatch.setattr(Subtree, "below", None)  # it may not be built again

    for mode, expected, expected_shares in zip(DECODERS, paths, shares):
        decoded = decode(logits, taxonomy, mode, within=subtree)
        for name, values in vars(expected).items():
            assert torch.equal(getattr(decoded, name).nan_to_num(), values.nan_to_num()), (mode, name)
        for x, y in zip(node_probabilities(logits, taxonomy, mode, within=subtree), expected_shares):
            assert torch.equal(x, y)
        calibrated = Calibration.identity(3).decode(logits, taxonomy, mode, subtree)
        assert torch.equal(calibrated.paths, expected.paths)

    same = Taxonomy.from_dict(taxonomy.to_dict())
    assert torch.equal(decode(logits, same, within=subtree).paths, paths[0].paths)


def test_a_subtree_of_another_taxonomy_is_refused(taxonomy):
    other = Taxonomy(taxonomy.levels, (taxonomy.names[0][::-1], *taxonomy.names[1:]), taxonomy.parents)
    with pytest.raises(ValueError, match="subtree of this taxonomy"):
        decode(random_logits(taxonomy, 1), taxonomy, within=Subtree.below(other, ["bird"]))
