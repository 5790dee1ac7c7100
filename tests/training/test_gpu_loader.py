"""The loader whose pictures stay on the training device: augmentation, mixing and resuming."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("accelerate")

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.loading import SeededSampler, SuperpixelCollate
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.evaluate import collect_logits
from hcast_zoo.network.model import HCast
from hcast_zoo.training.augmentation import HierarchicalMixup
from hcast_zoo.training.gpu_loader import DeviceLoader, augment, erase, jitter
from hcast_zoo.training.settings import TrainConfig
from hcast_zoo.training.trainer import Trainer
from tests.training.runs import make_run, stop_at

PLAIN = dict(
    auto_augment="",
    color_jitter=0.0,
    random_erasing=0.0,
    crop_scale=1.0,
    hflip=0.0,
    mixup=0.0,
    cutmix=0.0,
    batch_size=4,
    on_device=True,
)


@pytest.fixture
def slic_config(tiny_config):
    return tiny_config.replace(superpixels="slic")


def make_loader(folder, taxonomy, config, mixup=None, **settings):
    dataset = HierarchicalDataset.load(folder, taxonomy, "train")
    return DeviceLoader(
        dataset,
        config,
        TrainConfig(**{**PLAIN, **settings}),
        SeededSampler(len(dataset), 0),
        torch.device("cpu"),
        mixup,
        progress=False,
    ), dataset


def test_without_augmentation_the_pictures_are_those_of_evaluation(picture_folder, taxonomy, slic_config):
    loader, dataset = make_loader(picture_folder, taxonomy, slic_config.replace(crop_pct=1.0))
    dataset.transform = eval_transform(loader.config)
    order = [index for index, _ in loader.sampler]
    batches = list(loader)
    assert len(batches) == len(loader) == 3 and "segments" not in batches[0]
    for batch, indices in zip(batches, (order[:4], order[4:8], order[8:])):
        torch.testing.assert_close(batch["images"], torch.stack([dataset[i][0] for i in indices]), atol=1e-5, rtol=0)
        assert torch.equal(batch["labels"], dataset.labels[indices]) and batch["targets"] is batch["labels"]


@pytest.mark.parametrize(
    "change", [{"crop_scale": 0.3}, {"hflip": 1.0}, {"color_jitter": 0.5}, {"random_erasing": 1.0}]
)
def test_each_setting_changes_the_pictures(picture_folder, taxonomy, slic_config, change):
    plain, changed = (next(iter(make_loader(picture_folder, taxonomy, slic_config, **c)[0])) for c in ({}, change))
    assert changed["images"].isfinite().all() and changed["images"].shape == plain["images"].shape
    assert all(not torch.allclose(a, b, atol=0.02) for a, b in zip(plain["images"], changed["images"]))


def test_hflip_mirrors_the_pictures(slic_config):
    config = slic_config.replace(image_size=32)
    pictures = torch.randint(256, (2, 4, 32, 32), dtype=torch.uint8)
    pictures[:, 3] = 255
    mirrored = augment(pictures, config, TrainConfig(**{**PLAIN, "hflip": 1.0}))
    torch.testing.assert_close(mirrored, pictures[:, :3].flip(3) / 255, atol=1e-5, rtol=0)


def test_backgrounds_and_crops_show_nothing_but_the_picture(slic_config):
    """A crop shows only the picture's colour and its background; half of the random backgrounds are white."""
    pictures = torch.zeros(200, 4, 32, 32, dtype=torch.uint8)
    pictures[:, 1], pictures[:, 3, :, 16:] = 200, 255  # the right half is green, the left one transparent green
    config = slic_config.replace(image_size=32)

    images = augment(pictures, config, TrainConfig(**PLAIN))
    green = torch.tensor([0, 200 / 255, 0])
    assert torch.allclose(images[..., 16:], green.view(1, 3, 1, 1).expand(200, 3, 32, 16), atol=1e-6)
    assert (images[..., :16] == 1).all()

    images = augment(pictures, config, TrainConfig(**{**PLAIN, "random_background": True}))
    backgrounds = images[:, :, 0, 0]
    white = (backgrounds == 1).all(1)
    assert 70 <= white.sum() <= 130 and len(backgrounds[~white].unique(dim=0)) == (~white).sum()

    torch.manual_seed(0)
    images = augment(pictures, config, TrainConfig(**{**PLAIN, "crop_scale": 0.2}))
    share = (images[:, 0] < 0.5).float().mean((1, 2))  # of the crop that is green
    assert share.min() < 0.2 and share.max() > 0.8
    assert ((images[:, 1] - green[1]).abs() < 0.01).logical_or(images[:, 1] > 0.78).all()


def test_jitter_keeps_greys_grey_and_moves_hues():
    torch.manual_seed(0)
    grey = torch.rand(8, 1, 4, 4).expand(-1, 3, -1, -1)
    out = jitter(grey, 0.4)
    assert torch.allclose(out, out[:, :1].expand(-1, 3, -1, -1), atol=1e-5) and not torch.allclose(out, grey, atol=0.05)

    red = torch.tensor([0.6, 0.3, 0.3]).view(1, 3, 1, 1).expand(64, 3, 1, 1)
    out = jitter(red, 1e-9)[:, :, 0, 0]
    assert torch.allclose(out.sum(1), torch.tensor(1.2), atol=1e-4)  # a turn about the greys keeps the sum
    green, blue = out[:, 1] - 0.3, out[:, 2] - 0.3
    assert (green > 0.05).any() and (blue > 0.05).any() and ((green > 0) != (blue > 0)).sum() > 55


def test_erasing_fills_one_rectangle():
    torch.manual_seed(0)
    images = torch.full((200, 3, 40, 40), 9.0)
    erase(images, 0.5)
    erased = images != 9
    hit = erased.flatten(1).any(1)
    assert 70 <= hit.sum() <= 130
    for mask in erased[hit]:
        rows, cols = (mask[0].any(dim) for dim in (1, 0))
        assert torch.equal(mask[0], rows[:, None] & cols) and torch.equal(mask[0], mask[2])
        assert 0.01 * 1600 <= mask[0].sum() <= 0.4 * 1600
    assert images[hit][erased[hit]].std() == pytest.approx(1, abs=0.1)


def test_mixing_gives_targets_of_every_level(picture_folder, taxonomy, slic_config):
    mixup = HierarchicalMixup(0.8, 1.0, label_smoothing=0.1, num_classes=slic_config.level_classes)
    loader, _ = make_loader(picture_folder, taxonomy, slic_config.replace(in_chans=1), mixup)
    batch = next(iter(loader))
    assert batch["images"].shape[1] == 1
    assert [t.shape for t in batch["targets"]] == [(4, n) for n in slic_config.level_classes]
    assert all(torch.allclose(t.sum(1), torch.ones(4)) for t in batch["targets"])


def test_an_epoch_resumes_where_it_stopped(picture_folder, taxonomy, slic_config):
    mixup = HierarchicalMixup(0.8, 1.0, num_classes=slic_config.level_classes)
    options = dict(crop_scale=0.3, color_jitter=0.4, random_erasing=0.5)
    loader, _ = make_loader(picture_folder, taxonomy, slic_config, mixup, **options)
    whole, rest = list(loader), list(loader.batches(1))
    assert len(rest) == 2 and all(torch.equal(a["images"], b["images"]) for a, b in zip(whole[1:], rest))
    loader.sampler.epoch = 1
    assert not torch.equal(next(iter(loader))["images"], whole[0]["images"])


def test_broken_pictures_are_left_out(picture_folder, taxonomy, slic_config):
    broken = sorted((picture_folder / "train").rglob("*.png"))[::4]
    for file in broken:
        file.write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="left out: .*not a picture"):
        loader, dataset = make_loader(picture_folder, taxonomy, slic_config)
    assert len(loader.labels) == len(dataset) - len(broken) and len(loader.sampler) == len(loader.labels)
    assert sorted(index for index, _ in loader.sampler) == list(range(len(loader.labels)))
    assert sum(len(batch["labels"]) for batch in loader) == 8
    with (
        pytest.raises(ValueError, match="at least a batch of 10 pictures that can be read, got 9"),
        pytest.warns(UserWarning, match="left out"),
    ):
        make_loader(picture_folder, taxonomy, slic_config, batch_size=10)


def test_a_stopped_run_on_the_device_resumes_exactly(picture_folder, taxonomy, slic_config, tmp_path):
    def run(folder, **changes):
        settings = {"on_device": True, "auto_augment": "", "random_background": True, **changes}
        return make_run(picture_folder, taxonomy, slic_config, tmp_path / folder, **settings)

    run("whole").train()
    stop_at(run("cut"), 5)
    run("cut").train()
    for name in ("last.safetensors", "checkpoint/model.safetensors"):
        whole, resumed = (load_file(tmp_path / folder / name) for folder in ("whole", "cut"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name

    # A run started by a version without this setting resumes with it off.
    plan = json.loads((tmp_path / "whole/run.json").read_text())
    del plan["settings"]["on_device"]
    (tmp_path / "whole/run.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match="on_device False -> True"):
        run("whole")
    assert not run("whole", on_device=False).settings.on_device


def test_unsupported_settings_are_refused(picture_folder, taxonomy, tiny_config, tmp_path):
    with pytest.raises(ValueError, match='on_device: expected auto_augment "" and paper_exact off'):
        TrainConfig(on_device=True)
    train, val = (HierarchicalDataset.load(picture_folder, taxonomy, split) for split in ("train", "val"))
    with pytest.raises(
        ValueError, match="superpixels slic or grid, which can be computed on the accelerator; got 1 and seeds"
    ):
        Trainer(tiny_config, TrainConfig(on_device=True, auto_augment="", batch_size=4), train, val, tmp_path / "run")


def test_slic_is_left_to_an_accelerator(slic_config, picture_folder, taxonomy):
    batch = [(torch.rand(3, 32, 32), torch.zeros(3, dtype=torch.int64))] * 2
    assert "segments" in SuperpixelCollate(slic_config, device=torch.device("cpu"))(batch)
    collate = SuperpixelCollate(slic_config, device=torch.device("cuda"))
    assert "segments" not in collate(batch)

    for kwargs in ({"cache": "folder"}, {"paper_exact": True}):
        assert "segments" in SuperpixelCollate(slic_config, device=torch.device("cuda"), **kwargs)(batch)
    assert "segments" in SuperpixelCollate(slic_config.replace(superpixels="seeds"), device=torch.device("cuda"))(batch)

    # The logits do not depend on where the superpixels are computed.
    model = HCast(slic_config).eval()
    dataset = HierarchicalDataset.load(picture_folder, taxonomy, "val", transform=eval_transform(slic_config))
    logits, _ = collect_logits(model, dataset, progress=False)
    images = torch.stack([dataset[i][0] for i in range(len(dataset))])
    with torch.inference_mode():
        for a, b in zip(logits, model(images).level_logits):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_on_the_gpu(picture_folder, taxonomy, slic_config, tmp_path):
    Image.new("RGBA", (30, 50)).save(picture_folder / "train" / "extra.png")
    dataset = HierarchicalDataset.load(picture_folder, taxonomy, "train")
    sampler = SeededSampler(len(dataset), 0)
    loader = DeviceLoader(dataset, slic_config, TrainConfig(**PLAIN), sampler, torch.device("cuda"), progress=False)
    batch = next(iter(loader))
    assert batch["images"].device.type == batch["labels"].device.type == "cuda"
