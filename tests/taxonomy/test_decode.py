"""Decoding, against enumerations and walks through the tree."""

import itertools

import numpy as np
import pytest
import torch

from hcast_zoo.common.choices import DECODERS
from hcast_zoo.evaluation.metrics import in_tree
from hcast_zoo.taxonomy.decode import decode, node_probabilities, path_probabilities
from hcast_zoo.taxonomy.tree import Taxonomy


def random_logits(taxonomy, batch=50, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(batch, c, generator=rng) for c in taxonomy.level_classes]


def probabilities(logits):
    return [x.double().softmax(-1).numpy() for x in logits]


def test_best_path_matches_enumeration(taxonomy):
    logits = random_logits(taxonomy)
    probs, decoded = probabilities(logits), decode(logits, taxonomy)
    for row in range(50):
        products = {path: np.prod([p[row, n] for p, n in zip(probs, path)]) for path in taxonomy.paths}
        ranked = sorted(products, key=products.get, reverse=True)
        total = sum(products.values())
        assert tuple(decoded.paths[row].tolist()) == ranked[0]
        assert tuple(decoded.runner_up[row].tolist()) == ranked[1]
        assert decoded.path_probabilities[row].item() == pytest.approx(products[ranked[0]] / total, rel=1e-4)
        assert decoded.runner_up_probabilities[row].item() == pytest.approx(products[ranked[1]] / total, rel=1e-4)
        for level, node in enumerate(ranked[0]):
            assert decoded.level_probabilities[row, level].item() == pytest.approx(probs[level][row, node], rel=1e-4)


def test_top_down_matches_a_walk(taxonomy):
    logits = random_logits(taxonomy, seed=1)
    probs, decoded = probabilities(logits), decode(logits, taxonomy, "top_down")
    for row in range(50):
        node = int(probs[0][row].argmax())
        path, probability = [node], probs[0][row, node]
        for level, parents in enumerate(taxonomy.parents, 1):
            children = [i for i, parent in enumerate(parents) if parent == node]
            node = max(children, key=lambda i: probs[level][row, i])
            probability *= probs[level][row, node] / probs[level][row, children].sum()
            path.append(node)

        assert decoded.paths[row].tolist() == path
        assert decoded.path_probabilities[row].item() == pytest.approx(probability, rel=1e-4)


def test_independent_is_the_argmax_of_each_level(taxonomy):
    logits = random_logits(taxonomy, seed=2)
    probs, decoded = probabilities(logits), decode(logits, taxonomy, "independent")
    for row in range(50):
        best = [int(p[row].argmax()) for p in probs]
        assert decoded.paths[row].tolist() == best

        everything = sorted(
            itertools.product(*(range(c) for c in taxonomy.level_classes)),
            reverse=True,
            key=lambda path: np.prod([p[row, n] for p, n in zip(probs, path)]),
        )

        assert decoded.runner_up[row].tolist() == list(everything[1])
        runner_up = np.prod([p[row, n] for p, n in zip(probs, everything[1])])
        assert decoded.runner_up_probabilities[row].item() == pytest.approx(runner_up, rel=1e-4)

        chosen = np.array([p[row, n] for p, n in zip(probs, best)])
        assert decoded.path_probabilities[row].item() == pytest.approx(chosen.prod(), rel=1e-4)
        assert decoded.prefix_probabilities[row].tolist() == pytest.approx(chosen.cumprod(), rel=1e-4)


def test_trees_are_followed(taxonomy):
    logits = random_logits(taxonomy, 500, seed=3)
    assert not in_tree(decode(logits, taxonomy, "independent").paths, taxonomy).all()
    for mode in ("best_path", "top_down"):
        decoded = decode(logits, taxonomy, mode)
        assert in_tree(decoded.paths, taxonomy).all() and in_tree(decoded.runner_up, taxonomy).all()
        assert (decoded.path_probabilities <= 1).all()


def test_levels_that_agree_decode_alike(taxonomy):
    logits = [torch.zeros(1, c) for c in taxonomy.level_classes]
    for level, node in zip(logits, (1, 2, 4)):
        level[0, node] = 50.0
    for mode in DECODERS:
        decoded = decode(logits, taxonomy, mode)
        assert decoded.paths.tolist() == [[1, 2, 4]]
        assert decoded.path_probabilities.item() == pytest.approx(1.0)


def test_shallow_leaf_has_no_advantage():
    t = Taxonomy.from_paths([("animal", "lion"), ("animal", "wolf"), ("rock",)])
    decoded = decode([torch.tensor([[1.0, 0.0]]).log_softmax(-1), torch.tensor([[0.9, 0.1]]).log()], t)
    assert decoded.paths.tolist() == [[0, 0]]  # 0.73 * 0.9 against 0.27 ** 2

    decoded = decode([torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2)], t)
    assert decoded.paths.tolist() == [[1, -1]]
    assert decoded.level_probabilities[0, 1].isnan()

    a, b = 1 / (1 + np.exp(3)), np.exp(3) / (1 + np.exp(3))
    assert decoded.path_probabilities.item() == pytest.approx(b**2 / (b**2 + a * 0.5 + a * 0.5), rel=1e-4)

    top_down = decode([torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2)], t, "top_down")
    assert top_down.paths.tolist() == [[1, -1]] and top_down.path_probabilities.item() == pytest.approx(b, rel=1e-4)


def test_top_down_keeps_to_the_shallow_leaf_it_chose():
    t = Taxonomy.from_paths([("animal", "lion"), ("rock",), ("sand",)])
    for choice in (1, 2):
        logits = [torch.nn.functional.one_hot(torch.tensor([choice]), 3) * 3.0, torch.zeros(1, 1)]
        assert decode(logits, t, "top_down").paths.tolist() == [[choice, -1]]


def test_a_tree_of_one_node_has_no_runner_up():
    t = Taxonomy(("all",), (("thing",),), ())
    for mode in DECODERS:
        decoded = decode([torch.zeros(2, 1)], t, mode)
        assert decoded.paths.tolist() == [[0], [0]] and decoded.runner_up.tolist() == [[-1], [-1]]
        assert decoded.runner_up_probabilities.tolist() == [0, 0]


def test_wrong_input_is_explained(taxonomy):
    logits = random_logits(taxonomy, 3)
    with pytest.raises(ValueError, match="unknown decoding 'beam'"):
        decode(logits, taxonomy, "beam")
    with pytest.raises(ValueError, match=r"taxonomy has \(2, 4, 6\)"):
        decode(logits[1:], taxonomy)

    logits[1][2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"rows \[2\] are not finite"):
        decode(logits, taxonomy)


@pytest.mark.parametrize("mode", ["best_path", "top_down"])
def test_nodes_sum_to_their_parent_and_to_the_path(taxonomy, mode):
    logits = random_logits(taxonomy, seed=4)
    decoded = decode(logits, taxonomy, mode, path_temperature=1.7)
    nodes = node_probabilities(logits, taxonomy, mode, path_temperature=1.7)
    assert torch.allclose(nodes[0].sum(-1), torch.ones(50), atol=1e-5)
    for level, parents in enumerate(taxonomy.parents):
        sums = torch.zeros_like(nodes[level]).index_add(1, torch.tensor(parents), nodes[level + 1])
        assert torch.allclose(sums, nodes[level], atol=1e-5)
    along = torch.stack([x.gather(1, node[:, None])[:, 0] for x, node in zip(nodes, decoded.paths.T)], -1)
    assert torch.allclose(along, decoded.prefix_probabilities, atol=1e-5)


def test_independent_gives_no_probabilities_to_paths(taxonomy):
    with pytest.raises(ValueError, match="best_path or top_down; independent gives no probabilities to paths"):
        path_probabilities(random_logits(taxonomy), taxonomy, "independent")


def test_nodes_of_independent_levels_have_the_levels_probabilities(taxonomy):
    logits = random_logits(taxonomy)
    for nodes, expected in zip(node_probabilities(logits, taxonomy, "independent"), probabilities(logits)):
        assert nodes.numpy() == pytest.approx(expected, abs=1e-5)


def test_nodes_of_a_tree_with_a_shallow_leaf_and_of_a_subtree():
    taxonomy = Taxonomy.from_paths([("a", "b", "c"), ("a", "b", "d"), ("e",), ("f", "g")])
    logits = random_logits(taxonomy, 3)
    nodes = node_probabilities(logits, taxonomy)
    assert torch.allclose(nodes[0].sum(-1), torch.ones(3)) and torch.allclose(nodes[1][:, 1], nodes[0][:, 2])
    assert torch.allclose(nodes[2].sum(-1), nodes[1][:, 0])

    inside = node_probabilities(logits, taxonomy, within=["e", "g"])
    assert torch.allclose(inside[0].sum(-1), torch.ones(3)) and (inside[0][:, 0] == 0).all()
    assert (inside[1][:, 0] == 0).all() and (inside[2] == 0).all() and [x.shape[1] for x in inside] == [3, 2, 2]

    with pytest.raises(ValueError, match="unknown decoding"):
        node_probabilities(logits, taxonomy, "greedy")


def test_nodes_and_paths_agree_by_default(taxonomy):
    logits = random_logits(taxonomy, seed=5)
    decoded, nodes = decode(logits, taxonomy), node_probabilities(logits, taxonomy)
    assert torch.allclose(nodes[-1].gather(1, decoded.paths[:, -1:])[:, 0], decoded.path_probabilities, atol=1e-6)


@pytest.mark.parametrize("mode", ["best_path", "top_down"])
def test_mode_and_temperature_hold_within_a_subtree(taxonomy, mode):
    logits, options = random_logits(taxonomy, seed=6), dict(within=["owl", "mammal"], path_temperature=3.0)
    decoded, nodes = decode(logits, taxonomy, mode, **options), node_probabilities(logits, taxonomy, mode, **options)
    kept = np.array(taxonomy.paths)[[0, 1, 3, 4, 5]]  # all but the gull
    products = np.prod([p[:, column] for p, column in zip(probabilities(logits), kept.T)], axis=0) ** (1 / 3)
    if mode == "best_path":
        expected = products / products.sum(1, keepdims=True)
        assert nodes[-1][:, kept[:, -1]].numpy() == pytest.approx(expected, abs=1e-5)

    chosen = nodes[-1].gather(1, decoded.paths[:, -1:])[:, 0]
    assert torch.allclose(chosen, decoded.path_probabilities, atol=1e-6)


def test_probabilities_are_float32_whatever_the_logits_are(taxonomy):
    logits = [x.half() for x in random_logits(taxonomy, 3)]
    for within in (None, ["owl"]):
        assert {x.dtype for x in node_probabilities(logits, taxonomy, within=within)} == {torch.float32}
        assert decode(logits, taxonomy, within=within).path_probabilities.dtype == torch.float32


@pytest.mark.parametrize("mode", ["best_path", "top_down"])
def test_rounding_lifts_no_probability_above_one(mode):
    taxonomy = Taxonomy.from_paths([("all", "few", f"leaf {i}") for i in range(50)])
    logits = random_logits(taxonomy, 200)
    assert max(x.max().item() for x in node_probabilities(logits, taxonomy, mode)) == 1
    assert decode(logits, taxonomy, mode).prefix_probabilities.max().item() == 1


@pytest.mark.parametrize("mode", DECODERS)
def test_decoding_ignores_the_default_device(taxonomy, mode):
    logits = random_logits(taxonomy)
    expected = decode(logits, taxonomy, mode)
    with torch.device("meta"):
        decoded = decode(logits, taxonomy, mode)
        nodes = node_probabilities(logits, taxonomy, mode)
    assert torch.equal(decoded.paths, expected.paths) and {x.device.type for x in nodes} == {"cpu"}


def test_nodes_of_one_level():
    taxonomy = Taxonomy(("kind",), (("a", "b", "c"),), ())
    logits = random_logits(taxonomy)
    assert node_probabilities(logits, taxonomy)[0].numpy() == pytest.approx(probabilities(logits)[0], abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_wrong_path_temperature_is_explained(taxonomy, temperature):
    with pytest.raises(ValueError, match=f"expected a positive path_temperature, got {temperature}"):
        decode(random_logits(taxonomy, 1), taxonomy, path_temperature=temperature)


def test_a_level_with_one_node_does_not_lift_shallow_paths():
    """Such a level has probability 1; if it counted in the geometric mean, it would favour the paths through it."""
    tree = Taxonomy.from_paths([("a", "only", "x"), ("a", "only", "y"), ("b",)])
    level_logits = [torch.tensor([[0.0, 0.32]]), torch.zeros(1, 1), torch.tensor([[0.1, 0.0]])]
    p = [x.softmax(-1)[0] for x in level_logits]
    through, shallow = p[0][0] * p[2][0], p[0][1] ** 2
    assert shallow**1.5 < through < shallow  # if the level counted, the other path would win
    decoded = decode(level_logits, tree)
    assert tree.path_names(decoded.paths[0].tolist()) == ("b",)
    others = p[0][0] * p[2][1]
    torch.testing.assert_close(decoded.path_probabilities[0], shallow / (through + shallow + others))
