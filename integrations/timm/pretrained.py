"""Pretrained tags of the timm models: their configs, and where their weights are."""

import dataclasses
import functools
import logging
import math
from typing import Any

from timm.layers import is_exportable
from timm.models import PretrainedCfg

from hcast_zoo.network.config import CELL_SIZE, VARIANTS, HCastConfig
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights import file as weights
from hcast_zoo.weights import tags as published

_logger = logging.getLogger(__name__)
ImageSize = int | tuple[int, int]  # side, or height and width, in pixels

# The paper's data sets as the official code trains on them: level classes, and what differs from the defaults.
# BREEDS always has 256 superpixels (docs/official_differences.md, 22), and iNat its own normalisation (24).
PAPER_DATASETS: dict[str, dict] = {
    "cub": dict(level_classes=(13, 38, 200)),
    "aircraft": dict(level_classes=(30, 70, 100)),
    "living17": dict(level_classes=(17, 34), num_superpixels=256),
    "nonliving26": dict(level_classes=(26, 52), num_superpixels=256),
    "entity13": dict(level_classes=(13, 130), num_superpixels=256),
    "entity30": dict(level_classes=(30, 120), num_superpixels=256),
    "inat21_mini": dict(level_classes=(273, 1103, 10000), mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192)),
}
HUB_ORGANIZATION = "hcast-zoo"
# What a user may pass to create_model; images and their normalisation are timm's img_size, in_chans and pretrained_cfg.
MODEL_FIELDS = tuple(
    f.name
    for f in dataclasses.fields(HCastConfig)
    if f.name not in ("image_size", "in_chans", "mean", "std", "interpolation", "crop_pct")
)

FIRST_CONVS = {"conv": "stem.0.conv", "timm:efficientnet_lite0": "stem.body.conv_stem"}  # which sees the channels
NO_DROP = dict(drop_rate=0.0, drop_path_rate=0.0)  # in timm, regularisation is the caller's and never the weights'


@dataclasses.dataclass
class UnpublishedCfg(PretrainedCfg):
    """A tag that timm does not list as pretrained.

    Its Hub repository is reserved and holds nothing yet; or others publish the file, and nobody has verified it here.
    """

    has_weights = False


@dataclasses.dataclass(frozen=True)
class Source:
    """What a tag's weights were made for."""

    config: HCastConfig
    taxonomy: Taxonomy | None = None
    headless: bool = False


@functools.cache
def sources() -> dict[str, Source]:
    """Return all tags, ``variant.tag`` to what it is; the first of a variant is what its bare name loads.

    Weights in the package come first, then those that others publish, then the paper's. A file's values come from
    its own header. A damaged file must not break ``import timm``, so its tag then has the values of its variant, and
    the error comes when the weights are asked for.
    """
    found = {}
    for name, entry in weights.packaged().items():
        try:
            header = weights.read(weights.FOLDER / entry["file"], tensors=False)
            found[name] = Source(header.config, header.taxonomy)
        except weights.WeightsError as error:
            _logger.warning("%s", error)
            found[name] = Source(HCastConfig.from_variant(name.split(".")[0]))

    for name, tag in published.TAGS.items():
        # A config has a level even where weights have no head.
        config = HCastConfig.from_variant(tag.variant, level_classes=_flat(tag.classes))
        found[name] = Source(config, headless=tag.classes == 0)

    for tag, fields in PAPER_DATASETS.items():
        found.setdefault(f"hcast_small.{tag}", Source(HCastConfig.from_variant("hcast_small", **fields)))

    for variant in VARIANTS:
        if not any(name.startswith(f"{variant}.") for name in found):
            found[f"{variant}.untrained"] = Source(HCastConfig.from_variant(variant))

    return found


def make_cfgs() -> dict[str, PretrainedCfg]:
    """Return the timm pretrained configs of all tags, for ``generate_default_cfgs``."""
    packaged = weights.packaged()
    cfgs = {}
    for name, source in sources().items():
        fields = describe(source)
        if name in published.TAGS:
            tag = published.TAGS[name]
            fields["license"] = tag.license
            cfgs[name] = UnpublishedCfg(hf_hub_id=tag.repo, hf_hub_filename=tag.path, **fields)
        elif name in packaged:
            cfgs[name] = PretrainedCfg(file=str(weights.FOLDER / packaged[name]["file"]), **fields)
        elif name.endswith(".untrained"):
            cfgs[name] = PretrainedCfg(**fields)
        else:
            cfgs[name] = UnpublishedCfg(
                hf_hub_id=f"{HUB_ORGANIZATION}/{name}", hf_hub_filename="model.safetensors", **fields
            )

    return cfgs


def describe(source: Source) -> dict[str, Any]:
    """Return the fields of a pretrained config that a source fixes."""
    config = source.config
    return dict(
        num_classes=0 if source.headless else config.level_classes[-1],
        # The trained position embedding and number of superpixels belong to a size; img_size= changes both.
        fixed_input_size=True,
        input_size=(config.in_chans, config.image_size, config.image_size),
        mean=config.mean,
        std=config.std,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        first_conv=FIRST_CONVS.get(config.stem),
        classifier=head_names(len(config.level_classes)),
        label_names=source.taxonomy.names[-1] if source.taxonomy else None,
        paper_name="Visually Consistent Hierarchical Image Classification",
        paper_ids="arXiv:2406.11608",
    )


def head_names(num_levels: int) -> str | tuple[str, ...]:
    """Return the module names of the heads, coarse to fine, as timm's ``classifier`` has them."""
    names = tuple(f"heads.{level}" for level in range(num_levels))
    return names if num_levels > 1 else names[0]


def plain(variant: str) -> PretrainedCfg:
    """Return the pretrained config of a variant's bare name, for a new network: the paper's, whatever its tags hold."""
    return PretrainedCfg(architecture=variant, **describe(Source(HCastConfig.from_variant(variant))))


def fetch(cfg: PretrainedCfg) -> tuple[PretrainedCfg, Source | None]:
    """Return the config with the file of a tag that others publish, downloaded and converted, and what it holds.

    Any other config comes back as it is, and None.

    Raises:
        WeightsError: if the published file is not the one that it should be.
        HubError: if it cannot be downloaded.
    """
    name = f"{cfg.architecture}.{cfg.tag}"
    own = cfg.file or cfg.state_dict or cfg.url  # of the caller
    if name not in published.TAGS or own or cfg.hf_hub_id != published.TAGS[name].repo:
        return cfg, None
    path = weights.resolve(name)
    header = weights.read(path, tensors=False)
    source = Source(header.config, header.taxonomy, published.TAGS[name].classes == 0)
    told = {k: v for k, v in describe(source).items() if k not in ("mean", "std", "interpolation", "crop_pct")}
    return dataclasses.replace(cfg, file=str(path), **told), source


def verify(cfg: PretrainedCfg) -> None:
    """Verify the checksum of the file if it is one of the package's.

    Raises:
        WeightsError: if the file is missing or damaged.
    """
    name = f"{cfg.architecture}.{cfg.tag}"
    entry = weights.packaged().get(name)
    if entry is not None and cfg.file == str(weights.FOLDER / entry["file"]):
        weights.resolve(name)


def is_reserved(cfg: PretrainedCfg) -> bool:
    """Tell whether the weights of a config would come from the Hub repository of a tag of ours."""
    return not cfg.file and not cfg.source and cfg.hf_hub_id == f"{HUB_ORGANIZATION}/{cfg.architecture}.{cfg.tag}"


def how_to_get(cfg: PretrainedCfg) -> str:
    """Return what to do about a tag without published weights."""
    name = f"{cfg.architecture}.{cfg.tag}"
    return (
        f"{name} has no published weights ({cfg.hf_hub_id} cannot be loaded). Convert a checkpoint of the authors' "
        f"code, or train it, and load the file: `hcast-zoo convert checkpoint.pth {cfg.tag}.safetensors`, then "
        f"timm.create_model('{name}', checkpoint_path='{cfg.tag}.safetensors'). "
        f"Available with pretrained=True: {', '.join(weights.packaged())}"
    )


def make_config(
    variant: str, cfg: PretrainedCfg, arguments: dict[str, Any], source: Source | None = None
) -> tuple[HCastConfig, dict[str, Any]]:
    """Turn timm's arguments into a config, taking those it is made of out of ``arguments``.

    The values of the tag hold, changed first by what a saved model was built with, then by the pretrained config, then
    by the caller's arguments.

    Args:
        variant: Name of the model.
        cfg: The pretrained config in effect.
        arguments: Keyword arguments of the model; ``MODEL_FIELDS``, ``img_size``, ``in_chans``, ``num_classes`` and
            ``taxonomy`` are taken out.
        source: What the file of the tag holds, where it was read; the tag's entry in :func:`sources` if None.

    Returns:
        The config, and the arguments of ``TimmHCast`` besides it: ``img_size``, ``in_chans``, ``num_classes`` (of the
        finest level, 0 for a model without heads) and ``taxonomy`` (None if the levels have no names).

    Raises:
        ValueError: if arguments disagree.
    """
    saved = dict(arguments.get("pretrained_model_args") or {})
    names = (*MODEL_FIELDS, "img_size", "in_chans", "num_classes", "taxonomy")
    given = {k: arguments.pop(k) for k in names if k in arguments}
    given = {k: v for k, v in given.items() if v is not None and _plain(v) != _plain(saved.get(k))}
    tag = source or sources().get(f"{variant}.{cfg.tag}") or Source(HCastConfig.from_variant(variant))
    fields = {
        **tag.config.to_dict(),
        "mean": cfg.mean,
        "std": cfg.std,
        "interpolation": cfg.interpolation,
        "crop_pct": cfg.crop_pct,
        **NO_DROP,
    }
    fields.update({k: v for k, v in saved.items() if k in MODEL_FIELDS and v is not None})
    taxonomy = tag.taxonomy
    if saved.get("taxonomy") or saved.get("level_classes"):  # its levels may have lost their names since the tag
        taxonomy = Taxonomy.from_dict(saved["taxonomy"]) if saved.get("taxonomy") else None

    if is_exportable() and fields["superpixels"] == "seeds":
        fields["superpixels"] = "grid"  # so that the model gives what its graph will, in which SEEDS cannot run
    levels, taxonomy, num_classes = _choose_levels(tuple(fields["level_classes"]), taxonomy, cfg.num_classes, given)
    if levels != tuple(fields["level_classes"]):
        fields.update(level_classes=levels, head_stages=None)
    size = given.pop("img_size", cfg.input_size[1:])
    in_chans = given.pop("in_chans", cfg.input_size[0])

    # A saved model's number of superpixels belongs to its own size, the tag's to the tag's.
    before = saved.get("img_size") or tag.config.image_size
    clusters = given.get("num_clusters", fields["num_clusters"])
    least = clusters[0] if isinstance(clusters, (list, tuple)) and clusters else 1  # the config tells what is wrong
    fields.update(resize(fields["num_superpixels"], before, size, least))

    return HCastConfig.from_dict({**fields, "in_chans": in_chans, **given}), dict(
        img_size=size, in_chans=in_chans, num_classes=num_classes, taxonomy=taxonomy
    )


def resize(num_superpixels: int, before: ImageSize, after: ImageSize, least: int) -> dict[str, int]:
    """Return the fields of a config that another image size changes.

    The number of superpixels grows with the pixels, so that a superpixel keeps its size. The position embedding is
    square: for another shape it is made for a square of that area, and resampled at run time.

    Args:
        num_superpixels: For images of size ``before``.
        before: Side, or height and width, in pixels.
        after: The same for the new size.
        least: Smallest number of superpixels: that of the clusters made from them, which does not change.
    """
    (old_height, old_width), (height, width) = image_shape(before), image_shape(after)
    if (old_height, old_width) != (height, width):
        num_superpixels = max(least, round(num_superpixels * height * width / (old_height * old_width)))
    side = height if height == width else math.sqrt(height * width)
    return dict(image_size=math.ceil(side / CELL_SIZE) * CELL_SIZE, num_superpixels=num_superpixels)


def image_shape(size: ImageSize) -> tuple[int, int]:
    """Return height and width in pixels of a size that may be one side."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _choose_levels(
    levels: tuple[int, ...], taxonomy: Taxonomy | None, pretrained_classes: int, given: dict[str, Any]
) -> tuple[tuple[int, ...], Taxonomy | None, int]:
    """Decide on levels, their names and the number of classes, taking what tells them out of ``given``."""
    if levels[-1] != pretrained_classes:  # a pretrained config that describes other weights than the tag's
        levels, taxonomy = _flat(pretrained_classes), None
    num_classes, wanted, names = (given.pop(k, None) for k in ("num_classes", "level_classes", "taxonomy"))
    if wanted is None and names is None:
        if num_classes is None or num_classes == pretrained_classes:
            return levels, taxonomy, pretrained_classes
        return _flat(num_classes), None, num_classes

    if names is not None:
        taxonomy = Taxonomy.from_dict(names)
        wanted = taxonomy.level_classes if wanted is None else wanted

    wanted = tuple(wanted)
    if not wanted:
        raise ValueError("level_classes: expected at least one level, got none")
    if names is None and wanted != levels:
        taxonomy = None
    if taxonomy is not None and wanted != taxonomy.level_classes:
        raise ValueError(f"level_classes {wanted} and the taxonomy's {taxonomy.level_classes} differ: give one of them")
    if num_classes not in (None, wanted[-1]):
        raise ValueError(f"num_classes={num_classes} and the finest of level_classes={wanted} differ: give one of them")

    return wanted, taxonomy, wanted[-1]


def _flat(num_classes: int) -> tuple[int]:
    """Return the levels of a flat model; a config has a level even if the model has no head."""
    return (max(num_classes, 1),)


def _plain(value: Any) -> Any:
    """Make lists and tuples comparable: JSON knows only lists."""
    return list(value) if isinstance(value, tuple) else value
