"""H-CAST as a PreTrainedModel: the core's modules with transformers' attention, checkpointing and outputs.

Keys of the state dict are the core's, so one safetensors file serves every framework.
"""

import importlib
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from hcast_zoo.network.encoder import Encoder, Encoding, Stage
from hcast_zoo.network.feature_maps import feature_map
from hcast_zoo.network.graph_pooling import CentroidProjection, GraphPooling
from hcast_zoo.network.layers import Attention, Block
from hcast_zoo.training.losses import HierarchicalLoss

from .configuration_hcast import HCastConfig
from .outputs_hcast import HCastModelOutput, HierarchicalImageClassifierOutput, TensorSequence

if TYPE_CHECKING:
    # transformers finds the files of remote code by reading the imports in their text. This import makes a model that
    # was loaded with remote code keep, when saved, the pipelines that its config names.
    from .pipeline_hcast import HierarchicalImageClassificationPipeline  # noqa: F401

# Keywords that transformers may pass to any model's forward; any other is the caller's mistake.
PASSED_BY_TRANSFORMERS = frozenset({*TransformersKwargs.__annotations__, "use_cache"})


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Compute attention step by step, so that the weights are available; transformers' "eager" attention function.

    It computes in float32, as the fused kernels do internally: rounding to half precision here would move cluster
    centres.

    Shape: (B, heads, N, d) each, mask (B, 1, 1, N) bool -> (B, N, heads, d), and weights (B, heads, N, N).
    """
    scores = query.float() @ key.float().transpose(-2, -1) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    weights = scores.softmax(-1)
    return (weights @ value.float()).to(query.dtype).transpose(1, 2), weights.to(query.dtype)


class HCastAttention(Attention):
    """The core's attention, computed by the function that the config names."""

    config: HCastConfig  # set by the model
    is_causal = False

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Apply attention to (B, heads, N, d) queries, keys and values."""
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
    """Graph pooling, with PyTorch's default initialisation, as in the authors' code."""

    projection_class = HCastCentroidProjection

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            module.keeps_default_init = True


class HCastStage(Stage):
    """The blocks on one segmentation, and the pooling to the next."""

    block_class = HCastLayer
    pooling_class = HCastPooling


class HCastClassificationHead(nn.Sequential):
    """One linear layer per level, coarse to fine, each with its own input features.

    Not a ModuleList, because peft could not train one and save it with an adapter (``modules_to_save=["heads"]``).
    """

    def __init__(self, config: HCastConfig):
        super().__init__(*(nn.Linear(config.embed_dim, classes) for classes in config.level_classes))

    def forward(self, level_features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return one (B, classes) tensor of logits for each (B, C) of features."""
        return tuple(head(x) for head, x in zip(self, level_features))


class HCastPreTrainedModel(PreTrainedModel, Encoder):
    """What the models share: the encoder, its initialisation, and what transformers needs to know about it."""

    config: HCastConfig
    stage_class = HCastStage
    base_model_prefix = "hcast"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch, so Trainer must average over accumulation steps
    _no_split_modules = ["ConvStem", "PretrainedStem", "HCastLayer", "HCastPooling", "HCastClassificationHead"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012 (transformers' own way)
        "hidden_states": HCastLayer,
        "attentions": OutputRecorder(HCastAttention, index=1, layer_name="blocks"),
    }
    _input_embed_layer = "stem"
    _push_remote_code = False  # True while push_to_hub saves

    def __init__(self, config: HCastConfig):
        super().__init__(config)
        self.build(config)
        for module in self.modules():
            if isinstance(module, HCastAttention):
                module.config = config
        self.post_init()

    def _flash_attn_can_dispatch(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "H-CAST does not call flash_attn: it has not been tried with these models, and their sequences have a few "
            "hundred tokens. Use attn_implementation='sdpa' (the default), which runs PyTorch's own flash "
            "kernels in half precision on a GPU"
        )

    def _flex_attn_can_dispatch(self, *args: Any, **kwargs: Any) -> bool:
        if self.config.mask_empty:
            raise ValueError(
                "flex_attention with mask_empty=True is refused, as PyTorch's kernel crashed on a CPU with such masks: "
                "use attn_implementation='sdpa'"
            )
        return super()._flex_attn_can_dispatch(*args, **kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, remote_code: bool | None = None, **kwargs: Any
    ) -> None:
        """Save the model as transformers does.

        Args:
            save_directory: Folder.
            args: See transformers.
            remote_code: Also write our code and the image processor, so that others can load the folder with
                ``trust_remote_code=True`` and without hcast-zoo. A model loaded this way always keeps its code.
            kwargs: See transformers.

        Raises:
            ValueError: if ``push_to_hub`` is also set.
        """
        remote_code = self._push_remote_code if remote_code is None else remote_code
        if remote_code and kwargs.get("push_to_hub"):
            raise ValueError(
                "remote_code: expected push_to_hub(name, remote_code=True), got remote_code and push_to_hub for "
                "save_pretrained"
            )
        super().save_pretrained(save_directory, *args, **kwargs)
        if remote_code and self._auto_class is None:
            # Not an import statement: as remote code, this file would then need that module beside it.
            repository = importlib.import_module("hcast_zoo.integrations.transformers.repository")
            repository.add_remote_code(save_directory, self.config)

    def push_to_hub(self, repo_id: str, *, remote_code: bool = False, **kwargs: Any) -> Any:
        """Upload the model as transformers does; see :meth:`save_pretrained` for ``remote_code``."""
        self._push_remote_code = remote_code
        try:
            return super().push_to_hub(repo_id, **kwargs)
        finally:
            self._push_remote_code = False

    def encode_pixels(
        self,
        pixel_values: Tensor,
        segments: Tensor | None,
        num_clusters: tuple[int, ...] | None,
        num_superpixels: int | None,
        **kwargs: Any,
    ) -> Encoding:
        """Encode images; superpixels come from the pixels as given, before rounding to the model's precision."""
        if segments is None:
            segments = self.prepare_segments(pixel_values, None, num_superpixels or self.config.num_superpixels)
        return self.encode(
            pixel_values.to(self.cls_token.dtype),
            segments,
            num_clusters=num_clusters,
            num_superpixels=num_superpixels,
            **kwargs,
        )

    def sequence(self, tensors: Iterable[Tensor]) -> TensorSequence | tuple[Tensor, ...]:
        """Return tensors in the form that outputs hold; a tuple in a replica, because DataParallel can gather that."""
        return tuple(tensors) if getattr(self, "_is_replica", False) else TensorSequence(tensors)

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
            module.reset_parameters()  # uses torch.nn.init, which transformers guards while it initialises
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class HCastModel(HCastPreTrainedModel):
    """H-CAST without heads: the features of every level, and the segmentations, fine to coarse."""

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
            num_clusters: Cluster counts for this call, in place of the config's.
            num_superpixels: Number of tokens for this call, in place of the config's.
            kwargs: ``output_hidden_states``, ``output_attentions``, ``return_dict``, and what transformers passes to
                every model.

        Raises:
            ValueError: if a shape, a dtype or a label is not as expected, or clusters outnumber tokens.
            TypeError: if a keyword is unknown.
        """
        if unknown := sorted(set(kwargs) - PASSED_BY_TRANSFORMERS):
            raise TypeError(f"{type(self).__name__} got unknown keywords: {', '.join(unknown)}")

        encoding = self.encode_pixels(pixel_values, segments, num_clusters, num_superpixels)
        tokens = self.norm(encoding.tokens)
        return HCastModelOutput(
            last_hidden_state=tokens,
            pooler_output=tokens[:, 0],
            level_features=self.sequence(encoding.level_features),
            segments=self.sequence([encoding.segments, *encoding.assignments]),
        )


class HCastBackbone(BackboneMixin, HCastPreTrainedModel):
    """H-CAST for dense tasks: feature maps of its stages, in which each 8x8-pixel cell has its segment's features.

    The map of ``stem`` holds the superpixels that enter stage 1.
    """

    _keys_to_ignore_on_load_unexpected = [r"^heads\.", r"^norm\."]  # noqa: RUF012

    def __init__(self, config: HCastConfig):
        super().__init__(config)
        self.num_features = [config.embed_dim] * len(self.stage_names)

    def build(self, config: HCastConfig, device=None, dtype=None) -> None:
        """Make the encoder without the final norm, which no feature map goes through."""
        super().build(config, device, dtype)
        self.norm = nn.Identity()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        segments: Tensor | None = None,
        *,
        num_clusters: tuple[int, ...] | None = None,
        num_superpixels: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        """Return one (B, C, H / 8, W / 8) map for each of ``config.out_features``; see :class:`HCastModel`."""
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        encoding = self.encode_pixels(
            pixel_values,
            segments,
            num_clusters,
            num_superpixels,
            output_hidden_states=True,
            output_attentions=with_attentions,
        )

        # For each map: the number of blocks, and of poolings, before its tokens.
        blocks = itertools.accumulate(self.config.depths, initial=0)
        poolings = [0, *range(len(self.config.depths))]  # none for the stem and stage 1
        maps = []
        for name, num_blocks, num_poolings in zip(self.stage_names, blocks, poolings):
            if name in self.out_features:
                tokens = encoding.hidden_states[num_blocks][:, 1:]
                assignments = encoding.assignments[:num_poolings]
                maps.append(feature_map(tokens, encoding.segments, assignments, self.config.token_pooling))

        return BackboneOutput(
            feature_maps=tuple(maps),
            hidden_states=encoding.hidden_states if with_states else None,
            attentions=encoding.attentions,
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
            num_clusters: Cluster counts for this call, in place of the config's.
            num_superpixels: Number of tokens for this call, in place of the config's.
            output_levels: Also return the logits of all levels and the segments; ``config.output_levels`` by default.
            output_paths: Also decode each sample's path in the taxonomy.
            decoder: ``best_path``, ``top_down`` or ``independent``; see :mod:`hcast_zoo.taxonomy.decode`.
            kwargs: As for :class:`HCastModel`.

        Raises:
            ValueError: if an input is not as expected, or paths are requested from a model without a taxonomy.
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
            level_logits=self.sequence(level_logits) if with_levels else None,
            paths=self.decode_paths(level_logits, decoder) if output_paths else None,
            segments=features.segments if with_levels else None,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
        )

    def hierarchical_loss(
        self, level_logits: tuple[Tensor, ...], labels: Tensor | tuple[Tensor, ...], **kwargs: Any
    ) -> Tensor:
        """Return the scalar loss, in float32; see :class:`hcast_zoo.HierarchicalLoss`.

        A flat model with ``config.problem_type`` "regression" or "multi_label_classification" uses transformers' loss.
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
    "HCastBackbone",
    "HCastForImageClassification",
    "HCastModel",
    "HCastModelOutput",
    "HCastPreTrainedModel",
    "HierarchicalImageClassifierOutput",
    "TensorSequence",
]
