"""SLIC superpixels, against plain loops and OpenCV's colours."""

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hcast_zoo import HCast, HCastConfig
from hcast_zoo.network.config import IMAGENET_MEAN, IMAGENET_STD
from hcast_zoo.network.slic import grid_shape, rgb_to_lab, slic
from hcast_zoo.network.superpixels import segment_normalized, to_rgb
from tests.tiny import make_config


def reference_step(pixels, centres, rows, cols, high, wide):
    """Assign each pixel to the nearest centre of its own and the eight cells around it, in plain loops."""
    labels = np.zeros(pixels.shape[:2], int)
    for y, x in np.ndindex(labels.shape):
        row, col = y // high, x // wide
        near = [
            (r, c)
            for r in range(max(row - 1, 0), min(row + 2, rows))
            for c in range(max(col - 1, 0), min(col + 2, cols))
        ]
        r, c = min(near, key=lambda rc: ((pixels[y, x] - centres[rc]) ** 2).sum())
        labels[y, x] = r * cols + c
    return labels


@pytest.mark.parametrize("height, width", [(24, 36), (23, 31)])
def test_slic_matches_plain_loops(height, width):
    rng = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5, generator=rng), (height, width), mode="bilinear")

    rows, cols = grid_shape(height, width, 24)
    high, wide = -(-height // rows), -(-width // cols)

    y, x = np.mgrid[:height, :width]
    position = np.stack([y / high, x / wide], -1) * 10
    pixels = np.concatenate([rgb_to_lab(images)[0].permute(1, 2, 0).numpy(), position], -1)

    rows, cols = -(-height // high), -(-width // wide)
    labels = (y // high) * cols + x // wide
    for _ in range(3):
        centres = {divmod(k, cols): pixels[labels == k].mean(0) for k in range(rows * cols)}
        labels = reference_step(pixels, centres, rows, cols, high, wide)

    assert (slic(images, 24, iterations=3)[0].numpy() == labels).mean() > 0.99  # a near tie may be decided otherwise


def test_lab_matches_opencv():
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    lab = cv2.cvtColor(images[0].permute(1, 2, 0).numpy(), cv2.COLOR_RGB2LAB)
    assert_close(rgb_to_lab(images)[0].permute(1, 2, 0), torch.from_numpy(lab), atol=0.5, rtol=0)  # cv2 uses a table
    white = rgb_to_lab(torch.ones(1, 3, 1, 1)).flatten()
    assert_close(white, torch.tensor([100.0, 0, 0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 50), (8, 8), (17, 5), (37, 100), (97, 50)])
@pytest.mark.parametrize("number", [1, 4, 50, 196])
def test_labels_are_in_range_at_any_size(height, width, number):
    labels = slic(torch.rand(2, 3, height, width), number)
    assert labels.shape == (2, height, width) and labels.dtype == torch.int64
    assert labels.min() >= 0 and labels.max() < number


def test_an_image_keeps_its_map_in_any_batch_and_under_autocast():
    images = torch.rand(4, 3, 64, 48)
    alone = slic(images[2:3], 30)
    assert torch.equal(slic(images, 30)[2:3], alone)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(slic(images[2:3], 30), alone)


def test_slic_works_on_the_meta_device():
    labels = slic(torch.rand(2, 3, 24, 40, device="meta"), 15)
    assert labels.is_meta and labels.shape == (2, 24, 40) and labels.dtype == torch.int64


def test_superpixels_follow_an_edge_that_the_grid_cuts():
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, :, 37:] = 1.0  # the cells are 16 wide
    labels = slic(images, 16)[0]
    left, right = set(labels[:, :37].unique().tolist()), set(labels[:, 37:].unique().tolist())
    assert not left & right


def test_a_model_with_slic_can_be_exported():
    model, images = HCast(make_config(superpixels="slic")).eval(), torch.randn(2, 3, 32, 32)
    output = model(images)
    assert torch.equal(output.segments, slic(to_rgb(images, IMAGENET_MEAN, IMAGENET_STD), 16))

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(images).level_logits

    program = torch.export.export(Logits(), (images,)).module()
    assert_close(program(images), output.level_logits)


@pytest.mark.parametrize(
    "images, options, message",
    [
        (torch.rand(3, 8, 8), {}, r"RGB images \(B, 3, H, W\)"),
        (torch.rand(1, 1, 8, 8), {}, "RGB images"),
        (torch.rand(1, 3, 8, 8), {"num_superpixels": 0}, "1 or more"),
        (torch.rand(1, 3, 8, 8), {"iterations": 0}, "1 or"),
    ],
)
def test_wrong_arguments_are_explained(images, options, message):
    with pytest.raises(ValueError, match=message):
        slic(images, **options)


def test_an_unknown_method_is_explained():
    with pytest.raises(ValueError, match="one of seeds, slic, grid, got 'watershed'"):
        segment_normalized(torch.rand(1, 3, 8, 8), 4, IMAGENET_MEAN, IMAGENET_STD, "watershed")
    with pytest.raises(ValueError, match="superpixels: expected 'seeds', 'slic' or 'grid'"):
        HCastConfig(superpixels="watershed")


def test_a_centre_that_loses_all_pixels_stays():
    """It can gain pixels again in the next step; the mean of no pixels would be black, in the corner."""
    images = (torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    y, x = np.mgrid[:16, :16]
    pixels = np.concatenate([rgb_to_lab(images)[0].permute(1, 2, 0).numpy(), np.stack([y / 4, x / 4], -1)], -1)

    labels, centres, lost = (y // 4) * 4 + x // 4, {}, set()

    for _ in range(5):
        for k in range(16):
            if (labels == k).any():
                centres[divmod(k, 4)] = pixels[labels == k].mean(0)
            else:
                lost.add(k)
        labels = reference_step(pixels, centres, 4, 4, 4, 4)

    assert lost
    assert (slic(images, 16, compactness=1.0)[0].numpy() == labels).mean() > 0.97
