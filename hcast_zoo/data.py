"""Data sets of pictures labelled along a taxonomy: folder trees, CSV, JSONL and parquet files."""

import json
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from . import superpixels
from .config import HCastConfig
from .superpixel_cache import SuperpixelCache
from .taxonomy import Taxonomy, TaxonomyError, read_table, trim_path, walk
from .text import brief, clip, printable
from .transforms import PICTURE_SUFFIXES, PictureError, on_background, open_picture

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
    files = sorted(
        p
        for folder, _, names in walk(root)
        for p in map(folder.joinpath, names)
        if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file()
    )
    return [(p, p.relative_to(root).parts[:-1]) for p in files]


def read_csv(path: Path, taxonomy: Taxonomy | None, split: str | None) -> Iterator[tuple[Path, list[str]]]:
    """Read rows of a CSV file with a column ``file``, a column a level, and ``split`` if one is asked for.

    The level columns are those named as the taxonomy's levels, else all others. Files are relative to the CSV file.
    """
    columns, table = read_table(path)
    levels = taxonomy.levels if taxonomy else [c for c in columns if c not in ("file", "split")]
    _require(path, columns, ["file", *levels, *(["split"] if split else [])])
    for line, row in table:
        if split is None or row["split"] in split.split("+"):
            yield path.parent / row["file"], trim_path([row[c] for c in levels], f"{path} line {line}")


def read_jsonl(path: Path, taxonomy: Taxonomy | None, split: str | None) -> Iterator[tuple[Path, list]]:
    """Read one object a line: ``{"file": ..., "path": [coarse, ..., fine], "split": ...}``."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                file, labels, part = row["file"], row["path"], row.get("split")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path} line {number}: expected an object with file and path: {error}") from error
            if not isinstance(file, str) or not isinstance(labels, list):
                raise ValueError(
                    f"{path} line {number}: expected the name of a file and a list of names, got "
                    f"{brief(file)} and {brief(labels)}"
                )
            if split is None or part in split.split("+"):
                yield path.parent / file, labels


def read_parquet(path: Path, taxonomy: Taxonomy | None, split: str | None) -> Iterator[tuple[bytes, list]]:
    """Read a parquet file with a column ``image`` of encoded pictures, a column a level, and perhaps ``split``."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'hcast-zoo[train]'") from error
    try:
        # As a file, for a name would be taken for a part of a data set; its stored Arrow schema is not needed.
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            levels = taxonomy.levels if taxonomy else [c for c in columns if c not in ("image", "split")]
            needed = ["image", *levels, *(["split"] if split else [])]
            _require(path, columns, needed)
            table = file.read(columns=needed)
            table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: expected a complete parquet file: {clip(error)}") from error
    kinds = {name: table.schema.field(name).type for name in needed}
    if not (pa.types.is_binary(kinds["image"]) or pa.types.is_large_binary(kinds["image"])):
        raise ValueError(f"{path}: expected encoded pictures (binary) in column image, got {kinds['image']}")
    for name in needed[1:]:
        kind = kinds[name].value_type if pa.types.is_dictionary(kinds[name]) else kinds[name]
        if not (
            pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_null(kind)
        ):
            raise ValueError(f"{path}: expected names or labels in column {brief(name)}, got {kind}")
    if split is not None:
        if not pa.types.is_string(table.schema.field("split").type):
            table = table.set_column(table.column_names.index("split"), "split", table["split"].cast(pa.string()))
        table = table.filter(pq.filters_to_expression([("split", "in", split.split("+"))]))
    return zip(table["image"].to_pylist(), map(list, zip(*(table[c].to_pylist() for c in levels))))


def _require(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [c for c in needed if c not in columns]:
        raise ValueError(f"{path}: no column {', '.join(map(printable, missing))}; it has {brief(columns)}")


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
        cache: Folder that keeps the maps of images that come again pixel by pixel; see :class:`SuperpixelCache`.
        device: Where the model is. SLIC is left to an accelerator: a batch has no ``segments``, and the model makes
            them.
    """

    def __init__(
        self,
        config: HCastConfig,
        mixup: Callable | None = None,
        paper_exact: bool = False,
        cache: str | Path | None = None,
        device: torch.device | None = None,
    ):
        self.config, self.mixup, self.paper_exact = config, mixup, paper_exact
        self.left_to_model = (
            device is not None
            and device.type != "cpu"
            and config.superpixels == "slic"
            and cache is None
            and not paper_exact
        )
        self.cache = None if cache is None else SuperpixelCache(cache, config)

    def __call__(self, batch: list[tuple | None]) -> dict[str, Tensor | tuple[Tensor, ...]] | None:
        """Return ``images`` (B, C, H, W), mostly ``segments`` (B, H, W) int64, ``labels`` (B, L), and ``targets``.

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
        collated: dict[str, Tensor | tuple[Tensor, ...]] = {"images": images, "labels": labels, "targets": targets}
        if not self.left_to_model:
            collated["segments"] = self._segments(images) if segments is None else segments
        return collated

    def _segments(self, images: Tensor) -> Tensor:
        if self.cache is not None:
            return self.cache(images)
        c = self.config
        return superpixels.from_normalized(images, c.num_superpixels, c.mean, c.std, c.superpixels).contiguous()


def seed_everything(seed: int) -> None:
    """Seed the three generators that augmentations draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def start_quietly(worker: int) -> None:
    """Let a loader's worker (it is the ``worker_init_fn``) say nothing when its parent goes away, as after Ctrl-C.

    A thread of multiprocessing, which hands over tensors, would print a traceback. Errors of the worker itself do not
    go this way: torch hands them to the parent.
    """

    def hook(kind, error, traceback, before=sys.excepthook):
        if not issubclass(kind, (ConnectionError, EOFError)):
            before(kind, error, traceback)

    sys.excepthook = hook


def start_workers(loader: DataLoader) -> Iterator:
    """Return ``iter(loader)``; Ctrl-C waits until all workers are there.

    An interrupt in the midst leaves half an iterator, which cannot end its workers, or is lost at a fork. Blocking the
    signal would not do: it then goes to another thread, and Python raises in this one all the same.
    """
    if loader.num_workers == 0 or threading.current_thread() is not threading.main_thread():
        return iter(loader)
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)
