"""The paper's data sets from their archives, whole and broken."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.paper.benchmarks import BENCHMARKS, find_benchmark
from hcast_zoo.paper.prepare import prepare, split_validation
from hcast_zoo.paper.readers import DataError, Picture, find_file
from hcast_zoo.paper.trees import leaf_ids, load_tree, tree_names
from hcast_zoo.taxonomy.tree import Taxonomy
from tests.archives import write_tar
from tests.paper.paper_archives import (
    aircraft_files,
    cub_files,
    imagenet_folder,
    imagenet_tars,
    inat_archives,
    jpeg,
    tiny_benchmark,
)


def labels_of(folder, split):
    """Return the labels of a part, after reading its first and last picture."""
    data = HierarchicalDataset.load(folder, split=split, skip_broken=False)
    assert all(data[i][0].size == (12, 12) for i in (0, len(data) - 1))
    return data.labels.tolist()


def run(name, sources, output, **kwargs):
    sources = [sources] if isinstance(sources, (str, Path)) else sources
    return prepare(tiny_benchmark(name), sources, output, progress=False, **kwargs)


class TestCub:
    @pytest.fixture
    def archive(self, tmp_path):
        return write_tar(tmp_path / "CUB_200_2011.tgz", cub_files())

    def test_the_archive_is_prepared_with_the_papers_tree(self, archive, tmp_path):
        prepared = prepare(tiny_benchmark("cub", train=400, test=200), [archive], tmp_path / "cub", progress=False)
        assert prepared.pictures == {"train": 200, "val": 200, "test": 200}
        assert prepared.levels == {"order": 13, "family": 38, "species": 200}
        tree = load_tree("cub")
        assert Taxonomy.load(tmp_path / "cub/taxonomy.json") == tree
        for split in ("train", "val", "test"):
            assert labels_of(tmp_path / "cub", split) == [list(path) for path in tree.paths]
        assert any("not the archive as distributed" in remark for remark in prepared.remarks)
        report = json.loads((tmp_path / "cub/prepared.json").read_text())
        assert report["pictures"]["val"] == 200 and len(report["md5"]["CUB_200_2011.tgz"]) == 32

    def test_the_folder_can_be_moved_and_made_again(self, archive, tmp_path):
        run("cub", archive, tmp_path / "cub")
        first = (tmp_path / "cub/data.jsonl").read_text()
        (tmp_path / "cub").rename(tmp_path / "moved")
        assert len(labels_of(tmp_path / "moved", "test")) == 200
        run("cub", archive, tmp_path / "moved")
        assert (tmp_path / "moved/data.jsonl").read_text() == first
        run("cub", archive, tmp_path / "moved", seed=1)
        assert (tmp_path / "moved/data.jsonl").read_text() != first

    @pytest.mark.parametrize("inner", ["", "CUB_200_2011"])
    def test_an_unpacked_folder_is_read_in_place(self, archive, tmp_path, inner):
        shutil.unpack_archive(archive, tmp_path / "here", "gztar")
        run("cub", tmp_path / "here" / inner, tmp_path / "cub")
        assert len(labels_of(tmp_path / "cub", "train+val")) == 400
        assert sorted(p.name for p in (tmp_path / "cub").iterdir()) == ["data.jsonl", "prepared.json", "taxonomy.json"]

    def test_a_wrong_count_is_refused_unless_partial(self, archive, tmp_path):
        message = "CUB-200-2011: expected 5994 train pictures, found 400: the data set is incomplete; --partial"
        with pytest.raises(DataError, match=message):
            prepare(find_benchmark("cub"), [archive], tmp_path / "cub", progress=False)
        assert not (tmp_path / "cub/data.jsonl").exists()

        prepared = prepare(find_benchmark("cub"), [archive], tmp_path / "cub", progress=False, partial=True)
        assert prepared.pictures == {"train": 200, "val": 200, "test": 200}

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"images.txt": None}, "expected images.txt in .*there is none"),
            ({"classes.txt": None}, "classes.txt: no such file"),
            (
                {"train_test_split.txt": "1 1\n"},
                "train_test_split.txt: lacks 599 pictures of images.txt, such as number 2",
            ),
            (
                {"image_class_labels.txt": "".join(f"{i} 201\n" for i in range(1, 601))},
                "600 pictures are of a class outside the tree, such as picture 1 of class 201",
            ),
            ({"classes.txt": "1 001.Dodo\n"}, "1 classes are not in the paper's tree: 1 Dodo"),
            (
                {"classes.txt": "1 001.Black_footed_Albatross\n"},
                "lacks 199 classes of the paper's tree: Laysan_Albatross",
            ),
            ({"images.txt": "1\n"}, "images.txt line 1: expected a new number, a space and a value, got '1'"),
            (
                {"images/001.Black_footed_Albatross/Black_footed_Albatross_0001_1.jpg": None},
                "1 of 600 pictures cannot be read: .*_0001_1.jpg: no such file",
            ),
            (
                {"images/001.Black_footed_Albatross/Black_footed_Albatross_0001_1.jpg": jpeg(0, 64)[:-300]},
                "1 of 600 pictures cannot be read: .*_0001_1.jpg: damaged or incomplete picture",
            ),
            (
                {"images/001.Black_footed_Albatross/Black_footed_Albatross_0001_1.jpg": b"no picture"},
                "_0001_1.jpg: not a picture",
            ),
        ],
    )
    def test_broken_files_are_explained(self, tmp_path, change, message):
        files = cub_files()
        for name, data in change.items():
            files[f"CUB_200_2011/{name}"] = data
        archive = write_tar(tmp_path / "a.tgz", {name: data for name, data in files.items() if data})
        with pytest.raises(DataError, match=message):
            run("cub", archive, tmp_path / "cub")
        assert not (tmp_path / "cub/data.jsonl").exists()

    def test_pictures_are_read_only_if_they_are_checked(self, tmp_path):
        files = cub_files()
        files["CUB_200_2011/images/001.Black_footed_Albatross/Black_footed_Albatross_0001_1.jpg"] = b"no picture"
        prepared = run("cub", write_tar(tmp_path / "a.tgz", files), tmp_path / "cub", check=False)
        assert sum(prepared.pictures.values()) == 600

    def test_a_class_without_pictures_is_refused_unless_partial(self, tmp_path):
        archive = write_tar(tmp_path / "a.tgz", cub_files(classes=199))
        with pytest.raises(DataError, match=r"no train picture of 1 class\(es\), such as Common_Yellowthroat"):
            run("cub", archive, tmp_path / "cub")
        assert run("cub", archive, tmp_path / "cub", partial=True).pictures["test"] == 199


class TestAircraft:
    def test_the_archive_is_prepared_with_the_papers_tree(self, tmp_path):
        archive = write_tar(tmp_path / "fgvc-aircraft-2013b.tar.gz", aircraft_files())
        prepared = prepare(tiny_benchmark("aircraft", train=200, test=100), [archive], tmp_path / "air", progress=False)
        assert prepared.pictures == {"train": 100, "val": 100, "test": 100}
        assert prepared.levels == {"manufacturer": 30, "family": 70, "variant": 100}
        taxonomy = Taxonomy.load(tmp_path / "air/taxonomy.json")
        assert taxonomy.path_names(taxonomy.paths[15]) == ("Maker 02", "Family 08", "ATR-72")
        assert sorted(labels_of(tmp_path / "air", "test")) == sorted(map(list, load_tree("aircraft").paths))

    def test_names_that_differ_from_the_tree_are_reported(self, tmp_path):
        """A node with two names, and two nodes with one name, are kept apart."""
        files = aircraft_files()
        for part in ("train", "val", "test"):
            name = f"fgvc-aircraft-2013b/data/images_family_{part}.txt"
            lines = files[name].splitlines()
            lines[3] = lines[3].replace("Family 02", "Family 69")  # one of the four variants of family 2
            lines[1] = lines[1].replace("Family 01", "Family 00")
            files[name] = "\n".join(lines)
        prepared = run("aircraft", write_tar(tmp_path / "a.tgz", files), tmp_path / "air")
        assert "family 2 of the tree has several names in the data set: Family 02 / Family 69" in prepared.remarks
        assert "family 'Family 00' of the data set is 2 nodes of the tree: 0, 1" in prepared.remarks
        taxonomy = Taxonomy.load(tmp_path / "air/taxonomy.json")
        assert taxonomy.names[1][:3] == ("Family 00 (family 0)", "Family 00 (family 1)", "Family 02 / Family 69")
        assert taxonomy.parents == load_tree("aircraft").parents

    @pytest.mark.parametrize(
        "name, change, message",
        [
            ("images_variant_train.txt", None, "images_variant_train.txt: no such file"),
            ("families.txt", None, "families.txt: no such file"),
            ("variants.txt", lambda text: text + "Concorde\n", "variants.txt: 1 classes outside .* tree: Concorde"),
            ("variants.txt", lambda text: text.replace("A380\n", ""), "lacks 1 classes of the paper's tree: A380"),
            (
                "images_variant_val.txt",
                lambda text: text.replace(" A380", " Concorde"),
                "1 classes outside the paper's tree: Concorde",
            ),
            (
                "images_family_test.txt",
                lambda text: text.partition("\n")[2],
                "lack 1 pictures of images_variant_.*2000000",
            ),
            ("manufacturers.txt", lambda text: text.replace("Maker 07\n", ""), "lacks 1 names that pictures have"),
            ("images_variant_val.txt", lambda text: text + "0034309 A300B4\n", "1 pictures are also in another split"),
        ],
    )
    def test_broken_files_are_explained(self, tmp_path, name, change, message):
        files = aircraft_files()
        text = files.pop(f"fgvc-aircraft-2013b/data/{name}")
        if change:
            files[f"fgvc-aircraft-2013b/data/{name}"] = change(text)
        with pytest.raises(DataError, match=message):
            run("aircraft", write_tar(tmp_path / "a.tgz", files), tmp_path / "air")


class TestBreeds:
    @pytest.mark.parametrize("name, levels", [("living17", 34), ("nonliving26", 52)])
    def test_folders_of_imagenet_are_prepared(self, tmp_path, name, levels):
        root = imagenet_folder(tmp_path / "imagenet", name)
        prepared = prepare(
            tiny_benchmark(name, train=2 * levels, test=levels), [root], tmp_path / "out", progress=False
        )
        assert prepared.pictures == {"train": levels, "val": levels, "test": levels}
        assert labels_of(tmp_path / "out", "test") == [list(path) for path in load_tree(name).paths]
        data = HierarchicalDataset.load(tmp_path / "out", split="train+val")
        for picture, label in zip(data.pictures, data.labels.tolist()):
            assert picture.parent.name == leaf_ids(name)[label[-1]]

    def test_flat_validation_pictures_need_their_list(self, tmp_path):
        """As Kaggle distributes ImageNet."""
        root = imagenet_folder(tmp_path / "kaggle/ILSVRC/Data/CLS-LOC", flat=True)
        ids = [*leaf_ids("living17"), "n99999999"]
        lines = [f"ILSVRC2012_val_{i:08},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for i, wnid in enumerate(ids, 1)]
        with pytest.raises(DataError, match="expected a folder per class, or the labels of its pictures"):
            run("living17", root, tmp_path / "out")
        (tmp_path / "kaggle/LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines[::-1]))
        for source in (tmp_path / "kaggle", root):
            assert run("living17", source, tmp_path / "out").pictures == {"train": 34, "val": 34, "test": 34}
            assert labels_of(tmp_path / "out", "test") == [list(p) for p in load_tree("living17").paths[::-1]]

    def test_kaggles_zip_is_unpacked_in_part(self, tmp_path):
        root = imagenet_folder(tmp_path / "kaggle/ILSVRC/Data/CLS-LOC", flat=True)
        rows = [f"ILSVRC2012_val_{i:08},{wnid} 1 2 3 4\n" for i, wnid in enumerate(leaf_ids("living17"), 1)]
        (tmp_path / "kaggle/LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
        archive = shutil.make_archive(tmp_path / "kaggle", "zip", tmp_path / "kaggle")
        shutil.rmtree(root)
        assert run("living17", archive, tmp_path / "out").pictures == {"train": 34, "val": 34, "test": 34}
        assert not (tmp_path / "out/train/n99999999").exists()

    def test_imagenets_own_archives_are_unpacked_in_part(self, tmp_path):
        pytest.importorskip("scipy")
        tars = imagenet_tars(tmp_path)
        prepared = run("living17", list(tars.values()), tmp_path / "out")
        assert prepared.pictures == {"train": 34, "val": 34, "test": 34}
        assert labels_of(tmp_path / "out", "test") == [list(path) for path in load_tree("living17").paths]

        # Only classes of the data set are unpacked.
        assert sorted(p.name for p in (tmp_path / "out/train").iterdir()) == sorted(leaf_ids("living17"))
        assert len(list((tmp_path / "out/val").iterdir())) == 34

        with pytest.raises(DataError, match="expected a folder per class, or the labels"):
            run("living17", [tars["train"], tars["val"]], tmp_path / "out2")
        with pytest.raises(DataError, match=r"expected val or .* in"):
            run("living17", [tars["train"], tars["devkit"]], tmp_path / "out3")

    def test_broken_files_are_explained(self, tmp_path):
        root = imagenet_folder(tmp_path / "imagenet")
        with pytest.raises(DataError, match="expected 1700 test pictures, found 34"):
            prepare(find_benchmark("living17"), [root], tmp_path / "out", progress=False)
        few = dataclasses.replace(find_benchmark("living17"), pictures={"test": 34}, per_leaf={"train": (3, 5)})
        with pytest.raises(DataError, match="expected 3 to 5 train pictures of eft, found 2"):
            prepare(few, [root], tmp_path / "out", progress=False)

        (root / "train/n01631663/n01631663_0.JPEG").write_bytes(b"")
        with pytest.raises(DataError, match="1 of 102 pictures cannot be read"):
            run("living17", root, tmp_path / "out")

        shutil.rmtree(root / "train/n01631663")
        with pytest.raises(DataError, match="train: lacks 1 of the 34 classes: n01631663"):
            run("living17", root, tmp_path / "out")
        assert run("living17", root, tmp_path / "out", partial=True).pictures == {"train": 33, "val": 33, "test": 34}


class TestInat:
    def test_the_archives_are_prepared_with_the_papers_tree(self, tmp_path):
        archives = inat_archives(tmp_path)
        prepared = run("inat21_mini", archives, tmp_path / "inat", partial=True)
        assert prepared.pictures == {"train": 40, "val": 40, "test": 40}
        assert prepared.levels == {"order": 273, "family": 1103, "species": 10000}
        tree = load_tree("inat21_mini")
        assert sorted(labels_of(tmp_path / "inat", "test")) == [list(path) for path in tree.paths[:40]]
        taxonomy = Taxonomy.load(tmp_path / "inat/taxonomy.json")
        assert taxonomy.path_names(taxonomy.paths[3]) == ("Order1", "Family2", "Genus species3")
        assert taxonomy.parents == tree.parents
        assert all("not the archive as distributed" in remark for remark in prepared.remarks[2:])

        with pytest.raises(DataError, match="expected 500000 train pictures, found 80"):
            prepare(find_benchmark("inat21_mini"), archives, tmp_path / "inat", progress=False)

    @pytest.mark.parametrize(
        "change, message",
        [
            (
                lambda data: data["annotations"][0].update(category_id=10000),
                "1 categories outside the paper's tree of 10",
            ),
            (
                lambda data: data["annotations"][0].update(image_id=1),
                "1 annotations refer to pictures that are not listed: 1",
            ),
            (lambda data: data.pop("annotations"), "expected images, annotations and categories in JSON"),
            (lambda data: data["categories"][5].pop("family"), "categories without 'family'"),
            (
                lambda data: data["images"][0].update(file_name="val/no.jpg"),
                "1 of 120 pictures cannot be read: .*no.jpg",
            ),
        ],
    )
    def test_broken_files_are_explained(self, tmp_path, change, message):
        for archive in inat_archives(tmp_path):
            shutil.unpack_archive(archive, tmp_path / "inat", "gztar")
        path = tmp_path / "inat/val.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
        with pytest.raises(DataError, match=message):
            run("inat21_mini", tmp_path / "inat", tmp_path / "out", partial=True)

    def test_a_missing_file_is_named(self, tmp_path):
        archives = inat_archives(tmp_path)
        with pytest.raises(DataError, match=r"expected val.json in"):
            run("inat21_mini", archives[:3], tmp_path / "inat", partial=True)


def test_a_tenth_of_each_leaf_is_held_out():
    pictures = []
    for leaf, count in enumerate((31, 2, 1)):
        for number in range(count):
            pictures.append(Picture(Path(f"{leaf}/{number}.jpg"), leaf, "test" if number == 30 else "train"))
    splits = split_validation(pictures)
    counts = Counter((p.leaf, split) for p, split in zip(pictures, splits))
    assert counts == {(0, "train"): 27, (0, "val"): 3, (0, "test"): 1, (1, "train"): 1, (1, "val"): 1, (2, "train"): 1}
    assert split_validation(pictures) == splits != split_validation(pictures, seed=1)
    mixed = pictures[::-1]  # the order of the lists does not matter
    assert dict(zip(mixed, split_validation(mixed))) == dict(zip(pictures, splits))


@pytest.mark.parametrize("source", ["missing", "text.txt", "cut.tgz"])
def test_a_missing_source_is_explained(tmp_path, source):
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "cut.tgz").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(DataError, match=r"no such file or folder|expected a folder, or a whole .tar"):
        run("cub", tmp_path / source, tmp_path / "out")


def test_benchmarks_and_trees_agree():
    papers = {name: benchmark for name, benchmark in BENCHMARKS.items() if benchmark.tree == name}
    assert sorted([*papers, "imagenet"]) == tree_names() and len(papers) == 7
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and benchmark.tree in (None, *papers)
        assert benchmark.published or name not in papers
        if name in papers and benchmark.layout == "breeds":
            assert benchmark.pictures["test"] == 50 * len(leaf_ids(name))
    with pytest.raises(ValueError, match="no data set 'no': expected one of cub"):
        find_benchmark("no")
    assert find_file([Path(__file__).parent], "test_prepare.py").name == "test_prepare.py"
