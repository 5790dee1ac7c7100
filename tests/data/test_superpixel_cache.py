"""The superpixel cache: same maps, computed once."""

import numpy as np
import pytest
import torch

from hcast_zoo import HCastConfig
from hcast_zoo.data.superpixel_cache import SuperpixelCache
from hcast_zoo.network.superpixels import seeds_superpixels, segment_images
from hcast_zoo.training.settings import TrainConfig

CONFIG = HCastConfig(image_size=64, num_superpixels=16, num_clusters=(8, 4, 4, 2))


@pytest.fixture
def images():
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 4 - 2
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic")


@pytest.fixture
def computed(monkeypatch):
    """Return the list of calls that compute superpixels."""
    calls = []
    real = seeds_superpixels
    monkeypatch.setattr(
        "hcast_zoo.data.superpixel_cache.seeds_superpixels", lambda *args: calls.append(args) or real(*args)
    )
    return calls


def test_maps_are_the_same_and_computed_once(images, computed, tmp_path):
    expected = segment_images(images, CONFIG)
    computed.clear()
    cache = SuperpixelCache(tmp_path / "maps", CONFIG)
    first = cache(images)
    assert torch.equal(first, expected) and first.dtype == torch.int64 and len(computed) == 3
    assert torch.equal(SuperpixelCache(tmp_path / "maps", CONFIG)(images[1:]), expected[1:])
    assert len(computed) == 3


def test_other_pixels_and_other_settings_are_other_keys(images, computed, tmp_path):
    cache = SuperpixelCache(tmp_path, CONFIG)
    cache(images[:1])
    flipped = images[:1].flip(3)
    assert torch.equal(cache(flipped), segment_images(flipped, CONFIG))
    other = CONFIG.replace(num_superpixels=25)
    assert torch.equal(SuperpixelCache(tmp_path, other)(images[:1]), segment_images(images[:1], other))
    assert len(list(tmp_path.glob("*/*.png"))) == 3


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\nbroken", b"GIF89a"])
def test_a_damaged_file_is_computed_again(images, computed, tmp_path, data):
    cache = SuperpixelCache(tmp_path, CONFIG)
    expected = cache(images[:1])
    file = next(tmp_path.glob("*/*.png"))
    whole = file.read_bytes()
    file.write_bytes(data)
    assert torch.equal(cache(images[:1]), expected)
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_a_warning(images, tmp_path):
    (tmp_path / "maps").write_text("a file")
    with pytest.warns(UserWarning, match="cannot be cached"):
        assert torch.equal(SuperpixelCache(tmp_path / "maps", CONFIG)(images[:1]), segment_images(images[:1], CONFIG))


def test_other_methods_are_not_cached(images, tmp_path):
    config = CONFIG.replace(superpixels="grid")
    assert torch.equal(SuperpixelCache(tmp_path, config)(images), segment_images(images, config))
    assert not list(tmp_path.iterdir())


def test_all_16_bits_of_labels_are_kept(tmp_path):
    labels = np.arange(300 * 300).reshape(300, 300) % 65536
    cache = SuperpixelCache(tmp_path, CONFIG)
    image = np.zeros((300, 300, 3), np.uint8)
    cache.segment(image)
    cache._write(labels, next(tmp_path.glob("*/*.png")))
    np.testing.assert_array_equal(cache.segment(image), labels)


def test_augments_is_false_only_without_any_augmentation():
    assert TrainConfig().augments
    plain = dict(crop_scale=1.0, auto_augment="", random_erasing=0.0, color_jitter=0.0, mixup=0.0, cutmix=0.0)
    assert not TrainConfig(**plain).augments
    for change in (
        {"crop_scale": 0.5},
        {"auto_augment": "rand-m9"},
        {"random_erasing": 0.1},
        {"color_jitter": 0.1},
        {"mixup": 0.2},
        {"cutmix": 0.2},
        {"random_background": True},
    ):
        assert TrainConfig(**plain | change).augments
    assert not TrainConfig(**plain | {"mixup": 0.2, "mix_prob": 0.0}).augments
