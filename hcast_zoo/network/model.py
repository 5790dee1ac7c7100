"""HCast: a classifier that reads every level of a taxonomy from one fine-to-coarse segmentation of the image.

Paper: Visually Consistent Hierarchical Image Classification (H-CAST), ICLR 2025, arXiv 2406.11608.
Behaviour follows the authors' code (pseulki/HCAST at f1352a2c6a54); sources are named at each part.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import CELL_SIZE, NUM_STAGES, HCastConfig, check_clusters
from .graph_pooling import GraphPooling
from .layers import Block, ConvStem, init_block_weights
from .stems import Carried, PretrainedStem, SuperpixelMeans, area_means, describe, weighted_mean
from .superpixels import prepare_segments

for _name in ("area_means", "describe", "embed_positions", "embed_superpixels"):
    torch.fx.wrap(_name)  # a tracer keeps them whole, since they look at shapes and labels


@dataclasses.dataclass
class HCastOutput:
    """The logits of every level, and the segmentation that each was read from.

    Attributes:
        level_logits: One (B, classes) tensor per level, coarse to fine.
        segments: (B, H, W) int64 superpixel of each pixel: the segmentation stage 1 sees.
        assignments: One (B, N, M) tensor per pooling: probability that each of the N tokens of stage s belongs to each
            of the M clusters, which are the tokens of stage s + 1. Rows sum to 1.
        level_features: One (B, C) tensor per level: the class token its head reads.
        hidden_states: On request, (B, 1 + N, C) tokens entering stage 1 and leaving each block.
        attentions: On request, (B, heads, 1 + N, 1 + N) attention probabilities of each block.
    """

    level_logits: tuple[Tensor, ...]
    segments: Tensor
    assignments: tuple[Tensor, ...]
    level_features: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    def segment_map(self, stage: int) -> Tensor:
        """Return the (B, H, W) int64 segmentation that a stage (1 to 4) sees; see :func:`segment_map`."""
        return segment_map(self.segments, self.assignments, stage)

    def detach(self) -> "HCastOutput":
        """Return the same numbers without their graph."""

        def cut(values: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            return None if values is None else tuple(value.detach() for value in values)

        tensors = {f.name: cut(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "segments"}
        return HCastOutput(segments=self.segments.detach(), **tensors)


@dataclasses.dataclass
class Encoding:
    """What the encoder computes; the heads turn it into an :class:`HCastOutput`, where the other fields are described.

    Attributes:
        tokens: (B, 1 + N, C) class token and segment tokens leaving the last block, before the final norm.
    """

    tokens: Tensor
    level_features: tuple[Tensor, ...]
    segments: Tensor
    assignments: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Stage(nn.Module):
    """Transformer blocks over the tokens of one segmentation, and the graph pooling into the next, coarser one."""

    block_class = Block
    pooling_class = GraphPooling

    def __init__(self, config: HCastConfig, index: int, drop_path: list[float], **dd):
        super().__init__()
        self.mask_empty = config.mask_empty
        self.grad_checkpointing = False  # recompute the blocks in the backward pass, to save memory
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
        clusters: Of each pooling.
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
        rates = iter(torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            self.stage_class(config, i, [next(rates) for _ in range(depth)], **dd)
            for i, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)

    def encode(
        self,
        images: Tensor,
        segments: Tensor | None = None,
        *,
        num_clusters: tuple[int, ...] | None = None,
        num_superpixels: int | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Encoding:
        """Compute the features of every level; see :meth:`HCast.forward` for the arguments."""
        num_superpixels = num_superpixels or self.config.num_superpixels
        num_clusters = self.config.num_clusters if num_clusters is None else num_clusters
        clusters = check_clusters(num_clusters, num_superpixels)
        segments = self.prepare_segments(images, segments, num_superpixels)
        tokens, valid, carried = self.start(images, segments, num_superpixels)
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
        )

    def prepare_segments(self, images: Tensor, segments: Tensor | None, num_superpixels: int) -> Tensor:
        """Return (B, H, W) int64 segments; see :func:`hcast_zoo.network.superpixels.prepare_segments`."""
        return prepare_segments(images, segments, self.config, num_superpixels)

    def embed(self, images: Tensor, segments: Tensor, num_superpixels: int) -> tuple[Tensor, Tensor]:
        """Turn images into tokens; see :func:`embed_superpixels`."""
        return self.start(images, segments, num_superpixels)[:2]

    def start(self, images: Tensor, segments: Tensor, num_superpixels: int) -> tuple[Tensor, Tensor, Carried | None]:
        """Return the (B, 1 + N, C) tokens that enter stage 1, (B, N) which are not empty, and what tokens carry."""
        c = self.config
        if c.stem == "conv" and c.grouping == "tokens" and c.token_pooling == "top_left":
            tokens, valid = embed_superpixels(
                self.stem(images), segments, self.cls_token, self.pos_embed, num_superpixels, cell_size=c.feature_stride
            )
            return tokens, valid, None

        return self.start_from_means(self.superpixel_means(images, segments, num_superpixels), segments)

    def superpixel_means(self, images: Tensor, segments: Tensor, num_superpixels: int) -> SuperpixelMeans:
        """Return what the stem tells of each superpixel, which of a frozen stem can be cached."""
        c = self.config
        maps, early = self.stem.maps(images)
        features, area = area_means(maps, segments, num_superpixels)
        if c.stem == "conv" and c.token_pooling == "top_left":
            empty = torch.zeros_like(self.cls_token), self.pos_embed.new_zeros(1, 1 + maps[0].shape[2:].numel(), 1)
            tokens, valid = embed_superpixels(maps[0], segments, *empty, num_superpixels, c.feature_stride)
            features, area = tokens[:, 1:], area * valid

        descriptor = None
        if c.grouping == "descriptor":
            descriptor = describe(images, early, segments, num_superpixels, area).to(features.dtype)
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

    def freeze_stem(self) -> None:
        """Keep a pretrained stem as it is in training.

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


class HCast(Encoder):
    """Hierarchical classifier over superpixel tokens.

    Args:
        config: The architecture.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Source: official cast_deit_hier.py:27-259.
    """

    def __init__(self, config: HCastConfig, device=None, dtype=None):
        super().__init__()
        self.build(config, device, dtype)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.heads = nn.ModuleList(
            nn.Linear(config.embed_dim, n, device=device, dtype=dtype) for n in config.level_classes
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise every parameter and buffer.

        Tokens, blocks and heads get a truncated normal of std 0.02, the rest PyTorch's defaults.

        Source: docs/official_differences.md, 19.
        """
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

        if isinstance(self.stem, PretrainedStem):
            self.stem.init_weights()
        else:
            for m in self.stem.modules():
                if isinstance(m, (nn.Conv2d, nn.BatchNorm2d)):
                    m.reset_parameters()

        for stage in self.stages:
            init_block_weights(stage.blocks)
            if stage.pool is not None:
                stage.pool.init_weights()

        init_block_weights(self.norm)
        init_block_weights(self.heads)

    def forward(
        self,
        images: Tensor,
        segments: Tensor | None = None,
        *,
        num_clusters: tuple[int, ...] | None = None,
        num_superpixels: int | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> HCastOutput:
        """Classify images at every level.

        Args:
            images: (B, in_chans, H, W) float, normalised.
            segments: (B, H, W) integer superpixel maps; made by ``config.superpixels`` if not given.
            num_clusters: Other cluster counts than the config's, for this call.
            num_superpixels: Another number of tokens than the config's, for this call.
            output_hidden_states: Also return the tokens after every block.
            output_attentions: Also return the attention probabilities of every block (slower, not fused).

        Raises:
            ValueError: if a shape, a dtype or a label is not as expected, or clusters outnumber tokens.
        """
        encoding = self.encode(
            images,
            segments,
            num_clusters=num_clusters,
            num_superpixels=num_superpixels,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return HCastOutput(
            level_logits=self.forward_heads(encoding.level_features),
            segments=encoding.segments,
            assignments=encoding.assignments,
            level_features=encoding.level_features,
            hidden_states=encoding.hidden_states,
            attentions=encoding.attentions,
        )

    def forward_heads(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Turn level features into one (B, classes) tensor of logits per level."""
        return tuple(head(self.head_drop(x)) for head, x in zip(self.heads, features))

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that weight decay should leave alone."""
        return {"cls_token", "pos_embed"}


def segment_map(segments: Tensor, assignments: tuple[Tensor, ...], stage: int) -> Tensor:
    """Return the segmentation that a stage (1 to 4) sees, each token in its most probable cluster.

    Args:
        segments: (B, H, W) int64 superpixels.
        assignments: One (B, N, M) tensor per pooling.
        stage: Which stage.

    Returns:
        (B, H, W) int64 labels below the number of tokens of the stage.

    Raises:
        ValueError: if there is no such stage.
    """
    if not 1 <= stage <= len(assignments) + 1:
        raise ValueError(f"expected a stage from 1 to {len(assignments) + 1}, got {stage}")
    labels = segments
    for assignment in assignments[: stage - 1]:
        parent = assignment.argmax(-1)  # [B, N]
        labels = parent.gather(1, labels.flatten(1)).view_as(labels)
    return labels


def embed_superpixels(
    features: Tensor,
    segments: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    num_superpixels: int,
    cell_size: int = CELL_SIZE,
) -> tuple[Tensor, Tensor]:
    """Average stem features and positions over superpixels, and prepend the class token.

    A function, not a method, so that tracers can treat it as a unit.

    Args:
        features: (B, C, h, w) of the stem.
        segments: (B, H, W) int64 superpixels, H and W up to ``cell_size`` times h and w.
        cls_token: (1, 1, C).
        pos_embed: (1, 1 + n * n, C); resampled if h or w is not n.
        num_superpixels: N.
        cell_size: Pixels between features: the stem's stride.

    Returns:
        (B, 1 + N, C) tokens, and (B, N) bool that is False for superpixels without a cell; those tokens are 0.

    Source: official cast_deit_hier.py:121-148, utils.py:129-147.
    """
    height, width = features.shape[2:]
    if height != width or height * width != pos_embed.shape[1] - 1:
        pos_embed = resample_position(pos_embed, (height, width))
    features = features.permute(0, 2, 3, 1).flatten(1, 2) + pos_embed[:, 1:]  # [B, hw, C]

    # A cell belongs to the superpixel of its top-left pixel, as in nearest interpolation.
    cells = segments[:, ::cell_size, ::cell_size].flatten(1)  # [B, hw]
    batch, _, dim = features.shape
    index = (cells + num_superpixels * torch.arange(batch, device=cells.device)[:, None]).flatten()
    sums = sum_rows(features.flatten(0, 1), index, batch * num_superpixels)
    counts = sum_rows(torch.ones_like(features[..., :1]).flatten(0, 1), index, batch * num_superpixels)
    counts = counts.view(batch, num_superpixels, 1)
    tokens = sums.view(batch, num_superpixels, dim) / counts.clamp(min=1)
    cls = cls_token + pos_embed[:, :1]

    return torch.cat([cls.expand(batch, -1, -1), tokens], 1), counts[..., 0] > 0


def embed_positions(pos_embed: Tensor, segments: Tensor, num_superpixels: int) -> Tensor:
    """Return the (B, N, C) average position embedding of superpixels, each pixel counting.

    Args:
        pos_embed: (1, 1 + n * n, C); resampled where the picture has other than n cells of 8 pixels a side.
        segments: (B, H, W) int64 superpixels.
        num_superpixels: N.
    """
    batch, height, width = segments.shape
    cells = -(-height // CELL_SIZE), -(-width // CELL_SIZE)
    if cells[0] != cells[1] or cells[0] * cells[1] != pos_embed.shape[1] - 1:
        pos_embed = resample_position(pos_embed, cells)

    grid = pos_embed[:, 1:].transpose(1, 2).unflatten(2, cells).expand(batch, -1, -1, -1)
    return area_means([grid], segments, num_superpixels)[0]


def sum_rows(rows: Tensor, index: Tensor, num_sums: int) -> Tensor:
    """Sum the (R, C) rows that have the same (R,) index; return (num_sums, C)."""
    # Adding row by row gives an image the same bits in any batch; a matrix product does not. index_add would keep the
    # rows for its backward pass, and its ONNX graph is wrong if an index repeats.
    return rows.new_zeros(num_sums, rows.shape[1]).scatter_add(0, index[:, None].expand_as(rows), rows)


def fit_position(state_dict: dict[str, Tensor], grid_size: int, prefix: str = "", antialias: bool = True) -> None:
    """Resample the position embedding of a state dict in place, if it is there and was made for another image size.

    Args:
        state_dict: Of any model whose names the prefix begins.
        grid_size: Cells along a side of the model's images, :attr:`HCastConfig.grid_size`.
        prefix: Of the names.
        antialias: Average where the new grid is coarser.
    """
    key = f"{prefix}pos_embed"
    if key in state_dict and state_dict[key].shape[1] != 1 + grid_size**2:
        state_dict[key] = resample_position(state_dict[key], (grid_size, grid_size), antialias)


def resample_position(embedding: Tensor, grid: tuple[int, int], antialias: bool = True) -> Tensor:
    """Resample a (1, 1 + n * n, C) position embedding to (1, 1 + h * w, C), keeping its class token's entry."""
    size = round((embedding.shape[1] - 1) ** 0.5)
    image = embedding[:, 1:].reshape(1, size, size, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, tuple(grid), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([embedding[:, :1], image.flatten(2).transpose(1, 2).to(embedding.dtype)], 1)
