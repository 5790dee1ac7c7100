"""Hierarchical metrics from the literature: against hiclass and networkx, by hand, and by their properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcast_zoo.evaluation.hierarchical import compare, hierarchical_metrics, node_scores, tree_curve
from hcast_zoo.taxonomy.rollup import roll_up
from hcast_zoo.taxonomy.tree import Taxonomy

UNEVEN = Taxonomy.from_paths(
    [("a", "b", "c"), ("a", "b", "d"), ("a", "e"), ("f", "g", "h"), ("f", "i", "k"), ("j",)], ("x", "y", "z")
)


@st.composite
def answers(draw):
    """Draw predicted paths that may end early, and true paths to leaves."""
    labels = draw(st.lists(st.integers(0, 5), min_size=1, max_size=30))
    size = dict(min_size=len(labels), max_size=len(labels))
    predicted, depths = draw(st.lists(st.integers(0, 5), **size)), draw(st.lists(st.integers(0, 3), **size))

    paths = torch.tensor(UNEVEN.paths)
    cut = torch.arange(3) >= torch.tensor(depths)[:, None]
    return paths[predicted].masked_fill(cut, -1), paths[labels]


def nodes(path):
    return [(level, index) for level, index in enumerate(path.tolist()) if index != -1]


@settings(max_examples=30, deadline=None)
@given(answers())
def test_distances_match_networkx(drawn):
    """Edges between nodes, heights and common ancestors."""
    networkx = pytest.importorskip("networkx")
    graph = networkx.DiGraph()
    for path in torch.tensor(UNEVEN.paths):
        networkx.add_path(graph, ["root", *nodes(path)])

    below = {node: {node} | networkx.descendants(graph, node) for node in graph}
    ancestor = dict(networkx.all_pairs_lowest_common_ancestor(graph))
    height = {node: networkx.dag_longest_path_length(graph.subgraph(below[node])) for node in graph}
    leaves = {node: sum(graph.out_degree(other) == 0 for other in below[node]) for node in graph}

    predictions, labels = drawn
    predictions = predictions.masked_fill(labels == -1, -1)
    hops, heights, lost = [], [], []
    for p, y in zip(predictions, labels):
        ends = [(["root", *nodes(path)])[-1] for path in (p, y)]
        both = ancestor.get(tuple(ends), ancestor.get(tuple(ends[::-1])))
        hops.append(networkx.shortest_path_length(graph.to_undirected(), *ends))
        heights.append(0 if ends[0] == ends[1] else height[both])
        lost.append(math.log2(leaves[both]) - math.log2(leaves[ends[1]]))

    values = hierarchical_metrics(predictions, labels, UNEVEN, samples=0)
    assert values["hops"].value == pytest.approx(np.mean(hops))
    assert values["hierarchical_distance"].value == pytest.approx(np.mean(heights))
    assert values["lca_error"].value == pytest.approx(np.mean(lost))
    mistakes = [h for h, n in zip(heights, hops) if n]
    assert values["mistake_severity"].value == pytest.approx(np.mean(mistakes) if mistakes else 0)


@settings(max_examples=30, deadline=None)
@given(answers())
def test_precision_recall_and_f1_match_hiclass(drawn):
    hiclass = pytest.importorskip("hiclass.metrics", reason="needs hiclass: pip install 'hcast-zoo[test]'")
    predictions, labels = drawn
    predictions = predictions.masked_fill(labels == -1, -1)
    predictions[0] = labels[0]  # at least one answer

    def names(paths):
        return np.array([[UNEVEN.names[i][n] if n != -1 else "" for i, n in enumerate(row)] for row in paths.tolist()])

    values = hierarchical_metrics(predictions, labels, UNEVEN, samples=0)
    for name in ("precision", "recall", "f1"):
        expected = getattr(hiclass, name)(names(labels), names(predictions), average="micro")
        assert values[f"hierarchical_{name}"].value == pytest.approx(100 * expected)


@settings(max_examples=30, deadline=None)
@given(answers())
def test_metrics_keep_their_bounds_and_ignore_the_order(drawn):
    predictions, labels = drawn
    values = {k: v.value for k, v in hierarchical_metrics(predictions, labels, UNEVEN, samples=0).items()}
    assert 0 <= values["hierarchical_distance"] <= values["mistake_severity"] <= 3
    for name in ("hierarchical_precision", "hierarchical_recall", "balanced_accuracy"):
        assert 0 <= values[name] <= 100
    low, high = sorted((values["hierarchical_precision"], values["hierarchical_recall"]))
    assert low - 1e-9 <= values["hierarchical_f1"] <= high + 1e-9

    perfect = hierarchical_metrics(labels, labels, UNEVEN, samples=0)
    for name in ("hierarchical_distance", "mistake_severity", "hops", "lca_error"):
        assert perfect[name].value == 0
    assert perfect["hierarchical_f1"].value == pytest.approx(100) == perfect["balanced_accuracy"].value

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = hierarchical_metrics(predictions[order], labels[order], UNEVEN, samples=0)
    assert {k: v.value for k, v in shuffled.items()} == pytest.approx(values)

    shorter = predictions.clone()
    shorter[:, -1] = -1
    cut, whole = compare(shorter, labels, UNEVEN), compare(predictions, labels, UNEVEN)
    assert (cut.wrong <= whole.wrong).all() and (cut.information <= whole.information + 1e-9).all()


def test_intervals_have_the_theoretical_width_and_weights_count():
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor(UNEVEN.paths)[torch.randint(6, (400,), generator=rng)]
    predictions = labels.clone()
    wrong = torch.rand(400, generator=rng) < 0.3
    predictions[wrong] = torch.tensor(UNEVEN.paths)[5]

    weights = np.where(wrong.numpy(), 0.0, 1.0)
    values = hierarchical_metrics(predictions, labels, UNEVEN, torch.rand(400, generator=rng), weights)

    mistakes = (predictions != labels).any(1).float()
    distance = values["hierarchical_distance"]
    error = float((3 * mistakes).std() / 20)  # of a mean of 400
    assert distance.high - distance.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert distance.low < distance.value < distance.high

    assert values["weighted_accuracy"].value == 100


def test_aurc_matches_a_calculation_by_hand():
    labels = torch.tensor([[0], [0], [0], [0]])
    predictions = torch.tensor([[0], [1], [0], [1]])
    tree = Taxonomy.from_paths([("a",), ("b",)])
    values = hierarchical_metrics(predictions, labels, tree, torch.tensor([0.9, 0.8, 0.7, 0.6]), samples=0)
    assert values["aurc"].value == pytest.approx(100 * (0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_risk_and_coverage_fall_along_the_tree():
    labels = torch.tensor([[0, 0, 0], [0, 0, 0]])
    paths = torch.tensor([[0, 0, 0], [0, 0, 1]])
    trust = torch.tensor([[0.9, 0.8, 0.7], [0.9, 0.8, 0.3]])
    curve = tree_curve(trust, paths, labels, UNEVEN, steps=10)

    assert (curve[0].coverage, curve[0].risk) == (1, 0.5)
    assert (curve[-1].coverage, curve[-1].risk) == (0, 0)
    assert [p.risk for p in curve] == sorted((p.risk for p in curve), reverse=True)
    middle = curve[5]  # one answer is a leaf, the other is node b, with two of the six leaves
    assert middle.risk == 0 and middle.coverage == pytest.approx((1 + 1 - 1 / math.log2(6)) / 2)


def test_node_scores_name_the_node_that_is_confused():
    labels = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 1], [2, -1, -1]])
    predictions = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 1], [0, -1, -1]])
    rows = {(row.level, row.name): row for row in node_scores(predictions, labels, UNEVEN)}
    c, d, a, j = rows["z", "c"], rows["z", "d"], rows["x", "a"], rows["x", "j"]

    assert (c.pictures, c.recall, c.precision, c.confused_with, c.confused) == (2, 50, 100, "d", 1)
    assert (d.recall, d.precision, d.confused_with) == (100, 50, None)
    assert (a.recall, a.precision) == (100, 75) and j.confused_with == "a"
    assert ("x", "f") not in rows


def test_probabilities_are_rolled_up_and_checked():
    rng = torch.Generator().manual_seed(0)
    leaves = torch.rand(8, 6, generator=rng)
    levels = roll_up(leaves, UNEVEN)
    assert levels[0].sum(1) == pytest.approx(np.ones(8), abs=1e-6)

    paths = torch.tensor(UNEVEN.paths)
    for depth, level in enumerate(levels):
        for node in range(level.shape[1]):
            expected = leaves[:, paths[:, depth] == node].sum(1) / leaves.sum(1)
            torch.testing.assert_close(level[:, node], expected)

    for bad in (leaves[:, :5], leaves * 0, -leaves, leaves * math.nan):
        with pytest.raises(ValueError, match="expected probabilities"):
            roll_up(bad, UNEVEN)
