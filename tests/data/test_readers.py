"""Readers of tables, folders and parquet shards, in the many forms that they have."""

import json
import unicodedata

import pytest
from PIL import Image

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.listing import find_split
from hcast_zoo.data.readers import read_listing, read_synonyms
from hcast_zoo.taxonomy.columns import find_columns
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.tree import Taxonomy

BIRDS = Taxonomy.from_paths(
    [
        ("Strigiformes", "Tyto", "Tyto alba"),
        ("Charadriiformes", "Larus", "Larus fuscus"),
        ("Charadriiformes", "Larus", "Larus canus"),
    ],
    ("order", "genus", "species"),
)
PATHS = (("Strigiformes", "Tytonidae", "Tyto alba"), ("Charadriiformes", "Laridae", "Larus fuscus"))


def table(delimiter, end="\n", header=("file", "order", "family", "species")):
    rows = [header, ("1.jpg", *PATHS[0]), ("2.jpg", *PATHS[1])]
    return end.join(delimiter.join(row) for row in rows) + end


@pytest.mark.parametrize(
    "name, data",
    [
        ("t.csv", table(";").encode()),
        ("t.csv", table("\t").encode()),
        ("t.tsv", table("\t").encode()),
        ("t.txt", table("|").encode()),
        ("t.csv", table(",", "\r\n").encode("utf-8-sig")),
        ("t.csv", table("\t", "\r\n").encode("utf-16")),
        ("t.csv", table(",", header=(" file", "order ", " family", "species,")).encode()),
        ("t.csv", table(",", ",,\n").encode()),
        ("t.csv", table(";").replace("Tytonidae", '"Tyton;idae"').replace("Tyton;", "Tyton").encode()),
    ],
    ids=["semicolon", "tab", "tsv", "pipe", "crlf-bom", "utf16", "spaced-header", "empty-columns", "quoted"],
)
def test_tables_of_every_kind_are_read_alike(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    listing = read_listing(tmp_path / name)
    assert listing.levels == ("order", "family", "species")
    assert listing.paths == [list(path) for path in PATHS]
    assert [p.name for p in listing.pictures] == ["1.jpg", "2.jpg"]


def test_an_identifier_column_is_not_a_level(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("file,order,species,observation_id\n1.jpg,owls,Tyto alba,101\n2.jpg,gulls,Larus,102\n")
    with pytest.warns(UserWarning, match="levels are order, species; not used: observation_id"):
        assert HierarchicalDataset.load(file).taxonomy.names == (("owls", "gulls"), ("Tyto alba", "Larus"))

    data = HierarchicalDataset.load(file, levels=["order"])
    assert data.taxonomy.levels == ("order",) and data.taxonomy.names == (("owls", "gulls"),)
    with pytest.raises(ValueError, match="no column genus; it has"):
        HierarchicalDataset.load(file, levels=["order", "genus"])

    file.write_text("file,species,group\n1.jpg,Tyto alba,owls\n")
    assert HierarchicalDataset.load(file, levels=["group", "species"]).taxonomy.names == (("owls",), ("Tyto alba",))


def test_columns_of_darwin_core_and_inaturalist_are_found():
    gbif = (
        "gbifID kingdom phylum class order family genus species scientificName taxonRank decimalLatitude file".split()
    )
    columns = find_columns(gbif)
    assert list(columns.levels) == ["kingdom", "phylum", "class", "order", "family", "genus", "species"]
    assert columns.picture == "file" and "decimalLatitude" in columns.unused

    core = find_columns(["scientificName", "genus", "family", "file"])
    cells = {"scientificName": "Larus canus Linnaeus, 1758", "genus": "Larus", "family": "Laridae"}
    assert core.path(cells) == ["Laridae", "Larus", "Larus canus"]
    assert core.path({**cells, "scientificName": "Larus Linnaeus, 1758"}) == ["Laridae", "Larus", None]

    ours = find_columns(["id", "image", "taxon_order_name", "taxon_species_name", "common_name"])
    assert ours.levels == {"order": "taxon_order_name", "species": "taxon_species_name"}


def test_a_speciesnet_taxonomy_needs_no_header(tmp_path):
    rows = [
        "a1b2c3d4-0000-0000-0000-000000000001;aves;passeriformes;parulidae;setophaga;americana;northern parula",
        "a1b2c3d4-0000-0000-0000-000000000002;aves;anseriformes;anatidae;mareca;americana;american wigeon",
    ]
    (tmp_path / "t.txt").write_text("\n".join(rows))
    taxonomy = Taxonomy.load(tmp_path / "t.txt")
    assert taxonomy.levels == ("class", "order", "family", "genus", "species")
    assert taxonomy.names[-1] == ("setophaga americana", "mareca americana")


def test_metadata_files_of_hugging_face_folders_are_read(tmp_path):
    for part in ("train", "validation"):
        (tmp_path / part).mkdir()
        row = {"file_name": "1.jpg", "order": "owls", "species": "barn owl"}
        (tmp_path / part / "metadata.jsonl").write_text(json.dumps(row))
    listing = read_listing(tmp_path, wanted=["train", "val"])
    assert listing.paths == [["owls", "barn owl"]] * 2 and listing.levels == ("order", "species")
    assert listing.part("val").pictures == [tmp_path / "validation/1.jpg"]


def test_class_labels_of_hugging_face_parquet_are_named(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"info": {"features": {"order": {"names": ["owls", "gulls"], "_type": "ClassLabel"}}}}
    data = {"image": [{"bytes": b"x", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}], "order": [1, 0]}
    written = pa.table(data).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(written, tmp_path / "t.parquet")
    listing = read_listing(tmp_path / "t.parquet")
    assert listing.pictures == [b"x", tmp_path / "2.jpg"] and listing.paths == [["gulls"], ["owls"]]


@pytest.mark.parametrize(
    "text, labels",
    [
        ("file,species\n1.jpg,Tyto alba\n", (0, 0, 0)),
        ("file,order,genus,species\n1.jpg,Strigiformes,,Tyto alba\n", (0, 0, 0)),
        ("file,species\n1.jpg,Larus sp.\n", (1, 1, -1)),
        ("file,species\n1.jpg,Larus sp\n", (1, 1, -1)),
        ("file,species\n1.jpg,Larus cf. canus\n", (1, 1, -1)),
        ("file,species\n1.jpg,Larus fuscus/canus\n", (1, 1, -1)),
        ("file,species\n1.jpg,Larus fuscus or Larus canus\n", (1, 1, -1)),
        ("file,species\n1.jpg,Larus fuscus / Tyto alba\n", (-1, -1, -1)),
        ("file,a,b,c\n1.jpg,Strigiformes,Tyto,Tyto alba\n", (0, 0, 0)),
    ],
)
def test_known_levels_are_filled_in(tmp_path, text, labels):
    (tmp_path / "t.csv").write_text(text)
    assert tuple(HierarchicalDataset.load(tmp_path / "t.csv", BIRDS).labels[0].tolist()) == labels


def test_open_names_do_not_become_nodes(tmp_path):
    rows = ["file,genus,species", "1,Larus,Larus sp.", "2,Larus,Larus fuscus", "3,Larus,Larus canus"]
    (tmp_path / "t.csv").write_text("\n".join([*rows, "4,Larus,Larus fuscus/canus", "5,Larus,T-shirt/top"]))
    data = HierarchicalDataset.load(tmp_path / "t.csv")
    assert data.taxonomy.names == (("Larus",), ("Larus fuscus", "Larus canus", "T-shirt/top"))
    assert data.labels[:, 1].tolist() == [-1, 0, 1, -1, 2]


def test_homonyms_get_their_parents_name(tmp_path):
    for name in ("owls/other/1.jpg", "gulls/other/2.jpg", "gulls/herring/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)

    with pytest.warns(UserWarning, match="1 name is below several parents"):
        data = HierarchicalDataset.load(tmp_path)
    assert data.taxonomy.names[1] == ("herring", "other (gulls)", "other (owls)")
    assert data.labels.tolist() == [[0, 0], [0, 1], [1, 2]]
    assert data.taxonomy.labels(("owls", "other")) == data.taxonomy.labels((None, "other (owls)")) == (1, 2)

    with pytest.raises(TaxonomyError, match=r"below several parents: write 'other \(gulls\)' or 'other \(owls\)'"):
        data.taxonomy.labels((None, "other"))
    with pytest.raises(TaxonomyError, match="two parents"):
        HierarchicalDataset.load(tmp_path, strict_names=True)


def test_homonyms_below_homonyms_get_all_parents():
    with pytest.warns(UserWarning, match="below several parents"):
        tree = Taxonomy.from_paths([("A", "incertae sedis", "x"), ("B", "incertae sedis", "x")])
    assert tree.names[2] == ("x (incertae sedis < A)", "x (incertae sedis < B)")
    assert tree.labels(("B", "incertae sedis", "x")) == (1, 1, 1)


def test_names_that_look_alike_are_one_name():
    composed = "H\u00e9rons gris"
    others = [unicodedata.normalize("NFD", composed), composed.replace(" ", "\u00a0"), f"\u200b{composed}"]
    tree = Taxonomy.from_paths([(name, str(i)) for i, name in enumerate([composed, *others])])
    assert tree.names == ((composed,), ("0", "1", "2", "3"))
    assert all(tree.labels((name,)) == (0, -1) for name in others)


def test_synonyms_are_followed_and_circles_refused(tmp_path):
    (tmp_path / "s.csv").write_text("old,new\nTyto furcata,Strix alba\nStrix alba,Tyto alba\n")
    (tmp_path / "t.csv").write_text("file,species\n1.jpg,Tyto furcata\n")
    synonyms = read_synonyms(tmp_path / "s.csv")
    assert HierarchicalDataset.load(tmp_path / "t.csv", BIRDS, synonyms=synonyms).labels.tolist() == [[0, 0, 0]]

    (tmp_path / "s.csv").write_text("a;b\nb;a\n")
    with pytest.raises(ValueError, match="circular"):
        read_synonyms(tmp_path / "s.csv")


def test_parts_are_recognised_by_other_names(tmp_path):
    for name in ("Train/a/1.jpg", "valid/a/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    listing = read_listing(tmp_path, wanted=["train", "val"])
    assert [p.name for p in listing.part("train").pictures] == ["1.jpg"] and len(listing.part("val").pictures) == 1
    with pytest.raises(ValueError, match="expected pictures of the part 'test'; its parts are Train, valid"):
        listing.part("test")
    assert find_split("val", ["train", "Validation"]) == "Validation" and find_split("val", ["train"]) is None


def test_a_label_named_train_is_not_a_split(tmp_path):
    for name in ("bus/1.jpg", "car/1.jpg", "train/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    listing = read_listing(tmp_path, wanted=["train", "val"])
    assert listing.splits is None and len(listing.pictures) == 3
    with pytest.raises(ValueError, match="--val-fraction"):
        listing.part("train")


def test_addresses_are_not_accepted_as_pictures(tmp_path):
    (tmp_path / "t.csv").write_text("image,species\nhttps://example.org/1.jpg,Tyto alba\n")
    with pytest.raises(ValueError, match="download the pictures first"):
        read_listing(tmp_path / "t.csv")


def write_shard(file, pictures, **columns):
    """Write encoded pictures as ``struct<bytes, path>``, like Hugging Face's datasets."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cells = [{"bytes": picture, "path": f"{number}.png"} for number, picture in enumerate(pictures)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells, **columns}), file)


def test_a_folder_of_parquet_shards_is_one_data_set(tmp_path):
    for name, number in (("train-00000-of-00002", 0), ("train-00001-of-00002", 1), ("validation-00000-of-00001", 2)):
        write_shard(tmp_path / f"data/{name}.parquet", [b"a%d" % number, b"b"], order=["x", "y"], species=["xa", "yb"])
    listing = read_listing(tmp_path, wanted=("train", "val"))
    assert listing.splits == ["train"] * 4 + ["val"] * 2 and listing.levels == ("order", "species")
    assert listing.part("train").pictures == [b"a0", b"b", b"a1", b"b"] and listing.part("val").paths[1] == ["y", "yb"]

    write_shard(tmp_path / "data/test-00000-of-00001.parquet", [b"c"], family=["x"], species=["xa"])
    with pytest.raises(ValueError, match=r"train-00000.*expected the levels of .*test-00000"):
        read_listing(tmp_path)


def test_shards_take_parts_from_folders_or_a_column(tmp_path):
    write_shard(tmp_path / "a/train/0.parquet", [b"a"], species=["x"])
    write_shard(tmp_path / "a/test/0.parquet", [b"b"], species=["y"])
    assert (
        read_listing(tmp_path / "a").splits
        == ["test", "train"]
        == read_listing(tmp_path / "a", wanted=("train",)).splits
    )

    write_shard(tmp_path / "b/0.parquet", [b"a", b"b"], species=["x", "y"], split=["dev", "train"])
    assert read_listing(tmp_path / "b").part("val").pictures == [b"a"]


def test_splits_come_from_the_folders_in_metadata(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,species\ntrain/1.jpg,x\nvalidation/2.jpg,y\n")
    listing = read_listing(tmp_path)
    assert listing.splits == ["train", "validation"] and listing.part("val").paths == [["y"]]

    (tmp_path / "metadata.csv").write_text("file_name,species\ntrain/1.jpg,x\nother/2.jpg,y\n")
    assert read_listing(tmp_path).splits is None
