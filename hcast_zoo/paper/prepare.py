"""The paper's data sets made ready: archives unpacked and checked, and one file that lists pictures, paths and splits.

A prepared folder holds ``data.jsonl`` (a picture per line, ``train``, ``val`` or ``test``), ``taxonomy.json`` (the
paper's tree with the data set's names) and ``prepared.json`` (counts, checksums, and how ``val`` was drawn).
:meth:`HierarchicalDataset.load` reads it by the name of the folder.
"""

import collections
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from ..common.files import whole_file, write_whole
from ..common.progress import hides_bars
from ..data.pictures import PictureError, open_picture
from . import lists
from .archives import first_names, is_archive, unpack
from .benchmarks import ILSVRC, Benchmark
from .readers import (
    VAL_SOLUTION,
    DataError,
    Picture,
    RawDataset,
    breeds_target,
    read_aircraft,
    read_breeds,
    read_cub,
    read_inat,
    read_val_labels,
)
from .trees import leaf_ids, load_tree

VAL_FRACTION = 0.1
SPLITS = ("train", "val", "test")
LABELS = (".json", ".csv")  # suffixes of files that may be given beside archives
LISTS = (*LABELS, ".txt")  # the same, where others publish the lists


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was made ready.

    Attributes:
        output: The folder.
        pictures: How many pictures each split has.
        levels: Classes of each level.
        remarks: What is odd about the data set, the tree, or the archives.
    """

    output: str
    pictures: dict[str, int]
    levels: dict[str, int]
    remarks: tuple[str, ...]


def prepare(
    benchmark: Benchmark,
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    seed: int = 0,
    partial: bool = False,
    check: bool = True,
    progress: bool = True,
) -> Prepared:
    """Make a data set of the paper ready for training and evaluation.

    Args:
        benchmark: Which.
        sources: Its archives as the owners distribute them, or the folders that they were unpacked to.
        output: Folder to unpack to, and to write to.
        seed: Decides which training pictures are for validation: a tenth of each leaf's, at least one; and how far
            each is known, where that is drawn.
        partial: Accept fewer pictures and classes than the data set has, for a trial.
        check: Decode every picture, to know that it can be read.
        progress: Show bars.

    Raises:
        DataError: if a file is missing, a count is wrong, a picture cannot be read, or a class is not in the tree.
        ArchiveError: if an archive is damaged.
    """
    remarks = list(benchmark.notes)
    checksums = _checksums(benchmark, [Path(s) for s in sources], remarks)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    roots = _gather(benchmark, [Path(s) for s in sources], output, progress)
    content = read(benchmark, roots, partial)
    if benchmark.known is not None:
        order = lists.official_order(content, roots, benchmark.layout)
        content = lists.deal(content, *benchmark.known, seed=seed, order=order)

    remarks += content.remarks
    _check_counts(benchmark, content, partial)
    _check_pictures(content.pictures, check, progress)
    splits = split_validation(content.pictures, seed)
    counts = collections.Counter(splits)
    prepared = Prepared(
        output=str(output),
        pictures={s: counts[s] for s in SPLITS},
        levels=dict(zip(content.taxonomy.levels, content.taxonomy.level_classes)),
        remarks=tuple(remarks),
    )

    _write(
        output,
        benchmark,
        content,
        splits,
        {
            **dataclasses.asdict(prepared),
            "md5": checksums,
            "partial": partial,
            "val": {"fraction": VAL_FRACTION, "seed": seed},
        },
    )
    return prepared


def read(benchmark: Benchmark, roots: Sequence[Path], partial: bool = False) -> RawDataset:
    """Read a data set's own files; ``partial`` leaves out what lists name and is not there."""
    if benchmark.layout == "lists":
        content = lists.read_lists(benchmark, roots)
        if partial:
            content.pictures = [picture for picture in content.pictures if picture.file.exists()]
        return content

    assert benchmark.tree is not None  # only lists bring their own
    tree = load_tree(benchmark.tree)
    if benchmark.layout == "breeds":
        return read_breeds(roots, tree, leaf_ids(benchmark.tree), partial)
    readers = {"cub": read_cub, "aircraft": read_aircraft, "inat": read_inat}
    return readers[benchmark.layout](roots, tree)


def split_validation(pictures: Sequence[Picture], seed: int = 0, fraction: float = VAL_FRACTION) -> list[str]:
    """Return the split of each picture, with a part of each leaf's training pictures moved to ``val``.

    A leaf with two training pictures or more gives at least one, and keeps at least one.
    """
    of_leaf = collections.defaultdict(list)
    for i, picture in enumerate(pictures):
        if picture.split == "train":
            of_leaf[picture.leaf].append(i)

    splits = [picture.split for picture in pictures]
    for leaf, own in sorted(of_leaf.items()):
        own.sort(key=lambda i: pictures[i].file.name)  # not the order of the data set's file
        count = min(max(1, round(fraction * len(own))), len(own) - 1)
        for i in np.random.default_rng((seed, leaf)).permutation(own)[:count]:
            splits[i] = "val"

    return splits


def _checksums(benchmark: Benchmark, sources: Sequence[Path], remarks: list[str]) -> dict[str, str]:
    """Return the MD5 of each archive; remark on those that are not as distributed (their counts are checked too)."""
    found = {}
    for source in sources:
        if not source.exists():
            raise DataError(
                f"{source}: no such file or folder: expected {' and '.join(benchmark.archives)}, or the "
                "folder that they were unpacked to"
            )

        if source.is_file():
            found[source.name] = digest = calculate_md5(source)
            if (expected := benchmark.archives.get(source.name)) and digest != expected:
                remarks.append(
                    f"{source.name} is not the archive as distributed: its MD5 is {digest}, expected {expected}."
                )

    return found


def _gather(benchmark: Benchmark, sources: Sequence[Path], output: Path, progress: bool) -> list[Path]:
    """Unpack the archives into the output folder; return the folders to look in."""
    files = [s for s in sources if is_archive(s)]
    beside = LISTS if benchmark.lists or benchmark.known else LABELS
    if wrong := [s for s in sources if s.is_file() and s not in files and s.suffix not in beside]:
        raise DataError(f"{wrong[0]}: expected a folder, or a whole .tar, .tgz, .tar.gz or .zip")

    folders = [s if s.is_dir() else s.parent for s in sources if s not in files]
    if benchmark.archives.keys() & ILSVRC.keys():
        _unpack_imagenet(benchmark, files, output, folders, progress)
    else:
        for file in files:
            unpack(file, output, progress=progress)

    return list(dict.fromkeys([output, *folders]))


def _unpack_imagenet(
    benchmark: Benchmark, files: Sequence[Path], output: Path, folders: Sequence[Path], progress: bool
) -> None:
    """Unpack what is needed of ImageNet; the labels first, so that only the needed validation pictures follow."""
    listed = None
    if benchmark.lists is None:
        assert benchmark.tree is not None
        ids = set(leaf_ids(benchmark.tree))
    elif files:
        rows = lists.read_rows(benchmark, folders)
        ids = {row.path.parts[-2] for row in rows}
        listed = {row.path.stem for row in rows if row.split == "test"}
    else:
        return

    def has_labels(file: Path) -> bool:
        return any("devkit" in name or name.endswith(VAL_SOLUTION) for name in first_names(file))

    images = listed
    for file in sorted(files, key=lambda file: not has_labels(file)):
        labels = None if listed is not None else read_val_labels([output])
        if labels is not None:
            images = {image for image, name in labels.items() if name in ids}
        unpack(file, output, breeds_target(ids, images), benchmark.name, progress)


def _check_counts(benchmark: Benchmark, content: RawDataset, partial: bool) -> None:
    found = collections.Counter(p.split for p in content.pictures)
    leaves = {split: collections.Counter(p.leaf for p in content.pictures if p.split == split) for split in found}
    for split in ("train", "test"):
        if not found[split]:
            raise DataError(f"{benchmark.title} has no {split} picture here")

    if partial:
        return
    hint = "the data set is not whole; --partial accepts a part of it, for a trial"
    for split, expected in benchmark.pictures.items():
        if found[split] != expected:
            raise DataError(f"{benchmark.title}: expected {expected} {split} pictures, found {found[split]}: {hint}")

    for split, (fewest, most) in benchmark.per_leaf.items():
        for leaf, name in enumerate(content.taxonomy.names[-1]):
            if not fewest <= leaves[split][leaf] <= most:
                wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
                raise DataError(
                    f"{benchmark.title}: expected {wanted} {split} pictures of {name}, found "
                    f"{leaves[split][leaf]}: {hint}"
                )

    empty = []
    for leaf, name in enumerate(content.taxonomy.names[-1]):
        for counts in leaves.values():
            if not counts[leaf]:
                empty.append(name)

    if empty:
        raise DataError(f"{benchmark.title}: {len(empty)} classes without a picture, such as {empty[0]}: {hint}")


def _check_pictures(pictures: Sequence[Picture], decode: bool, progress: bool) -> None:
    """Raise DataError unless all files are there and, with ``decode``, can be read."""

    def problem(picture: Picture) -> str | None:
        if not picture.file.is_file():
            return f"{picture.file}: no such file"
        try:
            if decode:
                open_picture(picture.file)
        except PictureError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the interpreter's lock
        found = tqdm(
            pool.map(problem, pictures),
            "check",
            len(pictures),
            unit="picture",
            disable=not progress or not sys.stderr.isatty() or hides_bars(),
        )
        problems = [text for text in found if text]

    if problems:
        raise DataError(
            f"{len(problems)} of {len(pictures)} pictures cannot be read: {'; '.join(problems[:3])}"
            f"{' ...' if len(problems) > 3 else ''}: unpack the archive again"
        )


def _write(output: Path, benchmark: Benchmark, content: RawDataset, splits: Sequence[str], report: dict) -> None:
    base, tree = output.resolve(), content.taxonomy
    # Inside the folder a relative name, so that it can be moved; elsewhere, a whole path. Folders are few, files many.
    folders = {folder: folder.resolve() for folder in {picture.file.parent for picture in content.pictures}}

    # The list comes last: the other files are known to be whole where it is.
    tree.save(output / "taxonomy.json")
    report = {"dataset": benchmark.name, **report}
    del report["output"]
    write_whole(output / "prepared.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    with whole_file(output / "data.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as lines:
        for picture, split in zip(content.pictures, splits):
            folder = folders[picture.file.parent]
            inside = folder.is_relative_to(base)
            name = f"{(folder.relative_to(base) if inside else folder).as_posix()}/{picture.file.name}"
            path = tree.path_names(tree.paths[picture.leaf])[: picture.depth]
            row = {"file": name, "path": path, "split": split}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
