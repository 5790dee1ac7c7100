"""HCast: a classifier that reads every level of a taxonomy from one fine-to-coarse segmentation of the image.

Paper: Visually Consistent Hierarchical Image Classification (H-CAST), ICLR 2025, arXiv 2406.11608.
Behaviour follows the authors' code (pseulki/HCAST at f1352a2c6a54); sources are named at each part.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import superpixels
from .config import CELL_SIZE, NUM_STAGES, HCastConfig, check_clusters
from .layers import Block, ConvStem, init_block_weights
from .pooling import GraphPooling


@dataclasses.dataclass
class HCastOutput:
    """Labels of every level, and the segmentation each was read from.

    Attributes:
        level_logits: One (B, classes) tensor a level, coarse to fine.
        segments: (B, H, W) int64 superpixel of each pixel: the segmentation stage 1 sees.
        assignments: One (B, N, M) tensor a pooling: probability of each of the N tokens of stage s to be in each
            of the M clusters that are the tokens of stage s + 1. Rows sum to 1.
        level_features: One (B, C) tensor a level: the class token its head reads.
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
        """Return the segmentation that a stage (1 to 4) sees, each token in its most probable cluster.

        Returns:
            (B, H, W) int64 labels below the number of tokens of the stage.

        Raises:
            ValueError: if there is no such stage.
        """
        if not 1 <= stage <= len(self.assignments) + 1:
            raise ValueError(f"expected a stage from 1 to {len(self.assignments) + 1}, got {stage}")
        labels = self.segments
        for assignment in self.assignments[: stage - 1]:
            parent = assignment.argmax(-1)  # [B, N]
            labels = parent.gather(1, labels.flatten(1)).view_as(labels)
        return labels


class Stage(nn.Module):
    """Transformer blocks over the tokens of one segmentation, and the graph pooling into the next, coarser one."""

    def __init__(self, config: HCastConfig, index: int, drop_path: list[float], **dd):
        super().__init__()
        self.mask_empty = config.mask_empty
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio, rate, **dd) for rate in drop_path)
        has_pool = index < NUM_STAGES - 1 or config.last_pool
        self.pool = GraphPooling(config.embed_dim, config.pool_heads, config.pool_drop_rate, **dd) if has_pool else None

    def forward(self, tokens: Tensor, valid: Tensor | None,
                need_weights: bool = False) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """Run the blocks on (B, 1 + N, C) tokens; also return each block's output and attention.

        Pooling is apart, because the heads read the class token before pooling updates it.
        """
        mask = None
        if self.mask_empty and valid is not None:
            mask = F.pad(valid, (1, 0), value=True)  # the class token is never empty
        states, weights = [], []
        for block in self.blocks:
            tokens, weight = block(tokens, mask, need_weights)
            states.append(tokens)
            weights.append(weight)
        return tokens, states, weights


class HCast(nn.Module):
    """Hierarchical classifier over superpixel tokens.

    Args:
        config: The architecture.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.

    Source: official cast_deit_hier.py:27-259.
    """

    def __init__(self, config: HCastConfig, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.config = config
        dim = config.embed_dim
        self.stem = ConvStem(config.in_chans, dim, **dd)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **dd))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid_size**2, dim, **dd))
        rates = iter(torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            Stage(config, i, [next(rates) for _ in range(depth)], **dd) for i, depth in enumerate(config.depths))
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.heads = nn.ModuleList(nn.Linear(dim, n, **dd) for n in config.level_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise every parameter and buffer.

        Source: behaviour 19: truncated normal of std 0.02 for tokens, blocks and heads; PyTorch's defaults elsewhere.
        """
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for m in self.stem.modules():
            if isinstance(m, (nn.Conv2d, nn.BatchNorm2d)):
                m.reset_parameters()
        for stage in self.stages:
            init_block_weights(stage.blocks)
            if stage.pool is not None:
                stage.pool.init_weights()
        init_block_weights(self.norm)
        init_block_weights(self.heads)

    def forward(self, images: Tensor, segments: Tensor | None = None, *, num_clusters: tuple[int, ...] | None = None,
                num_superpixels: int | None = None, output_hidden_states: bool = False,
                output_attentions: bool = False) -> HCastOutput:
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
        num_superpixels = num_superpixels or self.config.num_superpixels
        num_clusters = self.config.num_clusters if num_clusters is None else num_clusters
        clusters = check_clusters(num_clusters, num_superpixels)
        segments = self.prepare_segments(images, segments, num_superpixels)
        tokens, valid = self.embed(images, segments, num_superpixels)

        hidden_states, attentions = [tokens], []
        assignments, class_tokens = [], []
        for stage, m in zip(self.stages, clusters):
            tokens, states, weights = stage(tokens, valid, output_attentions)
            hidden_states += states
            attentions += weights
            class_tokens.append(tokens[:, 0])  # before pooling updates it
            if stage.pool is not None:
                pooled = stage.pool(tokens, m, valid, self.config.mask_empty)
                assignments.append(pooled.assignment)
                tokens = pooled.tokens
            valid = None  # only superpixels can be empty, not clusters
        features = self.level_features(class_tokens)
        return HCastOutput(
            level_logits=self.forward_heads(features),
            segments=segments,
            assignments=tuple(assignments),
            level_features=features,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def prepare_segments(self, images: Tensor, segments: Tensor | None, num_superpixels: int) -> Tensor:
        """Return (B, H, W) int64 segments: the given ones after checking them, or computed ones."""
        if images.ndim != 4 or images.shape[1] != self.config.in_chans:
            raise ValueError(f"expected images (B, {self.config.in_chans}, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"expected normalised floating-point images, got {images.dtype}")
        if segments is None:
            config = self.config
            return superpixels.from_normalized(images, num_superpixels, config.mean, config.std, config.superpixels)
        superpixels.check_segments(segments, images, num_superpixels)
        return segments.to(images.device, torch.int64)

    def embed(self, images: Tensor, segments: Tensor, num_superpixels: int) -> tuple[Tensor, Tensor]:
        """Average stem features and positions over superpixels, and prepend the class token.

        Returns:
            (B, 1 + N, C) tokens, and (B, N) bool that is False for superpixels without a cell; those tokens are 0.

        Source: official cast_deit_hier.py:121-148, utils.py:129-147.
        """
        features = self.stem(images)  # [B, C, h, w]
        grid = features.shape[2:]
        features = features.permute(0, 2, 3, 1).flatten(1, 2) + self.position(grid)  # [B, hw, C]
        # A cell belongs to the superpixel of its top-left pixel, as nearest interpolation has it.
        cells = segments[:, ::CELL_SIZE, ::CELL_SIZE].flatten(1)  # [B, hw]
        batch, _, dim = features.shape
        index = (cells + num_superpixels * torch.arange(batch, device=cells.device)[:, None]).flatten()
        # Adding row by row keeps an image's sums bit-identical beside any neighbour; a matrix product does not.
        sums = features.new_zeros(batch * num_superpixels, dim).index_add(0, index, features.flatten(0, 1))
        counts = features.new_zeros(batch * num_superpixels).index_add(0, index, features.new_ones(len(index)))
        counts = counts.view(batch, num_superpixels, 1)
        tokens = sums.view(batch, num_superpixels, dim) / counts.clamp(min=1)
        cls = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([cls.expand(len(tokens), -1, -1), tokens], 1), counts[..., 0] > 0

    def position(self, grid: tuple[int, int]) -> Tensor:
        """Return the (1, hw, C) position embedding of a grid of cells, resampled if the model was made for another."""
        if tuple(grid) == (self.config.grid_size,) * 2:
            return self.pos_embed[:, 1:]
        return resample_position(self.pos_embed, grid)[:, 1:]

    def level_features(self, class_tokens: list[Tensor]) -> tuple[Tensor, ...]:
        """Pick the (B, C) class token of each level; only stage 4's is normalised.

        Source: official cast_deit_hier.py:115-118, 203-215.
        """
        stages = [*class_tokens[:-1], self.norm(class_tokens[-1])]
        return tuple(stages[s - 1] for s in self.config.head_stages)

    def forward_heads(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Turn level features into one (B, classes) tensor of logits a level."""
        return tuple(head(self.head_drop(x)) for head, x in zip(self.heads, features))

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters that weight decay should leave alone."""
        return {"cls_token", "pos_embed"}


def resample_position(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample a (1, 1 + n * n, C) position embedding to (1, 1 + h * w, C), keeping its class token's entry."""
    size = round((embedding.shape[1] - 1) ** 0.5)
    image = embedding[:, 1:].reshape(1, size, size, -1).permute(0, 3, 1, 2).float()
    image = F.interpolate(image, tuple(grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([embedding[:, :1], image.flatten(2).mT.to(embedding.dtype)], 1)
