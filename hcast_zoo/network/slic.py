"""SLIC superpixels for a batch of images, in plain PyTorch on the images' device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 9  # a pixel chooses among the centres of its own cell of the grid and of the eight around it
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.950456, 1.0, 1.088754)  # D65


@torch.no_grad()
def slic(images: Tensor, num_superpixels: int = 196, compactness: float = 10.0, iterations: int = 5) -> Tensor:
    """Segment images into superpixels by SLIC on their Lab colours and positions.

    Starts from a grid of at most ``num_superpixels`` cells. A pixel chooses between the centres of its own cell and the
    eight around it, so a step is two batched matrix products, without synchronisation or sums that depend on thread
    order. Superpixels may be disconnected, because SLIC's last step, which connects them, is left out.

    Args:
        images: (B, 3, H, W) float RGB in [0, 1].
        num_superpixels: Largest number of labels, 1 or more.
        compactness: Weight of position against colour, in Lab units per cell width.
        iterations: Steps of assigning pixels and moving centres.

    Returns:
        (B, H, W) int64 labels from 0 on the images' device.

    Raises:
        ValueError: if the images are not (B, 3, H, W), or a number is below 1.

    Source: Achanta et al., SLIC Superpixels Compared to State-of-the-art Superpixel Methods, 2012; the nine centres
    are those of Jampani et al., Superpixel Sampling Networks, 2018.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected RGB images (B, 3, H, W), got {tuple(images.shape)}")
    if num_superpixels < 1 or iterations < 1:
        raise ValueError(f"expected 1 or more superpixels and iterations, got {num_superpixels} and {iterations}")
    if images.is_meta:  # autocast does not support this device
        return _slic(images.float(), num_superpixels, compactness, iterations)
    with torch.autocast(images.device.type, enabled=False):
        return _slic(images.float(), num_superpixels, compactness, iterations)


def _slic(images: Tensor, num_superpixels: int, compactness: float, iterations: int) -> Tensor:
    height, width = map(int, images.shape[2:])  # in a trace, sizes are tensors
    rows, cols = grid_shape(height, width, num_superpixels)

    # Cells of equal size; the last ones may extend past the image.
    high, wide = math.ceil(height / rows), math.ceil(width / cols)
    rows, cols = math.ceil(height / high), math.ceil(width / wide)

    places = torch.meshgrid(
        torch.arange(height, device=images.device) / high,
        torch.arange(width, device=images.device) / wide,
        indexing="ij",
    )
    position = compactness * torch.stack(places).expand(len(images), -1, -1, -1)  # [B, 2, H, W]
    inside = torch.ones_like(position[:, :1])
    pixels = torch.cat([rgb_to_lab(images), position, inside], 1)  # [B, 6, H, W]
    pixels = F.pad(pixels, (0, cols * wide - width, 0, rows * high - height))

    # [B, 6, rows * high, cols * wide] -> [B, rows * cols, high * wide, 6]
    pixels = pixels.unflatten(3, (cols, wide)).unflatten(2, (rows, high)).permute(0, 2, 4, 3, 5, 1)
    pixels = pixels.flatten(3, 4).flatten(1, 2)
    inside = pixels[..., -1:]

    sums = pixels.sum(2).transpose(1, 2).unflatten(2, (rows, cols))  # [B, 6, rows, cols]
    centres = sums[:, :-1] / sums[:, -1:].clamp(min=1)

    for step in range(iterations):
        # |x - c|^2 without |x|^2, which is the same for all centres. Centres outside the grid are infinitely far away.
        squares = centres.square().sum(1, keepdim=True)
        around = F.pad(torch.cat([-2 * centres, squares], 1), (1, 1, 1, 1))
        around[:, -1, [0, -1]] = around[:, -1, :, [0, -1]] = math.inf
        around = F.unfold(around, 3).unflatten(1, (6, NEIGHBOURS)).permute(0, 3, 1, 2)  # [B, cells, 6, 9]
        nearest = torch.cat([pixels[..., :-1], torch.ones_like(inside)], 3) @ around  # [B, cells, pixels, 9]
        choice = nearest.argmin(3)
        if step + 1 < iterations:
            chosen = F.one_hot(choice, NEIGHBOURS).to(pixels.dtype) * inside
            sums = (chosen.transpose(2, 3) @ pixels).permute(0, 3, 2, 1)  # [B, 6, 9, cells]
            # A centre is the sum of what nine cells contribute to it.
            sums = F.fold(sums.flatten(1, 2), (rows, cols), 3, padding=1)
            count = sums[:, -1:]
            centres = torch.where(count > 0, sums[:, :-1] / count.clamp(min=1), centres)

    label = torch.arange(rows * cols, device=images.device).view(1, 1, rows, cols).to(pixels.dtype)
    around = F.unfold(F.pad(label, (1, 1, 1, 1)), 3).long().mT  # [1, cells, 9]
    labels = around.expand(len(images), -1, -1).gather(2, choice)  # [B, cells, pixels]
    labels = labels.view(-1, rows, cols, high, wide).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    return labels[:, :height, :width].contiguous()


def grid_shape(height: int, width: int, num_superpixels: int) -> tuple[int, int]:
    """Return the rows and columns of a grid of at most ``num_superpixels`` nearly square cells."""
    rows = max(1, min(height, num_superpixels, round((num_superpixels * height / width) ** 0.5)))
    return rows, max(1, min(width, num_superpixels // rows))


def rgb_to_lab(images: Tensor) -> Tensor:
    """Turn (B, 3, H, W) sRGB in [0, 1] into CIELAB of white point D65: L in [0, 100], a and b around 0."""
    linear = torch.where(images > 0.04045, ((images.clamp(min=0) + 0.055) / 1.055) ** 2.4, images / 12.92)
    matrix = linear.new_tensor(XYZ) / linear.new_tensor(WHITE)[:, None]
    xyz = torch.einsum("ij,bjhw->bihw", matrix, linear)
    root = torch.where(xyz > 0.008856, xyz.clamp(min=1e-8) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)
