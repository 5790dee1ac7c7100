"""Data sets of pictures labelled along a taxonomy: folder trees, CSV, JSONL and parquet files."""

import csv
import json
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from . import superpixels
from .config import HCastConfig
from .taxonomy import Taxonomy, TaxonomyError, trim_path
from .transforms import PICTURE_SUFFIXES, PictureError, on_background, open_picture

WHITE = (255, 255, 255)


class HierarchicalDataset(Dataset):
    """Pictures with a label for each level.

    An index may carry a seed, ``(index, seed)``: then augmentation is a function of the seed alone, whatever worker
    makes the sample. That is how a training run resumes exactly.

    Args:
        pictures: Files, or encoded pictures as bytes.
        labels: One path of names or node indices a picture, coarse to fine; see :meth:`Taxonomy.labels`.
        taxonomy: The tree.
        transform: From a PIL RGB picture to a tensor; the picture itself is returned without.
        skip_broken: Warn of a picture that cannot be read and return None for it, instead of raising.
        random_background: Composite transparent pictures on random colours instead of white.
        cache: Keep decoded pictures in memory.

    Raises:
        TaxonomyError: if a label is not in the taxonomy; the message names the picture.
    """

    def __init__(self, pictures: Sequence[str | Path | bytes], labels: Sequence[Sequence], taxonomy: Taxonomy,
                 transform: Callable | None = None, *, skip_broken: bool = True,
                 random_background: bool = False, cache: bool = False):
        if len(pictures) != len(labels):
            raise ValueError(f"expected a label for each of {len(pictures)} pictures, got {len(labels)}")
        self.pictures, self.taxonomy, self.transform = list(pictures), taxonomy, transform
        self.skip_broken, self.random_background = skip_broken, random_background
        self.labels = torch.empty((len(labels), len(taxonomy.levels)), dtype=torch.int64)
        for i, path in enumerate(labels):
            try:
                self.labels[i] = torch.tensor(taxonomy.labels(path))
            except TaxonomyError as error:
                raise TaxonomyError(f"{self.name(i)}: {error}") from error
        self._cache: dict[int, Image.Image] | None = {} if cache else None

    @classmethod
    def load(cls, source: str | Path, taxonomy: Taxonomy | None = None, split: str | None = None,
             **kwargs) -> "HierarchicalDataset":
        """Read a data set by what the source is: a folder tree, a ``.csv``, ``.jsonl`` or ``.parquet`` file."""
        source = Path(source)
        if source.is_dir():
            return cls.from_folder(source / split if split else source, taxonomy, **kwargs)
        readers = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
        if source.suffix.lower() not in readers:
            raise ValueError(f"{source}: expected a folder, or a file that ends in {', '.join(readers)}")
        if not source.exists():
            raise ValueError(f"{source}: no such file")
        return cls._from_rows(readers[source.suffix.lower()](source, taxonomy, split), source, taxonomy, **kwargs)

    @classmethod
    def from_folder(cls, root: str | Path, taxonomy: Taxonomy | None = None, **kwargs) -> "HierarchicalDataset":
        """Read a tree of folders, one folder a node: ``root/order/family/species/picture.jpg``.

        A picture above the leaves is labelled down to its folder. Sorted, so the order is the same everywhere.
        """
        root = Path(root)
        taxonomy = taxonomy or Taxonomy.from_folder(root)
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        rows = [(p, p.relative_to(root).parts[:-1]) for p in files]
        return cls._from_rows(rows, root, taxonomy, **kwargs)

    @classmethod
    def _from_rows(cls, rows, source, taxonomy, **kwargs):
        pictures, paths = zip(*rows) if (rows := list(rows)) else ((), ())
        if not pictures:
            raise ValueError(f"{source}: expected at least one picture, got none")
        return cls(pictures, paths, taxonomy or Taxonomy.from_paths(paths), **kwargs)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple | None:
        """Return (picture, labels (L,) int64), and the seed if the index carried one.

        Raises:
            PictureError: if the picture cannot be read, unless ``skip_broken``.
        """
        seed = None
        if isinstance(index, tuple):
            index, seed = index
            seed_everything(seed)
        try:
            picture = self.open(index)
        except PictureError as error:
            if not self.skip_broken:
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
            return None
        background = WHITE
        if self.random_background:
            background = (random.randrange(256), random.randrange(256), random.randrange(256))
        picture = on_background(picture, background)
        if self.transform is not None:
            picture = self.transform(picture)
        return (picture, self.labels[index]) if seed is None else (picture, self.labels[index], seed)

    def open(self, index: int) -> Image.Image:
        """Return picture ``index`` as RGB or RGBA."""
        if self._cache is None:
            return open_picture(self.pictures[index])
        if index not in self._cache:
            self._cache[index] = open_picture(self.pictures[index])
        return self._cache[index]

    def name(self, index: int) -> str:
        """Return the file name of picture ``index``, or its number if it came as bytes."""
        picture = self.pictures[index]
        return f"picture {index}" if isinstance(picture, bytes) else str(picture)


def read_csv(path: Path, taxonomy: Taxonomy | None, split: str | None) -> Iterator[tuple[Path, list[str]]]:
    """Read rows of a CSV file with a column ``file``, a column a level, and ``split`` if one is asked for.

    The level columns are those named as the taxonomy's levels, else all others. Files are relative to the CSV file.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        levels = taxonomy.levels if taxonomy else [c for c in columns if c not in ("file", "split")]
        _require(path, columns, ["file", *levels, *(["split"] if split else [])])
        for row in reader:
            if split is None or row["split"] == split:
                yield path.parent / row["file"], trim_path([row[c] for c in levels], f"{path} line {reader.line_num}")


def read_jsonl(path: Path, taxonomy: Taxonomy | None, split: str | None) -> Iterator[tuple[Path, list]]:
    """Read one object a line: ``{"file": ..., "path": [coarse, ..., fine], "split": ...}``."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file, labels, part = row["file"], row["path"], row.get("split")
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} line {number}: expected an object with file and path: {error}") from error
        if split is None or part == split:
            yield path.parent / file, labels


def read_parquet(path: Path, taxonomy: Taxonomy | None, split: str | None) -> Iterator[tuple[bytes, list]]:
    """Read a parquet file with a column ``image`` of encoded pictures, a column a level, and perhaps ``split``."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'hcast-zoo[train]'") from error
    table = pq.read_table(path)
    columns = table.column_names
    levels = taxonomy.levels if taxonomy else [c for c in columns if c not in ("image", "split")]
    _require(path, columns, ["image", *levels, *(["split"] if split else [])])
    if split is not None:
        table = table.filter(pq.filters_to_expression([("split", "=", split)]))
    return zip(table["image"].to_pylist(), map(list, zip(*(table[c].to_pylist() for c in levels))))


def _require(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [c for c in needed if c not in columns]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(columns)}")


class SeededSampler(Sampler):
    """Yield ``(index, seed)`` in an order, and with seeds, that follow from the run's seed and the epoch.

    Args:
        length: Size of the data set.
        seed: Seed of the run.
    """

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        yield from zip(rng.permutation(self.length).tolist(), rng.integers(2**32, size=self.length).tolist())


class SuperpixelCollate:
    """Stack samples, mix them, and compute their superpixels, all in the loader's worker.

    Superpixels are those of the mixed image (differs from official: engine_hier.py:49 mixes images after the map
    was made, so the map belongs to another image; ``paper_exact`` keeps that).

    Args:
        config: Tells the superpixels.
        mixup: Called with images and labels, returns mixed images and soft targets; see :mod:`hcast_zoo.train`.
        paper_exact: Compute superpixels before mixing.
    """

    def __init__(self, config: HCastConfig, mixup: Callable | None = None, paper_exact: bool = False):
        self.config, self.mixup, self.paper_exact = config, mixup, paper_exact

    def __call__(self, batch: list[tuple | None]) -> dict[str, Tensor | tuple[Tensor, ...]] | None:
        """Return ``images`` (B, C, H, W), ``segments`` (B, H, W) int64, ``labels`` (B, L), and ``targets``.

        Samples that are None are left out; if all are, None is returned.
        """
        samples = [s for s in batch if s is not None]
        if self.mixup is not None and len(samples) % 2:  # mixing goes by pairs
            samples.pop()
        if not samples:
            return None
        images = torch.stack([s[0] for s in samples])
        labels = targets = torch.stack([s[1] for s in samples])
        segments = self._segments(images) if self.paper_exact else None
        if self.mixup is not None:
            if len(samples[0]) == 3:
                seed_everything(samples[0][2] ^ 0x5EED)  # not the sample's own stream
            images, targets = self.mixup(images, labels)
        if segments is None:
            segments = self._segments(images)
        return {"images": images, "segments": segments, "labels": labels, "targets": targets}

    def _segments(self, images: Tensor) -> Tensor:
        c = self.config
        return superpixels.from_normalized(images, c.num_superpixels, c.mean, c.std, c.superpixels).contiguous()


def seed_everything(seed: int) -> None:
    """Seed the three generators that augmentations draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
