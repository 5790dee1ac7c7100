"""Readers for the paper's data sets, one for each layout of files as their owners distribute them.

torchvision has no reader for CUB and BREEDS, and its readers for Aircraft and iNaturalist give one level at a time.
"""

import collections
import csv
import dataclasses
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ..common.files import check_file
from ..common.formats import is_picture_name
from ..common.text import from_json, join_some
from ..taxonomy.tree import Taxonomy
from .trees import with_names

DEVKIT = "ILSVRC2012_devkit_t12/data"
VAL_SOLUTION = "LOC_val_solution.csv"  # Kaggle's; ImageNet has its labels of the validation pictures in the devkit
NUM_SHOWN = 3  # names in a message


class DataError(ValueError):
    """A data set differs from what its owners distribute; the message names the file and what was expected."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a data set.

    Attributes:
        file: The file.
        leaf: Class index at the finest level.
        split: ``train`` or ``test``.
        depth: Number of levels of the path that are labelled; None for all.
    """

    file: Path
    leaf: int
    split: str
    depth: int | None = None


@dataclasses.dataclass
class RawDataset:
    """A data set as its owners distribute it.

    Attributes:
        pictures: Its pictures, in the order of its files.
        taxonomy: The paper's tree, with the data set's own names.
        remarks: Disagreements between the names and the tree.
    """

    pictures: list[Picture]
    taxonomy: Taxonomy
    remarks: list[str] = dataclasses.field(default_factory=list)


def read_cub(roots: Sequence[Path], tree: Taxonomy) -> RawDataset:
    """Read CUB-200-2011: ``images.txt``, ``classes.txt``, ``image_class_labels.txt``, ``train_test_split.txt``."""
    root = find_file(roots, "images.txt").parent
    class_file, image_file = root / "classes.txt", root / "images.txt"
    label_file, split_file = root / "image_class_labels.txt", root / "train_test_split.txt"
    classes, images, labels, splits = map(_read_pairs, (class_file, image_file, label_file, split_file))

    names = {number: name.partition(".")[2] for number, name in classes.items()}  # 001.Black_footed_Albatross
    expected = {str(number): name for number, name in enumerate(tree.names[-1], 1)}
    if strangers := [f"{number} {name}" for number, name in names.items() if expected.get(number) != name]:
        raise DataError(f"{class_file}: {len(strangers)} classes are not in the paper's tree: {_some(strangers)}")

    if missing := [name for number, name in expected.items() if number not in names]:
        raise DataError(f"{class_file}: lacks {len(missing)} classes of the paper's tree: {_some(missing)}")

    for file, known in ((label_file, labels), (split_file, splits)):
        if missing := [image for image in images if image not in known]:
            raise DataError(f"{file}: lacks {len(missing)} pictures of images.txt, such as number {missing[0]}")

    if strangers := [image for image in images if labels[image] not in expected]:
        raise DataError(
            f"{label_file}: {len(strangers)} pictures are of a class outside the tree, such as picture "
            f"{strangers[0]} of class {labels[strangers[0]]}"
        )

    pictures = []
    for image, name in images.items():
        if splits[image] not in ("0", "1"):
            raise DataError(f"{split_file}: expected 1 for training or 0 for test, got {splits[image]!r}")

        split = "train" if splits[image] == "1" else "test"
        pictures.append(Picture(file=root / "images" / name, leaf=int(labels[image]) - 1, split=split))

    return RawDataset(pictures, tree)


def read_aircraft(roots: Sequence[Path], tree: Taxonomy) -> RawDataset:
    """Read FGVC-Aircraft: ``data/images_{variant,family,manufacturer}_{train,val,test}.txt``; train and val train."""
    root = find_file(roots, "data/variants.txt", "variants.txt").parent
    labels, splits = _read_aircraft_labels(root, tree.levels)
    variants = labels[tree.levels[-1]]
    index = {name: i for i, name in enumerate(tree.names[-1])}
    listed = _read_lines(root / "variants.txt")
    for path, names in ((root / "variants.txt", listed), (root / "images_variant_*.txt", variants.values())):
        if strangers := sorted(set(names) - set(index)):
            raise DataError(f"{path}: {len(strangers)} classes outside the paper's tree: {_some(strangers)}")

    if missing := sorted(set(index) - set(listed)):
        raise DataError(f"{root / 'variants.txt'}: lacks {len(missing)} classes of the paper's tree: {_some(missing)}")

    level_names: list[Sequence[str] | None] = []
    remarks: list[str] = []
    for depth, file in enumerate(("manufacturers.txt", "families.txt")):
        known = labels[tree.levels[depth]]
        if missing := sorted(variants.keys() - known.keys()):
            raise DataError(
                f"{root}: images_{tree.levels[depth]}_*.txt lack {len(missing)} pictures of "
                f"images_variant_*.txt: {_some(missing)}"
            )

        if strangers := sorted(set(known.values()) - set(_read_lines(root / file))):
            raise DataError(f"{root / file}: lacks {len(strangers)} names that pictures have: {_some(strangers)}")

        leaf_names = {(index[name], known[image]) for image, name in variants.items()}
        level_names.append(_name_nodes(tree, depth, leaf_names, remarks))

    pictures = []
    for image, name in variants.items():
        pictures.append(Picture(file=root / "images" / f"{image}.jpg", leaf=index[name], split=splits[image]))

    return RawDataset(pictures, with_names(tree, [*level_names, None]), remarks)


def _read_aircraft_labels(root: Path, levels: Sequence[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return, for each level, the label of each picture; and the split of each picture."""
    labels: dict[str, dict[str, str]] = {level: {} for level in levels}
    splits: dict[str, str] = {}
    for level in levels:
        for part in ("train", "val", "test"):
            path = root / f"images_{level}_{part}.txt"
            rows = _read_pairs(path)
            labels[level].update(rows)

            if level == levels[-1]:
                if twice := sorted(rows.keys() & splits.keys()):
                    raise DataError(f"{path}: {len(twice)} pictures are also in another split: {_some(twice)}")
                splits.update(dict.fromkeys(rows, "test" if part == "test" else "train"))

    return labels, splits


def read_breeds(roots: Sequence[Path], tree: Taxonomy, leaf_ids: Sequence[str], partial: bool = False) -> RawDataset:
    """Read the classes of a BREEDS data set from ImageNet: ``train/n01440764/*.JPEG``, and ``val`` likewise or flat.

    A flat ``val`` needs labels: Kaggle's ``LOC_val_solution.csv`` or ImageNet's development kit. ``partial`` leaves
    out the classes that have no folder.
    """
    train = find_file(roots, "train", "ILSVRC/Data/CLS-LOC/train")
    val = find_file(roots, "val", "ILSVRC/Data/CLS-LOC/val")
    pictures = _class_folders(train, leaf_ids, "train", partial)
    if any((val / name).is_dir() for name in leaf_ids):
        return RawDataset(pictures + _class_folders(val, leaf_ids, "test", partial), tree)

    # Kaggle's list is four folders above its pictures.
    labels = read_val_labels([*roots, *(p for p in val.parents[:4] if (p / VAL_SOLUTION).exists())])
    if labels is None:
        raise DataError(
            f"{val}: expected a folder per class, or the labels of its pictures: {VAL_SOLUTION} (Kaggle), or "
            "ILSVRC2012_devkit_t12.tar.gz (ImageNet)"
        )

    index = {name: i for i, name in enumerate(leaf_ids)}
    for image, name in labels.items():
        file = val / f"{image}.JPEG"
        if name in index and (not partial or file.exists()):
            pictures.append(Picture(file=file, leaf=index[name], split="test"))

    return RawDataset(pictures, tree)


def read_inat(roots: Sequence[Path], tree: Taxonomy) -> RawDataset:
    """Read iNat21-Mini: ``train_mini.json`` and ``val.json``, with pictures in ``train_mini/`` and ``val/``.

    The leaf's index is the category's id; the categories give the names of all levels.
    """
    pictures: list[Picture] = []
    remarks: list[str] = []
    categories: dict = {}
    leaves = range(len(tree.names[-1]))
    for split, part in (("train", "train_mini"), ("test", "val")):
        path = find_file(roots, f"{part}.json")
        try:
            data = from_json(path.read_text(encoding="utf-8"))
            files = {image["id"]: image["file_name"] for image in data["images"]}
            categories.update({c["id"]: c for c in data["categories"]})
            labels = [(a["image_id"], a["category_id"]) for a in data["annotations"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: expected images, annotations and categories in JSON: {error!r}") from error

        if strangers := sorted({leaf for _, leaf in labels if leaf not in leaves}):
            raise DataError(
                f"{path}: {len(strangers)} categories outside the paper's tree of {len(leaves)}: {_some(strangers)}"
            )

        if strangers := [image for image, _ in labels if image not in files]:
            raise DataError(
                f"{path}: {len(strangers)} annotations refer to pictures that are not listed: {_some(strangers)}"
            )

        folder = find_file(roots, part).parent
        for image, leaf in labels:
            pictures.append(Picture(file=folder / files[image], leaf=leaf, split=split))

    names = []
    for level, key in enumerate(("order", "family", "name")):
        try:
            leaf_names = {(leaf, category[key]) for leaf, category in categories.items() if leaf in leaves}
        except KeyError as error:
            raise DataError(f"train_mini.json and val.json: categories without {error}") from error
        names.append(_name_nodes(tree, level, leaf_names, remarks))

    return RawDataset(pictures, with_names(tree, names), remarks)


def read_val_labels(roots: Sequence[Path]) -> dict[str, str] | None:
    """Return the class of each of ImageNet's validation pictures, ``ILSVRC2012_val_00000001`` to ``n01751748``.

    Returns:
        None if neither Kaggle's list nor the development kit is there.

    Raises:
        ImportError: if scipy, which reads the development kit's Matlab file, is not installed.
    """
    try:
        path = find_file(roots, VAL_SOLUTION)
    except DataError:
        pass
    else:
        with open(path, encoding="utf-8", newline="") as file:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}

    try:
        path = find_file(roots, f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt")
    except DataError:
        return None

    try:
        import scipy.io
    except ImportError as error:
        raise ImportError("ImageNet's development kit has its labels in a Matlab file: pip install scipy") from error

    synsets = scipy.io.loadmat(path.parent / "meta.mat", squeeze_me=True, struct_as_record=True)["synsets"]
    names = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
    return {f"ILSVRC2012_val_{i:08}": names[int(number)] for i, number in enumerate(_read_lines(path), 1)}


def breeds_target(leaf_ids: Collection[str], images: Collection[str] | None) -> Callable[[str], str | None]:
    """Return the ``target`` function with which :func:`.archives.unpack` takes only a data set's part of ImageNet.

    Args:
        leaf_ids: Classes, as ImageNet's identifiers.
        images: Names of validation pictures without suffix, or None for all.
    """

    def target(name: str) -> str | None:
        if name.endswith(VAL_SOLUTION):
            return VAL_SOLUTION

        if match := re.search(rf"{DEVKIT}/(meta\.mat|ILSVRC2012_validation_ground_truth\.txt)$", name):
            return match[0]

        if match := re.search(r"(?:^|/)(ILSVRC2012_val_\d{8})\.JPEG$", name):
            folder = Path(name).parent.name
            if re.fullmatch(r"n\d{8}", folder):
                return f"val/{folder}/{match[1]}.JPEG" if folder in leaf_ids else None
            return f"val/{match[1]}.JPEG" if images is None or match[1] in images else None

        if match := re.search(r"(?:^|/)(n\d{8})(?:\.tar)?/([^/]*)$", name):  # one tar, or one folder, per class
            return f"train/{match[1]}/{match[2]}" if match[1] in leaf_ids else None

        return None

    return target


def find_file(roots: Sequence[Path], *names: str) -> Path:
    """Return the first file or folder with one of the names, in one of the folders or one folder deeper.

    Raises:
        DataError: if there is none.
    """
    for root in roots:
        for name in names:
            if (root / name).exists():
                check_file(root / name, error=DataError)
                return root / name

    for root in filter(Path.is_dir, roots):
        for child in sorted(filter(Path.is_dir, root.iterdir())):
            for name in names:
                if (child / name).exists():
                    check_file(child / name, error=DataError)
                    return child / name

    raise DataError(
        f"expected {' or '.join(names)} in {', '.join(map(str, roots)) or 'the archives'}, or one folder "
        "deeper: there is none"
    )


def _class_folders(root: Path, names: Sequence[str], split: str, partial: bool) -> list[Picture]:
    """Return the pictures in the folders named after the leaves."""
    missing = {name for name in names if not (root / name).is_dir()}
    if missing and not partial:
        raise DataError(f"{root}: lacks {len(missing)} of the {len(names)} classes: {_some(sorted(missing))}")

    pictures = []
    for leaf, name in enumerate(names):
        if name in missing:
            continue
        for file in sorted((root / name).iterdir()):
            if is_picture_name(file.name):
                pictures.append(Picture(file=file, leaf=leaf, split=split))

    return pictures


def _name_nodes(tree: Taxonomy, level: int, leaf_names: Collection[tuple[int, str]], remarks: list[str]) -> list[str]:
    """Return names for the nodes of a level from the data set's names, and add remarks where names and tree disagree.

    Args:
        tree: The paper's tree.
        level: Index of the level.
        leaf_names: Pairs of a leaf and the name of its ancestor at the level; several names of a node are joined.
        remarks: A sentence is appended for each disagreement.
    """
    node_names: dict[int, set[str]] = {}
    for leaf, name in leaf_names:
        node_names.setdefault(tree.paths[leaf][level], set()).add(name)

    word, names = tree.levels[level], list(tree.names[level])
    for node, aliases in node_names.items():
        names[node] = " / ".join(sorted(aliases))
        if len(aliases) > 1:
            remarks.append(f"{word} {node} of the tree has several names in the data set: {names[node]}")

    counts = collections.Counter(names)
    for name in sorted(counts):
        if counts[name] == 1:
            continue
        nodes = [node for node, other in enumerate(names) if other == name]
        remarks.append(f"{word} {name!r} of the data set is {len(nodes)} nodes of the tree: {_some(nodes)}")
        for node in nodes:
            names[node] = f"{name} ({word} {node})"

    return names


def _read_pairs(path: Path) -> dict[str, str]:
    """Read a key and a value, separated by a space, from each line."""
    pairs = {}
    for number, line in enumerate(_read_lines(path), 1):
        key, blank, value = line.partition(" ")
        if not blank or key in pairs:
            raise DataError(f"{path} line {number}: expected a new number, a space and a value, got {line!r}")
        pairs[key] = value.strip()

    return pairs


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file, though the data set as distributed has it")

    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _some(names: Sequence) -> str:
    return join_some(list(map(str, names)), NUM_SHOWN)
