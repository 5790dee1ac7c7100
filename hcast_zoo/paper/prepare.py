"""Prepare the paper's data sets: unpack and check archives, and list pictures, paths and splits in one file.

A prepared folder holds ``data.jsonl`` (a picture per line, ``train``, ``val`` or ``test``), ``taxonomy.json`` (the
paper's tree with the data set's names) and ``prepared.json`` (counts, checksums, and how ``val`` was drawn).
:meth:`HierarchicalDataset.load` reads it by the name of the folder.
"""

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torchvision.datasets.utils import calculate_md5
from tqdm import tqdm

from ..common.files import whole_file, write_whole
from ..common.progress import hides_terminal_bars
from ..common.text import join_some
from ..data.pictures import PictureError, open_picture
from ..data.splits import PARTS
from . import lists
from .archives import first_names, is_archive, unpack
from .benchmarks import ILSVRC, Benchmark
from .readers import (
    NUM_SHOWN,
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
LABELS = (".json", ".csv")  # suffixes of files that may be given beside archives
LISTS = (*LABELS, ".txt")  # the same, for data sets whose lists others publish


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Attributes:
        output: The folder.
        pictures: Number of pictures in each split.
        levels: Number of classes of each level.
        remarks: What is unusual about the data set, the tree, or the archives.
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
    """Prepare a data set of the paper for training and evaluation.

    Args:
        benchmark: The data set.
        sources: Its archives as the owners distribute them, or the folders that they were unpacked to.
        output: Folder to unpack to, and to write to.
        seed: Decides which training pictures are used for validation (a tenth of each leaf's, at least one), and, in
            data sets where it is random, down to which level each picture is labelled.
        partial: Accept fewer pictures and classes than the data set has, for a trial.
        check: Decode every picture, to make sure that it can be read.
        progress: Show progress bars.

    Raises:
        DataError: if a file is missing, a count is wrong, a picture cannot be read, or a class is not in the tree.
        ArchiveError: if an archive is damaged.
    """
    remarks = list(benchmark.notes)
    paths, output = list(map(Path, sources)), Path(output)
    checksums = _checksums(benchmark, paths, remarks)
    output.mkdir(parents=True, exist_ok=True)
    roots = _gather(benchmark, paths, output, progress)

    raw = read(benchmark, roots, partial)
    if benchmark.known is not None:
        order = lists.official_order(raw, roots, benchmark.layout)
        raw = lists.draw_depths(raw, *benchmark.known, seed=seed, order=order)

    remarks += raw.remarks
    _check_counts(benchmark, raw, partial)
    _check_pictures(raw.pictures, check, progress)

    splits = split_validation(raw.pictures, seed)
    counts = collections.Counter(splits)
    prepared = Prepared(
        output=str(output),
        pictures={part: counts[part] for part in PARTS},
        levels=dict(zip(raw.taxonomy.levels, raw.taxonomy.level_classes)),
        remarks=tuple(remarks),
    )

    _write(
        output,
        benchmark,
        raw,
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
    """Read a data set's files; ``partial`` leaves out listed pictures that are missing."""
    if benchmark.layout == "lists":
        raw = lists.read_lists(benchmark, roots)
        if partial:
            raw.pictures = [picture for picture in raw.pictures if picture.file.exists()]
        return raw

    assert benchmark.tree is not None  # only lists come with their own tree
    tree = load_tree(benchmark.tree)
    if benchmark.layout == "breeds":
        return read_breeds(roots, tree, leaf_ids(benchmark.tree), partial)

    readers = {"cub": read_cub, "aircraft": read_aircraft, "inat": read_inat}
    return readers[benchmark.layout](roots, tree)


def split_validation(pictures: Sequence[Picture], seed: int = 0) -> list[str]:
    """Return the split of each picture, with ``VAL_FRACTION`` of each leaf's training pictures moved to ``val``.

    A leaf with two or more training pictures gives at least one, and keeps at least one.
    """
    by_leaf = collections.defaultdict(list)
    for i, picture in enumerate(pictures):
        if picture.split == "train":
            by_leaf[picture.leaf].append(i)

    splits = [picture.split for picture in pictures]
    for leaf, indices in sorted(by_leaf.items()):
        indices.sort(key=lambda i: pictures[i].file.name)  # whatever the order in the data set's file
        count = min(max(1, round(VAL_FRACTION * len(indices))), len(indices) - 1)
        for i in np.random.default_rng((seed, leaf)).permutation(indices)[:count]:
            splits[i] = "val"

    return splits


def _checksums(benchmark: Benchmark, sources: Sequence[Path], remarks: list[str]) -> dict[str, str]:
    """Return the MD5 of each archive; add a remark for each that is not as distributed."""
    checksums = {}
    for source in sources:
        if not source.exists():
            raise DataError(
                f"{source}: no such file or folder: expected {' and '.join(benchmark.archives)}, or the "
                "folder that they were unpacked to"
            )

        if source.is_file():
            checksums[source.name] = digest = calculate_md5(source)
            if (expected := benchmark.archives.get(source.name)) and digest != expected:
                remarks.append(
                    f"{source.name} is not the archive as distributed: its MD5 is {digest}, expected {expected}."
                )

    return checksums


def _gather(benchmark: Benchmark, sources: Sequence[Path], output: Path, progress: bool) -> list[Path]:
    """Unpack the archives into the output folder; return the folders to look in."""
    suffixes = LISTS if benchmark.lists or benchmark.known else LABELS
    archives, folders = [], []
    for source in sources:
        if is_archive(source):
            archives.append(source)
        elif source.is_dir():
            folders.append(source)
        elif source.suffix in suffixes:
            folders.append(source.parent)
        else:
            raise DataError(f"{source}: expected a folder, or a whole .tar, .tgz, .tar.gz or .zip")

    if benchmark.archives.keys() & ILSVRC.keys():
        _unpack_imagenet(benchmark, archives, output, folders, progress)
    else:
        for archive in archives:
            unpack(archive, output, progress=progress)

    return list(dict.fromkeys([output, *folders]))


def _unpack_imagenet(
    benchmark: Benchmark, files: Sequence[Path], output: Path, folders: Sequence[Path], progress: bool
) -> None:
    """Unpack the part of ImageNet that is needed; labels first, because they select the validation pictures."""
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


def _check_counts(benchmark: Benchmark, raw: RawDataset, partial: bool) -> None:
    by_leaf: dict[str, collections.Counter] = {"train": collections.Counter(), "test": collections.Counter()}
    for picture in raw.pictures:
        by_leaf[picture.split][picture.leaf] += 1

    for split, counts in by_leaf.items():
        if not counts:
            raise DataError(f"{benchmark.title} has no {split} picture here")

    if partial:
        return

    hint = "the data set is incomplete; --partial accepts a part of it, for a trial"
    for split, expected in benchmark.pictures.items():
        if (count := by_leaf[split].total()) != expected:
            raise DataError(f"{benchmark.title}: expected {expected} {split} pictures, found {count}: {hint}")

    names = raw.taxonomy.names[-1]
    for split, (fewest, most) in benchmark.per_leaf.items():
        for leaf, name in enumerate(names):
            count = by_leaf[split][leaf]
            if not fewest <= count <= most:
                expected_count = f"{fewest}" if fewest == most else f"{fewest} to {most}"
                raise DataError(
                    f"{benchmark.title}: expected {expected_count} {split} pictures of {name}, found {count}: {hint}"
                )

    for split, counts in by_leaf.items():
        if empty := [name for leaf, name in enumerate(names) if not counts[leaf]]:
            raise DataError(
                f"{benchmark.title}: no {split} picture of {len(empty)} class(es), such as {empty[0]}: {hint}"
            )


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

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter's lock while it decodes
        messages = tqdm(
            pool.map(problem, pictures),
            "check",
            len(pictures),
            unit="picture",
            disable=not progress or hides_terminal_bars(),
        )
        problems = [message for message in messages if message]

    if problems:
        raise DataError(
            f"{len(problems)} of {len(pictures)} pictures cannot be read: {join_some(problems, NUM_SHOWN, '; ')}: "
            "unpack the archive again"
        )


def _write(output: Path, benchmark: Benchmark, raw: RawDataset, splits: Sequence[str], report: dict) -> None:
    base, tree = output.resolve(), raw.taxonomy
    resolve = functools.cache(Path.resolve)  # folders are few, files are many

    # The list is written last: if it exists, the other files are complete.
    tree.save(output / "taxonomy.json")
    report = {"dataset": benchmark.name, **report}
    del report["output"]
    write_whole(output / "prepared.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    with whole_file(output / "data.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as lines:
        for picture, split in zip(raw.pictures, splits):
            folder = resolve(picture.file.parent)
            inside = folder.is_relative_to(base)  # then a relative name, so that the prepared folder can be moved
            name = f"{(folder.relative_to(base) if inside else folder).as_posix()}/{picture.file.name}"
            path = tree.path_names(tree.paths[picture.leaf])[: picture.depth]
            row = {"file": name, "path": path, "split": split}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
