"""Taxonomies: building, reading, writing, and looking nodes up."""

import json

import pytest

from hcast_zoo.taxonomy.sources import TaxonomyError, read_table
from hcast_zoo.taxonomy.tree import Taxonomy
from tests.conftest import FIXTURES


def test_from_paths_lists_nodes_in_order_of_appearance(taxonomy):
    assert taxonomy.names == (
        ("bird", "mammal"),
        ("owl", "gull", "cat", "dog"),
        ("barn owl", "snowy owl", "herring gull", "lion", "tiger", "wolf"),
    )
    assert taxonomy.parents == ((0, 0, 1, 1), (0, 0, 1, 2, 2, 3))
    assert taxonomy.level_classes == (2, 4, 6)
    assert taxonomy.paths[4] == (1, 2, 4)
    assert taxonomy.path_names((1, 2, 4)) == ("mammal", "cat", "tiger")


def test_a_taxonomy_survives_json(taxonomy, tmp_path):
    taxonomy.save(tmp_path / "t.json")
    assert Taxonomy.load(tmp_path / "t.json") == taxonomy
    assert Taxonomy.from_dict(json.loads(json.dumps(taxonomy.to_dict()))) == taxonomy


def test_paths_may_end_early():
    t = Taxonomy.from_paths([("animal", "cat", "lion"), ("rock",), ("plant", "moss")])
    assert t.levels == ("level_1", "level_2", "level_3")
    assert t.paths == ((0, 0, 0), (2, 1, -1), (1, -1, -1))
    assert t.path_names((1, -1, -1)) == ("rock",)


def test_defaults_and_errors_that_name_the_level():
    assert Taxonomy(("only",), (("a",),), ()).name == ""
    with pytest.raises(TaxonomyError, match="level 'fine': expected a parent for each of 2 nodes, got 1"):
        Taxonomy(("coarse", "middle", "fine"), (("a",), ("b",), ("c", "d")), ((0,), (0,)))
    with pytest.raises(TaxonomyError, match="node 'x' of level 'species' has two parents"):
        Taxonomy.from_paths([("a", "x"), ("b", "x")], ("order", "species"), strict_names=True)


def test_the_cub_tree_has_the_papers_counts():
    tree = json.loads((FIXTURES / "cub_tree.json").read_text())
    t = Taxonomy.from_paths([[str(node) for node in path] for path in tree["paths"]], tree["levels"])
    assert t.level_classes == (13, 38, 200)
    assert len(t.paths) == 200


def test_from_csv_accepts_any_order_and_empty_cells(tmp_path):
    file = tmp_path / "birds.csv"
    file.write_text("species,order,family\nlark,passerine,larks\n,ratite,emus\n,monotreme,\n", encoding="utf-8-sig")
    t = Taxonomy.from_csv(file, ["order", "family", "species"])
    assert t.level_classes == (3, 2, 1) and t.name == "birds"

    with pytest.raises(TaxonomyError, match="expected columns"):
        Taxonomy.from_csv(file, ["order", "genus"])

    file.write_text("order,family,species\nratite,,emu\n")
    assert Taxonomy.from_csv(file).names == (("ratite",), ("ratite incertae sedis",), ("emu",))

    file.write_text("order,family,species\nratite,,emu\nratite,emus,emu\n")
    assert Taxonomy.from_csv(file).names == (("ratite",), ("emus",), ("emu",))

    file.write_text("order,family,species\n,,\n")
    with pytest.raises(TaxonomyError, match="line 2: expected a name"):
        Taxonomy.from_csv(file)


def test_from_folder_makes_a_level_of_each_depth(tmp_path):
    for folder in ("a/x", "a/y", "b/z/deep", ".hidden/w"):
        (tmp_path / folder).mkdir(parents=True)
    t = Taxonomy.from_folder(tmp_path)
    assert t.names == (("a", "b"), ("x", "y", "z"), ("deep",))

    (tmp_path / "empty").mkdir()
    with pytest.raises(TaxonomyError, match="no sub-folder"):
        Taxonomy.from_folder(tmp_path / "empty")
    with pytest.raises(TaxonomyError, match="expected a folder"):
        Taxonomy.from_folder(tmp_path / "missing")


@pytest.mark.parametrize(
    "levels, names, parents, message",
    [
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
    ],
)
def test_invalid_trees_are_explained(levels, names, parents, message):
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy(levels, names, parents)


@pytest.mark.parametrize(
    "paths, message",
    [
        ([("a", "x"), ("b", "x")], "node 'x' of level 'level_2' has two parents, 'a' and 'b'"),
        ([()], "empty path"),
        ([], "at least one level"),
        ([("a", "")], "expected a name"),
        ([("a", 3)], "expected a name, got 3"),
    ],
)
def test_wrong_paths_are_explained(paths, message):
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_paths(paths, strict_names=True)


def test_wrong_files_are_explained(tmp_path):
    file = tmp_path / "t.json"
    for text, message in (
        ("{", "expected JSON"),
        ("[]", "JSON object"),
        ('{"levels": []}', "lacks names, parents"),
        ('{"levels": [], "names": [], "parents": [], "x": 1}', "unknown taxonomy keys: x"),
    ):
        file.write_text(text)
        with pytest.raises(TaxonomyError, match=message):
            Taxonomy.load(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaxonomyError, match="expected JSON"):
        Taxonomy.load(file)
    with pytest.raises(TaxonomyError, match="longer than the 1 levels"):
        Taxonomy.from_paths([("a", "b")], ["only"])


def test_labels_are_looked_up_and_completed(taxonomy):
    assert taxonomy.labels(("mammal", "cat", "tiger")) == (1, 2, 4)
    assert taxonomy.labels((None, "", "tiger")) == (1, 2, 4)  # ancestors are filled in
    assert taxonomy.labels(("mammal", "cat")) == (1, 2, -1)
    assert taxonomy.labels((1, 2, 4)) == (1, 2, 4)
    assert taxonomy.labels((1, -1, -1)) == (1, -1, -1)
    assert taxonomy.labels((0, 0, 0)) == (0, 0, 0)
    assert taxonomy.labels(()) == (-1, -1, -1)

    for path, message in (
        (("mammal", "cat", "tigre"), "no node 'tigre' at level 'species': did you mean 'tiger'"),
        (("bird", "cat", "tiger"), "'tiger' of level 'species' belongs to 'mammal', not to 'bird'"),
        ((1, 2, 6), "label 6 is out of range at level 'species': expected 0 to 5"),
        (("a",) * 4, "longer than the 3 levels"),
        ((0.5,), "expected a name or a label at level 'class', got 0.5"),
        ("bird", "expected a path as a list of names, coarse to fine, got 'bird'"),
    ):
        with pytest.raises(TaxonomyError, match=message):
            taxonomy.labels(path)


def test_find_returns_level_and_index_or_suggests(taxonomy):
    assert taxonomy.find("bird") == (0, 0) and taxonomy.find("gull") == (1, 1) and taxonomy.find("wolf") == (2, 5)
    assert taxonomy.find("species:wolf") == (2, 5)

    for wrong, hint in (
        ("Wolff", "did you mean 'wolf'"),
        ("herrings", "did you mean 'herring gull'"),
        ("species:wolff", "'wolff' at level 'species': did you mean"),
        ("genus:wolf", "no node 'genus:wolf'"),
        ("", "no node ''"),
        ("species:", "no node 'species:'"),
    ):
        with pytest.raises(TaxonomyError, match=hint):
            taxonomy.find(wrong)


def test_a_name_on_several_levels_needs_its_level():
    t = Taxonomy.from_paths([("orange", "orange"), ("red", "cherry"), ("red", "a:b")], ("colour", "fruit"))
    assert t.find("colour:orange") == (0, 0) and t.find("fruit:orange") == (1, 0) and t.find("a:b") == (1, 2)
    assert t.find("fruit:a:b") == (1, 2)
    with pytest.raises(TaxonomyError, match="write 'colour:orange' or 'fruit:orange'"):
        t.find("orange")


def flat(*names):
    """Return a taxonomy of one level."""
    return Taxonomy(("kind",), (names,), ())


def suggestion(taxonomy, node):
    """Return what an error suggests for a node that does not exist."""
    with pytest.raises(TaxonomyError) as error:
        taxonomy.find(node)
    return str(error.value).partition("did you mean ")[2].rstrip("?")


def test_at_most_three_near_names_are_suggested():
    t = flat("wolfa", "wolfb", "wolfc", "wolfd")
    assert suggestion(t, "wolf").count(" or ") == suggestion(t, "kind:wolf").count(" or ") == 2
    for node in ("zzz", "kind:zzz"):
        with pytest.raises(TaxonomyError, match=r"(in the taxonomy|at level 'kind')$"):
            t.find(node)


def test_suggestions_come_from_the_six_nearest_words():
    words = [f"wolf{c}" for c in "abcde"]
    assert suggestion(flat(" ".join(words), "wolfxy", "wolfxyz"), "wolf") == f"{' '.join(words)!r} or 'wolfxy'"


def test_in_a_large_tree_only_names_that_begin_alike_are_compared(monkeypatch):
    monkeypatch.setattr("hcast_zoo.taxonomy.lookup.MAX_COMPARED", 3)
    assert suggestion(flat("wolf", "lion", "bear"), "xolf") == "'wolf'"
    t = flat("Timberwolf", "lion", "bear", "mouse")
    assert (
        suggestion(t, "timberwolv") == suggestion(t, "timxerwolf") == "'Timberwolf'"
        and suggestion(t, "ximberwolf") == ""
    )
    assert suggestion(flat("wolfa", "wolfb", "wolfc", "wolfd"), "wolf") == ""  # still too many


def test_on_a_large_level_some_names_that_begin_alike_are_compared(monkeypatch):
    monkeypatch.setattr("hcast_zoo.taxonomy.lookup.MAX_COMPARED", 2)
    assert suggestion(flat("wolf", "lion", "bear", "mouse"), "kind:xolf") == "'wolf'"
    t = flat("wolf", "lion", "bear", "mouse", "louse")
    assert suggestion(t, "kind:xolf") == "" and suggestion(t, "kind:wolfe") == "'wolf'"
    assert set(suggestion(flat("lion", "bear", "wolfa", "wolfb", "wolfc"), "kind:wolf").split(" or ")) == {
        "'wolfa'",
        "'wolfb'",
    }


def test_a_very_long_name_gets_no_suggestion(monkeypatch):
    t = flat("lynx")
    monkeypatch.setattr("hcast_zoo.taxonomy.lookup.MAX_NAME", 4)
    assert suggestion(t, "lynz") == "'lynx'" and suggestion(t, "lynxz") == ""


def test_limits_are_inclusive(tmp_path):
    assert len(Taxonomy.from_paths([["a"] * 100]).levels) == 100
    with pytest.raises(TaxonomyError, match="longer than the 100 levels"):
        Taxonomy.from_paths([["a"] * 101])
    with pytest.raises(TaxonomyError, match="expected at least one level and at most 100, got 101"):
        Taxonomy([str(i) for i in range(101)], [["a"]] * 101, [[0]] * 100)

    assert flat("a" * 1000).level_classes == (1,)
    with pytest.raises(TaxonomyError, match="got 1001 characters"):
        flat("a" * 1001)

    tmp_path.joinpath(*["a"] * 100).mkdir(parents=True)
    assert len(Taxonomy.from_folder(tmp_path).levels) == 100
    tmp_path.joinpath(*["a"] * 101).mkdir()
    with pytest.raises(TaxonomyError, match="expected at most 100 levels of folders"):
        Taxonomy.from_folder(tmp_path)


def test_names_must_be_valid_text():
    with pytest.raises(TaxonomyError, match=r"node 0 of level 'kind': expected a name, .* half of a surrogate pair"):
        flat("\ud83d")
    assert flat("épinette").find("épinette") == (0, 0)
    with pytest.raises(TaxonomyError, match="expected a name of the taxonomy, got None"):
        Taxonomy(("kind",), (("a",),), (), None)


def test_saved_json_is_indented_and_readable(tmp_path):
    flat("épinette").save(tmp_path / "t.json")
    assert (
        (tmp_path / "t.json").read_text("utf-8")
        == """{
 "name": "",
 "levels": [
  "kind"
 ],
 "names": [
  [
   "épinette"
  ]
 ],
 "parents": []
}
"""
    )
    assert Taxonomy.load(tmp_path / "t.json") == flat("épinette")


def test_load_recognises_tables_folders_and_json(taxonomy, tmp_path):
    paths = [taxonomy.path_names(path) for path in taxonomy.paths]
    for name in ("animals.csv", "animals.CSV"):
        (tmp_path / name).write_text("\n".join(map(",".join, [taxonomy.levels, *paths])))
        assert Taxonomy.load(tmp_path / name) == taxonomy

    for path in paths:
        tmp_path.joinpath("animals", *path).mkdir(parents=True)
    loaded = Taxonomy.load(tmp_path / "animals")
    assert loaded.name == "animals" and sorted(loaded.names[2]) == sorted(taxonomy.names[2])
    assert Taxonomy.from_folder(tmp_path / "animals", taxonomy.levels).levels == taxonomy.levels


def test_quoted_cells_are_read_and_bad_tables_are_explained(tmp_path):
    file = tmp_path / "t.csv"
    file.write_bytes(b'a,b,c\r\n"x\r\ny",z\r\n\r\nu,v,w\r\n')
    header, rows = read_table(file)
    assert header == ["a", "b", "c"]
    assert [row for _, row in rows] == [{"a": "x\r\ny", "b": "z", "c": ""}, {"a": "u", "b": "v", "c": "w"}]

    for data, message in (
        (b"a,b,a\n", "column 'a' occurs twice"),
        (b"", r"expected columns \[\], got \[\]"),
        (b"a,b\nx,y\nx,y,z\n", "line 3: expected 2 cells, got 3: put quotes"),
        (b"a,b\nx,\xff\n", "after line [01]: expected CSV in UTF-8"),
    ):
        file.write_bytes(data)
        with pytest.raises(TaxonomyError, match=message):
            Taxonomy.from_csv(file)


def test_links_to_folders_are_followed_once(tmp_path):
    tmp_path.joinpath("elsewhere", "wolf").mkdir(parents=True)
    tmp_path.joinpath("tree", "cat", "lion").mkdir(parents=True)
    (tmp_path / "tree" / "dog").symlink_to(tmp_path / "elsewhere")
    assert Taxonomy.from_folder(tmp_path / "tree").names == (("cat", "dog"), ("lion", "wolf"))
    (tmp_path / "tree" / "cat" / "circle").symlink_to(tmp_path / "tree")
    with pytest.raises(TaxonomyError, match=r"is the same folder as .*: expected a tree"):
        Taxonomy.from_folder(tmp_path / "tree")
