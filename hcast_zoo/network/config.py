"""HCastConfig: everything that defines an H-CAST network and its preprocessing, as frozen plain data."""

import dataclasses
import re
from typing import Any

from ..common.text import brief, clip
from .memory import check_config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CELL_SIZE = 8  # pixels: the stem's stride, so one token cell covers 8x8 pixels
SUPERPIXELS = ("seeds", "slic", "grid")  # methods to compute them
CROP_MODES = ("center", "pad", "squash")  # how a picture becomes a square; see data.transforms.to_square
NUM_STAGES = 4
STEM = re.compile(r"conv|timm:[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")  # a name that timm knows: no Hub, no folder
GROUPINGS = ("tokens", "descriptor")
TOKEN_POOLINGS = ("top_left", "area")
FEWEST = 4  # superpixels or clusters that a smaller picture keeps
MAX_LEVELS = 100  # the same as for a taxonomy
MAX_CLASSES = 100_000_000
MAX_NUMBER = 1e9  # bound for float fields; also rejects inf and nan


@dataclasses.dataclass(frozen=True)
class HCastConfig:
    """Describe an H-CAST model. Levels run coarse to fine everywhere.

    Args:
        level_classes: Number of classes of each level, coarse to fine, e.g. ``(13, 38, 200)``.
        image_size: Height and width in pixels the position embedding is made for (multiple of 8).
            Other sizes work at run time: the embedding is resampled.
        in_chans: Channels of the input image.
        embed_dim: Width of the tokens; must be divisible by 8, ``num_heads`` and ``pool_heads``.
        depths: Transformer blocks of each of the four stages.
        num_heads: Attention heads of the blocks.
        pool_heads: Attention heads of graph pooling; 12 in all official models, whatever ``num_heads`` is.
        mlp_ratio: Hidden width of the block MLPs over ``embed_dim``, in (0, 64].
        num_superpixels: Tokens entering stage 1. Fixed, so an answer never depends on the batch
            (docs/official_differences.md, 8).
        num_clusters: Clusters made after each stage: the number of tokens of the next one.
        head_stages: Stage (1 to 4) each level reads its class token from, coarse to fine. By default
            the finest levels read early stages: 1 level ``(4,)``, 2 ``(4, 3)``, 3 ``(4, 3, 2)``, 4
            ``(4, 3, 2, 1)``; the coarsest levels of a deeper taxonomy share stage 4.
        last_pool: Keep the fourth graph pooling. No logit depends on it, so it is dropped by default
            (docs/official_differences.md, 18).
        mask_empty: Leave tokens of empty superpixels out of attention and averages. The official weights were trained
            with them (docs/official_differences.md, 5).
        drop_rate: Dropout probability in [0, 1) before each head.
        drop_path_rate: Stochastic depth of the last block in [0, 1); grows linearly from 0.
        pool_drop_rate: Dropout probability inside graph pooling, on in training only.
        superpixels: How the model makes segments when none are given: ``"seeds"``, ``"slic"`` or ``"grid"``.
        mean: Channel means of the normalisation, for pixels in [0, 1].
        std: Channel deviations of the normalisation.
        interpolation: Resize filter of the preprocessing: ``"bicubic"``, ``"bilinear"``, ``"nearest"`` or
            ``"lanczos"``.
        crop_pct: Centre crop as a fraction of the resized picture's short side (with ``"pad"`` its long one), in
            [0.05, 1].
        crop_mode: How a picture becomes a square: ``"center"`` cuts off the ends of its long side; ``"pad"`` puts it on
            a square of the mean colour; ``"squash"`` resizes both sides to the same length. With ``crop_pct`` 1 the
            last two show the whole picture.
        stem: ``"conv"``, the paper's; or ``"timm:NAME"``, a timm model whose features become the tokens.
        stem_strides: Strides of the feature maps of that model that tokens are made from, by default ``(8, 16, 32)``;
            empty for the paper's stem.
        stem_final: Also use the features that the timm model's classifier reads (after ``conv_head`` in EfficientNets).
        grouping: What pooling compares to form clusters: ``"tokens"``, as in the paper, or ``"descriptor"``: colours
            and the stem's features of strides 2 and 4, which follow edges. Tokens are averaged either way.
        token_pooling: How the features of cells are averaged over a superpixel: with ``"top_left"``, as in the paper, a
            cell belongs to the superpixel of its top-left pixel; with ``"area"``, every pixel counts. A timm stem
            always uses ``"area"``.
        feature_stride: Pixels between features of the paper's stem: 8, or 4 for a finer grid at four times the cost.

    Raises:
        ValueError: if a field is out of range or fields disagree; the message names the field.
        MemoryBudgetError: if the model and one picture would take more memory than the budget; see :mod:`.memory`.
    """

    level_classes: tuple[int, ...] = (1000,)
    image_size: int = 224
    in_chans: int = 3
    embed_dim: int = 384
    depths: tuple[int, ...] = (3, 3, 3, 2)
    num_heads: int = 12
    pool_heads: int = 12
    mlp_ratio: float = 4.0
    num_superpixels: int = 196
    num_clusters: tuple[int, ...] = (64, 32, 16, 8)
    head_stages: tuple[int, ...] = None  # type: ignore[assignment]  # default_head_stages() where None is given
    last_pool: bool = False
    mask_empty: bool = False
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    pool_drop_rate: float = 0.1
    superpixels: str = "seeds"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    stem: str = "conv"
    stem_strides: tuple[int, ...] = ()
    stem_final: bool = False
    grouping: str = "tokens"
    token_pooling: str = "top_left"
    feature_stride: int = CELL_SIZE

    def __post_init__(self):
        for field in dataclasses.fields(self):  # JSON gives lists; keep the config hashable
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))

        if isinstance(self.stem, str) and self.stem != "conv":
            if not self.stem_strides and not self.stem_final:
                object.__setattr__(self, "stem_strides", (8, 16, 32))
            object.__setattr__(self, "token_pooling", "area")
        if self.head_stages is None and isinstance(self.level_classes, tuple):
            object.__setattr__(self, "head_stages", default_head_stages(len(self.level_classes)))

        self._validate_architecture()
        self._validate_preprocessing()
        self._validate_stem()
        check_config(self)

    def _check(self, ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise ValueError(f"{field}: expected {expected}, got {brief(getattr(self, field))}")

    def _validate_architecture(self) -> None:
        check = self._check
        check(
            are_counts(self.level_classes) and 0 < len(self.level_classes) <= MAX_LEVELS,
            "level_classes",
            f"at least one level and at most {MAX_LEVELS}, each with 1 class or more",
        )
        for field in ("last_pool", "mask_empty", "stem_final"):
            check(type(getattr(self, field)) is bool, field, "true or false")

        for field in ("image_size", "in_chans", "embed_dim", "num_heads", "pool_heads", "num_superpixels"):
            value = getattr(self, field)
            check(type(value) is int and 1 <= value <= 65536, field, "an integer from 1 to 65536")

        check(self.image_size % CELL_SIZE == 0, "image_size", f"a multiple of {CELL_SIZE} pixels")
        check(
            self.embed_dim % 8 == 0 and self.embed_dim % self.num_heads == 0 and self.embed_dim % self.pool_heads == 0,
            "embed_dim",
            f"a multiple of 8, num_heads={self.num_heads} and pool_heads={self.pool_heads}",
        )

        check(
            are_counts(self.depths) and len(self.depths) == NUM_STAGES and sum(self.depths) <= 256,
            "depths",
            "four block counts of 1 or more, 256 together at most",
        )
        check_clusters(self.num_clusters, self.num_superpixels)

        check(
            are_counts(self.head_stages) and max(self.head_stages, default=0) == NUM_STAGES,
            "head_stages",
            "stages from 1 to 4, with stage 4 among them",
        )
        check(
            len(self.head_stages) == len(self.level_classes),
            "head_stages",
            f"one stage for each of {len(self.level_classes)} levels",
        )

        for field in ("drop_rate", "drop_path_rate", "pool_drop_rate"):
            value = getattr(self, field)
            check(is_number(value) and 0 <= value < 1, field, "a probability in [0, 1)")

        check(
            is_number(self.mlp_ratio) and 0 < self.mlp_ratio <= 64 and int(self.embed_dim * self.mlp_ratio) >= 1,
            "mlp_ratio",
            "a factor in (0, 64]",
        )

    def _validate_preprocessing(self) -> None:
        check = self._check
        check(self.superpixels in SUPERPIXELS, "superpixels", "'seeds', 'slic' or 'grid'")
        check(
            self.interpolation in ("bicubic", "bilinear", "nearest", "lanczos"),
            "interpolation",
            "'bicubic', 'bilinear', 'nearest' or 'lanczos'",
        )

        # With a tiny fraction, the resized picture would fit into no memory.
        check(is_number(self.crop_pct) and 0.05 <= self.crop_pct <= 1, "crop_pct", "a fraction in [0.05, 1]")

        check(self.crop_mode in CROP_MODES, "crop_mode", "'center', 'pad' or 'squash'")

        for field in ("mean", "std"):
            value = getattr(self, field)
            check(
                isinstance(value, tuple) and all(map(is_number, value)) and len(value) in (1, 3, self.in_chans),
                field,
                "a number for each channel",
            )

        check(len(self.mean) == len(self.std), "mean", "as many values as std")
        check(all(s >= 1e-6 for s in self.std), "std", "positive values, from 1e-6 on")

    def _validate_stem(self) -> None:
        check = self._check
        check(
            isinstance(self.stem, str) and STEM.fullmatch(self.stem) is not None,
            "stem",
            "'conv', or 'timm:NAME' with the name of a timm model, such as timm:efficientnet_lite0",
        )
        strides = self.stem_strides
        check(
            isinstance(strides, tuple) and all(type(s) is int and 1 <= s <= 64 for s in strides),
            "stem_strides",
            "strides from 1 to 64 pixels, such as (8, 16, 32)",
        )

        check(self.grouping in GROUPINGS, "grouping", "'tokens' or 'descriptor'")
        check(self.token_pooling in TOKEN_POOLINGS, "token_pooling", "'top_left' or 'area'")
        check(self.feature_stride in (4, CELL_SIZE), "feature_stride", "4 or 8 pixels")

        if self.stem == "conv":
            check(not strides and not self.stem_final, "stem_strides", "none with the stem 'conv', nor stem_final")
        else:
            check(
                self.feature_stride == CELL_SIZE, "feature_stride", "8 with a timm stem, whose strides are stem_strides"
            )

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "HCastConfig":
        """Return the config of a named variant.

        Args:
            name: One of ``VARIANTS``: ``hcast_tiny``, ``hcast_small``, ``hcast_small_deep``, ``hcast_base``,
                ``hcast_lite``, ``hcast_lite_384``.
            overrides: Fields to change, e.g. ``level_classes=(13, 38, 200)``.

        Raises:
            ValueError: if the name is unknown.
        """
        if name not in VARIANTS:
            raise ValueError(f"unknown variant {brief(name)}: expected one of {', '.join(VARIANTS)}")
        return cls.from_dict({**VARIANTS[name], **overrides})

    @classmethod
    def from_dict(cls, data: dict) -> "HCastConfig":
        """Build a config from plain data (as read from JSON); unknown keys are an error."""
        if not isinstance(data, dict):
            raise ValueError(f"expected a config as a JSON object, got {type(data).__name__}")
        unknown = sorted(set(data) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown config keys: {clip(', '.join(map(str, unknown)))}")
        return cls(**data)

    def to_dict(self) -> dict:
        """Return the fields as a JSON-serialisable dictionary."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def replace(self, **changes: Any) -> "HCastConfig":
        """Return a copy with some fields changed; ``head_stages`` follows a changed number of levels."""
        if len(changes.get("level_classes", self.level_classes)) != len(self.level_classes):
            changes.setdefault("head_stages", None)
        return dataclasses.replace(self, **changes)

    def tokens_at(self, image_size: int) -> dict:
        """Return ``num_superpixels`` and ``num_clusters`` for another image size, in proportion to its area.

        Example:
            >>> HCastConfig(image_size=224).tokens_at(96)
            {'num_superpixels': 36, 'num_clusters': (12, 6, 4, 4)}
        """
        ratio = (image_size / self.image_size) ** 2
        superpixels = max(round(self.num_superpixels * ratio), min(self.num_superpixels, FEWEST))
        clusters: list[int] = []
        for number in self.num_clusters:
            scaled = max(round(number * ratio), min(number, FEWEST))
            clusters.append(min(scaled, *clusters, superpixels))
        return {"num_superpixels": superpixels, "num_clusters": tuple(clusters)}

    @property
    def sampling(self) -> int:
        """Step, in pixels from the top left, at which tokens sample the segments; 1 if every pixel counts."""
        return 1 if self.token_pooling == "area" else self.feature_stride

    @property
    def grid_size(self) -> int:
        """Side of the grid of 8x8-pixel cells the position embedding covers."""
        return self.image_size // CELL_SIZE


def are_counts(values: Any) -> bool:
    """Return whether a value is a tuple of integers from 1 to ``MAX_CLASSES``."""
    return isinstance(values, tuple) and all(type(v) is int and 1 <= v <= MAX_CLASSES for v in values)


def is_number(value: Any) -> bool:
    """Return whether a value is a number, not a bool, of at most 1e9 either way; inf and nan are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def default_head_stages(num_levels: int) -> tuple[int, ...]:
    """Return the stage each level reads, coarse to fine.

    Source: official cast_deit_hier.py:203-215 for 2 and 3 levels; the same rule for any other number.
    """
    finest = max(1, NUM_STAGES + 1 - num_levels)
    return tuple(min(NUM_STAGES, finest + above) for above in reversed(range(num_levels)))


def check_clusters(num_clusters: tuple[int, ...] | list[int], num_superpixels: int) -> tuple[int, ...]:
    """Return cluster counts as a tuple, after checking them.

    Raises:
        ValueError: unless there are four positive counts, each at most the number of tokens it is chosen from.
    """
    has_four = isinstance(num_clusters, (tuple, list)) and len(num_clusters) == NUM_STAGES
    if not has_four or any(type(n) is not int or n < 1 for n in num_clusters):
        raise ValueError(f"num_clusters: expected four integers of 1 or more, got {brief(num_clusters)}")

    for tokens, clusters in zip((num_superpixels, *num_clusters), num_clusters):
        if clusters > tokens:
            raise ValueError(
                f"num_clusters: cannot choose {clusters} clusters from {tokens} tokens in "
                f"{num_clusters!r} with {num_superpixels} superpixels"
            )

    return tuple(num_clusters)


LITE: dict = dict(
    stem="timm:efficientnet_lite0",
    stem_strides=(8, 16, 32),
    stem_final=True,
    grouping="descriptor",
    token_pooling="area",
    mask_empty=True,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
)
VARIANTS: dict[str, dict] = {
    # 12 heads of 32 are the official choice for 384 channels (DeiT-S has 6); tiny is ours.
    "hcast_tiny": dict(embed_dim=192, num_heads=6),
    "hcast_small": dict(embed_dim=384, num_heads=12),
    "hcast_small_deep": dict(embed_dim=384, num_heads=12, depths=(6, 3, 3, 3)),
    "hcast_base": dict(embed_dim=768, num_heads=12),
    # Ours: tokens of EfficientNet-Lite0, 3.4 M parameters without its classifier. At width 384 there are fewer blocks,
    # with narrower MLPs, to keep the whole network at 19 M parameters.
    "hcast_lite": dict(embed_dim=192, num_heads=6, **LITE),
    "hcast_lite_384": dict(embed_dim=384, num_heads=12, depths=(1, 2, 2, 1), mlp_ratio=2.0, **LITE),
}
