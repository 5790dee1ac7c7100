"""How the owners of the paper's data sets lay out their files: a reader for each, to pictures and labels."""

import collections
import csv
import dataclasses
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from ..common.files import check_file
from ..common.formats import is_picture_name
from ..taxonomy.tree import Taxonomy
from .trees import with_names

DEVKIT = "ILSVRC2012_devkit_t12/data"
VAL_SOLUTION = "LOC_val_solution.csv"  # Kaggle's; ImageNet's own labels of the validation pictures are in the devkit
NUM_SHOWN = 3  # names in a message


class DataError(ValueError):
    """A data set is not as its owners distribute it; the message names the file and what was expected."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture: its file, its leaf (class index at the finest level), and its ``split``: train or test.

    ``depth`` is how many levels of its path are known; None for all.
    """

    file: Path
    leaf: int
    split: str
    depth: int | None = None


@dataclasses.dataclass
class Content:
    """What a data set holds.

    Attributes:
        pictures: Its pictures, in the order of its files.
        taxonomy: The paper's tree, with the data set's own names.
        remarks: Where names and tree do not agree.
    """

    pictures: list[Picture]
    taxonomy: Taxonomy
    remarks: list[str] = dataclasses.field(default_factory=list)


def read_cub(roots: Sequence[Path], tree: Taxonomy) -> Content:
    """Read CUB-200-2011: ``images.txt``, ``classes.txt``, ``image_class_labels.txt``, ``train_test_split.txt``."""
    root = find_file(roots, "images.txt").parent
    files = [root / f"{name}.txt" for name in ("classes", "images", "image_class_labels", "train_test_split")]
    classes, images, labels, splits = map(_read_pairs, files)
    names = {number: name.partition(".")[2] for number, name in classes.items()}  # 001.Black_footed_Albatross
    expected = {str(i): name for i, name in enumerate(tree.names[-1], 1)}
    if wrong := [f"{i} {names[i]}" for i in names if expected.get(i) != names[i]]:
        raise DataError(f"{files[0]}: {len(wrong)} classes are not in the paper's tree: {_some(wrong)}")
    if missing := [expected[i] for i in expected if i not in names]:
        raise DataError(f"{files[0]}: lacks {len(missing)} classes of the paper's tree: {_some(missing)}")

    for file, known in zip(files[2:], (labels, splits)):
        if missing := [i for i in images if i not in known]:
            raise DataError(f"{file}: lacks {len(missing)} pictures of {files[1].name}, such as number {missing[0]}")

    if wrong := [i for i in images if labels[i] not in expected]:
        raise DataError(
            f"{files[2]}: {len(wrong)} pictures are of a class outside the tree, such as picture "
            f"{wrong[0]} of class {labels[wrong[0]]}"
        )

    if wrong := [i for i in images if splits[i] not in ("0", "1")]:
        raise DataError(f"{files[3]}: expected 1 for training or 0 for test, got {splits[wrong[0]]!r}")
    pictures = []
    for i, name in images.items():
        split = "train" if splits[i] == "1" else "test"
        pictures.append(Picture(root / "images" / name, int(labels[i]) - 1, split))

    return Content(pictures, tree)


def read_aircraft(roots: Sequence[Path], tree: Taxonomy) -> Content:
    """Read FGVC-Aircraft: ``data/images_{variant,family,manufacturer}_{train,val,test}.txt``; train and val train."""
    root = find_file(roots, "data/variants.txt", "variants.txt").parent
    given: dict[str, dict[str, str]] = {}
    splits: dict[str, str] = {}
    for level in tree.levels:
        given[level] = {}
        for part in ("train", "val", "test"):
            rows = _read_pairs(root / f"images_{level}_{part}.txt")
            given[level].update(rows)

            if level == tree.levels[-1]:
                if twice := [i for i in rows if i in splits]:
                    raise DataError(
                        f"{root / f'images_{level}_{part}.txt'}: {len(twice)} pictures are in another "
                        f"split too: {_some(twice)}"
                    )
                splits.update(dict.fromkeys(rows, "test" if part == "test" else "train"))

    variants = given[tree.levels[-1]]
    index = {name: i for i, name in enumerate(tree.names[-1])}
    listed = _read_lines(root / "variants.txt")
    for where, found in ((root / "variants.txt", listed), (root / "images_variant_*.txt", variants.values())):
        if wrong := sorted(set(found) - set(index)):
            raise DataError(f"{where}: {len(wrong)} classes outside the paper's tree: {_some(wrong)}")

    if missing := sorted(set(index) - set(listed)):
        raise DataError(f"{root / 'variants.txt'}: lacks {len(missing)} classes of the paper's tree: {_some(missing)}")
    level_names: list[Sequence[str] | None] = []
    remarks: list[str] = []
    for depth, file in enumerate(("manufacturers.txt", "families.txt")):
        known = given[tree.levels[depth]]
        if missing := [i for i in variants if i not in known]:
            raise DataError(
                f"{root}: images_{tree.levels[depth]}_*.txt lack {len(missing)} pictures of "
                f"images_variant_*.txt: {_some(missing)}"
            )

        if wrong := sorted(set(known.values()) - set(_read_lines(root / file))):
            raise DataError(f"{root / file}: lacks {len(wrong)} names that pictures have: {_some(wrong)}")
        names = _name_nodes(tree, depth, {(index[variants[i]], known[i]) for i in variants}, remarks)
        level_names.append(names)

    pictures = [Picture(root / "images" / f"{i}.jpg", index[name], splits[i]) for i, name in variants.items()]
    return Content(pictures, with_names(tree, [*level_names, None]), remarks)


def read_breeds(roots: Sequence[Path], tree: Taxonomy, leaf_ids: Sequence[str], partial: bool = False) -> Content:
    """Read the classes of a BREEDS data set from ImageNet: ``train/n01440764/*.JPEG``, and ``val`` alike or flat.

    A flat ``val`` needs its labels: Kaggle's ``LOC_val_solution.csv`` or ImageNet's development kit. ``partial`` leaves
    out the classes that have no folder.
    """
    train = find_file(roots, "train", "ILSVRC/Data/CLS-LOC/train")
    val = find_file(roots, "val", "ILSVRC/Data/CLS-LOC/val")
    pictures = [Picture(file, leaf, "train") for leaf, file in _class_folders(train, leaf_ids, partial)]
    if any((val / name).is_dir() for name in leaf_ids):
        pictures += [Picture(file, leaf, "test") for leaf, file in _class_folders(val, leaf_ids, partial)]
        return Content(pictures, tree)

    # Kaggle's list is four folders above its pictures.
    labels = read_val_labels([*roots, *(p for p in val.parents[:4] if (p / VAL_SOLUTION).exists())])
    if labels is None:
        raise DataError(
            f"{val}: expected a folder a class, or the labels of its pictures: {VAL_SOLUTION} (Kaggle), or "
            "ILSVRC2012_devkit_t12.tar.gz (ImageNet)"
        )

    index = {name: i for i, name in enumerate(leaf_ids)}
    for image, name in labels.items():
        file = val / f"{image}.JPEG"
        if name in index and (not partial or file.exists()):
            pictures.append(Picture(file, index[name], "test"))

    return Content(pictures, tree)


def read_inat(roots: Sequence[Path], tree: Taxonomy) -> Content:
    """Read iNat21-Mini: ``train_mini.json`` and ``val.json``, whose pictures are in ``train_mini/`` and ``val/``.

    The finest classes are the categories' ids; all names are the categories' own.
    """
    pictures: list[Picture] = []
    remarks: list[str] = []
    categories: dict = {}
    for split, part in (("train", "train_mini"), ("test", "val")):
        path = find_file(roots, f"{part}.json")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            files = {image["id"]: image["file_name"] for image in data["images"]}
            categories.update({c["id"]: c for c in data["categories"]})
            labels = [(a["image_id"], a["category_id"]) for a in data["annotations"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: expected images, annotations and categories in JSON: {error!r}") from error

        if wrong := sorted({leaf for _, leaf in labels if leaf not in range(len(tree.names[-1]))}):
            raise DataError(
                f"{path}: {len(wrong)} categories outside the paper's tree of {len(tree.names[-1])}: {_some(wrong)}"
            )
        if wrong := [image for image, _ in labels if image not in files]:
            raise DataError(f"{path}: {len(wrong)} annotations of pictures that it does not list: {_some(wrong)}")
        folder = find_file(roots, part).parent
        pictures += [Picture(folder / files[image], leaf, split) for image, leaf in labels]

    names = []
    for level, key in enumerate(("order", "family", "name")):
        try:
            given = {(i, c[key]) for i, c in categories.items() if i in range(len(tree.names[-1]))}
        except KeyError as error:
            raise DataError(f"train_mini.json and val.json: categories without {error}") from error
        names.append(_name_nodes(tree, level, given, remarks))

    return Content(pictures, with_names(tree, names), remarks)


def read_val_labels(roots: Sequence[Path]) -> dict[str, str] | None:
    """Return the class of each of ImageNet's validation pictures, ``ILSVRC2012_val_00000001`` to ``n01751748``.

    Returns:
        None if neither Kaggle's list nor the development kit is there.

    Raises:
        ImportError: if scipy is not there, which reads the development kit's Matlab file.
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
        raise ImportError("ImageNet's development kit has a Matlab file: pip install scipy") from error

    synsets = scipy.io.loadmat(path.parent / "meta.mat", squeeze_me=True, struct_as_record=True)["synsets"]
    names = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets}
    return {f"ILSVRC2012_val_{i:08}": names[int(number)] for i, number in enumerate(_read_lines(path), 1)}


def breeds_target(leaf_ids: Collection[str], images: Collection[str] | None) -> Callable[[str], str | None]:
    """Return what :func:`.archives.unpack` needs to take from ImageNet's archives only what a data set has.

    Args:
        leaf_ids: Classes.
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

        if match := re.search(r"(?:^|/)(n\d{8})(?:\.tar)?/([^/]*)$", name):  # of a tar a class, or of a folder a class
            return f"train/{match[1]}/{match[2]}" if match[1] in leaf_ids else None
        return None

    return target


def find_file(roots: Sequence[Path], *names: str) -> Path:
    """Return the first file or folder of some names in some folders, or one folder deeper.

    Raises:
        DataError: if there is none.
    """
    for root in roots:
        for name in names:
            if (root / name).exists():
                check_file(root / name, error=DataError)
                return root / name

    for root in roots:
        for child in sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else ():
            for name in names:
                if (child / name).exists():
                    check_file(child / name, error=DataError)
                    return child / name

    raise DataError(
        f"expected {' or '.join(names)} in {', '.join(map(str, roots)) or 'the archives'}, or one folder "
        "deeper: there is none"
    )


def _class_folders(root: Path, names: Sequence[str], partial: bool) -> Iterable[tuple[int, Path]]:
    missing = {name for name in names if not (root / name).is_dir()}
    if missing and not partial:
        raise DataError(f"{root}: lacks {len(missing)} of the {len(names)} classes: {_some(sorted(missing))}")
    for leaf, name in ((leaf, name) for leaf, name in enumerate(names) if name not in missing):
        for file in sorted((root / name).iterdir()):
            if is_picture_name(file.name):
                yield leaf, file


def _name_nodes(tree: Taxonomy, level: int, given: Collection[tuple[int, str]], remarks: list[str]) -> list[str]:
    """Name the nodes of a level by what the data set calls the ancestors of its leaves, and remark where it disagrees.

    Args:
        tree: The paper's tree.
        level: Which nodes to name.
        given: A leaf, and what its ancestor at the level is called; several names of a node are joined.
        remarks: Where to add a sentence a disagreement.
    """
    called: dict[int, set[str]] = {}
    for leaf, name in given:
        called.setdefault(tree.paths[leaf][level], set()).add(name)
    names = [" / ".join(sorted(called[i])) if i in called else kept for i, kept in enumerate(tree.names[level])]
    word = tree.levels[level]
    for i, own in called.items():
        if len(own) > 1:
            remarks.append(f"{word} {i} of the tree has several names in the data set: {names[i]}")

    for name in sorted(name for name, count in collections.Counter(names).items() if count > 1):
        same = [i for i, other in enumerate(names) if other == name]
        remarks.append(f"{word} {name!r} of the data set is {len(same)} nodes of the tree: {_some(same)}")
        for i in same:
            names[i] = f"{name} ({word} {i})"

    return names


def _read_pairs(path: Path) -> dict[str, str]:
    """Read ``key rest of the line`` a line."""
    pairs = {}
    for number, line in enumerate(_read_lines(path), 1):
        key, blank, value = line.partition(" ")
        if not blank or key in pairs:
            raise DataError(f"{path} line {number}: expected a new number, a blank and a value, got {line!r}")
        pairs[key] = value.strip()
    return pairs


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file, and the data set as distributed has it")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _some(names: Collection) -> str:
    shown = [str(name) for name in list(names)[:NUM_SHOWN]]
    return ", ".join(shown) + (" ..." if len(names) > NUM_SHOWN else "")
