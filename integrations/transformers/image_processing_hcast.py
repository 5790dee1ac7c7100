"""Image processors of H-CAST: the core's preprocessing, to the bit, and superpixels on request.

SEEDS amplifies a difference of one grey level, so both backends give the pixels that Pillow and the core give. The
torchvision backend uses torchvision's own resizing only where Pillow cannot: on accelerators and for float images.
"""

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs

from hcast_zoo.common.files import check_file
from hcast_zoo.data.pictures import PictureError, read_picture
from hcast_zoo.data.transforms import Compose, middle, short_side, to_square
from hcast_zoo.network.config import HCastConfig as CoreConfig
from hcast_zoo.network.memory import LONGEST, check_memory
from hcast_zoo.network.superpixels import segment_normalized

DEFAULTS = CoreConfig()
# Measured bytes of memory per pixel: of a resized picture (three float channels), and of the whole preprocessing, by
# kind of superpixels.
RESIZED_BYTES = 12
PIXEL_BYTES = {None: 28, "grid": 44, "seeds": 88, "slic": 248}


class HCastImageProcessorKwargs(ImagesKwargs, total=False):
    """Keyword arguments in addition to those of every image processor.

    Args:
        do_grayscale: Turn the picture into one channel, for models with ``num_channels`` 1.
        return_segments: Also return ``segments``, the (B, H, W) int64 superpixel maps that the model would make.
        num_superpixels: Number of labels in the maps; labels start at 0.
        superpixels: How they are made: ``"seeds"``, ``"slic"`` or ``"grid"``.
        crop_mode: How a picture becomes a square: ``"center"``, ``"pad"`` or ``"squash"``, as in the core's config. The
            last two come before all other steps, and bring 8- and 16-bit pictures to ``crop_size``.
        crop_pct: With ``"pad"`` and ``"squash"``: fraction of each side that is kept, in [0.05, 1].
    """

    do_grayscale: bool | None
    return_segments: bool | None
    num_superpixels: int | None
    superpixels: str | None
    crop_mode: str | None
    crop_pct: float | None


class HierarchicalProcessing:
    """What the two backends share: a mixin that comes before the backend class."""

    valid_kwargs = HCastImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = DEFAULTS.mean
    image_std = DEFAULTS.std
    size = {"shortest_edge": short_side(DEFAULTS)}  # noqa: RUF012 (transformers' own way)
    crop_size = {"height": DEFAULTS.image_size, "width": DEFAULTS.image_size}  # noqa: RUF012
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_grayscale = False
    return_segments = False
    num_superpixels = DEFAULTS.num_superpixels
    superpixels = DEFAULTS.superpixels
    crop_mode = DEFAULTS.crop_mode
    crop_pct = 1.0
    model_input_names = ["pixel_values", "segments"]  # noqa: RUF012

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Read a config; refuse a pipe or device in its place, which would make transformers hang."""
        check_file(Path(pretrained_model_name_or_path) / "preprocessor_config.json")
        return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_core(cls, config: CoreConfig, **kwargs: Any) -> "HierarchicalProcessing":
        """Build the preprocessing of a core config (or of a transformers one)."""
        side = config.image_size
        square = config.crop_mode != "center"
        return cls(
            **{
                "resample": PILImageResampling[config.interpolation.upper()],
                "size": {"height": side, "width": side} if square else {"shortest_edge": short_side(config)},
                "crop_mode": config.crop_mode,
                "crop_pct": config.crop_pct if square else 1.0,
                "crop_size": {"height": side, "width": side},
                "image_mean": list(config.mean),
                "image_std": list(config.std),
                "do_grayscale": config.in_chans == 1,
                "num_superpixels": config.num_superpixels,
                "superpixels": config.superpixels,
                **kwargs,
            }
        )

    def fetch_images(self, images: Any) -> Any:
        """Read files, URLs, bytes and file objects, keeping transparency; add a channel to grey (H, W) arrays."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, (np.ndarray, Tensor)):
            return images[None] if images.ndim == 2 else images
        if isinstance(images, Image.Image):
            return images
        return load_picture(images)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ):
        """Convert one picture to the backend's form; pictures and integer arrays become RGB as in the core."""
        if do_convert_rgb:
            picture = as_picture(image, input_data_format)
            if picture is not None:
                image, input_data_format = self._square(read_picture(picture), **kwargs), None
            elif self.crop_mode == "pad":
                raise ValueError("crop_mode pad: expected pictures or integer pixels on the CPU, got others")

        return super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )

    def _square(self, picture: Image.Image, **kwargs: Any) -> Image.Image:
        """Return the picture that the backend then resizes; with ``pad`` and ``squash`` it has its final size."""
        if self.crop_mode == "center" or not self.do_resize:
            return middle(picture)
        config = CoreConfig(
            image_size=-(-self.crop_size["height"] // 8) * 8,
            crop_mode=self.crop_mode,
            crop_pct=self.crop_pct,
            mean=tuple(self.image_mean),
            std=tuple(self.image_std),
            interpolation=PILImageResampling(self.resample).name.lower(),
        )
        return Compose(to_square(config, self.crop_size["height"]))(picture)

    def _preprocess(
        self,
        images: list,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        do_grayscale: bool | None = None,
        return_segments: bool | None = None,
        num_superpixels: int | None = None,
        superpixels: str | None = None,
        crop_mode: str | None = None,
        crop_pct: float | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Resize and crop in the backend, then rescale and normalise with the core's arithmetic."""
        if (crop_mode, crop_pct) != (self.crop_mode, self.crop_pct):
            raise ValueError(
                "crop_mode, crop_pct: expected the processor's own, which are those of the weights; for others, make "
                "another processor"
            )
        _check_sizes(num_superpixels, superpixels if return_segments else None, **kwargs)
        cropped = super()._preprocess(
            images,
            do_rescale=False,
            rescale_factor=rescale_factor,
            do_normalize=False,
            image_mean=image_mean,
            image_std=image_std,
            return_tensors=None,
            **kwargs,
        )["pixel_values"]
        pixels, maps = [], []
        for image in map(torch.as_tensor, cropped):
            if do_grayscale:
                image = to_grayscale(image)
            if do_rescale:  # multiplying by the factor would round differently than the core's division by 255
                image = image.float() / _divisor(rescale_factor)
            if do_normalize:
                image = tvF.normalize(image.float(), list(image_mean), list(image_std))
            pixels.append(image)

            if return_segments:
                normalization = (image_mean, image_std) if do_normalize else None
                maps.append(self._segment(image, num_superpixels, superpixels, normalization))

        data = {"pixel_values": pixels}
        if return_segments:
            data["segments"] = maps
        if self.backend == "pil":
            for key, tensors in data.items():
                data[key] = [tensor.numpy() for tensor in tensors]
        return BatchFeature(data, tensor_type=return_tensors)

    def _segment(self, image: Tensor, num_superpixels: int, method: str, normalization: tuple | None) -> Tensor:
        """Return the (H, W) int64 superpixels of one processed (C, H, W) image."""
        image = image[None].float()
        if normalization is None:
            # If values exceed 1, the pixels were not rescaled from [0, 255].
            image = image / 255 if image.max() > 1 else image
            normalization = (0.0,) * image.shape[1], (1.0,) * image.shape[1]
        return segment_normalized(image, num_superpixels, *normalization, method)[0].contiguous()


class HCastImageProcessor(HierarchicalProcessing, TorchvisionBackend):
    """Image processor that uses torchvision and can also run on an accelerator (``device=``)."""

    def resize(self, image: Tensor, size: SizeDict, resample: Any = None, **kwargs: Any) -> Tensor:
        """Resize (B, C, H, W) images, with Pillow if they are 8-bit and on the CPU."""
        if image.dtype != torch.uint8 or image.device.type != "cpu" or torch.compiler.is_compiling():
            return super().resize(image, size, resample=resample, **kwargs)
        resized = [PilBackend.resize(self, picture, size, resample) for picture in image.flatten(0, -4).numpy()]
        return torch.from_numpy(np.stack(resized)).unflatten(0, image.shape[:-3])

    def center_crop(self, image: Tensor, size: SizeDict, **kwargs: Any) -> Tensor:
        """Crop the centre; pad with zeros if the image is too small."""
        return tvF.center_crop(image, [size.height, size.width])


class HCastImageProcessorPil(HierarchicalProcessing, PilBackend):
    """Image processor that uses Pillow."""

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:
        """Crop the centre; pad with zeros if the image is too small. Rounds halves as torchvision does."""
        return tvF.center_crop(torch.from_numpy(image), [size.height, size.width]).numpy()


def load_picture(source: Any, timeout: float | None = None) -> Image.Image:
    """Read a picture as the core does, where transformers' ``load_image`` would lose its transparency.

    Args:
        source: A file name, a URL (http or https), base64 text, or anything that
            :func:`hcast_zoo.data.pictures.read_picture` takes.
        timeout: Seconds to wait for a URL.

    Returns:
        An RGB picture, upright, with transparent parts on white.

    Raises:
        PictureError: if it cannot be read; the message names it.
    """
    if not isinstance(source, str) or os.path.exists(source):
        return read_picture(source)
    if source.startswith(("http://", "https://")):
        return _download(source, timeout)

    is_data = source.startswith("data:image/")
    try:
        text = source.partition(",")[2] if is_data else source
        return read_picture(base64.b64decode("".join(text.split()), validate=True))
    except ValueError as error:  # from base64, or a PictureError
        if is_data:
            raise PictureError("expected base64 text of a picture after 'data:image/...;base64,'") from error
        return read_picture(source)  # a file name, of a file that does not exist: raises the error for that


def _download(address: str, timeout: float | None) -> Image.Image:
    import httpx  # transformers' own dependency

    try:
        response = httpx.get(address, timeout=timeout, follow_redirects=True)
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise PictureError(f"cannot be downloaded: {error}", address) from error

    return read_picture(io.BytesIO(response.content))


def as_picture(image: ImageInput, input_data_format: str | ChannelDimension | None = None) -> Any:
    """Return what the core converts to RGB: a PIL image, or an (H, W, C) uint8 or uint16 array.

    Float arrays, which have no agreed range, and tensors on an accelerator give None; the backend handles them.

    Raises:
        ValueError: if the values of a wider integer type are outside [0, 255].
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor) and (image.device.type != "cpu" or torch.compiler.is_compiling()):
        return None
    pixels = np.asarray(image)
    if pixels.dtype.kind not in "iu":
        return None

    layout = input_data_format or infer_channel_dimension_format(pixels, num_channels=(1, 3, 4))
    if ChannelDimension(layout) == ChannelDimension.FIRST:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.dtype not in (np.uint8, np.uint16):
        if pixels.size and (pixels.min() < 0 or pixels.max() > 255):
            raise ValueError(
                f"expected {pixels.dtype} pixels in [0, 255], got {pixels.min()} to {pixels.max()}: "
                "16-bit pictures must be uint16"
            )
        pixels = pixels.astype(np.uint8)

    return pixels


def to_grayscale(images: Tensor) -> Tensor:
    """Turn (..., 3, H, W) uint8 images into (..., 1, H, W) ones with Pillow's integer formula."""
    weights = torch.tensor([19595, 38470, 7471])[:, None, None]
    return ((images.int().cpu() * weights).sum(-3, keepdim=True) + 0x8000 >> 16).to(images)


def _check_sizes(
    num_superpixels: int | None,
    superpixels: str | None,
    do_resize: bool | None = None,
    size: SizeDict | None = None,
    do_center_crop: bool | None = None,
    crop_size: SizeDict | None = None,
    **_: Any,
) -> None:
    """Check the sizes in a preprocessor_config.json before any picture is resized to them.

    Raises:
        ValueError: if a size is not a positive number of pixels.
        MemoryBudgetError: if a picture of that size needs more memory than the budget.
    """
    bytes_per_pixel = PIXEL_BYTES.get(superpixels, max(PIXEL_BYTES.values()))
    for field, given, is_used in (("size", size, do_resize), ("crop_size", crop_size, do_center_crop)):
        if not is_used or not given:
            continue
        sides = [side for side in vars(given).values() if side is not None]
        if any(type(side) is not int or side < 1 for side in sides):
            raise ValueError(f"{field}: expected positive numbers of pixels, got {sides}")
        if not sides:
            continue

        is_cut = field == "size" and do_center_crop
        pixels = min(sides) * max(sides) * (LONGEST if len(sides) == 1 else 1)
        needed = pixels * (RESIZED_BYTES if is_cut else bytes_per_pixel)
        check_memory(needed, field, f"a picture of {' x '.join(map(str, sides))} pixels")

    if num_superpixels is not None and not 1 <= num_superpixels <= 65536:
        raise ValueError(f"num_superpixels: expected 1 to 65536, got {num_superpixels}")


def _divisor(rescale_factor: float) -> float:
    """Return 1 / factor, exactly 255 for 1 / 255: dividing and multiplying round differently."""
    divisor = 1 / rescale_factor
    return round(divisor) if abs(divisor - round(divisor)) < 1e-6 else divisor


__all__ = ["HCastImageProcessor", "HCastImageProcessorPil"]
