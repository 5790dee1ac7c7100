import json

import pytest

from hcast_zoo.taxonomy import Taxonomy, TaxonomyError

from .conftest import FIXTURES


def test_from_paths(taxonomy):
    assert taxonomy.names == (("bird", "mammal"), ("owl", "gull", "cat", "dog"),
                              ("barn owl", "snowy owl", "herring gull", "lion", "tiger", "wolf"))
    assert taxonomy.parents == ((0, 0, 1, 1), (0, 0, 1, 2, 2, 3))
    assert taxonomy.level_classes == (2, 4, 6)
    assert taxonomy.paths[4] == (1, 2, 4)
    assert taxonomy.path_names((1, 2, 4)) == ("mammal", "cat", "tiger")


def test_json_round_trip(taxonomy, tmp_path):
    taxonomy.save(tmp_path / "t.json")
    assert Taxonomy.load(tmp_path / "t.json") == taxonomy
    assert Taxonomy.from_dict(json.loads(json.dumps(taxonomy.to_dict()))) == taxonomy


def test_shallow_leaves():
    t = Taxonomy.from_paths([("animal", "cat", "lion"), ("rock",), ("plant", "moss")])
    assert t.levels == ("level_1", "level_2", "level_3")
    assert t.paths == ((0, 0, 0), (2, 1, -1), (1, -1, -1))
    assert t.path_names((1, -1, -1)) == ("rock",)


def test_defaults_and_names_of_levels():
    assert Taxonomy(("only",), (("a",),), ()).name == ""
    with pytest.raises(TaxonomyError, match="level 'fine': expected a parent for each of 2 nodes, got 1"):
        Taxonomy(("coarse", "middle", "fine"), (("a",), ("b",), ("c", "d")), ((0,), (0,)))
    with pytest.raises(TaxonomyError, match="node 'x' of level 'species' has two parents"):
        Taxonomy.from_paths([("a", "x"), ("b", "x")], ("order", "species"))


def test_cub_tree():
    tree = json.loads((FIXTURES / "cub_tree.json").read_text())
    t = Taxonomy.from_paths([[str(node) for node in path] for path in tree["paths"]], tree["levels"])
    assert t.level_classes == (13, 38, 200)
    assert len(t.paths) == 200


def test_from_csv(tmp_path):
    file = tmp_path / "birds.csv"
    file.write_text("species,order,family\nlark,passerine,larks\n,ratite,emus\n,monotreme,\n", encoding="utf-8-sig")
    t = Taxonomy.from_csv(file, ["order", "family", "species"])
    assert t.level_classes == (3, 2, 1) and t.name == "birds"
    with pytest.raises(TaxonomyError, match="expected columns"):
        Taxonomy.from_csv(file, ["order", "genus"])
    file.write_text("order,family,species\nratite,,emu\n")
    with pytest.raises(TaxonomyError, match="line 2: expected names without a gap"):
        Taxonomy.from_csv(file)


def test_from_folder(tmp_path):
    for folder in ("a/x", "a/y", "b/z/deep", ".hidden/w"):
        (tmp_path / folder).mkdir(parents=True)
    t = Taxonomy.from_folder(tmp_path)
    assert t.names == (("a", "b"), ("x", "y", "z"), ("deep",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaxonomyError, match="no sub-folder"):
        Taxonomy.from_folder(tmp_path / "empty")
    with pytest.raises(TaxonomyError, match="expected a folder"):
        Taxonomy.from_folder(tmp_path / "missing")


@pytest.mark.parametrize("levels, names, parents, message", [
    ((), (), (), "at least one level"),
    (("a",), (("x",), ("y",)), (), "expected names for 1 levels"),
    (("a", "a"), (("x",), ("y",)), ((0,),), "level name 'a' occurs twice"),
    (("a", ""), (("x",), ("y",)), ((0,),), "non-empty"),
    (("a", "b"), (("x",), ()), ((),), "level 'b' has no node"),
    (("a", "b"), (("x",), ("y", "y")), ((0, 0),), "node 'y' occurs twice at level 'b'"),
    (("a", "b"), (("x",), ("y", " ")), ((0, 0),), "node 1 of level 'b'"),
    (("a", "b"), (("x",), ("y", "z")), ((0,),), "parent for each of 2 nodes"),
    (("a", "b"), (("x",), ("y", "z")), ((0, 1),), "node 'z' of level 'b': expected a parent from 0 to 0, got 1"),
    (("a", "b"), (("x",), ("y", "z")), ((0, None),), "node 'z'"),
    (("a", "b"), (("x",), ("y", "z")), ((0, -1),), "node 'z'"),
    (("a",), 3, (), "expected lists"),
])
def test_no_tree_is_explained(levels, names, parents, message):
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy(levels, names, parents)


@pytest.mark.parametrize("paths, message", [
    ([("a", "x"), ("b", "x")], "node 'x' of level 'level_2' has two parents, 'a' and 'b'"),
    ([()], "empty path"),
    ([], "at least one level"),
    ([("a", "")], "expected a name"),
])
def test_wrong_paths_are_explained(paths, message):
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_paths(paths)


def test_wrong_files_are_explained(tmp_path):
    file = tmp_path / "t.json"
    for text, message in (("{", "expected JSON"), ("[]", "JSON object"), ('{"levels": []}', "lacks names, parents"),
                          ('{"levels": [], "names": [], "parents": [], "x": 1}', "unknown taxonomy keys: x")):
        file.write_text(text)
        with pytest.raises(TaxonomyError, match=message):
            Taxonomy.load(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaxonomyError, match="expected JSON"):
        Taxonomy.load(file)
    with pytest.raises(TaxonomyError, match="longer than the 1 levels"):
        Taxonomy.from_paths([("a", "b")], ["only"])


def test_labels(taxonomy):
    assert taxonomy.labels(("mammal", "cat", "tiger")) == (1, 2, 4)
    assert taxonomy.labels((None, "", "tiger")) == (1, 2, 4)  # ancestors are filled in
    assert taxonomy.labels(("mammal", "cat")) == (1, 2, -1)
    assert taxonomy.labels((1, 2, 4)) == (1, 2, 4)
    assert taxonomy.labels((1, -1, -1)) == (1, -1, -1)
    assert taxonomy.labels(()) == (-1, -1, -1)
    for path, message in (
        (("mammal", "cat", "tigre"), "no node 'tigre' at level 'species': did you mean 'tiger'"),
        (("bird", "cat", "tiger"), "'tiger' of level 'species' belongs to 'mammal', not to 'bird'"),
        ((1, 2, 6), "label 6 is out of range at level 'species': expected 0 to 5"),
        (("a",) * 4, "longer than the 3 levels"),
    ):
        with pytest.raises(TaxonomyError, match=message):
            taxonomy.labels(path)


def test_find(taxonomy):
    assert taxonomy.find("bird") == (0, 0) and taxonomy.find("gull") == (1, 1) and taxonomy.find("wolf") == (2, 5)
    assert taxonomy.find("species:wolf") == (2, 5)
    for wrong, hint in (("Wolff", "did you mean 'wolf'"), ("herrings", "did you mean 'herring gull'"),
                        ("species:wolff", "'wolff' at level 'species': did you mean"),
                        ("genus:wolf", "no node 'genus:wolf'"), ("", "no node ''"), ("species:", "no node 'species:'")):
        with pytest.raises(TaxonomyError, match=hint):
            taxonomy.find(wrong)


def test_find_a_name_of_several_levels():
    t = Taxonomy.from_paths([("orange", "orange"), ("red", "cherry"), ("red", "a:b")], ("colour", "fruit"))
    assert t.find("colour:orange") == (0, 0) and t.find("fruit:orange") == (1, 0) and t.find("a:b") == (1, 2)
    with pytest.raises(TaxonomyError, match="write 'colour:orange' or 'fruit:orange'"):
        t.find("orange")
