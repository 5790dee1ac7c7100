"""Data sets of pictures labelled along a taxonomy: folder trees, CSV, JSONL and parquet files."""

import hashlib
import os
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from ..common.formats import is_picture_name
from ..common.text import clip
from ..common.walk import Skipped
from ..taxonomy.sources import TaxonomyError, walk
from ..taxonomy.tree import Taxonomy
from .loading import seed_everything
from .pictures import PictureError, on_background, open_picture
from .readers import read_csv, read_jsonl, read_parquet

PREPARED = "data.jsonl"  # the list of a folder that `hcast-zoo data prepare` wrote
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

    def __init__(
        self,
        pictures: Sequence[str | Path | bytes],
        labels: Sequence[Sequence],
        taxonomy: Taxonomy,
        transform: Callable | None = None,
        *,
        skip_broken: bool = True,
        random_background: bool = False,
        cache: bool = False,
    ):
        if len(pictures) != len(labels):
            raise ValueError(f"expected a label for each of {len(pictures)} pictures, got {len(labels)}")
        self.pictures, self.taxonomy, self.transform = list(pictures), taxonomy, transform
        self.skip_broken, self.random_background = skip_broken, random_background
        known: dict[tuple, tuple[int, ...]] = {}
        rows = []
        for i, path in enumerate(labels):
            try:
                rows.append(_labels(path, taxonomy, known))
            except TaxonomyError as error:
                raise TaxonomyError(f"{clip(self.name(i), 300)}: {error}") from error

        self.labels = torch.tensor(rows, dtype=torch.int64).view(len(rows), len(taxonomy.levels))
        self._cache: dict[int, Image.Image] | None = {} if cache else None

    @classmethod
    def load(
        cls, source: str | Path, taxonomy: Taxonomy | None = None, split: str | None = None, **kwargs
    ) -> "HierarchicalDataset":
        """Read a data set by what the source is: a folder tree, a ``.csv``, ``.jsonl`` or ``.parquet`` file.

        A folder that ``hcast-zoo data prepare`` wrote is read by its ``data.jsonl``, with its ``taxonomy.json`` if no
        other is given. A split may be several: ``train+val``.
        """
        source = Path(source)
        if source.is_dir() and (source / PREPARED).is_file():
            taxonomy = taxonomy or Taxonomy.load(source / "taxonomy.json")
            source = source / PREPARED

        if source.is_dir():
            parts = [source / part for part in split.split("+")] if split else [source]
            if missing := [part for part in parts if not part.is_dir()]:
                raise ValueError(f"{missing[0]}: expected a folder of the split {split!r}, there is none")
            taxonomy = taxonomy or Taxonomy.from_folder(parts[0])
            return cls._from_rows([row for part in parts for row in _folder_rows(part)], source, taxonomy, **kwargs)

        readers = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
        if source.suffix.lower() not in readers:
            raise ValueError(f"{source}: expected a folder, or a file that ends in {', '.join(readers)}")
        if not source.exists():
            raise ValueError(f"{source}: no such file")

        return cls._from_rows(readers[source.suffix.lower()](source, taxonomy, split), source, taxonomy, **kwargs)

    @classmethod
    def from_folder(cls, root: str | Path, taxonomy: Taxonomy | None = None, **kwargs) -> "HierarchicalDataset":
        """Read a tree of folders, one folder a node: ``root/order/family/species/picture.jpg``. Links are followed.

        A picture above the leaves is labelled down to its folder. Sorted, so the order is the same everywhere.
        """
        root = Path(root)
        return cls._from_rows(_folder_rows(root), root, taxonomy or Taxonomy.from_folder(root), **kwargs)

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

    def digest(self) -> str:
        """Return a SHA-256 of the list: each picture's name below the folder that all share, or its bytes; its labels.

        What is in the files is not read.
        """
        files = [str(p) for p in self.pictures if not isinstance(p, bytes)]
        shared = len(os.path.commonpath(map(os.path.abspath, files))) if files else 0
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        for picture in self.pictures:
            if isinstance(picture, bytes):
                content = picture
            else:
                content = os.path.abspath(picture)[shared:].encode(errors="surrogateescape")
            digest.update(len(content).to_bytes(8, "little") + content)
        return digest.hexdigest()

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


def _labels(path: Sequence, taxonomy: Taxonomy, known: dict[tuple, tuple[int, ...]]) -> tuple[int, ...]:
    """Return ``taxonomy.labels(path)``; keep it in ``known``, for millions of pictures have few different paths."""
    try:
        key = (*path, *map(type, path))  # 1.0 equals 1, and is no label
        found = known.get(key)
    except TypeError:  # a list in the path, or no path at all
        return taxonomy.labels(path)
    if found is None:
        found = known[key] = taxonomy.labels(path)
    return found


def _folder_rows(root: Path) -> list[tuple[Path, tuple[str, ...]]]:
    skipped = Skipped()
    files = []
    for folder, _, names in walk(root, skipped):
        files += [folder / name for name in names if is_picture_name(name, skipped)]

    skipped.tell(root)
    return [(file, file.relative_to(root).parts[:-1]) for file in sorted(files)]
