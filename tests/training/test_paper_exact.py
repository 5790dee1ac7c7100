"""What ``--paper-exact`` restores, and the limit that stays: docs/official_differences.md, 21, 39, 40, 42, 44."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

pytest.importorskip("accelerate")

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.loading import seed_everything
from hcast_zoo.network.superpixels import seeds_superpixels, segment_normalized, wrapped_seeds
from hcast_zoo.training.augmentation import HierarchicalMixup, train_transform
from hcast_zoo.training.average import OfficialAverage
from hcast_zoo.training.repeated import RepeatedSampler
from hcast_zoo.training.settings import TrainConfig


def test_posterise_keeps_a_bit_and_other_operations_their_strength(tiny_config):
    """Every other operation gets the magnitude that timm draws, up to its highest."""
    settings = TrainConfig(auto_augment="rand-m10-inc1", random_erasing=0, crop_scale=1)
    transform = train_transform(tiny_config, settings)
    (augment,) = [step for step in transform.transforms if hasattr(step, "ops")]
    ops = {op.name: op for op in augment.ops}

    assert ops["PosterizeIncreasing"].level_fn(10, {}) == (1,)
    assert ops["PosterizeIncreasing"].level_fn(5, {}) == (2,)
    assert all(op.magnitude_max is None for op in augment.ops)

    picture = Image.effect_noise((40, 40), 80).convert("RGB")

    restored = pickle.loads(pickle.dumps(transform))  # as spawned workers get it
    for seed in range(20):
        images = []
        for copy in (transform, restored):
            seed_everything(seed)
            images.append(copy(picture))
        assert images[0].isfinite().all() and torch.equal(*images)


def test_augmented_pictures_match_timms_to_the_bit(tiny_config):
    """RandAugment of the paper's policy, against timm's with nothing but posterise limited, for a hundred pictures."""
    policy = "rand-m9-mstd0.5-inc1"
    ours = train_transform(tiny_config, TrainConfig(auto_augment=policy, random_erasing=0))
    (augment,) = [step for step in ours.transforms if hasattr(step, "ops")]

    size = tiny_config.image_size
    mean = tuple(round(255 * value) for value in tiny_config.mean)  # what timm fills with
    hints = {"translate_const": int(size * 0.45), "img_mean": mean, "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform(policy, hints)

    limited = 0
    for op in theirs.ops:
        if op.name == "PosterizeIncreasing":
            level = op.level_fn

            def at_least_one(magnitude, hparams, level=level):
                nonlocal limited
                bits = level(magnitude, hparams)[0]
                limited += bits < 1
                return (max(bits, 1),)

            op.level_fn = at_least_one

    rng = np.random.default_rng(0)
    changed = 0
    for seed in range(100):
        picture = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
        augmented = []
        for transform in (augment, theirs):
            seed_everything(seed)
            augmented.append(np.asarray(transform(picture)))
        assert np.array_equal(*augmented), seed
        changed += not np.array_equal(augmented[0], np.asarray(picture))

    assert changed > 60 and limited < 20


def test_repeated_augmentation_matches_deits_sampler():
    """Each process gets what DeiT's sampler gives it by definition, though accelerate deals the batches."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    length, size, processes, epoch = 600, 16, 2, 3
    sampler = RepeatedSampler(length, 0, processes, size)

    sampler.epoch = epoch
    generator = torch.Generator()
    generator.manual_seed(epoch)
    repeated = torch.repeat_interleave(torch.randperm(length, generator=generator), 3).tolist()
    each = length // 256 * 256 // processes // size * size
    seeds = set()
    for process in range(processes):
        batches = list(BatchSamplerShard(BatchSampler(sampler, size, True), processes, process))
        dealt = [index for batch in batches for index, _ in batch]
        assert dealt == repeated[process::processes][:each] and len(dealt) == each
        seeds |= {seed for batch in batches for _, seed in batch}

    assert len(sampler) == each * processes and len(seeds) == len(sampler)  # each repetition has a seed of its own
    with pytest.raises(ValueError, match="expected 2 x 300 pictures or more per epoch, got the 512 that repeated"):
        RepeatedSampler(length, 0, 2, 300)


@pytest.mark.parametrize("lam, side", [(0.5, 22), (0.9, 10)])
def test_cutmix_boxes_have_the_official_size(lam, side, monkeypatch):
    """A box of an odd side is a pixel shorter; here 32 * sqrt(1 - lam) is 22.6 and 10.1, so both sides are even."""
    mixup = HierarchicalMixup(0.0, 1.0, num_classes=(2,), official_boxes=True)
    monkeypatch.setattr(mixup, "_params_per_batch", lambda: (lam, True))
    monkeypatch.setattr(np.random, "randint", lambda low, high: 16)
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    share = mixup._mix_batch(images)
    assert int(images[0, 0].sum()) == side**2 and share == pytest.approx(1 - side**2 / 32**2)

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


def test_official_reading_ignores_exif_and_alpha(tmp_path, taxonomy):
    path = ("bird", "owl", "barn owl")
    picture = Image.new("RGBA", (40, 20), (10, 200, 30, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture.save(tmp_path / "a.png", exif=exif)

    dataset = HierarchicalDataset([tmp_path / "a.png"], [path], taxonomy)
    assert dataset[0][0].size == (20, 40) and dataset[0][0].getpixel((0, 0)) == (255, 255, 255)

    dataset.official_reading = True
    assert dataset[0][0].size == (40, 20) and dataset[0][0].getpixel((0, 0)) == (10, 200, 30)


def test_pixels_out_of_range_wrap_around_as_officially():
    images = torch.rand(1, 3, 64, 64) * 1.4 - 0.2  # outside [0, 1]
    mean, std = (0.0,) * 3, (1.0,) * 3
    wrapped = wrapped_seeds(images, 16, mean, std)
    bytes_seen = (images.double() * 255).numpy().astype(np.int64).astype(np.uint8)[0].transpose(1, 2, 0)
    assert np.array_equal(wrapped[0].numpy(), seeds_superpixels(bytes_seen, 16))

    inside = images.clamp(0, 1)
    assert torch.equal(wrapped_seeds(inside, 16, mean, std), segment_normalized(inside, 16, mean, std))
