"""SEEDS and grid superpixels, against the authors' maps."""

import sys
import types

import numpy as np
import pytest
import torch

from hcast_zoo.network.config import IMAGENET_MEAN, IMAGENET_STD
from hcast_zoo.network.superpixels import grid_superpixels, seeds_superpixels, segment_normalized, to_uint8


def test_seeds_maps_are_bit_identical_to_the_official(inputs):
    for i in range(2):
        pixels = inputs["seeds_input_uint8"][i]
        for number, key in ((196, "segments"), (256, "segments_256")):
            labels = seeds_superpixels(pixels, number)
            assert labels.dtype == np.int64
            np.testing.assert_array_equal(labels, inputs[key][i])


def test_seeds_sees_the_official_pixels(inputs, images):
    pixels = to_uint8(images, IMAGENET_MEAN, IMAGENET_STD)
    np.testing.assert_array_equal(pixels.numpy(), inputs["seeds_input_uint8"])


def test_each_image_is_segmented_by_itself(images, segments):
    assert torch.equal(segment_normalized(images, 196, IMAGENET_MEAN, IMAGENET_STD), segments)
    assert torch.equal(segment_normalized(images[1:], 196, IMAGENET_MEAN, IMAGENET_STD), segments[1:])
    assert segment_normalized(images[:0], 196, IMAGENET_MEAN, IMAGENET_STD).shape == (0, 224, 224)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 50), (3, 50), (8, 8), (17, 5), (37, 100), (64, 64), (224, 160)])
@pytest.mark.parametrize("number", [1, 4, 16, 50, 196])
def test_labels_are_in_range_at_any_size(height, width, number):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for labels in (seeds_superpixels(image, number), grid_superpixels(height, width, number).numpy()):
        assert labels.shape == (height, width) and labels.min() >= 0 and labels.max() < number


def test_grid_is_regular():
    labels = grid_superpixels(224, 224, 196)
    assert labels.unique(return_counts=True)[1].tolist() == [256] * 196


def test_pixels_out_of_range_are_clamped():
    image = torch.tensor([float("nan"), 1e9, -1e9, 0.0]).expand(1, 3, 1, 4)
    pixels = to_uint8(image, (0.5,) * 3, (0.5,) * 3)
    assert pixels[0, 0, :, 0].tolist() == [0, 255, 0, 127]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_wrong_image_is_explained(image):
    with pytest.raises(ValueError, match=r"RGB image \(H, W, 3\) uint8"):
        seeds_superpixels(image)
    with pytest.raises(ValueError, match="1 or more"):
        seeds_superpixels(np.zeros((4, 4, 3), np.uint8), 0)


def test_missing_contrib_modules_name_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    with pytest.raises(ImportError, match="pip install --force-reinstall"):
        seeds_superpixels(np.zeros((64, 64, 3), np.uint8), 16)

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="pip install opencv-contrib-python-headless"):
        seeds_superpixels(np.zeros((64, 64, 3), np.uint8), 16)


def test_the_seeds_operator_passes_opcheck():
    """The operator has a shape rule, so a compiled model has no graph break."""
    result = torch.library.opcheck(
        torch.ops.hcast_zoo.seeds.default, (torch.randn(2, 3, 32, 32), 16, [0.5] * 3, [0.5] * 3)
    )
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["seeds", "slic"])
def test_half_precision_gives_the_same_superpixels(dtype, method):
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 48, 48), dtype=np.uint8))
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    images = (levels / 255 - mean) / std
    expected = segment_normalized(images, 36, IMAGENET_MEAN, IMAGENET_STD, method)
    halves = segment_normalized(images.to(dtype), 36, IMAGENET_MEAN, IMAGENET_STD, method)
    assert torch.equal(halves, expected)


def test_torch_func_agrees_with_autograd(tiny_model):
    """Gradients and vmap go through SEEDS."""
    tiny_model.eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def finest(x):
        return tiny_model(x).level_logits[-1]

    finest(images).sum().backward()
    gradient = torch.func.grad(lambda x: finest(x).sum())(images.detach())
    torch.testing.assert_close(gradient, images.grad, atol=1e-6, rtol=0)
    one_by_one = torch.vmap(lambda x: finest(x[None])[0])(images.detach())
    torch.testing.assert_close(one_by_one, finest(images.detach()), atol=1e-4, rtol=0)
