"""HCast: a classifier that reads every level of a taxonomy from one fine-to-coarse segmentation of the image.

Paper: Visually Consistent Hierarchical Image Classification (H-CAST), ICLR 2025, arXiv 2406.11608.
Behaviour follows the authors' code (pseulki/HCAST at f1352a2c6a54); sources are named at each part.
"""

import dataclasses
from typing import Any

from torch import Tensor, nn

from .config import NUM_STAGES, HCastConfig
from .encoder import Encoder
from .layers import init_block_weights
from .stems import PretrainedStem, SuperpixelMeans


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
        evidence: With the attentions, (B, N, C) what each superpixel says of the labels: a stage's class token starts
            from the mean of it, weighted by area. None for the paper's stem.
    """

    level_logits: tuple[Tensor, ...]
    segments: Tensor
    assignments: tuple[Tensor, ...]
    level_features: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    evidence: Tensor | None = None

    def segment_map(self, stage: int) -> Tensor:
        """Return the (B, H, W) int64 segmentation that a stage (1 to 4) sees; see :func:`segment_map`."""
        return segment_map(self.segments, self.assignments, stage)

    def detach(self) -> "HCastOutput":
        """Return the same numbers without their graph."""

        def cut(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(cut, value))
            return None if value is None else value.detach()

        return HCastOutput(**{field.name: cut(getattr(self, field.name)) for field in dataclasses.fields(self)})


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
        images: Tensor | SuperpixelMeans,
        segments: Tensor | None = None,
        *,
        num_clusters: tuple[int, ...] | None = None,
        num_superpixels: int | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> HCastOutput:
        """Classify images at every level.

        Args:
            images: (B, in_chans, H, W) float, normalised; or their :meth:`superpixel_means`.
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
            evidence=encoding.evidence,
        )

    def forward_heads(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Turn level features into one (B, classes) tensor of logits per level."""
        return tuple(head(self.head_drop(x)) for head, x in zip(self.heads, features))

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return how parameters form layers, for layer-wise learning rates; each pooling is a separate layer."""
        blocks: str | list = r"^stages\.(\d+)"
        if not coarse:
            blocks = [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.pool", (NUM_STAGES * 1000,)),
                (r"^norm", (99999,)),  # timm's code for "the same layer as the one before"
            ]
        return dict(stem=r"^cls_token|pos_embed|stem", blocks=blocks)

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
