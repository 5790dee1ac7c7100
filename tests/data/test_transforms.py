"""From a file to the network's input: decoding, and preprocessing against torchvision and timm."""

import io
import itertools
import pickle
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hcast_zoo.data import pictures
from hcast_zoo.data.pictures import PictureError, read_picture
from hcast_zoo.data.transforms import eval_transform, normalization, short_side, view_box
from hcast_zoo.network.config import CROP_MODES, HCastConfig

RED = np.full((6, 8, 3), (200, 30, 40), np.uint8)


def encode(picture, format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def test_preprocessing_matches_the_official(inputs):
    """Bit-identical to the official tensors from the cropped picture onwards."""
    crops = [np.pad(crop, ((16, 16), (16, 16), (0, 0))) for crop in inputs["crop_uint8"]]
    images = torch.stack([eval_transform(HCastConfig())(Image.fromarray(crop)) for crop in crops])
    assert torch.equal(images, torch.from_numpy(inputs["images"]))


def test_a_padded_picture_has_the_nearest_colour_to_the_mean():
    mean = (1e8, -1.0, 0.0)
    config = HCastConfig(image_size=32, num_superpixels=16, num_clusters=(8, 4, 2, 2), crop_mode="pad", mean=mean)
    image = eval_transform(config)(Image.new("RGB", (40, 20)))
    assert image.shape == (3, 32, 32)
    colour = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor(mean)) / torch.tensor(config.std)
    torch.testing.assert_close(image[:, 0, 0], colour)


@pytest.mark.parametrize("size", [(96, 96), (120, 61), (61, 120), (33, 300), (1000, 700)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.5, 1.0])
@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_view_box_is_what_the_model_sees(size, crop_pct, crop_mode):
    """Colours encode the position, so the edges of the transformed picture show the edges of the box."""
    config = HCastConfig(
        image_size=96,
        num_superpixels=36,
        num_clusters=(16, 8, 4, 4),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation="bilinear",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    picture = Image.fromarray((np.stack([x, y, x * 0], -1) * 255).round().astype(np.uint8))
    seen = eval_transform(config)(picture)[:2]

    left, top, right, bottom = view_box(config, size)

    for shares, (start, end) in (
        (seen[0, 48], (left / width, right / width)),
        (seen[1, :, 48], (top / height, bottom / height)),
    ):
        expected = start + (torch.arange(96) + 0.5) / 96 * (end - start)
        inside = (expected > 0.1) & (expected < 0.9)  # bilinear flattens a ramp at its ends
        inside[:8] = inside[-8:] = False
        assert ((shares - expected).abs()[inside] < 0.01).all()
        outside = (expected < -0.02) | (expected > 1.02)
        assert (shares[outside] == 0).all()  # the padding has the mean colour


@pytest.mark.parametrize("crop_mode, timm_mode", [("center", "center"), ("pad", "border"), ("squash", "squash")])
@pytest.mark.parametrize("size", [(90, 130), (130, 90), (33, 300), (301, 299), (64, 64)])
def test_equal_to_timms_transform(crop_mode, timm_mode, size):
    import timm.data

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    for config in (
        HCastConfig(crop_mode=crop_mode),
        HCastConfig(image_size=96, crop_pct=1.0, crop_mode=crop_mode, interpolation="bilinear"),
    ):
        theirs = timm.data.create_transform(
            (3, config.image_size, config.image_size),
            crop_pct=config.crop_pct,
            crop_mode=timm_mode,
            mean=config.mean,
            std=config.std,
            interpolation=config.interpolation,
        )
        assert torch.equal(eval_transform(config)(picture), theirs(picture))


@pytest.mark.parametrize("size", [(90, 131), (131, 90), (640, 97), (32, 32), (37, 37), (20, 33)])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
def test_equal_to_torchvisions_transform(size, channels, interpolation):
    from torchvision import transforms as tv

    config = HCastConfig(
        image_size=32,
        num_superpixels=16,
        num_clusters=(8, 4, 2, 2),
        interpolation=interpolation,
        in_chans=channels,
    )
    mean, std = normalization(config)
    theirs = tv.Compose(
        [
            tv.Resize(short_side(config), tv.InterpolationMode(interpolation)),
            tv.CenterCrop(32),
            *([tv.Grayscale(1)] if channels == 1 else []),
            tv.ToTensor(),
            tv.Normalize(mean, std),
        ]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert torch.equal(eval_transform(config)(picture), theirs(picture))


@pytest.mark.parametrize(
    "name, data",
    [
        ("png", encode(Image.fromarray(RED))),
        ("bmp", encode(Image.fromarray(RED), "BMP")),
        ("tiff", encode(Image.fromarray(RED), "TIFF")),
        ("webp", encode(Image.fromarray(RED), "WEBP", lossless=True)),
        ("palette", encode(Image.fromarray(RED).quantize(4))),
        ("alpha", encode(Image.fromarray(np.dstack([RED, np.full((6, 8), 255, np.uint8)])))),
        (
            "animated",
            encode(
                Image.fromarray(RED).quantize(4),
                "GIF",
                save_all=True,
                append_images=[Image.new("RGB", (8, 6), "blue").quantize(4)],
            ),
        ),
        (
            "animated webp",
            encode(
                Image.fromarray(RED),
                "WEBP",
                lossless=True,
                save_all=True,
                append_images=[Image.new("RGB", (8, 6), "blue")],
            ),
        ),
        ("cmyk", encode(Image.fromarray(RED).convert("CMYK"), "TIFF")),
    ],
)
def test_every_format_is_read_as_rgb(name, data):
    picture = read_picture(data)
    assert picture.mode == "RGB" and picture.size == (8, 6)
    assert np.abs(np.asarray(picture).astype(int) - RED).max() <= 1, name


def test_grey_values_of_every_depth_are_kept():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    assert (np.asarray(read_picture(encode(Image.fromarray(grey))))[..., 1] == grey).all()
    for format in ("PNG", "TIFF"):
        deep = encode(Image.fromarray(grey.astype(np.uint16) * 257), format)
        assert (np.asarray(read_picture(deep))[..., 1] == grey).all()

    dark = encode(Image.fromarray(np.full((6, 8), 255, np.uint16)))
    assert np.asarray(read_picture(dark)).max() == 1  # 255 out of 65535 is nearly black

    floats = encode(Image.fromarray(grey.astype(np.float32) / 255), "TIFF")
    assert (np.asarray(read_picture(floats))[..., 0] == grey).all()

    wide = encode(Image.fromarray(np.array([[-5.0, 0.0, 5.0]], np.float32)), "TIFF")
    assert np.asarray(read_picture(wide))[0, :, 0].tolist() == [0, 128, 255]
    assert read_picture(encode(Image.fromarray(grey > 100))).mode == "RGB"  # 1 bit


def test_transparent_pixels_get_the_background():
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (np.asarray(read_picture(encode(Image.fromarray(clear)))) == 255).all()
    assert (np.asarray(read_picture(encode(Image.fromarray(clear)), (1, 2, 3)))[0, 0] == (1, 2, 3)).all()

    palette = Image.fromarray(RED).quantize(2)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert (np.asarray(read_picture(encode(palette, transparency=palette.getpixel((0, 0))))) == 255).all()

    assert (np.asarray(read_picture(encode(Image.new("LA", (2, 2), (0, 0))))) == 255).all()


def test_exif_rotation_is_applied():
    picture = Image.fromarray(RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert read_picture(encode(picture, "JPEG", exif=exif)).size == (6, 8)


def test_extreme_shapes_give_an_image():
    for size, crop_mode in itertools.product(((1, 1), (1, 300), (300, 1), (5000, 2)), CROP_MODES):
        image = eval_transform(HCastConfig(image_size=32, crop_mode=crop_mode))(Image.new("RGB", size, "red"))
        assert image.shape == (3, 32, 32) and image.isfinite().all()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a picture"),
        (b"plain text", "not a picture"),
        (encode(Image.effect_noise((64, 64), 50))[:700], "damaged or incomplete"),
        (encode(Image.effect_noise((64, 64), 50), "JPEG")[:700], "damaged or incomplete"),
    ],
)
def test_broken_pictures_are_explained(data, message, tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(data)
    with pytest.raises(PictureError, match=f"broken.png: {message}"):
        read_picture(file)
    with pytest.raises(PictureError, match=message):
        read_picture(data)


def test_missing_files_folders_and_huge_pictures_are_explained(tmp_path, monkeypatch):
    with pytest.raises(PictureError, match="no such file"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(PictureError, match="got a folder"):
        read_picture(tmp_path)

    monkeypatch.setattr(pictures, "MAX_PIXELS", 40)
    with pytest.raises(PictureError, match="8x6 pixels, expected 40 at most"):
        read_picture(encode(Image.fromarray(RED)))


def test_decompression_bomb_is_not_decoded():
    """A header that claims 60,000 x 60,000 pixels is refused before any is decoded."""
    bomb = bytearray(encode(Image.fromarray(RED)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(PictureError, match="could be decompression bomb"):
        read_picture(bytes(bomb))


def test_an_error_carries_the_file_and_the_reason(tmp_path):
    """The error keeps both when it comes from a worker process."""
    with pytest.raises(PictureError) as caught:
        read_picture(tmp_path / "missing.png")
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert error.file == str(tmp_path / "missing.png") and error.reason == "no such file"
        assert str(error) == f"{tmp_path / 'missing.png'}: no such file"
