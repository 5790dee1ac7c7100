"""H-CAST as a PreTrainedModel: the core's modules with transformers' attention, checkpointing and outputs.

Keys of the state dict are the core's, so one safetensors file serves every framework.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hcast_zoo.network.encoder import Encoder, Stage
from hcast_zoo.network.graph_pooling import CentroidProjection, GraphPooling
from hcast_zoo.network.layers import Attention, Block
from hcast_zoo.network.model import segment_map
from hcast_zoo.training.losses import HierarchicalLoss

from .configuration_hcast import HCastConfig

if TYPE_CHECKING:
    # transformers copies what a module of remote code imports, by its text: so a model that is loaded with remote code
    # and saved brings the pipelines along that its config names.
    from .pipeline_hcast import HierarchicalImageClassificationPipeline  # noqa: F401

# Keywords that transformers may pass to any model's forward; others are the caller's mistake.
PASSED_BY_TRANSFORMERS = frozenset({*TransformersKwargs.__annotations__, "use_cache"})


class SegmentedOutput(ModelOutput):
    """What every output has in common: ``segments``, and the maps that follow from them."""

    def segment_map(self, stage: int) -> Tensor:
        """Return the (B, H, W) int64 segmentation that a stage (1 to 4) sees, tokens in their most probable cluster."""
        superpixels, *assignments = self.segments
        return segment_map(superpixels, tuple(assignments), stage)


@dataclasses.dataclass
class HCastModelOutput(SegmentedOutput):
    """Features and the segmentation that they were read from.

    Attributes:
        last_hidden_state: (B, 1 + N, C) normalised class token and segment tokens of the last stage.
        pooler_output: (B, C) normalised class token of the last stage, which sees the whole object.
        level_features: One (B, C) tensor per level, coarse to fine: the class token that level reads.
        segments: What makes the tokens of each stage. First the (B, H, W) int64 superpixel of each pixel; then one
            (B, N, M) tensor per pooling: probability of each of the N tokens of stage s to be in each of the M clusters
            that are the tokens of stage s + 1.
        hidden_states: On request, the (B, 1 + N, C) tokens entering stage 1 and leaving each block.
        attentions: On request and with eager attention, (B, heads, 1 + N, 1 + N) probabilities of each block.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    level_features: tuple[Tensor, ...] | None = None
    segments: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass
class HierarchicalImageClassifierOutput(SegmentedOutput):
    """Labels of every level.

    Attributes:
        loss: With labels, a scalar: cross-entropy of every level plus the Tree-path KL.
        logits: (B, classes) of the finest level.
        level_logits: One (B, classes) tensor per level, coarse to fine; the last one is ``logits``.
        paths: On request, (B, L) int64 node of each level; -1 below a shallow leaf.
        segments: As in :class:`HCastModelOutput`.
        hidden_states: As there.
        attentions: As there.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    level_logits: tuple[Tensor, ...] | None = None
    paths: Tensor | None = None
    segments: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Mix the values step by step, which gives the weights too; the "eager" entry of transformers' attention functions.

    Shape: (B, heads, N, d) each, mask (B, 1, 1, N) bool -> (B, N, heads, d), and weights (B, heads, N, N).
    """
    scores = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class HCastAttention(Attention):
    """The core's attention, mixing values by the function that the config names."""

    config: HCastConfig  # set by the model
    is_causal = False

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the values (B, heads, N, d)."""
        if not len(q):  # an empty batch, which transformers' functions cannot reshape
            return super().attend(q, k, v, mask, need_weights)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(self, q, k, v, mask, dropout=0.0, scaling=q.shape[-1] ** -0.5)
        return output.transpose(1, 2), weights


class HCastLayer(GradientCheckpointingLayer, Block):
    """A transformer block that can be recomputed in the backward pass."""

    attention_class = HCastAttention


class HCastCentroidProjection(CentroidProjection):
    """Features for comparing tokens with cluster centres."""

    attention_class = HCastAttention


class HCastPooling(GraphPooling):
    """Graph pooling; its layers start with PyTorch's own initialisation, as in the authors' code."""

    projection_class = HCastCentroidProjection

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            module.keeps_default_init = True


class HCastStage(Stage):
    """Blocks over one segmentation, and the pooling into the next."""

    block_class = HCastLayer
    pooling_class = HCastPooling


class HCastClassificationHead(nn.Sequential):
    """One linear layer per level, coarse to fine, each on its own features.

    Not a ModuleList, which peft could not train and save beside an adapter (``modules_to_save=["heads"]``).
    """

    def __init__(self, config: HCastConfig):
        super().__init__(*(nn.Linear(config.embed_dim, classes) for classes in config.level_classes))

    def forward(self, level_features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return one (B, classes) tensor of logits for each (B, C) of features."""
        return tuple(head(x) for head, x in zip(self, level_features))


class HCastPreTrainedModel(PreTrainedModel, Encoder):
    """What the models share: the encoder, its initialisation, and what transformers has to know of it."""

    config: HCastConfig
    stage_class = HCastStage
    base_model_prefix = "hcast"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer must average over accumulation steps
    _no_split_modules = ["ConvStem", "PretrainedStem", "HCastLayer", "HCastPooling", "HCastClassificationHead"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012 (transformers' own way)
        "hidden_states": HCastLayer,
        "attentions": OutputRecorder(HCastAttention, index=1, layer_name="blocks"),
    }
    _input_embed_layer = "stem"

    def __init__(self, config: HCastConfig):
        super().__init__(config)
        self.build(config)
        for module in self.modules():
            if isinstance(module, HCastAttention):
                module.config = config
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Encoder):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.pos_embed, std=self.config.initializer_range)
        elif isinstance(module, CentroidProjection):
            init.normal_(module.bias, std=0.01)
        elif isinstance(module, nn.Conv2d) or (
            isinstance(module, nn.Linear) and getattr(module, "keeps_default_init", False)
        ):
            module.reset_parameters()  # by torch.nn.init, which transformers guards while it initialises
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class HCastModel(HCastPreTrainedModel):
    """H-CAST without heads: features of every level and the fine-to-coarse segmentation."""

    _keys_to_ignore_on_load_unexpected = [r"^heads\."]  # noqa: RUF012 (those of a classifier's checkpoint)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        segments: Tensor | None = None,
        *,
        num_clusters: tuple[int, ...] | None = None,
        num_superpixels: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> HCastModelOutput:
        """Encode images.

        Args:
            pixel_values: (B, num_channels, H, W) float, normalised.
            segments: (B, H, W) integer superpixel maps; made by ``config.superpixels`` if not given.
            num_clusters: Other cluster counts than the config's, for this call.
            num_superpixels: Another number of tokens than the config's, for this call.
            kwargs: ``output_hidden_states``, ``output_attentions``, ``return_dict``, and what transformers passes to
                every model.

        Raises:
            ValueError: if a shape, a dtype or a label is not as expected, or clusters outnumber tokens.
            TypeError: if a keyword is unknown.
        """
        if unknown := sorted(set(kwargs) - PASSED_BY_TRANSFORMERS):
            raise TypeError(f"{type(self).__name__} got unknown keywords: {', '.join(unknown)}")

        if segments is None:
            # Superpixels are cut from the pixels as they come; only then may the model's precision round them.
            segments = self.prepare_segments(pixel_values, None, num_superpixels or self.config.num_superpixels)

        encoding = self.encode(
            pixel_values.to(self.cls_token.dtype), segments, num_clusters=num_clusters, num_superpixels=num_superpixels
        )
        tokens = self.norm(encoding.tokens)
        return HCastModelOutput(
            last_hidden_state=tokens,
            pooler_output=tokens[:, 0],
            level_features=encoding.level_features,
            segments=(encoding.segments, *encoding.assignments),
        )


class HCastForImageClassification(HCastModel):
    """H-CAST with a linear head on each level of a taxonomy."""

    _keys_to_ignore_on_load_unexpected = None

    def build(self, config: HCastConfig, device=None, dtype=None) -> None:
        """Make the encoder and the heads."""
        super().build(config, device, dtype)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.heads = HCastClassificationHead(config)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        segments: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        num_clusters: tuple[int, ...] | None = None,
        num_superpixels: int | None = None,
        output_levels: bool | None = None,
        output_paths: bool = False,
        decoder: str = "best_path",
        **kwargs: Unpack[TransformersKwargs],
    ) -> HierarchicalImageClassifierOutput:
        """Classify images at every level.

        Args:
            pixel_values: (B, num_channels, H, W) float, normalised.
            segments: (B, H, W) integer superpixel maps; made by ``config.superpixels`` if not given.
            labels: (B, L) of any integer type, coarse to fine, -1 for unknown; (B,) for a one-level model; or one
                (B, classes) soft target per level.
            num_clusters: Other cluster counts than the config's, for this call.
            num_superpixels: Another number of tokens than the config's, for this call.
            output_levels: Return the logits of all levels and the segments too; ``config.output_levels`` by default.
            output_paths: Also decode each sample's path in the taxonomy.
            decoder: How: ``best_path``, ``top_down`` or ``independent``; see :mod:`hcast_zoo.taxonomy.decode`.
            kwargs: As for :class:`HCastModel`.

        Raises:
            ValueError: if an input is not as expected, or paths are asked of a model without taxonomy.
            TypeError: if a keyword is unknown.
        """
        features = super().forward(
            pixel_values,
            segments,
            num_clusters=num_clusters,
            num_superpixels=num_superpixels,
            return_dict=True,
            **kwargs,
        )
        level_logits = self.heads([self.head_drop(x) for x in features.level_features])
        with_levels = self.config.output_levels if output_levels is None else output_levels

        return HierarchicalImageClassifierOutput(
            loss=None if labels is None else self.hierarchical_loss(level_logits, labels, **kwargs),
            logits=level_logits[-1],
            level_logits=level_logits if with_levels else None,
            paths=self.decode_paths(level_logits, decoder) if output_paths else None,
            segments=features.segments if with_levels else None,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )

    def hierarchical_loss(
        self, level_logits: tuple[Tensor, ...], labels: Tensor | tuple[Tensor, ...], **kwargs: Any
    ) -> Tensor:
        """Return the scalar loss, in float32; see :class:`hcast_zoo.HierarchicalLoss`.

        A flat model with ``config.problem_type`` "regression" or "multi_label_classification" has transformers' own.
        """
        level_logits = tuple(x.float() for x in level_logits)
        flat = len(level_logits) == 1
        if flat and self.config.problem_type in ("regression", "multi_label_classification"):
            return self.loss_function(labels=labels, pooled_logits=level_logits[0], config=self.config, **kwargs)
        if flat and isinstance(labels, Tensor) and labels.ndim == 1:
            labels = labels[:, None]
        loss = HierarchicalLoss(self.config.kl_weight, smoothing=self.config.label_smoothing)
        return loss(level_logits, labels)

    def decode_paths(self, level_logits: tuple[Tensor, ...], decoder: str = "best_path") -> Tensor:
        """Return the (B, L) int64 path of each sample in the taxonomy, -1 below a shallow leaf.

        Raises:
            ValueError: if the model has no taxonomy, the decoder is unknown, or logits are not finite.
        """
        taxonomy = self.config.get_taxonomy()
        if taxonomy is None:
            raise ValueError("this model has no taxonomy to find paths in: set config.taxonomy")
        return self.config.get_calibration().decode(level_logits, taxonomy, decoder).paths


__all__ = [
    "HCastForImageClassification",
    "HCastModel",
    "HCastModelOutput",
    "HCastPreTrainedModel",
    "HierarchicalImageClassifierOutput",
]
