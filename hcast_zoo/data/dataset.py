"""Data sets of pictures labelled along a taxonomy: folder trees, CSV, JSONL and parquet files."""

import hashlib
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from ..common.text import clip, printable
from ..taxonomy.sources import TaxonomyError
from ..taxonomy.tree import Taxonomy
from .boxes import BoxedPicture
from .listing import Listing
from .loading import seed_augmentations
from .pictures import PictureError, on_background, open_as_official, open_picture
from .readers import PREPARED, folder_rows, read_listing

WHITE = (255, 255, 255)


class HierarchicalDataset(Dataset):
    """Pictures with a label for each level.

    An index may come with a seed, ``(index, seed)``: augmentation then depends only on the seed, whichever worker makes
    the sample, so that a training run resumes exactly.

    Args:
        pictures: Files, encoded pictures as bytes, or boxes in files.
        labels: One path of names or node indices per picture, coarse to fine; see :meth:`Taxonomy.labels`.
        taxonomy: The tree.
        transform: Maps a PIL RGB picture to a tensor; None returns the picture itself.
        skip_broken: Warn about a picture that cannot be read and return None for it, instead of raising.
        random_background: Composite transparent pictures on random colours instead of white.
        cache: Keep decoded pictures in memory.

    Raises:
        TaxonomyError: if a label is not in the taxonomy; the message names the picture.
    """

    def __init__(
        self,
        pictures: Sequence[str | Path | bytes | BoxedPicture],
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
        self.official_reading = False  # read pictures as the authors' loader does: see open_as_official

        label_cache: dict[tuple, tuple[int, ...]] = {}
        rows = []
        for index, path in enumerate(labels):
            try:
                rows.append(_labels(path, taxonomy, label_cache))
            except TaxonomyError as error:
                raise TaxonomyError(f"{clip(self.name(index), 300)}: {error}") from error

        self.labels = torch.tensor(rows, dtype=torch.int64).view(len(rows), len(taxonomy.levels))
        self._cache: dict[int, Image.Image] | None = {} if cache else None

    @classmethod
    def load(
        cls,
        source: str | Path,
        taxonomy: Taxonomy | None = None,
        split: str | None = None,
        *,
        levels: Sequence[str] | None = None,
        synonyms: Mapping[str, str] | None = None,
        strict_names: bool = False,
        **kwargs,
    ) -> "HierarchicalDataset":
        """Read a data set: a folder tree, or a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file.

        In a folder that ``hcast-zoo data prepare`` wrote, ``data.jsonl`` is read, with ``taxonomy.json`` if no other
        tree is given. Several splits can be joined, as in ``train+val``; other common names of a part are accepted.

        Args:
            source: The folder or file; see :func:`.readers.read_listing`.
            taxonomy: The tree; by default that of the pictures' labels.
            split: Part of the source, or several.
            levels: Columns of a table that are levels, coarse to fine.
            synonyms: New names by old ones; see :func:`.readers.read_synonyms`.
            strict_names: Refuse a name below two parents instead of making two nodes of it.
            kwargs: Further arguments of the class.

        Raises:
            ValueError: if the source is malformed; the message says how to fix it.
        """
        source = Path(source)
        if taxonomy is None and (source / PREPARED).is_file():
            taxonomy = Taxonomy.load(source / "taxonomy.json")

        wanted = () if split is None else (split,)
        listing = read_listing(source, taxonomy, wanted, levels=levels, synonyms=synonyms)
        return cls.from_listing(listing.part(split), taxonomy, strict_names=strict_names, **kwargs)

    @classmethod
    def from_listing(
        cls, listing: Listing, taxonomy: Taxonomy | None = None, *, strict_names: bool = False, **kwargs
    ) -> "HierarchicalDataset":
        """Return the data set of a listing, with the tree of its labels if no other is given.

        Raises:
            ValueError: if there is no picture, or labels do not form a tree or are not in the given one.
        """
        if not listing.pictures:
            raise ValueError(f"{listing.source}: expected at least one picture, got none")

        taxonomy = taxonomy or listing.taxonomy(strict_names)
        return cls(listing.pictures, listing.paths, taxonomy, **kwargs)

    @classmethod
    def from_folder(cls, root: str | Path, taxonomy: Taxonomy | None = None, **kwargs) -> "HierarchicalDataset":
        """Read a tree of folders, one folder per node: ``root/order/family/species/picture.jpg``. Links are followed.

        A picture above the leaves is labelled down to its folder. Pictures are sorted, so that the order is the same on
        every system.
        """
        root = Path(root)
        rows = folder_rows(root)
        listing = Listing(source=root, pictures=[file for file, _ in rows], paths=[path for _, path in rows])
        return cls.from_listing(listing, taxonomy, **kwargs)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple | None:
        """Return (picture, labels (L,) int64), and the seed if the index has one.

        Raises:
            PictureError: if the picture cannot be read, unless ``skip_broken``.
        """
        seed = None
        if isinstance(index, tuple):
            index, seed = index
            seed_augmentations(seed)

        try:
            picture = self.open(index)
        except PictureError as error:
            if not self.skip_broken:
                raise
            warnings.warn(printable(f"left out: {error}"), stacklevel=2)
            return None

        background = WHITE
        if self.random_background:
            background = (random.randrange(256), random.randrange(256), random.randrange(256))

        picture = picture if self.official_reading else on_background(picture, background)
        if self.transform is not None:
            picture = self.transform(picture)

        return (picture, self.labels[index]) if seed is None else (picture, self.labels[index], seed)

    def digest(self) -> str:
        """Return a SHA-256 of all labels, and of each picture's bytes or its path below the common folder of all.

        Files are not read.
        """
        files = [os.path.abspath(picture) for picture in self.pictures if not isinstance(picture, bytes)]
        shared = len(os.path.commonpath(files)) if files else 0

        digest = hashlib.sha256(self.labels.numpy().tobytes())
        for picture in self.pictures:
            if isinstance(picture, bytes):
                key = picture
            else:
                key = os.path.abspath(picture)[shared:].encode(errors="surrogateescape")

            digest.update(len(key).to_bytes(8, "little") + key)
            if isinstance(picture, BoxedPicture):
                digest.update(f"{picture.box.edges} {picture.box.relative} {picture.geometry}".encode())

        return digest.hexdigest()

    def open(self, index: int) -> Image.Image:
        """Return picture ``index`` as 8-bit RGB or RGBA.

        Raises:
            PictureError: if it cannot be read.
        """
        read = open_as_official if self.official_reading else open_picture
        if self._cache is None:
            return read(self.pictures[index])

        if index not in self._cache:
            self._cache[index] = read(self.pictures[index])
        return self._cache[index]

    def rare_nodes(self, number: int) -> list[tuple[str, int]]:
        """Return (name, count) of the nodes with fewer than ``number`` pictures, the rarest first."""
        rare = []
        for level, names in enumerate(self.taxonomy.names):
            known = self.labels[:, level][self.labels[:, level] >= 0]
            counts = torch.bincount(known, minlength=len(names)).tolist()
            rare += [(name, count) for name, count in zip(names, counts) if count < number]

        return sorted(rare, key=lambda pair: pair[1])

    def name(self, index: int) -> str:
        """Return the file name of picture ``index``, or its number if it is given as bytes."""
        picture = self.pictures[index]
        return f"picture {index}" if isinstance(picture, bytes) else str(picture)


def _labels(path: Sequence, taxonomy: Taxonomy, cache: dict[tuple, tuple[int, ...]]) -> tuple[int, ...]:
    """Return ``taxonomy.labels(path)``, cached because millions of pictures have few different paths."""
    try:
        key = (*path, *map(type, path))  # with types, because 1.0 equals 1 but is not a label
        labels = cache.get(key)
    except TypeError:  # a list in the path, or no path at all
        return taxonomy.labels(path)

    if labels is None:
        labels = cache[key] = taxonomy.labels(path)
    return labels
