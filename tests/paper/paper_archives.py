"""Tiny archives in the layouts of the paper's data sets: all lists and classes, but few and small pictures."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from hcast_zoo.paper.benchmarks import Benchmark, find_benchmark
from hcast_zoo.paper.trees import leaf_ids, load_tree
from tests.archives import write_tar

# Names of FGVC-Aircraft's coarser nodes: manufacturers and families by the tree's numbers.
MAKER, FAMILY = "Maker {:02}", "Family {:02}"


def tiny_benchmark(name: str, levels: dict[str, int] | None = None, **pictures: int) -> Benchmark:
    """Return a benchmark that expects the pictures of a tiny archive."""
    benchmark = find_benchmark(name)
    return dataclasses.replace(benchmark, pictures=pictures, per_leaf={}, levels=levels or benchmark.levels)


def jpeg(seed: int, size: int = 12) -> bytes:
    """Return a small picture of one colour, which the seed decides, with some noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 200, 3) + rng.integers(0, 56, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def cub_files(classes: int = 200, train: int = 2, test: int = 1, size: int = 12) -> dict[str, bytes | str]:
    """Return the files of CUB_200_2011.tgz, with pictures of the first ``classes`` only."""
    names = [f"{i:03}.{name}" for i, name in enumerate(load_tree("cub").names[-1], 1)]
    rows = [(name, i, part) for i, name in enumerate(names[:classes], 1) for part in "1" * train + "0" * test]
    files = {"attributes.txt": "1 has_bill_shape::curved_(up_or_down)\n"}
    images, labels, splits = [], [], []
    for number, (name, label, part) in enumerate(rows, 1):
        picture = f"{name}/{name[4:]}_{number:04}_{number}.jpg"
        files[f"CUB_200_2011/images/{picture}"] = jpeg(label, size)
        images.append(f"{number} {picture}\n")
        labels.append(f"{number} {label}\n")
        splits.append(f"{number} {part}\n")
    files["CUB_200_2011/classes.txt"] = "".join(f"{i} {name}\n" for i, name in enumerate(names, 1))
    files["CUB_200_2011/images.txt"] = "".join(images)
    files["CUB_200_2011/image_class_labels.txt"] = "".join(labels)
    files["CUB_200_2011/train_test_split.txt"] = "".join(splits)
    return files


def aircraft_files() -> dict[str, bytes | str]:
    """Return the files of fgvc-aircraft-2013b.tar.gz, with one picture of each variant in each part."""
    tree = load_tree("aircraft")
    base = "fgvc-aircraft-2013b/data"
    files: dict[str, bytes | str] = {}
    lists: dict[str, list[str]] = {}
    for leaf, (maker, family, variant) in enumerate(tree.paths):
        for part, number in (("train", 34309 + leaf), ("val", 1025794 + leaf), ("test", 2000000 + leaf)):
            files[f"{base}/images/{number:07}.jpg"] = jpeg(leaf)
            for level, name in (
                ("manufacturer", MAKER.format(maker)),
                ("family", FAMILY.format(family)),
                ("variant", tree.names[-1][variant]),
            ):
                for split in (part, *(["trainval"] if part != "test" else [])):
                    lists.setdefault(f"images_{level}_{split}.txt", []).append(f"{number:07} {name}")
    lists["variants.txt"] = sorted(tree.names[-1])
    lists["families.txt"] = [FAMILY.format(i) for i in range(70)]
    lists["manufacturers.txt"] = [MAKER.format(i) for i in range(30)]
    files.update({f"{base}/{name}": "\n".join(lines) + "\n" for name, lines in lists.items()})
    return files


def imagenet_folder(root: Path, name: str = "living17", train: int = 2, flat: bool = False) -> Path:
    """Write ImageNet's folders, and one class outside the data set; ``flat``: validation pictures without folders."""
    ids = [*leaf_ids(name), "n99999999"]
    for leaf, wnid in enumerate(ids):
        (root / "train" / wnid).mkdir(parents=True)
        for number in range(train):
            (root / f"train/{wnid}/{wnid}_{number}.JPEG").write_bytes(jpeg(leaf))
        folder = root / "val" if flat else root / "val" / wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{leaf + 1:08}.JPEG").write_bytes(jpeg(leaf))
    return root


def imagenet_tars(folder: Path, name: str = "living17") -> dict[str, Path]:
    """Write ImageNet's own archives: a tar of tars, a flat tar, and the development kit with its Matlab file."""
    import scipy.io

    ids = [*leaf_ids(name), "n99999999"]
    classes = {}
    for leaf, wnid in enumerate(ids):
        pictures = {f"{wnid}_{i}.JPEG": jpeg(leaf) for i in range(2)}
        classes[f"{wnid}.tar"] = write_tar(folder / "class.tar", pictures).read_bytes()

    val = {f"ILSVRC2012_val_{leaf + 1:08}.JPEG": jpeg(leaf) for leaf in range(len(ids))}
    # ILSVRC numbers its classes in no order, and lists nodes above the classes, with children.
    numbers = np.random.default_rng(0).permutation(len(ids)) + 1
    synsets = np.array(
        [(int(n), wnid, "words", "gloss", 0, [], 0, 1300) for n, wnid in zip(numbers, ids)]
        + [(2000, "n00001740", "entity", "gloss", 2, [1, 2], 3, 0)],
        dtype=[
            ("ILSVRC2012_ID", "O"),
            ("WNID", "O"),
            ("words", "O"),
            ("gloss", "O"),
            ("num_children", "O"),
            ("children", "O"),
            ("wordnet_height", "O"),
            ("num_train_images", "O"),
        ],
    )
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets[:, None]})
    devkit = {
        "ILSVRC2012_devkit_t12/readme.txt": "text",
        "ILSVRC2012_devkit_t12/data/meta.mat": (folder / "meta.mat").read_bytes(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in numbers),
    }
    return {
        "train": write_tar(folder / "ILSVRC2012_img_train.tar", classes),
        "val": write_tar(folder / "ILSVRC2012_img_val.tar", val),
        "devkit": write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit),
    }


def inat_archives(folder: Path, species: int = 40) -> list[Path]:
    """Write iNat21-Mini's four archives: all categories, but pictures of the first species only."""
    tree = load_tree("inat21_mini")
    categories = [
        {
            "id": i,
            "name": f"Genus species{i}",
            "common_name": "",
            "supercategory": "Animalia",
            "kingdom": "Animalia",
            "phylum": "P",
            "class": "C",
            "order": f"Order{order}",
            "family": f"Family{family}",
            "genus": "Genus",
            "specific_epithet": f"species{i}",
            "image_dir_name": f"{i:05}_Animalia_P_C_Order{order}_Family{family}_Genus_species{i}",
        }
        for i, (order, family, _) in enumerate(tree.paths)
    ]
    written = []
    for part, count in (("train_mini", 2), ("val", 1)):
        images, annotations, files = [], [], {}
        for leaf in range(species):
            for _ in range(count):
                number = 100 + 7 * len(images)
                name = f"{part}/{categories[leaf]['image_dir_name']}/{number:x}.jpg"
                files[name] = jpeg(leaf)
                images.append({"id": number, "width": 12, "height": 12, "file_name": name, "license": 0})
                annotations.append({"id": number, "image_id": number, "category_id": leaf})
        data = {"info": {}, "images": images, "annotations": annotations[::-1], "categories": categories}
        written.append(write_tar(folder / f"{part}.tar.gz", files))
        written.append(write_tar(folder / f"{part}.json.tar.gz", {f"{part}.json": json.dumps(data)}))
    return written
