"""A folder that caches superpixels by the hash of the pixels, for pictures that recur."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..common.files import whole_file
from ..network.config import HCastConfig
from ..network.superpixels import seeds_superpixels, segment_images, to_uint8


class SuperpixelCache:
    """Compute SEEDS superpixels, or read them from a folder if the same pixels have been seen before.

    The key is a hash of the 8-bit pixels that SEEDS sees, so a cropped, flipped or mixed picture never gets the
    superpixels of another; for the same reason, the cache helps only where pictures are not augmented at random.
    Several processes can share a folder. A damaged file is replaced; if the folder cannot be written to, there is a
    warning.

    Args:
        folder: Folder of the maps, 16-bit PNG files of a few kilobytes; created if it does not exist.
        config: The method and number of superpixels. Methods other than SEEDS are computed every time.
    """

    def __init__(self, folder: str | Path, config: HCastConfig):
        self.folder, self.config = Path(folder), config

    def __call__(self, images: Tensor) -> Tensor:
        """Return the (B, H, W) int64 maps of normalised (B, C, H, W) images."""
        c = self.config
        if c.superpixels != "seeds":
            return segment_images(images, c)

        pixels = to_uint8(images, c.mean, c.std).numpy()
        return torch.from_numpy(np.stack([self.segment(image) for image in pixels]))

    def segment(self, image: np.ndarray) -> np.ndarray:
        """Return the (H, W) int64 map of an RGB image (H, W, 3) uint8."""
        number = self.config.num_superpixels
        key = hashlib.blake2b(
            image.tobytes(), digest_size=16, salt=b"seeds", person=f"{image.shape[1]}/{number}".encode()
        ).hexdigest()
        file = self.folder / key[:2] / f"{key}.png"

        try:
            with Image.open(file) as picture:
                labels = np.asarray(picture)
            if labels.dtype == np.uint16 and labels.shape == image.shape[:2]:
                return labels.astype(np.int64)
        except (OSError, SyntaxError):  # missing or damaged; Pillow raises both
            pass

        labels = seeds_superpixels(image, number)
        self._write(labels, file)
        return labels

    def _write(self, labels: np.ndarray, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file, sync=False) as temporary:  # a damaged map is made again
                Image.fromarray(labels.astype(np.uint16)).save(temporary, "PNG", compress_level=1)
        except OSError as error:
            warnings.warn(f"superpixels cannot be cached in {self.folder}: {error}", stacklevel=2)
