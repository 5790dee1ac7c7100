"""The encoder: superpixel tokens, and stages of transformer blocks with graph pooling between them."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import NUM_STAGES, HCastConfig, check_clusters
from .embedding import embed_positions, embed_superpixels
from .graph_pooling import GraphPooling
from .layers import Block, ConvStem, recomputed
from .stems import Carried, PretrainedStem, SuperpixelMeans, area_means, describe, weighted_mean
from .superpixels import prepare_segments

for _name in ("area_means", "describe", "embed_positions", "embed_superpixels"):
    torch.fx.wrap(_name)  # a tracer keeps them whole, since they look at shapes and labels


@dataclasses.dataclass
class Encoding:
    """What the encoder computes, for the heads; the other fields are described in :class:`.model.HCastOutput`.

    Attributes:
        tokens: (B, 1 + N, C) class token and segment tokens leaving the last block, before the final norm.
    """

    tokens: Tensor
    level_features: tuple[Tensor, ...]
    segments: Tensor
    assignments: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    evidence: Tensor | None = None


class Stage(nn.Module):
    """Transformer blocks over the tokens of one segmentation, and the graph pooling into the next, coarser one."""

    block_class = Block
    pooling_class = GraphPooling

    def __init__(self, config: HCastConfig, index: int, drop_path: list[float], **dd):
        super().__init__()
        self.mask_empty = config.mask_empty
        self.grad_checkpointing = False  # recompute the blocks in the backward pass, to save memory
        self.recompute_cheap = False  # recompute only norms, GELU and dropout
        self.blocks = nn.ModuleList(
            self.block_class(config.embed_dim, config.num_heads, config.mlp_ratio, rate, **dd) for rate in drop_path
        )
        self.pool = None
        if index < NUM_STAGES - 1 or config.last_pool:
            self.pool = self.pooling_class(
                config.embed_dim, config.pool_heads, config.pool_drop_rate, config.grouping, **dd
            )

    def forward(
        self, tokens: Tensor, valid: Tensor | None, need_weights: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """Run the blocks on (B, 1 + N, C) tokens; also return each block's output and attention.

        Pooling is separate, because the heads read the class token before pooling updates it.
        """
        mask = None
        if self.mask_empty and valid is not None:
            mask = F.pad(valid, (1, 0), value=True)  # the class token is never empty

        states, weights = [], []
        for block in self.blocks:
            if self.grad_checkpointing:
                tokens, weight = checkpoint(block, tokens, mask, need_weights, use_reentrant=False)
            elif self.recompute_cheap and torch.is_grad_enabled():
                tokens, weight = recomputed(block, tokens, mask, need_weights)
            else:
                tokens, weight = block(tokens, mask, need_weights)
            states.append(tokens)
            weights.append(weight)

        return tokens, states, weights


@dataclasses.dataclass
class StagePass:
    """What :func:`run_stages` computes.

    Attributes:
        states: For each stage, the (B, 1 + N, C) tokens that leave its blocks.
        class_tokens: For each stage, its (B, C) class token before pooling updates it.
        assignments: The (B, N, M) assignment of each pooling.
        block_outputs: (B, 1 + N, C) tokens leaving each block.
        attentions: (B, heads, 1 + N, 1 + N) of each block if asked for, else None.
    """

    states: list[Tensor] = dataclasses.field(default_factory=list)
    class_tokens: list[Tensor] = dataclasses.field(default_factory=list)
    assignments: list[Tensor] = dataclasses.field(default_factory=list)
    block_outputs: list[Tensor] = dataclasses.field(default_factory=list)
    attentions: list[Tensor | None] = dataclasses.field(default_factory=list)


def run_stages(
    stages: Iterable[Stage],
    tokens: Tensor,
    valid: Tensor | None,
    clusters: Sequence[int],
    mask_empty: bool,
    *,
    need_weights: bool = False,
    pool_last: bool = False,
    carried: Carried | None = None,
) -> StagePass:
    """Run stages, each on what the one before has pooled.

    Args:
        stages: All or the first ones.
        tokens: (B, 1 + N, C) class token and superpixels.
        valid: (B, N) bool, False for empty superpixels.
        clusters: How many each pooling makes.
        mask_empty: See :class:`HCastConfig`.
        need_weights: Return attention probabilities.
        pool_last: Also run the last stage's pooling, if it has one.
        carried: What the superpixels carry beside their features, if anything.
    """
    stages = list(stages)
    passed = StagePass()
    for index, stage in enumerate(stages):
        tokens, outputs, weights = stage(tokens, valid, need_weights)
        passed.states.append(tokens)
        passed.class_tokens.append(tokens[:, 0])
        passed.block_outputs += outputs
        passed.attentions += weights

        if stage.pool is not None and (pool_last or stage is not stages[-1]):
            # A tracer cannot iterate over clusters.
            pooled = stage.pool(tokens, clusters[index], valid, mask_empty, carried)
            carried = pooled.carried
            passed.assignments.append(pooled.assignment)
            tokens = pooled.tokens

        valid = None  # only superpixels can be empty, not clusters

    return passed


class Encoder(nn.Module):
    """H-CAST without heads: stem, tokens and stages.

    :meth:`build` makes the parts, not the constructor, so that a framework's base class can run its own constructor
    first. ``config`` may be any object with the fields of :class:`HCastConfig`.
    """

    stage_class = Stage

    def build(self, config: HCastConfig, device=None, dtype=None) -> None:
        """Create the parts; their values are undefined until they are initialised or loaded."""
        dd = {"device": device, "dtype": dtype}
        self.config = config
        dim = config.embed_dim
        self.stem = (
            ConvStem(config.in_chans, dim, config.feature_stride, **dd)
            if config.stem == "conv"
            else PretrainedStem(config, **dd)
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **dd))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid_size**2, dim, **dd))

        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        for index, depth in enumerate(config.depths):
            self.stages.append(self.stage_class(config, index, rates[:depth], **dd))
            rates = rates[depth:]

        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)

    def encode(
        self,
        images: Tensor | SuperpixelMeans,
        segments: Tensor | None = None,
        *,
        num_clusters: tuple[int, ...] | None = None,
        num_superpixels: int | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Encoding:
        """Compute the features of every level; see :meth:`.model.HCast.forward` for the arguments."""
        num_superpixels = num_superpixels or self.config.num_superpixels
        num_clusters = self.config.num_clusters if num_clusters is None else num_clusters
        clusters = check_clusters(num_clusters, num_superpixels)

        if isinstance(images, SuperpixelMeans):  # of a frozen stem, computed earlier
            if segments is None:
                raise ValueError("segments: expected those that the superpixel means were computed with, got None")
            start: tuple[Tensor, Tensor, Carried | None] = self.start_from_means(images, segments)
        else:
            segments = self.prepare_segments(images, segments, num_superpixels)
            start = self.start(images, segments, num_superpixels)

        tokens, valid, carried = start
        return self.encode_tokens(
            tokens,
            valid,
            carried,
            segments,
            clusters,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )

    def encode_tokens(
        self,
        tokens: Tensor,
        valid: Tensor | None,
        carried: Carried | None,
        segments: Tensor,
        clusters: tuple[int, ...],
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Encoding:
        """Run the stages on what :meth:`start` returns."""
        passed = run_stages(
            self.stages,
            tokens,
            valid,
            clusters,
            self.config.mask_empty,
            need_weights=output_attentions,
            pool_last=True,
            carried=carried,
        )
        return Encoding(
            tokens=passed.states[-1],
            level_features=self.level_features(passed.class_tokens),
            segments=segments,
            assignments=tuple(passed.assignments),
            hidden_states=(tokens, *passed.block_outputs) if output_hidden_states else None,
            attentions=tuple(passed.attentions) if output_attentions else None,
            evidence=carried.evidence if output_attentions and carried is not None else None,
        )

    def prepare_segments(self, images: Tensor, segments: Tensor | None, num_superpixels: int) -> Tensor:
        """Return (B, H, W) int64 segments; see :func:`hcast_zoo.network.superpixels.prepare_segments`."""
        return prepare_segments(images, segments, self.config, num_superpixels)

    def embed(self, images: Tensor, segments: Tensor, num_superpixels: int) -> tuple[Tensor, Tensor]:
        """Turn images into tokens; see :func:`embed_superpixels`."""
        return self.start(images, segments, num_superpixels)[:2]

    def start(self, images: Tensor, segments: Tensor, num_superpixels: int) -> tuple[Tensor, Tensor, Carried | None]:
        """Return the (B, 1 + N, C) tokens that enter stage 1, (B, N) bool False for empty ones, and what they carry."""
        c = self.config
        if c.stem == "conv" and c.grouping == "tokens" and c.token_pooling == "top_left":
            tokens, valid = embed_superpixels(
                self.stem(images), segments, self.cls_token, self.pos_embed, num_superpixels, cell_size=c.feature_stride
            )
            return tokens, valid, None

        return self.start_from_means(self.superpixel_means(images, segments, num_superpixels), segments)

    def superpixel_means(self, images: Tensor, segments: Tensor, num_superpixels: int) -> SuperpixelMeans:
        """Return the stem's features of each superpixel; those of a frozen stem can be cached."""
        c = self.config
        maps, early = self.stem.maps(images)
        features, area = area_means(maps, segments, num_superpixels)
        if c.stem == "conv" and c.token_pooling == "top_left":
            # Averages of features alone: class token and positions are added later.
            cls = torch.zeros_like(self.cls_token)
            places = self.pos_embed.new_zeros(1, 1 + maps[0].shape[2:].numel(), 1)
            tokens, valid = embed_superpixels(
                maps[0], segments, cls, places, num_superpixels, cell_size=c.feature_stride
            )
            features, area = tokens[:, 1:], area * valid

        descriptor = None
        if c.grouping == "descriptor":
            descriptor = describe(images, early, segments, num_superpixels).to(features.dtype)

        return SuperpixelMeans(features, descriptor, area.to(features.dtype))

    def start_from_means(self, means: SuperpixelMeans, segments: Tensor) -> tuple[Tensor, Tensor, Carried]:
        """Return what :meth:`start` does, from :meth:`superpixel_means` of (B, H, W) segments."""
        valid = means.area > 0
        places = embed_positions(self.pos_embed, segments, means.features.shape[1])
        tokens, evidence = (means.features, None) if self.config.stem == "conv" else self.stem(means.features)
        tokens = (tokens + places) * valid[..., None]
        carried = Carried(means.area, means.descriptor, evidence)

        cls = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1)
        if evidence is not None:
            cls = cls + weighted_mean(evidence, means.area)
        return torch.cat([cls, tokens], 1), valid, carried

    def recompute(self, enable: bool = True) -> None:
        """Recompute norms, GELU and dropout in the backward pass instead of keeping them; gradients are bit-equal."""
        for stage in self.stages:
            for part in (stage, stage.pool):
                if isinstance(part, (Stage, GraphPooling)):
                    part.recompute_cheap = enable

    def freeze_stem(self) -> None:
        """Leave a pretrained stem unchanged by training.

        Raises:
            ValueError: if the stem is the paper's, which is not pretrained.
        """
        if not isinstance(self.stem, PretrainedStem):
            raise ValueError("expected a model with a pretrained stem (stem='timm:NAME'), got the paper's stem")
        self.stem.freeze()

    def level_features(self, class_tokens: list[Tensor]) -> tuple[Tensor, ...]:
        """Pick the (B, C) class token of each level; only stage 4's is normalised.

        Source: official cast_deit_hier.py:115-118, 203-215.
        """
        stages = [*class_tokens[:-1], self.norm(class_tokens[-1])]
        return tuple(stages[s - 1] for s in self.config.head_stages)
