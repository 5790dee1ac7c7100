"""H-CAST in timm's model API; loaded on first use by the models that ``hcast.py`` registers.

Paper: Visually Consistent Hierarchical Image Classification (H-CAST), ICLR 2025, arXiv 2406.11608.
"""

import logging
import warnings
from collections.abc import Sequence

import torch
from huggingface_hub.errors import EntryNotFoundError
from timm.layers import get_device_dtype, global_pool_nlc, register_notrace_function
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from timm.models._input import update_model_args, update_model_input_size
from torch import Tensor, nn

from hcast_zoo.common.text import clip
from hcast_zoo.network.config import CELL_SIZE, NUM_STAGES, HCastConfig, check_clusters
from hcast_zoo.network.embedding import fit_position, resample_position
from hcast_zoo.network.encoder import run_stages
from hcast_zoo.network.feature_maps import feature_map
from hcast_zoo.network.graph_pooling import farthest_point_sampling
from hcast_zoo.network.layers import init_block_weights
from hcast_zoo.network.model import HCast, HCastOutput
from hcast_zoo.network.superpixels import prepare_segments
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.official import convert_official, is_official

from .pretrained import (
    MODEL_FIELDS,
    ImageSize,
    fetch_cfg,
    how_to_get,
    image_shape,
    is_reserved,
    locate_file,
    make_config,
    plain_cfg,
    resize_superpixels,
    sources,
    warn_of_size,
)

__all__ = ["TimmHCast", "checkpoint_filter_fn", "create_hcast"]

_logger = logging.getLogger(__name__)
POOLS = ("token", "avg", "max", "avgmax", "")

for _function in (prepare_segments, farthest_point_sampling):
    register_notrace_function(_function)  # FX cannot trace into them: they branch on shapes and labels


@register_notrace_function
def choose_clusters(
    num_clusters: Sequence[int] | None, config_clusters: tuple[int, ...], num_superpixels: int
) -> tuple[int, ...]:
    """Return the cluster counts of a call, checked; the config's if none are given."""
    return check_clusters(tuple(num_clusters or config_clusters), num_superpixels)


@register_notrace_function
def check_size(x: Tensor, img_size: ImageSize, num_superpixels: int) -> None:
    """Warn if images differ in size from the model's, because their superpixels then also do."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    (height, width), (model_height, model_width) = x.shape[2:], image_shape(img_size)
    if (height, width) == (model_height, model_width):
        return

    warnings.warn(
        f"images of {height}x{width} pixels in a model for {model_height}x{model_width}: the position embedding is "
        f"resampled, and there are {num_superpixels} superpixels as before, of another size. img_size= and "
        "set_input_size() change their number with the image",
        stacklevel=2,
    )


class TimmHCast(HCast):
    """H-CAST with timm's attributes and methods; the parameters are those of :class:`hcast_zoo.HCast`.

    ``forward`` gives the finest level, as one tensor; ``forward_levels`` every level; ``forward_output`` also the
    segmentations. Features are tokens (B, 1 + N, C), class token first, of the stage that the finest level reads.
    A model without levels, or without heads, reads the last stage.

    Args:
        cfg: The architecture.
        in_chans: Channels of the input image; overrides the config's.
        num_classes: Classes of the finest level; 0 for a model without heads.
        img_size: Height and width in pixels that the model is made for; the config's square if None. Other sizes
            also work.
        global_pool: What the heads read: ``"token"`` the class token, as in the paper; ``"avg"``, ``"max"`` or
            ``"avgmax"`` over the segments of their stage; ``""`` every token.
        taxonomy: Names of the levels and labels.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.
    """

    def __init__(
        self,
        cfg: HCastConfig,
        in_chans: int = 3,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] | None = None,
        global_pool: str = "token",
        taxonomy: Taxonomy | None = None,
        device=None,
        dtype=None,
    ):
        _check_pool(global_pool)
        super().__init__(cfg.replace(in_chans=in_chans), device=device, dtype=dtype)
        if num_classes == 0:
            self.heads = nn.ModuleList()
        self.num_classes, self.global_pool, self.taxonomy = num_classes, global_pool, taxonomy
        self.in_chans = in_chans
        self.embed_dim = self.num_features = self.head_hidden_size = cfg.embed_dim
        self.num_prefix_tokens = 1
        self.feature_info = [
            dict(num_chs=cfg.embed_dim, reduction=CELL_SIZE, module=f"stages.{i}") for i in range(NUM_STAGES)
        ]
        self._traits = {"img_size": image_shape(img_size or cfg.image_size)}
        self._model_args = {k: v for k, v in self.config.to_dict().items() if k in MODEL_FIELDS}
        self._model_args["taxonomy"] = taxonomy.to_dict() if taxonomy else None

    @property
    def feature_stage(self) -> int:
        """Stage (1 to 4) that ``forward_features`` ends at: the finest level's, or the last of a pruned model."""
        return min(self.config.head_stages[-1], len(self.stages))

    def forward(self, x: Tensor, segments: Tensor | None = None, num_clusters: Sequence[int] | None = None) -> Tensor:
        """Return the finest level's logits.

        Args:
            x: (B, in_chans, H, W) normalised images.
            segments: (B, H, W) integer superpixel maps; computed if not given.
            num_clusters: Cluster counts for this call, in place of the config's.

        Returns:
            (B, num_classes), or (B, C) features of a model without heads.
        """
        return self.forward_head(self.forward_features(x, segments, num_clusters))

    def forward_levels(
        self, x: Tensor, segments: Tensor | None = None, num_clusters: Sequence[int] | None = None
    ) -> tuple[Tensor, ...]:
        """Return one (B, classes) tensor of logits per level, coarse to fine; see :meth:`forward`."""
        return self.forward_output(x, segments, num_clusters).level_logits

    def forward_output(
        self, x: Tensor, segments: Tensor | None = None, num_clusters: Sequence[int] | None = None
    ) -> HCastOutput:
        """Return the logits, features and segmentations of every level; see :meth:`forward`."""
        states, segments, assignments = self._forward_stages(x, segments, num_clusters, len(self.stages))
        stages = self.config.head_stages[: len(self.heads)]
        features = tuple(self._pool(self._read(states, stage)) for stage in stages)
        return HCastOutput(
            level_logits=self.forward_heads(features),
            segments=segments,
            assignments=tuple(assignments),
            level_features=features,
        )

    def forward_features(
        self, x: Tensor, segments: Tensor | None = None, num_clusters: Sequence[int] | None = None
    ) -> Tensor:
        """Return the (B, 1 + N, C) tokens that the finest level's head reads; see :meth:`forward`."""
        stage = self.feature_stage
        return self._read(self._forward_stages(x, segments, num_clusters, stage)[0], stage)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool (B, 1 + N, C) tokens, and classify them at the finest level unless ``pre_logits``."""
        x = self.head_drop(self._pool(x))
        return x if pre_logits or len(self.heads) == 0 else self.heads[-1](x)

    def _pool(self, tokens: Tensor) -> Tensor:
        return global_pool_nlc(tokens, self.global_pool, self.num_prefix_tokens)

    def _read(self, states: list[Tensor], stage: int) -> Tensor:
        """Return the (B, 1 + N, C) tokens of a stage (1 to 4) as heads see them: only stage 4's are normalised."""
        return self.norm(states[stage - 1]) if stage == NUM_STAGES else states[stage - 1]

    def _forward_stages(
        self, x: Tensor, segments: Tensor | None, num_clusters: Sequence[int] | None, last: int
    ) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Run the stages up to ``last``, from 1.

        Returns:
            The (B, 1 + N, C) tokens leaving the blocks of each stage; (B, H, W) int64 superpixels; and the
            (B, N, M) assignment of each pooling between those stages.
        """
        c = self.config
        clusters = choose_clusters(num_clusters, c.num_clusters, c.num_superpixels)
        segments = prepare_segments(x, segments, c)
        check_size(x, self._traits["img_size"], c.num_superpixels)
        tokens, valid, carried = self.start(x, segments, c.num_superpixels)
        stages = [self.stages[index] for index in range(last)]  # a slice would make a new module on each call
        passed = run_stages(stages, tokens, valid, clusters, c.mask_empty, carried=carried)
        return passed.states, segments, passed.assignments

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        segments: Tensor | None = None,
        num_clusters: Sequence[int] | None = None,
    ):
        """Return features of several stages.

        Args:
            x: (B, in_chans, H, W) normalised images.
            indices: Stages to return, from 0; all if None, the last n if an int.
            return_prefix_tokens: Return (features, (B, 1, C) class token) for each stage.
            norm: Apply the final norm to the features.
            stop_early: Do not run stages after the last of ``indices``.
            output_fmt: ``"NCHW"`` gives each 8x8-pixel cell the token of its top-left pixel's segment, or the mean of
                its pixels' tokens where ``token_pooling`` is ``"area"``; ``"NLC"`` the tokens.
            intermediates_only: Leave out the final features.
            segments: See :meth:`forward`.
            num_clusters: See :meth:`forward`.

        Returns:
            The result of :meth:`forward_features` and a list of (B, C, h, w) or (B, N, C) tensors, or only the list.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt: expected 'NCHW' or 'NLC', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.stages), indices)
        last = last + 1 if stop_early or intermediates_only else max(last + 1, self.feature_stage)
        states, segments, assignments = self._forward_stages(x, segments, num_clusters, last)
        intermediates = []
        for index in take:
            tokens = self.norm(states[index]) if norm else states[index]
            cls, tokens = tokens[:, :1], tokens[:, 1:]
            if output_fmt == "NCHW":
                tokens = feature_map(tokens, segments, assignments[:index], self.config.token_pooling)
            intermediates.append((tokens, cls) if return_prefix_tokens else tokens)

        if intermediates_only:
            return intermediates
        return self._read(states, min(last, self.feature_stage)), intermediates

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        segments: Tensor | None = None,
        num_clusters: Sequence[int] | None = None,
    ) -> list:
        """Return features of the last ``n`` stages, or of stages ``n``, with the arguments of timm's transformers."""
        return self.forward_intermediates(
            x,
            n,
            return_prefix_tokens,
            norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
            segments=segments,
            num_clusters=num_clusters,
        )

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what :meth:`forward_intermediates` does not need for these stages; return the stages from 0."""
        take, last = feature_take_indices(len(self.stages), indices)
        pruned = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        self.stages[-1].pool = None
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head or pruned:
            self.reset_classifier(0)
        return take

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """Return the head, or one head per level, coarse to fine."""
        if len(self.heads) < 2:
            return self.heads[0] if len(self.heads) else nn.Identity()
        return tuple(self.heads)

    def reset_classifier(self, num_classes: int | Sequence[int], global_pool: str | None = None) -> None:
        """Replace the heads by new ones.

        Args:
            num_classes: An integer for a flat model, which reads the last stage (0 for no head); or the classes of
                each level, coarse to fine.
            global_pool: See the class; unchanged if None.

        Raises:
            ValueError: if a pruned model lacks the stages of these levels.
        """
        flat = isinstance(num_classes, int)
        levels = (max(num_classes, 1),) if flat else tuple(num_classes)
        if not flat and len(self.stages) < NUM_STAGES:
            raise ValueError(
                f"expected an int, as only {len(self.stages)} of {NUM_STAGES} stages are left, got {levels}"
            )

        if global_pool is not None:
            _check_pool(global_pool)
            self.global_pool = global_pool

        changes = {"head_stages": (NUM_STAGES,)} if flat else {}
        self.config = self.config.replace(level_classes=levels, **changes)
        self.num_classes, self.taxonomy = levels[-1] if num_classes else 0, None
        dd = get_device_dtype(self)
        self.heads = nn.ModuleList(nn.Linear(self.embed_dim, n, **dd) for n in (levels if num_classes else ()))
        self.heads.train(self.training)
        init_block_weights(self.heads)
        update_model_args(self, level_classes=list(levels), head_stages=list(self.config.head_stages), taxonomy=None)
        self.name_classes()

    def name_classes(self) -> None:
        """Put the finest level's names, which timm's inference.py shows, into the pretrained config."""
        cfg = getattr(self, "pretrained_cfg", None)
        if cfg is None:
            return
        if self.taxonomy is not None:
            cfg["label_names"] = self.taxonomy.names[-1]
        elif len(cfg.get("label_names") or ()) != self.num_classes:
            cfg.pop("label_names", None)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the position embedding for another image size, and scale the number of superpixels with it."""
        c = self.config
        before = self._traits["img_size"]
        self.config = c.replace(**resize_superpixels(c.num_superpixels, before, img_size, c.num_clusters[0]))
        warn_of_size(before, img_size, c.num_superpixels, self.config.num_superpixels)
        grid = (self.config.grid_size,) * 2
        self.pos_embed = nn.Parameter(resample_position(self.pos_embed.detach(), grid), self.pos_embed.requires_grad)
        update_model_input_size(self, img_size, num_superpixels=self.config.num_superpixels)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Save memory in training by computing the blocks again in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: TimmHCast) -> dict[str, Tensor]:
    """Fit a checkpoint to a model: the only place where keys change.

    Accepts our own state dicts, and unchanged official H-CAST and CAST checkpoints. The position embedding is
    resampled to the model's image size. A model whose levels differ from its tag's keeps its own, new heads.

    Raises:
        ValueError: if an official checkpoint has missing or unknown keys.
    """
    config = model.config
    if is_official(state_dict):
        _, state_dict = convert_official(
            state_dict, keep_last_pool=config.last_pool, num_heads=config.num_heads, pool_heads=config.pool_heads
        )

    expected = model.state_dict()
    # Files may hold half precision, which is too coarse to resample or add weights in.
    state = {k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()}
    fit_position(state, config.grid_size)
    if not config.last_pool:
        state = {k: v for k, v in state.items() if not k.startswith(f"stages.{NUM_STAGES - 1}.pool.")}

    heads, new_heads = _heads_of(state), _heads_of(expected)
    fit = _shapes(heads) == _shapes(new_heads)
    if not fit and (not new_heads or _has_new_levels(model)):
        _logger.info("the checkpoint's heads do not fit levels of %s classes and are left out", config.level_classes)
        state = {k: v for k, v in state.items() if k not in heads} | new_heads

    return state


def _heads_of(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state_dict.items() if key.startswith("heads.")}


def _shapes(state_dict: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state_dict.items()}


def _has_new_levels(model: TimmHCast) -> bool:
    cfg = getattr(model, "pretrained_cfg", {})
    source = sources().get(f"{cfg.get('architecture')}.{cfg.get('tag')}")
    return source is None or source.headless or source.config.level_classes != model.config.level_classes


def _check_pool(global_pool: str) -> None:
    if global_pool not in POOLS:
        raise AssertionError(f"global_pool: expected one of {POOLS}, got {global_pool!r}")  # the type that timm raises


def create_hcast(
    variant: str, pretrained: bool = False, pretrained_cfg=None, pretrained_cfg_overlay=None, **kwargs
) -> nn.Module:
    """Build a variant; arguments that are not fields of the config go to timm's builder, and from there to the class.

    A bare name without weights gives the paper's network, whatever the image size of its first tag.

    Raises:
        RuntimeError: if the tag has no published weights; the message says how to get some.
        ValueError, WeightsError, HubError: as :func:`.pretrained.make_config` and :func:`.pretrained.fetch_cfg` do.
    """
    if pretrained_cfg is None and not pretrained:
        pretrained_cfg = plain_cfg(variant)
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    cfg, source = fetch_cfg(cfg) if pretrained else (cfg, None)
    config, model_kwargs = make_config(variant, cfg, kwargs, source, pretrained)
    if pretrained:
        cfg = locate_file(cfg)

    try:
        model = build_model_with_cfg(
            TimmHCast,
            variant,
            pretrained,
            pretrained_cfg=cfg,
            model_cfg=config,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg=dict(out_indices=NUM_STAGES, feature_cls="getter"),
            **model_kwargs,
            **kwargs,
        )
    except (OSError, EntryNotFoundError) as error:
        if pretrained and is_reserved(cfg):
            raise RuntimeError(how_to_get(cfg)) from error
        raise
    except TypeError as error:
        raise TypeError(clip(error)) from error  # names of arguments may come from a file

    if isinstance(model, TimmHCast):  # not the feature maps of features_only=True
        model.name_classes()
    return model
