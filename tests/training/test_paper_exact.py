"""What ``--paper-exact`` restores, and the one limit that stays: docs/official_differences.md, 21, 39, 40, 42, 44."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate")

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.loading import seed_everything
from hcast_zoo.network import superpixels
from hcast_zoo.training.augmentation import HierarchicalMixup, train_transform
from hcast_zoo.training.average import OfficialAverage
from hcast_zoo.training.settings import TrainConfig


def test_posterise_keeps_a_bit_and_other_draws_stay(tiny_config):
    """Every other operation gets the magnitude that timm draws, up to its highest."""
    settings = TrainConfig(auto_augment="rand-m10-inc1", random_erasing=0, crop_scale=1)
    transform = train_transform(tiny_config, settings)
    (augment,) = [step for step in transform.transforms if hasattr(step, "ops")]
    ops = {op.name: op for op in augment.ops}
    assert ops["PosterizeIncreasing"].level_fn(10, {}) == (1,)
    assert ops["PosterizeIncreasing"].level_fn(5, {}) == (2,)
    assert all(op.magnitude_max is None for op in augment.ops)
    picture = Image.effect_noise((40, 40), 80).convert("RGB")
    for seed in range(20):
        seed_everything(seed)
        assert transform(picture).isfinite().all()
    pickle.loads(pickle.dumps(transform))  # workers that are spawned get it so


@pytest.mark.parametrize("lam, side", [(0.5, 22), (0.9, 10)])
def test_official_boxes_of_cutmix(lam, side, monkeypatch):
    """A box of an odd side is a pixel shorter; 32 * sqrt(1 - lam) is 22.6 and 10.1 here, so both are even."""
    mixup = HierarchicalMixup(0.0, 1.0, num_classes=(2,), official_boxes=True)
    monkeypatch.setattr(mixup, "_params_per_batch", lambda: (lam, True))
    monkeypatch.setattr(np.random, "randint", lambda low, high: 16)
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    found = mixup._mix_batch(images)
    assert int(images[0, 0].sum()) == side**2 and found == pytest.approx(1 - side**2 / 32**2)
    odd = torch.stack([torch.zeros(3, 33, 33), torch.ones(3, 33, 33)])
    monkeypatch.setattr(mixup, "_params_per_batch", lambda: (0.0, True))
    mixup._mix_batch(odd)
    assert int(odd[0, 0].sum()) == 32**2  # 33 pixels were asked for


def test_the_official_average_moves_blocks_twice(tiny_model):
    average = OfficialAverage(tiny_model, 0.9)
    before = {k: v.clone() for k, v in average.module.state_dict().items()}
    with torch.no_grad():
        for value in tiny_model.parameters():
            value += 1
    average.update(tiny_model)
    after = average.module.state_dict()
    torch.testing.assert_close(after["norm.bias"], before["norm.bias"] + 0.1)
    key = "stages.0.blocks.0.norm1.bias"
    torch.testing.assert_close(after[key], before[key] + 0.19)


def test_official_reading_and_wrapped_bytes(tmp_path, taxonomy):
    path = ("bird", "owl", "barn owl")
    picture = Image.new("RGBA", (40, 20), (10, 200, 30, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture.save(tmp_path / "a.png", exif=exif)
    dataset = HierarchicalDataset([tmp_path / "a.png"], [path], taxonomy)
    assert dataset[0][0].size == (20, 40) and dataset[0][0].getpixel((0, 0)) == (255, 255, 255)
    dataset.official_reading = True
    assert dataset[0][0].size == (40, 20) and dataset[0][0].getpixel((0, 0)) == (10, 200, 30)

    images = torch.rand(1, 3, 64, 64) * 1.4 - 0.2  # outside [0, 1]
    mean, std = (0.0,) * 3, (1.0,) * 3
    wrapped = superpixels.wrapped_seeds(images, 16, mean, std)
    bytes_seen = (images.double() * 255).numpy().astype(np.int64).astype(np.uint8)[0].transpose(1, 2, 0)
    assert np.array_equal(wrapped[0].numpy(), superpixels.seeds(bytes_seen, 16))
    inside = images.clamp(0, 1)
    assert torch.equal(
        superpixels.wrapped_seeds(inside, 16, mean, std), superpixels.from_normalized(inside, 16, mean, std)
    )
