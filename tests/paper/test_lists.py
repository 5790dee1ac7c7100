"""Data sets that come as lists: iNaturalist 2018 and those of Free-Grained Recognition, with tiny pictures."""

import collections
import json

import numpy as np
import pytest

from hcast_zoo.cli import main
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.network.model import HCast
from hcast_zoo.paper.benchmarks import find_benchmark
from hcast_zoo.paper.prepare import prepare
from hcast_zoo.paper.readers import DataError
from hcast_zoo.paper.reproduce import reproduce, table
from hcast_zoo.paper.trees import load_tree
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import Weights, save_weights
from tests.archives import write_tar
from tests.paper.paper_archives import cub_files, jpeg, tiny_benchmark

# Leaves of a tiny ImageNet-3L (basic, subordinate, fine-grained), and their identifiers in ImageNet.
TREE = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3)]
LEVELS = {"basic": 2, "subordinate": 3, "fine-grained": 4}
IDS = ["n01440764", "n01443537", "n01484850", "n01491361"]
NAMES = {"basic": ["fish", "bird"], "subord": ["bony", "shark", "owl"], "finegrained": ["a", "b", "b", "d"]}


def depths(folder, split="train+val"):
    """Return how many levels of each picture are known."""
    labels = HierarchicalDataset.load(folder, Taxonomy.load(folder / "taxonomy.json"), split).labels
    return (labels >= 0).sum(1).tolist()


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet's folders, with validation pictures in one folder as distributed, and ImageNet-F's lists."""
    root, lists = tmp_path / "imagenet", tmp_path / "lists"
    (root / "val").mkdir(parents=True)
    lists.mkdir()
    train, val = [], []
    for leaf, (path, wnid) in enumerate(zip(TREE, IDS)):
        (root / "train" / wnid).mkdir(parents=True)
        given = [path[0], 2 + path[1], 2 + 3 + path[2]]  # nodes are numbered across levels

        for number in range(6):
            (root / f"train/{wnid}/{wnid}_{number}.JPEG").write_bytes(jpeg(leaf))
            numbers = " ".join(map(str, (*path, given[number % 3])))
            train.append(f"train/{wnid}/{wnid}_{number}.JPEG {numbers}")

        image = f"ILSVRC2012_val_{leaf + 1:08}.JPEG"
        (root / "val" / image).write_bytes(jpeg(leaf))
        val.append(f"val/{wnid}/{image} {' '.join(map(str, path))}")

    (lists / "imagenet-F-train.txt").write_text("\n".join(train) + "\n")
    (lists / "imagenet-F-val.txt").write_text("\n".join(val) + "\n")
    for level, names in NAMES.items():
        table = {str(i): name for i, name in enumerate(names)}
        (lists / f"imagenet-3L-id_{level}_dic.json").write_text(json.dumps(table))
    return root, lists


def test_imagenet_f_and_3l_share_pictures_and_tree(imagenet, tmp_path):
    """ImageNet-F knows training pictures only down to a given level."""
    for name, expected in (("imagenet_f", {1: 8, 2: 8, 3: 8}), ("imagenet_3l", {3: 24})):
        prepared = prepare(tiny_benchmark(name, LEVELS, train=24, test=4), imagenet, tmp_path / name, progress=False)
        assert prepared.levels == LEVELS and prepared.pictures == {"train": 20, "val": 4, "test": 4}
        assert collections.Counter(depths(tmp_path / name)) == expected and set(depths(tmp_path / name, "test")) == {3}
        tree = Taxonomy.load(tmp_path / name / "taxonomy.json")
        assert tree.paths == tuple(TREE) and tree.names[1] == ("bony", "shark", "owl")
        assert tree.names[2] == ("a", "b (fine-grained 1)", "b (fine-grained 2)", "d")


def test_only_listed_members_of_imagenets_archives_are_unpacked(imagenet, tmp_path):
    """No development kit is needed."""
    _, lists = imagenet
    classes = {}
    for wnid in (*IDS, "n99999999"):
        pictures = {f"{wnid}_{i}.JPEG": jpeg(i) for i in range(6)}
        classes[f"{wnid}.tar"] = write_tar(tmp_path / "class.tar", pictures).read_bytes()
    train = write_tar(tmp_path / "ILSVRC2012_img_train.tar", classes)
    pictures = {f"ILSVRC2012_val_{i:08}.JPEG": jpeg(i) for i in range(1, 7)}
    val = write_tar(tmp_path / "ILSVRC2012_img_val.tar", pictures)
    output = tmp_path / "out"
    prepare(tiny_benchmark("imagenet_f", LEVELS, train=24, test=4), [train, val, lists], output, progress=False)
    assert sorted(p.name for p in (output / "train").iterdir()) == IDS
    assert len(list((output / "val").iterdir())) == 4


def test_results_stand_beside_the_published_number(imagenet, tiny_config, tmp_path):
    benchmark = tiny_benchmark("imagenet_f", LEVELS, train=24, test=4)
    prepare(benchmark, imagenet, tmp_path / "data", progress=False)
    config = tiny_config.replace(level_classes=tuple(LEVELS.values()), head_stages=None)
    tree = Taxonomy.load(tmp_path / "data/taxonomy.json")
    save_weights(Weights(config, tree, HCast(config).state_dict()), tmp_path / "w.safetensors")

    reproduction = reproduce(
        benchmark, [tmp_path / "w.safetensors"], tmp_path / "data", ["independent"], progress=False
    )
    row = table(reproduction)[-1]
    assert reproduction.pictures == 4 and row[0].startswith("published (FreeGrainLearning's README: H-CAST with")
    assert "63.20" in row
    with pytest.raises(ValueError, match="expected the tree of ImageNet-F, got another"):
        reproduce(find_benchmark("imagenet_f"), [], tmp_path / "data", ["independent"], progress=False)


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("imagenet-F-train.txt", None, "expected imagenet-F-train.txt in"),
        (
            "imagenet-F-train.txt",
            "train/a/b.JPEG 0 0",
            "line 1: expected a path and 4 numbers, got 'train/a/b.JPEG 0 0'",
        ),
        (
            "imagenet-F-train.txt",
            "train/a/b.JPEG 0 0 1 3",
            r"expected the label of one of the picture's nodes \(0, 0, 1\), got 3",
        ),
        ("imagenet-F-val.txt", "val/a/b.JPEG 1 0 1", "node 0 of level 'subordinate' has two parents|one path for each"),
        (
            "imagenet-F-val.txt",
            "".join(f"val/{wnid}/none.JPEG {a} {b} {c}\n" for wnid, (a, b, c) in zip(IDS, TREE)),
            "4 of 28 pictures cannot be read: .*none.JPEG: no such file",
        ),
        ("imagenet-3L-id_basic_dic.json", "[]", "expected a JSON object of 2 names by number"),
    ],
)
def test_broken_lists_are_explained(imagenet, tmp_path, file, text, message):
    path = imagenet[1] / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DataError, match=message):
        prepare(tiny_benchmark("imagenet_f", LEVELS), imagenet, tmp_path / "out", progress=False)
    assert not (tmp_path / "out/data.jsonl").exists()


@pytest.mark.parametrize("orders", [2, 4])
def test_inat18_is_built_from_its_lists(tmp_path, orders):
    """The lists name leaves alone; the tree has all eight ranks. The official code makes more orders than there are."""
    rows = [[0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [2, 1, 1, 1, 1, 0, 0, 1]]
    (tmp_path / "inat18_tree.json").write_text(json.dumps(rows))
    lines = {"train": [], "val": []}
    for split, count in (("train", 2), ("val", 1)):
        for leaf in range(3):
            for number in range(count):
                name = f"train_val2018/Aves/{leaf}/{split}{number}.jpg"
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_bytes(jpeg(leaf))
                lines[split].append(f"{name} {leaf}\n")
        (tmp_path / f"iNaturalist18_{split}.txt").write_text("".join(lines[split]))
    benchmark = tiny_benchmark("inat18", {"supercategory": 2, "order": orders, "species": 3}, train=6, test=3)
    assert prepare(benchmark, [tmp_path], tmp_path / "out", progress=False).pictures["test"] == 3
    assert Taxonomy.load(tmp_path / "out/taxonomy.json").paths == ((0, 0, 0), (0, 0, 1), (1, 1, 2))
    assert set(depths(tmp_path / "out")) == {3}

    for levels in ({"supercategory": 2, "order": 1, "species": 3}, {"supercategory": 2, "order": 2, "species": 4}):
        with pytest.raises(DataError, match="expected classes"):
            prepare(tiny_benchmark("inat18", levels, train=6, test=3), [tmp_path], tmp_path / "not", progress=False)


@pytest.fixture
def cub(tmp_path):
    return write_tar(tmp_path / "CUB_200_2011.tgz", cub_files(classes=3, train=10))


def test_cub_f_draws_as_the_official_code(cub, tmp_path):
    """It seeds and shuffles with the global generator, class by class, with files in order of their names."""
    benchmark = tiny_benchmark("cub_f", train=30, test=3)
    prepare(benchmark, [cub], tmp_path / "out", seed=3, partial=True, progress=False)
    known = {}
    for line in (tmp_path / "out/data.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] != "test":
            known[row["file"].rsplit("/", 1)[-1]] = len(row["path"])

    np.random.seed(3)
    classes = collections.defaultdict(list)
    for folder in sorted((tmp_path / "out/CUB_200_2011/images").iterdir()):
        classes[folder.name] = sorted(p.name for p in folder.iterdir() if p.name in known)
    for names in classes.values():
        np.random.shuffle(names)
        assert [known[name] for name in names] == [3] * 1 + [2] * 4 + [1] * 5

    assert depths(tmp_path / "out", "test") == [3, 3, 3]


def test_cub_real_finds_its_pictures_in_cubs_folders(cub, tmp_path):
    """Its lists name folders that its authors derived from CUB's."""
    tree = load_tree("cub")
    files = sorted(name.split("images/")[1] for name in cub_files(classes=3, train=10) if name.endswith(".jpg"))
    rows = {"train": [], "val": []}
    for i, file in enumerate(files):
        leaf = int(file[:3]) - 1
        given = (tree.paths[leaf][0], 13 + tree.paths[leaf][1], 51 + leaf)[i % 3]
        numbers = " ".join(map(str, tree.paths[leaf]))
        rows["train"].append(f"train/{file} {numbers} {given}\n")
        rows["val"].append(f"test/{file} {numbers}\n")
    for split, lines in rows.items():
        (tmp_path / f"cub-Real-{split}.txt").write_text("".join(lines))
    sources = [cub, tmp_path / "cub-Real-train.txt"]
    prepare(tiny_benchmark("cub_real"), sources, tmp_path / "out", partial=True, progress=False)
    assert collections.Counter(depths(tmp_path / "out")) == {1: 11, 2: 11, 3: 11}
    assert Taxonomy.load(tmp_path / "out/taxonomy.json") == tree


def test_commands_know_the_data_sets_of_lists(capsys, tmp_path):
    for name in ("inat18", "imagenet_3l", "imagenet_f", "inat21_f", "cub_f", "cub_real", "aircraft_f"):
        assert main(["data", "info", name]) == 0
        notes = capsys.readouterr().out
        assert any(text in notes for text in ("download them", "drawn at random (--seed)", "Give all three"))
    assert main(["convert", "no.pth", str(tmp_path / "x.safetensors"), "--dataset", "imagenet_f"]) == 2
    assert "--taxonomy FOLDER/taxonomy.json" in capsys.readouterr().err
