"""Transforms: the core's pixels and maps, by mmpretrain's own steps."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from hcast_zoo.data.pictures import PictureError, read_picture
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.integrations.mmpretrain.transforms import GenerateSuperpixels, LoadPicture, PackHierarchicalInputs
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.superpixels import grid_superpixels, segment_normalized

PICTURES = sorted((Path(__file__).parents[2] / "pictures").glob("*.png"))


def pipeline(*transforms) -> Compose:
    return Compose([TRANSFORMS.build(t) for t in transforms])


def rgb(results: dict) -> np.ndarray:
    return results["img"][..., ::-1]


class TestLoadPicture:
    @pytest.mark.parametrize("picture", PICTURES, ids=lambda p: p.stem)
    def test_pixels_are_the_cores(self, picture):
        results = LoadPicture()({"img_path": str(picture)})
        assert np.array_equal(rgb(results), np.asarray(read_picture(picture)))
        assert results["img_shape"] == results["ori_shape"] == results["img"].shape[:2]
        assert results["img"].flags.c_contiguous

    def test_transparent_pixels_get_the_background(self):
        file = io.BytesIO()
        Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(file, "PNG")
        assert np.all(LoadPicture()({"img_bytes": file.getvalue()})["img"] == 255)
        assert np.all(rgb(LoadPicture(background=(1, 2, 3))({"img_bytes": file.getvalue()})) == (1, 2, 3))
        load = LoadPicture(background="random")
        assert len({tuple(rgb(load({"img_bytes": file.getvalue()}))[0, 0]) for _ in range(8)}) > 4

    def test_a_loaded_picture_is_not_loaded_again(self):
        results = {"img": np.zeros((2, 2, 3), np.uint8)}
        assert LoadPicture()(results) is results

    def test_broken_pictures_are_explained_or_ignored(self, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"no picture")
        for name, message in (("broken.png", "not a picture"), ("missing.png", "No such file")):
            with pytest.raises(PictureError, match=f"{name}: .*{message}"):
                LoadPicture()({"img_path": str(tmp_path / name)})
            assert LoadPicture(ignore_broken=True)({"img_path": str(tmp_path / name)}) is None

    def test_an_unknown_background_is_refused(self):
        with pytest.raises(ValueError, match="expected R, G, B or 'random'"):
            LoadPicture(background="white")


class TestPreprocessing:
    @pytest.mark.parametrize(
        "config",
        [
            HCastConfig(),
            HCastConfig(image_size=96, crop_pct=1.0),
            HCastConfig(image_size=64, interpolation="bilinear"),
            HCastConfig(image_size=96, crop_pct=1.0, crop_mode="pad"),
            HCastConfig(image_size=96, crop_mode="squash"),
        ],
        ids=["224", "96", "bilinear", "pad", "squash"],
    )
    @pytest.mark.parametrize("size", [(90, 60), (61, 97), (256, 300)])
    def test_resizing_is_the_cores(self, config, size):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        expected = eval_transform(config)(Image.fromarray(pixels))
        results = pipeline(dict(type="ResizeToModel", arch=config.to_dict()))({"img": pixels[..., ::-1].copy()})
        value = torch.from_numpy(rgb(results).copy()).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
        assert torch.equal((value - mean) / std, expected)

    def test_mmpretrains_own_steps_give_the_same_pixels(self):
        """With the steps in the configs for 224 pixels."""
        pixels = np.random.default_rng(1).integers(0, 256, (300, 260, 3), np.uint8)
        theirs = pipeline(
            dict(type="ResizeEdge", scale=256, edge="short", backend="pillow", interpolation="bicubic"),
            dict(type="CenterCrop", crop_size=224),
        )
        ours = pipeline(dict(type="ResizeToModel", arch="small"))
        assert np.array_equal(theirs({"img": pixels})["img"], ours({"img": pixels})["img"])

    def test_random_crop_has_the_models_size(self, arch):
        crop = pipeline(dict(type="RandomResizedCropToModel", arch=arch, crop_ratio_range=(0.5, 1.0)))
        assert crop({"img": np.zeros((50, 70, 3), np.uint8)})["img"].shape == (32, 32, 3)


class TestGenerateSuperpixels:
    @pytest.mark.parametrize("picture", PICTURES[:3], ids=lambda p: p.stem)
    def test_maps_are_the_cores(self, picture):
        config = HCastConfig(image_size=96, num_superpixels=36, num_clusters=(16, 8, 4, 4))
        image = eval_transform(config)(read_picture(picture))[None]
        expected = segment_normalized(image, 36, config.mean, config.std)[0]
        arch = config.to_dict()
        results = pipeline(
            dict(type="LoadPicture"), dict(type="ResizeToModel", arch=arch), dict(type="GenerateSuperpixels", arch=arch)
        )({"img_path": str(picture)})
        assert results["segments"].dtype == torch.int16 and torch.equal(results["segments"].long(), expected)

    def test_arguments_override_the_architecture_of_superpixels(self):
        assert GenerateSuperpixels(num_superpixels=256).config.num_superpixels == 256
        results = GenerateSuperpixels(num_superpixels=64, method="grid")({"img": np.zeros((32, 32, 3), np.uint8)})
        assert torch.equal(results["segments"].long(), grid_superpixels(32, 32, 64))
        with pytest.raises(ValueError, match="superpixels: expected 'seeds', 'slic' or 'grid'"):
            GenerateSuperpixels(method="watershed")


class TestPacking:
    def test_labels_and_map_are_packed(self):
        results = {
            "img": np.zeros((8, 6, 3), np.uint8),
            "gt_path": [1, 2, 3],
            "gt_label": 3,
            "segments": torch.zeros(8, 6, dtype=torch.int16),
            "img_path": "a.png",
        }
        packed = PackHierarchicalInputs()(results)
        sample = packed["data_samples"]
        assert packed["inputs"].shape == (3, 8, 6) and packed["inputs"].dtype == torch.uint8
        assert sample.gt_path.tolist() == [1, 2, 3] and sample.gt_path.dtype == torch.int64
        assert sample.gt_label.tolist() == [3] and sample.segments.shape == (8, 6) and sample.img_path == "a.png"

    def test_a_missing_map_is_refused(self):
        results = {"img": np.zeros((8, 6, 3), np.uint8), "gt_path": [1]}
        with pytest.raises(ValueError, match="put GenerateSuperpixels before it"):
            PackHierarchicalInputs()(dict(results))
        assert "segments" not in PackHierarchicalInputs(segments=False)(dict(results))["data_samples"]
