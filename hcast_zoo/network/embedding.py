"""From feature maps to tokens: averages over superpixels, and position embeddings for any image size.

These are functions, not methods, so that tracers can treat them as a unit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import CELL_SIZE
from .stems import area_means


def embed_superpixels(
    features: Tensor,
    segments: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    num_superpixels: int,
    cell_size: int = CELL_SIZE,
) -> tuple[Tensor, Tensor]:
    """Average stem features and positions over superpixels, and prepend the class token.

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
    """Average the position embedding over superpixels, where every pixel counts; return (B, N, C).

    Args:
        pos_embed: (1, 1 + n * n, C); resampled unless the image has n cells of 8 pixels along each side.
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
    # Adding row by row gives an image the same bits in any batch, which a matrix product would not. index_add would
    # keep the rows for its backward pass, and its ONNX graph is wrong if an index repeats.
    return rows.new_zeros(num_sums, rows.shape[1]).scatter_add(0, index[:, None].expand_as(rows), rows)


def fit_position(state_dict: dict[str, Tensor], grid_size: int, prefix: str = "", antialias: bool = True) -> None:
    """Resample the position embedding of a state dict in place, if it is there and was made for another image size.

    Args:
        state_dict: Of any model.
        grid_size: Cells along a side of the model's images, :attr:`HCastConfig.grid_size`.
        prefix: What the names of the encoder's tensors start with in this model.
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
