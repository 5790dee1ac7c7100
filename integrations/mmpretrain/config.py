"""Turn the names in a config (an architecture, weights, a taxonomy) into the core's HCastConfig and Taxonomy."""

import functools
from collections.abc import Mapping
from pathlib import Path

from hcast_zoo.data.listing import find_split
from hcast_zoo.data.readers import find_shards, read_listing, split_folders
from hcast_zoo.network.config import VARIANTS, HCastConfig
from hcast_zoo.paper.trees import load_tree, tree_names
from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import WeightsError, find_weights, packaged_weights, read_weights

ARCHITECTURES = tuple(name.removeprefix("hcast_") for name in VARIANTS)


def model_config(arch: str | Mapping, **changes) -> HCastConfig:
    """Return the config of an architecture.

    Args:
        arch: One of ``ARCHITECTURES``; or the name or file of weights, such as ``"hcast_small.emoji_art"``, to use
            their config; or fields of :class:`hcast_zoo.HCastConfig`.
        changes: Fields to set; None leaves one as it is.

    Raises:
        ValueError: if the architecture or a field is unknown.
    """
    changes = {key: value for key, value in changes.items() if value is not None}
    if isinstance(arch, Mapping):
        return HCastConfig.from_dict({**arch, **changes})
    if arch in ARCHITECTURES:
        return HCastConfig.from_variant(f"hcast_{arch}", **changes)

    try:
        return _read_header(str(arch))[0].replace(**changes)
    except WeightsError as error:
        raise ValueError(
            f"unknown arch {arch!r}: expected one of {', '.join(ARCHITECTURES)}, a dict of HCastConfig's "
            f"fields, or weights; {error}"
        ) from error


def load_taxonomy(source: str | Path | Mapping | Taxonomy) -> Taxonomy:
    """Return a taxonomy.

    Args:
        source: The name of a data set of the paper (see :mod:`hcast_zoo.paper.trees`); the name or file of weights; a
            JSON or CSV file, or a tree of folders; pictures (folders, split or not, or parquet), for the tree
            of their training labels; the plain data of :meth:`Taxonomy.to_dict`; or a taxonomy.

    Raises:
        TaxonomyError: if there is none, or it is not a tree.
    """
    if isinstance(source, Taxonomy):
        return source
    if isinstance(source, Mapping):
        return Taxonomy.from_dict(dict(source))
    if str(source) in tree_names():
        return load_tree(str(source))

    if str(source) in packaged_weights() or Path(source).suffix == ".safetensors":
        taxonomy = _read_header(str(source))[1]
        if taxonomy is None:
            raise TaxonomyError(f"the weights {source} have no taxonomy")
        return taxonomy

    if not Path(source).exists():
        known = [*tree_names(), *packaged_weights()]
        raise TaxonomyError(
            f"no taxonomy {str(source)!r}: expected a .json or .csv file, a folder, or one of {', '.join(known)}"
        )

    return _tree_of(Path(source))


@functools.lru_cache(maxsize=8)
def _tree_of(source: Path) -> Taxonomy:
    """Return the tree of a file or folder; of split pictures, that of the training labels, as in training."""
    if source.suffix.lower() in (".parquet", ".jsonl") or (source.is_dir() and find_shards(source)):
        listing = read_listing(source, wanted=("train",))
        return (listing.part("train") if listing.splits else listing).taxonomy()
    parts = split_folders(source, ("train",)) if source.is_dir() else []
    train = find_split("train", parts)
    return Taxonomy.load(source / train if train else source)


def load_calibration(source: str | Path | Mapping | None, num_levels: int) -> Calibration:
    """Return temperatures for decoding, from plain data or weights, or ones that change nothing.

    Raises:
        ValueError: if they are not for this number of levels.
    """
    if isinstance(source, Mapping):
        calibration = Calibration.from_dict(dict(source))
    else:
        calibration = None if source is None else _read_header(str(source))[2]

    calibration = calibration or Calibration.identity(num_levels)
    if len(calibration.temperatures) != num_levels:
        raise ValueError(f"calibration: expected a temperature for each of {num_levels} levels, got {calibration}")
    return calibration


@functools.lru_cache(maxsize=8)
def _read_header(source: str) -> tuple[HCastConfig, Taxonomy | None, Calibration | None]:
    """Read the config, taxonomy and calibration of weights, once for all parts of a config that name them."""
    weights = read_weights(find_weights(source), tensors=False)
    return weights.config, weights.taxonomy, weights.calibration
