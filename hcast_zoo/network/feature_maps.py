"""Feature maps: the tokens of a stage laid out over the image, each cell with the token of its segment."""

from collections.abc import Sequence

from torch import Tensor

from .config import CELL_SIZE
from .model import segment_map
from .stems import cell_shares


def feature_map(tokens: Tensor, segments: Tensor, assignments: Sequence[Tensor], token_pooling: str) -> Tensor:
    """Lay the tokens of a stage out over the image.

    Args:
        tokens: (B, N, C) of the stage.
        segments: (B, H, W) int64 superpixels.
        assignments: The (B, N, M) assignment of each pooling before the stage.
        token_pooling: See :class:`HCastConfig`: with ``"top_left"``, a cell of 8x8 pixels has the token of its top-left
            pixel's segment; with ``"area"``, the mean of its pixels' tokens.

    Returns:
        (B, C, h, w).
    """
    if token_pooling == "top_left":
        return scatter(tokens, cell_labels(segments, assignments)[-1])

    labels = segment_map(segments, tuple(assignments), len(assignments) + 1)
    grid = -(-labels.shape[1] // CELL_SIZE), -(-labels.shape[2] // CELL_SIZE)
    counts = cell_shares(labels, grid, tokens.shape[1])  # [B, N, hw]
    shares = (counts / counts.sum(1, keepdim=True)).to(tokens.dtype)
    return (tokens.mT @ shares).unflatten(2, grid)


def cell_labels(segments: Tensor, assignments: Sequence[Tensor]) -> list[Tensor]:
    """Return the token of each 8x8-pixel cell at every stage: its superpixel, then the most probable cluster.

    Args:
        segments: (B, H, W) int64 superpixels.
        assignments: The (B, N, M) assignment of each pooling.

    Returns:
        (B, h, w) int64 for stage 1 and for the stage after each pooling.
    """
    labels = [segments[:, ::CELL_SIZE, ::CELL_SIZE]]
    for assignment in assignments:
        labels.append(assignment.argmax(-1).gather(1, labels[-1].flatten(1)).view_as(labels[-1]))
    return labels


def scatter(tokens: Tensor, labels: Tensor) -> Tensor:
    """Give each cell the token of its segment: (B, N, C) tokens and (B, h, w) labels to (B, C, h, w)."""
    index = labels.flatten(1)[..., None].expand(-1, -1, tokens.shape[-1])  # [B, hw, C]
    return tokens.gather(1, index).mT.unflatten(2, labels.shape[1:])
