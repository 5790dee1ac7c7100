"""Image processors give the core's pixels and superpixels to the bit, in both backends."""

import base64
import functools
import http.server
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from transformers import AutoImageProcessor

import hcast_zoo  # noqa: F401 (registers the processors)
from hcast_zoo import HCastConfig
from hcast_zoo.data.pictures import PictureError, on_background, to_8_bit
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.integrations.transformers import HCastImageProcessor, HCastImageProcessorPil
from hcast_zoo.integrations.transformers.image_processing_hcast import load_picture
from hcast_zoo.network.superpixels import segment_normalized

PICTURES = sorted((Path(__file__).parents[1] / "pictures").glob("*.png"))
BACKENDS = [HCastImageProcessor, HCastImageProcessorPil]


@pytest.fixture
def config():
    return HCastConfig(image_size=64, num_superpixels=36, num_clusters=(16, 8, 4, 4), crop_pct=0.875)


@pytest.fixture
def pictures():
    """Pictures of every mode, with sizes whose crop is rounded up or down."""
    rng = np.random.default_rng(0)
    shapes = [(101, 203, 3), (75, 73, 3), (333, 95, 3), (50, 49, 3), (40, 70, 4), (66, 80)]
    arrays = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    sixteen_bits = Image.fromarray(rng.integers(0, 65536, (70, 90), dtype=np.uint16))
    palette = Image.fromarray(arrays[0]).quantize(8)
    return [*map(Image.fromarray, arrays), sixteen_bits, palette, *map(Image.open, PICTURES)]


def by_the_core(config, pictures):
    transform = eval_transform(config)
    return torch.stack([transform(on_background(to_8_bit(picture), (255, 255, 255))) for picture in pictures])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"crop_pct": 1.0},
        {"crop_mode": "pad", "crop_pct": 1.0},
        {"crop_mode": "pad", "crop_pct": 0.8, "mean": (0.2, 0.4, 0.6)},
        {"crop_mode": "squash"},
        {"interpolation": "bilinear"},
        {"interpolation": "lanczos"},
        {"in_chans": 1, "mean": (0.5,), "std": (0.25,)},
    ],
)
def test_pixels_and_superpixels_are_the_cores(config, pictures, backend, change):
    config = config.replace(**change)
    expected = by_the_core(config, pictures)
    batch = backend.from_core(config)(pictures, return_segments=True, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], expected)
    assert torch.equal(batch["segments"], segment_normalized(expected, 36, config.mean, config.std))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_picture_in_any_form_gives_the_same_pixels(config, backend):
    processor = backend.from_core(config)
    array = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    expected = processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    assert expected.shape == (1, 3, 64, 64)
    for form in (array, torch.from_numpy(array), torch.from_numpy(array).permute(2, 0, 1)):
        assert torch.equal(processor(form, return_tensors="pt")["pixel_values"], expected)
    assert set(processor(array, return_tensors="pt")) == {"pixel_values"}  # segments on request
    arrays = processor(array, return_segments=True, return_tensors="np")
    assert isinstance(arrays["segments"], np.ndarray) and arrays["segments"].dtype == np.int64


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_can_be_left_out(config, backend):
    processor = backend.from_core(config)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    raw = processor(
        picture, do_resize=False, do_rescale=False, do_normalize=False, return_tensors="pt", return_segments=True
    )
    assert torch.equal(raw["pixel_values"][0], torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    rescaled = processor(picture, do_resize=False, do_normalize=False, return_tensors="pt", return_segments=True)
    assert torch.equal(rescaled["pixel_values"], raw["pixel_values"] / 255)
    assert torch.equal(rescaled["segments"], raw["segments"]) and raw["segments"].max() > 10
    grid = processor(picture, superpixels="grid", num_superpixels=4, return_segments=True, return_tensors="pt")
    assert grid["segments"].unique().tolist() == [0, 1, 2, 3]
    with pytest.raises(Exception, match="return_segment"):
        processor(picture, return_segment=True)


def test_float_images_differ_by_a_grey_level_at_most(config):
    """torchvision resizes them, and Pillow 8-bit images."""
    array = np.random.default_rng(0).integers(96, 160, (3, 90, 70), dtype=np.uint8)  # no filter leaves [0, 255]
    processor = HCastImageProcessor.from_core(config)
    exact = processor(torch.from_numpy(array), return_tensors="pt")["pixel_values"]
    floats = processor(torch.from_numpy(array) / 255, do_rescale=False, return_tensors="pt")["pixel_values"]
    assert 0 < (floats - exact).abs().max() < 1.5 / 255 / min(config.std)


def test_saved_processors_load_in_both_backends(config, tmp_path):
    processor = HCastImageProcessor.from_core(config)
    processor(Image.new("RGB", (64, 64)), return_segments=True)  # may not change the saved file
    processor.save_pretrained(tmp_path)
    for backend, expected in zip(("torchvision", "pil"), BACKENDS, strict=True):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is expected
        assert loaded.to_dict() == expected.from_core(config).to_dict()
    assert loaded.num_superpixels == 36 and loaded.size.shortest_edge == int(64 / 0.875)


class TestReading:
    """What ``load_picture`` accepts beyond the core."""

    @pytest.fixture
    def address(self, tmp_path):
        """A server on loopback."""
        Image.new("RGBA", (9, 9), (10, 20, 30, 0)).save(tmp_path / "clear.png")
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    def test_addresses_keep_transparency(self, address):
        assert load_picture(f"{address}/clear.png").getpixel((4, 4)) == (255, 255, 255)
        with pytest.raises(PictureError, match=r"none\.png: cannot be downloaded: .*404"):
            load_picture(f"{address}/none.png")

    def test_base64_text_is_read(self):
        buffer = io.BytesIO()
        Image.new("RGBA", (9, 9), (10, 20, 30, 0)).save(buffer, "png")
        text = base64.b64encode(buffer.getvalue()).decode()
        for source in (text, base64.encodebytes(buffer.getvalue()).decode(), f"data:image/png;base64,{text}"):
            assert load_picture(source).getpixel((4, 4)) == (255, 255, 255)
        with pytest.raises(PictureError, match="expected base64 text"):
            load_picture("data:image/png;base64,!")

    def test_a_missing_file_is_named(self):
        for name in ("none.png", "none"):
            with pytest.raises(PictureError, match=f"{name}: no such file"):
                load_picture(name)
