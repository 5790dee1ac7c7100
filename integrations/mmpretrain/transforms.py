"""Transforms: load and resize pictures as the core does, make superpixel maps, and pack both into data samples."""

import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform, CenterCrop, LoadImageFromFile
from mmengine import fileio
from mmpretrain.datasets.transforms import PackInputs, RandomResizedCrop, ResizeEdge
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from hcast_zoo.data.pictures import PictureError, from_array, on_background, open_picture
from hcast_zoo.data.transforms import Compose, short_side, to_square, to_tensor
from hcast_zoo.network.superpixels import segment_normalized

from .config import model_config

SEGMENTS = "segments"  # key of the map, in results and data samples
MISSING_MAP = (
    "PackHierarchicalInputs expects a superpixel map, but none was made: put GenerateSuperpixels before it, "
    "or say PackHierarchicalInputs(segments=False) and the model makes the maps"
)


@TRANSFORMS.register_module()
class LoadPicture(LoadImageFromFile):
    """Load a picture of any common format as the core does: upright, 8 bits, transparent parts on a background.

    Required keys: ``img_path``, or ``img_bytes`` (an encoded picture), or ``img``, an array: (H, W, 3) uint8 in B, G, R
    is left as it is; (H, W) grey, (H, W, 4) in B, G, R, A and uint16 arrays are converted.
    Added keys: ``img`` (H, W, 3) uint8 in B, G, R, ``img_shape``, ``ori_shape``.

    Args:
        background: R, G, B behind transparent parts, or ``"random"``.
        ignore_broken: Return None for a picture that cannot be read, so that a data set takes another one in training.
        backend_args: File backend of mmengine.

    Raises:
        PictureError: if a picture cannot be read.
    """

    def __init__(
        self,
        background: Sequence[int] | str = (255, 255, 255),
        ignore_broken: bool = False,
        backend_args: dict | None = None,
    ):
        super().__init__(ignore_empty=ignore_broken, backend_args=backend_args)
        if background != "random" and len(tuple(background)) != 3:
            raise ValueError(f"background: expected R, G, B or 'random', got {background!r}")
        self.background = background

    def transform(self, results: dict) -> dict | None:
        """Load."""
        image = results.get("img")
        if image is not None and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
            return results

        try:
            picture = self._open(results) if image is None else from_array(_to_rgb(image))
        except PictureError:
            if self.ignore_empty:
                return None
            raise

        background = self.background
        if background == "random":
            background = tuple(random.randrange(256) for _ in range(3))
        rgb = np.asarray(on_background(picture, tuple(background)))
        results["img"] = np.ascontiguousarray(rgb[..., ::-1])
        results["img_shape"] = results["ori_shape"] = rgb.shape[:2]

        return results

    def _open(self, results: dict) -> Image.Image:
        if "img_bytes" in results:
            return open_picture(results["img_bytes"])
        path = results["img_path"]
        try:
            encoded = fileio.get(path, backend_args=self.backend_args)
        except OSError as error:
            raise PictureError(error.strerror or str(error), path) from error

        try:
            return open_picture(encoded)
        except PictureError as error:
            raise PictureError(error.reason, path) from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}(background={self.background}, ignore_broken={self.ignore_empty})"


def _to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Turn an array of B, G, R or B, G, R, A into one of R, G, B or R, G, B, A; grey arrays stay as they are."""
    order = {3: (2, 1, 0), 4: (2, 1, 0, 3)}.get(pixels.shape[2] if pixels.ndim == 3 else 1)
    return pixels if order is None else pixels[..., order]


@TRANSFORMS.register_module()
class ResizeToModel(BaseTransform):
    """Resize the short edge and crop the centre, as an architecture (and its weights) expects.

    The same as ResizeEdge and CenterCrop with Pillow; for other sizes, put those in the pipeline. If the weights have
    ``crop_mode`` ``pad`` or ``squash``, the core's transforms do that instead.

    Args:
        arch: See :func:`.config.model_config`.
    """

    def __init__(self, arch: str | Mapping):
        config = model_config(arch)
        self.resize = ResizeEdge(short_side(config), "short", "pillow", config.interpolation)
        self.crop = CenterCrop(config.image_size)
        self.square = None
        if config.crop_mode != "center":
            self.square = Compose(to_square(config, config.image_size))

    def transform(self, results: dict) -> dict:
        """Resize and crop."""
        if self.square is None:
            return self.crop(self.resize(results))
        square = np.asarray(self.square(Image.fromarray(np.ascontiguousarray(results["img"][..., ::-1]))))
        results["img"] = np.ascontiguousarray(square[..., ::-1])
        results["img_shape"] = square.shape[:2]
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.resize}, {self.crop})"


@TRANSFORMS.register_module()
class RandomResizedCropToModel(RandomResizedCrop):
    """RandomResizedCrop to the image size of an architecture, with its interpolation.

    Args:
        arch: See :func:`.config.model_config`.
        crop_ratio_range: Smallest and largest fraction of the area.
    """

    def __init__(self, arch: str | Mapping, crop_ratio_range: tuple[float, float] = (0.08, 1.0)):
        config = model_config(arch)
        super().__init__(
            config.image_size, tuple(crop_ratio_range), interpolation=config.interpolation, backend="pillow"
        )


@TRANSFORMS.register_module()
class GenerateSuperpixels(BaseTransform):
    """Compute the superpixel map of the picture; put it after all transforms that change pixels.

    Required key: ``img`` (H, W, 3) uint8 in B, G, R. Added key: ``segments``, an (H, W) integer tensor. The map is,
    bit for bit, the one the core makes of the normalised picture.

    Args:
        arch: See :func:`.config.model_config`; gives the number of superpixels and the normalisation.
        num_superpixels: Number of superpixels in place of the architecture's.
        method: ``"seeds"``, ``"slic"`` or ``"grid"``.
    """

    def __init__(self, arch: str | Mapping = "small", num_superpixels: int | None = None, method: str | None = None):
        self.config = model_config(arch, num_superpixels=num_superpixels, superpixels=method)
        self.normalize = Compose(to_tensor(self.config))

    def transform(self, results: dict) -> dict:
        """Add the map."""
        config = self.config
        image = self.normalize(Image.fromarray(np.ascontiguousarray(results["img"][..., ::-1])))
        labels = segment_normalized(image[None], config.num_superpixels, config.mean, config.std, config.superpixels)[0]
        narrow = torch.int16 if config.num_superpixels <= torch.iinfo(torch.int16).max else torch.int64
        results[SEGMENTS] = labels.to(narrow, copy=True)  # a quarter of the bytes to send from the worker
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_superpixels={self.config.num_superpixels}, method={self.config.superpixels})"


@TRANSFORMS.register_module()
class PackHierarchicalInputs(PackInputs):
    """PackInputs that also packs the label of each level (``gt_path``) and the superpixel map (``segments``).

    Args:
        segments: Whether to require a map. Use False in a training pipeline whose batches are mixed: the model then
            makes the maps after mixing.
        meta_keys: See mmpretrain's PackInputs.

    Raises:
        ValueError: if the map is missing.
    """

    def __init__(self, segments: bool = True, meta_keys: Sequence[str] = PackInputs.DEFAULT_META_KEYS):
        super().__init__(algorithm_keys=("gt_path", SEGMENTS) if segments else ("gt_path",), meta_keys=meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack."""
        if SEGMENTS in self.algorithm_keys and SEGMENTS not in results:
            raise ValueError(MISSING_MAP)
        if "gt_path" in results:
            results["gt_path"] = torch.as_tensor(results["gt_path"], dtype=torch.int64)
        return super().transform(results)


def check_pipeline(transforms: Sequence[BaseTransform]) -> None:
    """Raise ValueError if maps are packed but not made, or made before a step that changes the picture."""
    kinds = list(map(type, transforms))
    if GenerateSuperpixels not in kinds:
        for transform in transforms:
            if isinstance(transform, PackHierarchicalInputs) and SEGMENTS in transform.algorithm_keys:
                raise ValueError(MISSING_MAP)
        return

    following = kinds[kinds.index(GenerateSuperpixels) + 1 :]
    changing = [kind.__name__ for kind in following if not issubclass(kind, PackInputs)]
    if changing:
        raise ValueError(
            f"GenerateSuperpixels must be the last step before packing, but {', '.join(changing)} follow: "
            "the map would belong to another picture"
        )
