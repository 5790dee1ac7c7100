"""HCastConfig for transformers: the fields of the core's config, the taxonomy, and labels of every level."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from hcast_zoo.common.files import check_file
from hcast_zoo.network.config import CELL_SIZE, IMAGENET_MEAN, IMAGENET_STD, NUM_STAGES, default_head_stages
from hcast_zoo.network.config import HCastConfig as CoreConfig
from hcast_zoo.network.memory import LABEL, check_memory
from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.tree import Taxonomy

CORE_FIELDS = tuple(field.name for field in dataclasses.fields(CoreConfig))
LEVEL_FIELDS = ("taxonomy", "level_classes", "id2label")  # three views of the same labels, so they change together


@strict
class HCastConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of an H-CAST model. Levels run coarse to fine everywhere.

    The fields of :class:`hcast_zoo.HCastConfig` have the same names, meanings and defaults here; ``hidden_size``,
    ``num_attention_heads``, ``num_channels`` and ``num_hidden_layers`` are aliases.

    The labels come from one of: ``taxonomy``; ``level_classes``; or ``id2label`` or ``num_labels``, for a flat,
    one-level model. So ``from_pretrained(..., num_labels=10, ignore_mismatched_sizes=True)`` gives a pretrained model
    one new head, and ``from_pretrained(..., taxonomy=..., ignore_mismatched_sizes=True)`` a new head for each level.

    Args:
        taxonomy: Plain data of a :class:`hcast_zoo.Taxonomy`, see its ``to_dict``; None for labels without names.
        calibration: Plain data of a :class:`hcast_zoo.Calibration`, see its ``to_dict``; paths and their
            probabilities then come from calibrated logits. New labels have none.
        kl_weight: Weight of the Tree-path KL in the loss; the paper uses 0.5.
        label_smoothing: Label smoothing of the loss, in [0, 1).
        output_levels: Whether the classifier returns ``level_logits`` and ``segments`` as well as ``logits``.
        out_features: Stages whose feature maps ``AutoBackbone`` returns, from ``stem`` and ``stage1`` to ``stage4``; by
            default the last.
        out_indices: The same by number, from 0.
        initializer_range: Standard deviation of the initial weights of new tokens, blocks and heads.

    Raises:
        StrictDataclassError: if a field is of the wrong type or out of range, or fields disagree; the message names it.
        ValueError: if the taxonomy is invalid, or does not match ``level_classes``.
    """

    model_type = "hcast"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "embed_dim",
        "num_attention_heads": "num_heads",
        "num_channels": "in_chans",
    }
    # So that Trainer gathers only the logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "paths",
        "level_features",
        "segments",
        "hidden_states",
        "attentions",
    ]

    taxonomy: dict | None = None
    level_classes: tuple[int, ...] | list[int] | None = None
    image_size: int = 224
    in_chans: int = 3
    embed_dim: int = 384
    depths: tuple[int, ...] | list[int] = (3, 3, 3, 2)
    num_heads: int = 12
    pool_heads: int = 12
    mlp_ratio: float | int = 4.0
    num_superpixels: int = 196
    num_clusters: tuple[int, ...] | list[int] = (64, 32, 16, 8)
    head_stages: tuple[int, ...] | list[int] | None = None
    last_pool: bool = False
    mask_empty: bool = False
    drop_rate: float | int = 0.0
    drop_path_rate: float | int = 0.0
    pool_drop_rate: float | int = 0.1
    superpixels: str = "seeds"
    mean: tuple[float, ...] | list[float] = IMAGENET_MEAN
    std: tuple[float, ...] | list[float] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float | int = 0.875
    crop_mode: str = "center"
    stem: str = "conv"
    stem_strides: tuple[int, ...] | list[int] = ()
    stem_final: bool = False
    grouping: str = "tokens"
    token_pooling: str = "top_left"
    feature_stride: int = CELL_SIZE
    calibration: dict | None = None
    kl_weight: float | int = 0.5
    label_smoothing: float | int = 0.0
    output_levels: bool = True
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        if not __name__.startswith("transformers_modules."):
            # The task is already registered, but transformers would insist on using the repository's code for it.
            kwargs.pop("custom_pipelines", None)

        for field in CORE_FIELDS:  # JSON gives lists
            value = getattr(self, field)
            if isinstance(value, list):
                setattr(self, field, tuple(value))

        num_labels = kwargs.pop("num_labels", None)
        # The tables of labels are made next, so this cannot wait for the check of the whole config.
        _check_label_memory("level_classes", self.level_classes)
        _check_label_memory("num_labels", (num_labels,))

        if (tree := self.get_taxonomy()) is not None:
            if self.level_classes not in (None, tree.level_classes):
                raise ValueError(
                    f"level_classes: expected those of the taxonomy, {tree.level_classes}, got {self.level_classes}"
                )
            self.level_classes = tree.level_classes

        if self.level_classes is None:
            self.level_classes = (num_labels or len(self.id2label or ()) or 1000,)
        if self.id2label is None:
            self.id2label = self._finest_labels()
        if self.label2id is None:
            self.label2id = {name: index for index, name in self.id2label.items()}
        self.stage_names = ["stem", *(f"stage{number}" for number in range(1, 1 + NUM_STAGES))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)
        self._set_head_stages()
        if self.stem != "conv":  # the core's config fills these in for such a stem
            core = self.to_core()
            self.stem_strides, self.token_pooling = core.stem_strides, core.token_pooling

        self._follow_changes = True

        if num_labels is not None:
            self.num_labels = num_labels
        elif len(self.id2label) != self.level_classes[-1]:
            self.level_classes = (len(self.id2label),)

    def __setattr__(self, key: str, value):
        super().__setattr__(key, value)
        if key in LEVEL_FIELDS and self.__dict__.get("_follow_changes") and value is not None:
            self._follow_changes = False
            try:
                self._follow(key)
            finally:
                self._follow_changes = True

    def _follow(self, key: str) -> None:
        """Make the level fields agree with the one that was set."""
        if key == "taxonomy":
            self.level_classes = self.get_taxonomy().level_classes
        elif key == "id2label" and len(self.id2label) != self.level_classes[-1]:
            self.level_classes = (len(self.id2label),)

        self.level_classes = tuple(self.level_classes)
        self.calibration = None
        if (tree := self.get_taxonomy()) is not None and tree.level_classes != self.level_classes:
            self.taxonomy = None
        if key == "taxonomy" or len(self.id2label) != self.level_classes[-1]:
            self.id2label = self._finest_labels()
        self.label2id = {name: index for index, name in self.id2label.items()}
        self._set_head_stages()

    def _set_head_stages(self) -> None:
        if self.head_stages is None or len(self.head_stages) != len(self.level_classes):
            self.head_stages = default_head_stages(len(self.level_classes))

    def _finest_labels(self) -> dict[int, str]:
        if self.taxonomy is not None:
            return dict(enumerate(self.taxonomy["names"][-1]))
        return _number_labels(self.level_classes[-1])

    def validate_architecture(self):
        """Check all fields together; transformers calls this after making a config and before saving one."""
        super().validate_architecture()
        self.to_core()

        if len(self.get_calibration().temperatures) != len(self.level_classes):
            raise ValueError(
                f"calibration: expected a temperature for each of {len(self.level_classes)} levels, got "
                f"{self.calibration}"
            )

        for field in ("kl_weight", "label_smoothing"):
            value = getattr(self, field)
            if value < 0 or (field == "label_smoothing" and value >= 1):
                raise ValueError(f"{field}: expected a value from 0, got {value!r}")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Read a config; refuse a pipe or device in its place, which would make transformers hang."""
        check_file(Path(pretrained_model_name_or_path) / "config.json")
        return super().get_config_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_core(
        cls, config: CoreConfig, taxonomy: Taxonomy | None = None, calibration: Calibration | None = None, **kwargs
    ) -> "HCastConfig":
        """Build from the core's config, taxonomy and calibration; ``kwargs`` are further fields."""
        return cls(
            **config.to_dict(),
            taxonomy=None if taxonomy is None else taxonomy.to_dict(),
            calibration=None if calibration is None else calibration.to_dict(),
            **kwargs,
        )

    def to_core(self) -> CoreConfig:
        """Return the core's config: the same fields, without the labels, the loss and those that transformers adds."""
        return CoreConfig.from_dict({field: getattr(self, field) for field in CORE_FIELDS})

    def to_dict(self) -> dict:
        """Return plain data that JSON can hold."""
        return {key: value for key, value in super().to_dict().items() if key != "_follow_changes"}

    def get_taxonomy(self) -> Taxonomy | None:
        """Return the tree of labels, or None for labels without names."""
        return None if self.taxonomy is None else Taxonomy.from_dict(self.taxonomy)

    def get_calibration(self) -> Calibration:
        """Return the temperatures of the levels; if none were fitted, those that change nothing."""
        if self.calibration is None:
            return Calibration.identity(len(self.level_classes))
        return Calibration.from_dict(self.calibration)

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the levels, coarse to fine; ``level_1``, ``level_2`` ... without a taxonomy."""
        if self.taxonomy is not None:
            return tuple(self.taxonomy["levels"])
        return tuple(f"level_{number}" for number in range(1, len(self.level_classes) + 1))

    @property
    def level_id2label(self) -> tuple[dict[int, str], ...]:
        """``id2label`` of each level, coarse to fine; the last one is ``id2label``."""
        if self.taxonomy is not None:
            coarse = [dict(enumerate(names)) for names in self.taxonomy["names"][:-1]]
        else:
            coarse = list(map(_number_labels, self.level_classes[:-1]))
        return (*coarse, self.id2label)

    @property
    def grid_size(self) -> int:
        """Side of the grid of 8x8-pixel cells that the position embedding covers."""
        return self.image_size // CELL_SIZE

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks in all stages; ``depths`` sets it."""
        return sum(self.depths)

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int):
        raise NotImplementedError(f"num_hidden_layers is the sum of depths: set depths, not num_hidden_layers={value}")


def _number_labels(count: int) -> dict[int, str]:
    """Return transformers' names for classes without names."""
    return {index: f"LABEL_{index}" for index in range(count)}


def _check_label_memory(field: str, classes: Any) -> None:
    """Raise MemoryBudgetError if the tables of so many labels would not fit; wrong types are reported elsewhere."""
    numbers = [number for number in classes if isinstance(number, int)] if isinstance(classes, tuple) else []
    check_memory(sum(numbers) * LABEL, field, f"{sum(numbers):,} classes")
