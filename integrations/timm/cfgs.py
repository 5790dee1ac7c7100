"""What timm's registry knows about our models: a pretrained config for each tag, made without reading any tensor."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.models import PretrainedCfg

from hcast_zoo.common.text import clip
from hcast_zoo.network.config import VARIANTS, HCastConfig
from hcast_zoo.weights.errors import WeightsError
from hcast_zoo.weights.header import OWNER, header_path, packaged_weights, read_metadata, shipped_path
from hcast_zoo.weights.published import TAGS

if TYPE_CHECKING:
    from hcast_zoo.taxonomy.tree import Taxonomy

_logger = logging.getLogger(__name__)

# The paper's data sets as the official code trains on them: level classes, and what differs from the defaults.
# BREEDS always uses 256 superpixels (docs/official_differences.md, 22), and iNat its own normalisation (24). Written
# out here, because every `import timm` would have to read the label trees for them.
PAPER_DATASETS: dict[str, dict] = {
    "cub": dict(level_classes=(13, 38, 200)),
    "aircraft": dict(level_classes=(30, 70, 100)),
    "living17": dict(level_classes=(17, 34), num_superpixels=256),
    "nonliving26": dict(level_classes=(26, 52), num_superpixels=256),
    "entity13": dict(level_classes=(13, 130), num_superpixels=256),
    "entity30": dict(level_classes=(30, 120), num_superpixels=256),
    "inat21_mini": dict(level_classes=(273, 1103, 10000), mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192)),
}
CROP_NAMES = {"center": "center", "pad": "border", "squash": "squash"}  # ours to timm's
FIRST_CONVS = {"conv": "stem.0.conv", "timm:efficientnet_lite0": "stem.body.conv_stem"}  # layers that read the image


@dataclasses.dataclass
class UnpublishedCfg(PretrainedCfg):
    """A tag that timm does not list as pretrained.

    Its Hub repository is reserved but still empty; or others publish the file, and we have not verified it.
    """

    has_weights = False


@dataclasses.dataclass(frozen=True)
class Source:
    """What a tag's weights were made for.

    Attributes:
        config: The architecture.
        labels: The taxonomy as plain data, or None.
        headless: Whether the weights have no heads.
        license: Licence of the weights, from their file, or None.
    """

    config: HCastConfig
    labels: dict | None = None
    headless: bool = False
    license: str | None = None

    @functools.cached_property
    def taxonomy(self) -> "Taxonomy | None":
        """The taxonomy; its module is imported only on first use."""
        from hcast_zoo.taxonomy.tree import Taxonomy

        return None if self.labels is None else Taxonomy.from_dict(self.labels)


@functools.cache
def sources() -> dict[str, Source]:
    """Return all tags: ``variant.tag`` to its source. The bare name of a variant loads its first tag.

    Weights in the package come first, then those that others publish, then the paper's. The values of packaged
    weights come from the header of their file. A damaged file must not break ``import timm``: its tag then has the
    values of its variant, and the error is raised when the weights are requested.
    """
    tags = {}
    for name, entry in packaged_weights().items():
        try:
            tags[name] = _read_source(header_path(entry))
        except WeightsError as error:
            _logger.warning("%s", error)
            tags[name] = Source(HCastConfig.from_variant(name.split(".")[0]))

    for name, tag in TAGS.items():
        # A config has a level even where weights have no head.
        config = HCastConfig.from_variant(tag.variant, level_classes=(max(tag.classes, 1),))
        tags[name] = Source(config, headless=tag.classes == 0)

    for tag, fields in PAPER_DATASETS.items():
        tags.setdefault(f"hcast_small.{tag}", Source(HCastConfig.from_variant("hcast_small", **fields)))

    for variant in VARIANTS:
        if not any(name.startswith(f"{variant}.") for name in tags):
            tags[f"{variant}.untrained"] = Source(HCastConfig.from_variant(variant))

    return tags


def _read_source(path: Path) -> Source:
    """Return what a file in the package was made for, from its header alone.

    Raises:
        WeightsError: if the header is damaged.
    """
    metadata = read_metadata(path)
    try:
        source = Source(
            config=HCastConfig.from_dict(json.loads(metadata["config"])),
            labels=json.loads(metadata.get("taxonomy", "null")),
            license=metadata.get("license"),
        )
        describe_source(source)
    except (LookupError, RecursionError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: invalid config or taxonomy in the metadata: {clip(error)}") from error

    return source


def make_cfgs() -> dict[str, PretrainedCfg]:
    """Return the timm pretrained configs of all tags, for ``generate_default_cfgs``."""
    packaged = packaged_weights()
    cfgs = {}
    for name, source in sources().items():
        fields = describe_source(source)
        if name in TAGS:
            tag = TAGS[name]
            fields["license"] = tag.license
            cfgs[name] = UnpublishedCfg(hf_hub_id=tag.repo, hf_hub_filename=tag.path, **fields)
        elif name in packaged:
            cfgs[name] = PretrainedCfg(file=str(shipped_path(packaged[name])), license=source.license, **fields)
        elif name.endswith(".untrained"):
            cfgs[name] = PretrainedCfg(**fields)
        else:
            cfgs[name] = UnpublishedCfg(hf_hub_id=f"{OWNER}/{name}", hf_hub_filename="model.safetensors", **fields)

    return cfgs


def describe_source(source: Source) -> dict[str, Any]:
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
        crop_mode=CROP_NAMES[config.crop_mode],
        first_conv=FIRST_CONVS.get(config.stem),
        classifier=head_names(len(config.level_classes)),
        label_names=tuple(source.labels["names"][-1]) if source.labels else None,
        paper_name="Visually Consistent Hierarchical Image Classification",
        paper_ids="arXiv:2406.11608",
    )


def head_names(num_levels: int) -> str | tuple[str, ...]:
    """Return the module names of the heads, coarse to fine, as timm's ``classifier`` has them."""
    names = tuple(f"heads.{level}" for level in range(num_levels))
    return names if num_levels > 1 else names[0]
