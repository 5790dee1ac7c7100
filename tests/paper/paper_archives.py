"""Tiny archives in the layout of the paper's data sets: all their lists and classes, but few and small pictures."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from hcast_zoo.paper.trees import leaf_ids, load_tree

# What FGVC-Aircraft calls its coarser nodes; here, families and manufacturers by the tree's numbers.
MAKER, FAMILY = "Maker {:02}", "Family {:02}"


def jpeg(seed: int, size: int = 12) -> bytes:
    """Return a small picture of one colour, which follows from the seed, and some noise."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 200, 3) + rng.integers(0, 56, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes | str], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def cub_files(classes: int = 200, train: int = 2, test: int = 1, size: int = 12) -> dict[str, bytes | str]:
    """Return CUB_200_2011.tgz's files; pictures of the first ``classes`` only."""
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
    """Return fgvc-aircraft-2013b.tar.gz's files: of each variant, a picture to train, to validate and to test."""
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
    """Write ImageNet's folders, with one class that the data set does not have; ``flat``: val without folders."""
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
    classes = {
        f"{wnid}.tar": write_tar(
            folder / "class.tar", {f"{wnid}_{i}.JPEG": jpeg(leaf) for i in range(2)}, "w"
        ).read_bytes()
        for leaf, wnid in enumerate(ids)
    }
    val = {f"ILSVRC2012_val_{leaf + 1:08}.JPEG": jpeg(leaf) for leaf in range(len(ids))}
    # ILSVRC's own numbers of classes are in no order; and there are nodes above the classes, with children.
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
        "train": write_tar(folder / "ILSVRC2012_img_train.tar", classes, "w"),
        "val": write_tar(folder / "ILSVRC2012_img_val.tar", val, "w"),
        "devkit": write_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit),
    }


def inat_archives(folder: Path, species: int = 40) -> list[Path]:
    """Write iNat21-Mini's four archives: all categories, and pictures of the first species."""
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
