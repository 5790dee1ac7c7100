"""Turn a pretrained tag and timm's arguments into a config, and find the weights file."""

import dataclasses
import math
import warnings
from typing import Any

from timm.layers import is_exportable
from timm.models import PretrainedCfg

from hcast_zoo.network.config import CELL_SIZE, HCastConfig
from hcast_zoo.network.superpixels import GRID_NOTE
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import find_weights, packaged_weights, read_weights, shipped_path
from hcast_zoo.weights.header import OWNER
from hcast_zoo.weights.published import TAGS

from .cfgs import CROP_NAMES, Source, describe_source, sources

ImageSize = int | tuple[int, int]  # side, or height and width, in pixels

OUR_CROPS = {theirs: ours for ours, theirs in CROP_NAMES.items()}
PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")  # a caller's pretrained_cfg may change these
# What a user may pass to create_model. For images and their normalisation, timm has img_size, in_chans and
# pretrained_cfg.
_IMAGE_FIELDS = ("image_size", "in_chans", *PREPROCESSING)
MODEL_FIELDS = tuple(field.name for field in dataclasses.fields(HCastConfig) if field.name not in _IMAGE_FIELDS)
NO_DROP = dict(drop_rate=0.0, drop_path_rate=0.0)  # in timm, the caller sets regularisation, never the weights


def plain_cfg(variant: str) -> PretrainedCfg:
    """Return the pretrained config of a variant's bare name, for a new network: the paper's, whatever its tags are."""
    return PretrainedCfg(architecture=variant, **describe_source(Source(HCastConfig.from_variant(variant))))


def fetch_cfg(cfg: PretrainedCfg) -> tuple[PretrainedCfg, Source | None]:
    """Download and convert the file of a tag that others publish; return the config with it, and what it was made for.

    Any other config is returned unchanged, with None.

    Raises:
        WeightsError: if the published file is not the expected one.
        HubError: if it cannot be downloaded.
    """
    name = f"{cfg.architecture}.{cfg.tag}"
    has_own_weights = cfg.file or cfg.state_dict or cfg.url
    if name not in TAGS or has_own_weights or cfg.hf_hub_id != TAGS[name].repo:
        return cfg, None

    path = find_weights(name)
    header = read_weights(path, tensors=False)
    source = Source(header.config, header.taxonomy and header.taxonomy.to_dict(), TAGS[name].classes == 0)
    fields = {k: v for k, v in describe_source(source).items() if k not in PREPROCESSING}
    return dataclasses.replace(cfg, file=str(path), **fields), source


def locate_file(cfg: PretrainedCfg) -> PretrainedCfg:
    """Verify the file of a packaged tag, and download it if this wheel lacks it; return the config with its path.

    Raises:
        WeightsError: if the file is missing or damaged.
        HubError: if it cannot be fetched.
    """
    name = f"{cfg.architecture}.{cfg.tag}"
    entry = packaged_weights().get(name)
    if entry is None or cfg.file != str(shipped_path(entry)):
        return cfg
    return dataclasses.replace(cfg, file=str(find_weights(name)))


def is_reserved(cfg: PretrainedCfg) -> bool:
    """Tell whether the weights of a config would come from the Hub repository reserved for one of our tags."""
    return not cfg.file and not cfg.source and cfg.hf_hub_id == f"{OWNER}/{cfg.architecture}.{cfg.tag}"


def how_to_get(cfg: PretrainedCfg) -> str:
    """Return what to do about a tag without published weights."""
    name = f"{cfg.architecture}.{cfg.tag}"
    return (
        f"{name} has no published weights ({cfg.hf_hub_id} cannot be loaded). Convert a checkpoint of the authors' "
        f"code, or train it, and load the file: `hcast-zoo convert checkpoint.pth {cfg.tag}.safetensors`, then "
        f"timm.create_model('{name}', checkpoint_path='{cfg.tag}.safetensors'). "
        f"Available with pretrained=True: {', '.join(packaged_weights())}"
    )


def make_config(
    variant: str,
    cfg: PretrainedCfg,
    arguments: dict[str, Any],
    source: Source | None = None,
    pretrained: bool = False,
) -> tuple[HCastConfig, dict[str, Any]]:
    """Turn timm's arguments into a config; remove those it uses from ``arguments``.

    The values of the tag hold, changed first by what a saved model was built with, then by the pretrained config, then
    by the caller's arguments.

    Args:
        variant: Name of the model.
        cfg: The pretrained config in effect.
        arguments: Keyword arguments of the model; ``MODEL_FIELDS``, ``img_size``, ``in_chans``, ``num_classes`` and
            ``taxonomy`` are taken out.
        source: What the tag's file holds, if it has been read; the tag's entry in :func:`sources` if None.
        pretrained: Whether to warn if the weights are for another image size.

    Returns:
        The config, and the arguments of ``TimmHCast`` besides it: ``img_size``, ``in_chans``, ``num_classes`` (of the
        finest level, 0 for a model without heads) and ``taxonomy`` (None if the levels have no names).

    Raises:
        ValueError: if arguments disagree.
    """
    saved = dict(arguments.get("pretrained_model_args") or {})
    given = {}
    for name in (*MODEL_FIELDS, "img_size", "in_chans", "num_classes", "taxonomy"):
        value = arguments.pop(name, None)
        if value is not None and _plain(value) != _plain(saved.get(name)):
            given[name] = value

    tag = source or sources().get(f"{variant}.{cfg.tag}") or Source(HCastConfig.from_variant(variant))
    fields = {
        **tag.config.to_dict(),
        "mean": cfg.mean,
        "std": cfg.std,
        "interpolation": cfg.interpolation,
        "crop_pct": cfg.crop_pct,
        "crop_mode": OUR_CROPS.get(cfg.crop_mode, cfg.crop_mode),
        **NO_DROP,
    }
    fields.update({k: v for k, v in saved.items() if k in MODEL_FIELDS and v is not None})
    taxonomy = tag.taxonomy
    if saved.get("taxonomy") or saved.get("level_classes"):  # its levels may no longer have the tag's names
        taxonomy = Taxonomy.from_dict(saved["taxonomy"]) if saved.get("taxonomy") else None

    if is_exportable() and fields["superpixels"] == "seeds":
        fields["superpixels"] = "grid"  # so that the model computes what its graph will, which cannot run SEEDS
        if "superpixels" not in given:
            warnings.warn(f"exportable=True: {GRID_NOTE}", stacklevel=2)

    levels, taxonomy, num_classes = _choose_levels(tuple(fields["level_classes"]), taxonomy, cfg.num_classes, given)
    if levels != tuple(fields["level_classes"]):
        fields.update(level_classes=levels, head_stages=None)
    size = given.pop("img_size", cfg.input_size[1:])
    in_chans = given.pop("in_chans", cfg.input_size[0])

    # A saved model's number of superpixels belongs to its own size, the tag's to the tag's.
    before = saved.get("img_size") or tag.config.image_size
    clusters = given.get("num_clusters", fields["num_clusters"])
    least = clusters[0] if isinstance(clusters, (list, tuple)) and clusters else 1  # the config reports the error
    trained = fields["num_superpixels"]
    fields.update(resize_superpixels(trained, before, size, least))
    config = HCastConfig.from_dict({**fields, "in_chans": in_chans, **given})
    if pretrained:
        warn_of_size(before, size, trained, config.num_superpixels)

    return config, dict(img_size=size, in_chans=in_chans, num_classes=num_classes, taxonomy=taxonomy)


def resize_superpixels(num_superpixels: int, before: ImageSize, after: ImageSize, least: int) -> dict[str, int]:
    """Return the fields of a config that another image size changes.

    The number of superpixels grows with the pixels, so that a superpixel keeps its size. The position embedding is
    square: for another shape it is made for a square of that area, and resampled at run time.

    Args:
        num_superpixels: For images of size ``before``.
        before: Side, or height and width, in pixels.
        after: The same for the new size.
        least: Smallest number of superpixels: the number of clusters made from them, which does not change.
    """
    (old_height, old_width), (height, width) = image_shape(before), image_shape(after)
    if (old_height, old_width) != (height, width):
        num_superpixels = max(least, round(num_superpixels * height * width / (old_height * old_width)))
    side = height if height == width else math.sqrt(height * width)
    return dict(image_size=math.ceil(side / CELL_SIZE) * CELL_SIZE, num_superpixels=num_superpixels)


def warn_of_size(before: ImageSize, after: ImageSize, old: int, new: int) -> None:
    """Warn of the effects of another image size than the weights'; silent if the size is the same.

    Args:
        before: Image size of the weights, in pixels.
        after: Image size of the model, in pixels.
        old: Number of superpixels of the weights.
        new: Number of superpixels of the model.
    """
    (old_height, old_width), (height, width) = image_shape(before), image_shape(after)
    if (old_height, old_width) == (height, width):
        return
    share = f"{height * width / new:.0f} pixels each, {old_height * old_width / old:.0f} before"
    warnings.warn(
        f"weights for {old_height}x{old_width} pixels at {height}x{width}: the position embedding is resampled, and "
        f"there are {new} superpixels in place of {old} ({share}; num_superpixels= sets another number). The clusters "
        "are as many as before. Fine-tune, or measure, at the new size",
        stacklevel=2,
    )


def image_shape(size: ImageSize) -> tuple[int, int]:
    """Return height and width in pixels of a size that may be given as one side."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _choose_levels(
    levels: tuple[int, ...], taxonomy: Taxonomy | None, pretrained_classes: int, given: dict[str, Any]
) -> tuple[tuple[int, ...], Taxonomy | None, int]:
    """Decide on levels, their names and the number of classes; remove the arguments for these from ``given``."""
    if levels[-1] != pretrained_classes:  # the pretrained config describes weights other than the tag's
        levels, taxonomy = _flat(pretrained_classes), None
    num_classes, level_classes = given.pop("num_classes", None), given.pop("level_classes", None)
    names = given.pop("taxonomy", None)
    if level_classes is None and names is None:
        if num_classes is None or num_classes == pretrained_classes:
            return levels, taxonomy, pretrained_classes
        return _flat(num_classes), None, num_classes

    if names is not None:
        taxonomy = Taxonomy.from_dict(names)
        level_classes = taxonomy.level_classes if level_classes is None else level_classes

    level_classes = tuple(level_classes)
    if not level_classes:
        raise ValueError("level_classes: expected at least one level, got none")
    if names is None and level_classes != levels:
        taxonomy = None
    if taxonomy is not None and level_classes != taxonomy.level_classes:
        raise ValueError(
            f"level_classes {level_classes} and the taxonomy's {taxonomy.level_classes} differ: give one of them"
        )
    if num_classes not in (None, level_classes[-1]):
        raise ValueError(
            f"num_classes={num_classes} and the finest of level_classes={level_classes} differ: give one of them"
        )

    return level_classes, taxonomy, level_classes[-1]


def _flat(num_classes: int) -> tuple[int]:
    """Return the levels of a flat model; a config has a level even if the model has no head."""
    return (max(num_classes, 1),)


def _plain(value: Any) -> Any:
    """Make lists and tuples comparable: JSON only has lists."""
    return list(value) if isinstance(value, tuple) else value
