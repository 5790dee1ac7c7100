"""The trees of the paper's data sets, against their files and the counts in the paper."""

import json
from collections import Counter, defaultdict

import pytest

from hcast_zoo.paper.trees import (
    TREES,
    is_numbered,
    leaf_ids,
    load_tree,
    only_children,
    same_tree,
    shallow_leaves,
    tree_names,
    with_names,
)
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.tree import Taxonomy

# Levels, and how many nodes of every level but the finest have one child.
EXPECTED = {
    "cub": ((13, 38, 200), (8, 12)),
    "aircraft": ((30, 70, 100), (14, 54)),
    "living17": ((17, 34), (0,)),
    "nonliving26": ((26, 52), (0,)),
    "entity13": ((13, 130), (0,)),
    "entity30": ((30, 120), (0,)),
    "imagenet": ((18, 117, 1000), (1, 1)),
    "inat21_mini": ((273, 1103, 10000), (135, 423)),
}


def test_all_trees_are_tested():
    assert tree_names() == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_tree_has_the_paths_of_its_file(name):
    """And the paper's levels, and its number of nodes with one child."""
    levels, single = EXPECTED[name]

    tree = load_tree(name)
    assert tree.level_classes == levels

    paths = json.loads((TREES / f"{name}.json").read_text())["paths"]
    assert [list(path) for path in tree.paths] == sorted(paths, key=lambda path: path[-1])
    assert shallow_leaves(tree) == []

    children = defaultdict(set)
    for path in paths:
        for depth, node in enumerate(path[:-1]):
            children[depth, node].add(path[depth + 1])
    expected = Counter(depth for (depth, _), nodes in children.items() if len(nodes) == 1)
    single_nodes = {level: len(nodes) for level, nodes in only_children(tree).items()}
    assert tuple(single_nodes.values()) == tuple(expected[depth] for depth in range(len(levels) - 1)) == single


def test_numbered_levels_can_be_named():
    cub = load_tree("cub")
    assert cub.path_names(cub.paths[0]) == ("order 11", "family 34", "Black_footed_Albatross")
    assert [is_numbered(cub, level) for level in range(3)] == [True, True, False]

    named = with_names(cub, [[f"O{i}" for i in range(13)], None, None])
    assert named.path_names(named.paths[0]) == ("O11", "family 34", "Black_footed_Albatross")

    assert leaf_ids("living17")[0] == "n01631663"
    for name in ("cub", "no"):
        with pytest.raises(TaxonomyError, match=f"'{name}' has no identifiers for its leaves"):
            leaf_ids(name)
    with pytest.raises(TaxonomyError, match="no tree 'no': expected one of aircraft, cub"):
        load_tree("no")


def test_imagenets_nodes_have_common_names():
    """In ImageNet's order, with the licence of WordNet."""
    tree = load_tree("imagenet")
    assert tree.path_names(tree.paths[340]) == ("mammal", "hoofed animal", "zebra")
    assert tree.path_names(tree.paths[281])[-2:] == ("cat", "tabby")
    assert tree.path_names(tree.paths[889]) == ("musical instrument", "string instrument", "violin")
    cranes = [tree.path_names(tree.paths[leaf]) for leaf in (134, 517)]
    assert [path[0] for path in cranes] == ["bird", "electronics or instrument"]
    assert leaf_ids("imagenet")[340] == "n02391049"
    assert "Princeton" in json.loads((TREES / "imagenet.json").read_text())["license"]


def test_cubs_tree_has_a_gull_among_the_kingfishers():
    """It has a family of its own; `data info cub` reports it."""
    cub = load_tree("cub")
    names = ("Red_legged_Kittiwake", "Belted_Kingfisher", "California_Gull")
    gull, kingfisher, other = (cub.paths[cub.names[2].index(name)] for name in names)
    assert gull[0] == kingfisher[0] == 4 != other[0] and gull[1] != kingfisher[1]
    assert cub.names[1][gull[1]] in only_children(cub)["family"]


def test_trees_are_the_same_if_only_numbers_differ_from_names(taxonomy):
    numbers = [[f"{level} {i}" for i in range(n)] for level, n in zip(taxonomy.levels, taxonomy.level_classes)]
    numbered = Taxonomy(taxonomy.levels, numbers, taxonomy.parents)
    assert same_tree(taxonomy, numbered) and same_tree(numbered, taxonomy)
    swapped = with_names(taxonomy, [None, None, taxonomy.names[2][::-1]])
    assert not same_tree(taxonomy, swapped)

    moved = Taxonomy(taxonomy.levels, taxonomy.names, [taxonomy.parents[0], (0, 1, 1, 2, 2, 3)])
    assert not same_tree(taxonomy, moved)
    assert not same_tree(taxonomy, load_tree("cub"))


def test_a_node_with_two_parents_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hcast_zoo.paper.trees.TREES", tmp_path)
    broken = {"dataset": "Broken", "levels": ["a", "b"], "names": {}, "paths": [[0, 0], [1, 0]]}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(TaxonomyError, match="node 0 of level 'b' has two parents"):
        load_tree("broken")
