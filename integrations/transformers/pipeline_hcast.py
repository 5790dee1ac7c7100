"""The task "hierarchical-image-classification": a picture's path in the taxonomy, and where each level looked."""

import functools
import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_utils import load_image
from transformers.pipelines.base import Pipeline

from hcast_zoo.data.pictures import read_picture
from hcast_zoo.taxonomy.tree import Taxonomy

TASK = "hierarchical-image-classification"


class HierarchicalImageClassificationPipeline(Pipeline):
    """Label pictures along the taxonomy of an H-CAST model.

    Call it with a picture (a file, an address, a PIL picture, an array), or a list of them, and perhaps:

    - ``decoder``: how levels become a path: ``best_path`` (default), ``top_down`` or ``independent``.
    - ``return_segments``: also give each level the segmentation it was read from.
    - ``num_clusters``: other cluster counts than the config's.
    - ``timeout``: seconds to wait for an address.

    Each picture gives a dictionary: ``path`` (names, coarse to fine), ``score`` (of the whole path, in [0, 1]),
    ``runner_up`` and ``runner_up_score`` (the second-best path), and ``levels``, a dictionary for each level of the
    path: ``level`` (its name), ``label``, ``score`` (the level's own probability, in [0, 1]), and on request
    ``segments``, an (H, W) int64 array that gives the segment of each pixel of the picture as the model sees it,
    resized and cropped.

    Example:
        >>> from transformers import pipeline
        >>> classifier = pipeline("hierarchical-image-classification", model="org/hcast-cub")
        >>> classifier("bird.jpg")["path"]
        ['Passeriformes', 'Troglodytidae', 'Cactus_Wren']
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(
        self,
        decoder: str | None = None,
        return_segments: bool | None = None,
        num_clusters: tuple[int, ...] | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        given = {
            "decoder": decoder,
            "return_segments": return_segments,
            "num_clusters": num_clusters,
            "timeout": timeout,
        }
        given = {key: value for key, value in given.items() if value is not None}
        preprocess = {key: given.pop(key) for key in ("timeout",) if key in given}
        return preprocess, given, {}

    def preprocess(
        self, picture: str | Image.Image | np.ndarray | Tensor, timeout: float | None = None
    ) -> dict[str, Tensor]:
        """Return ``pixel_values`` (1, C, H, W) and ``segments`` (1, H, W), cut before the model's precision rounds."""
        if isinstance(picture, str):
            is_file = os.path.isfile(picture)
            picture = read_picture(picture) if is_file else load_image(picture, timeout=timeout)
        elif isinstance(picture, Image.Image):  # transformers' load_image would lose its transparency
            picture = ImageOps.exif_transpose(picture)
        return self.image_processor(picture, return_segments=True, return_tensors="pt").to(self.dtype)

    def _forward(
        self,
        inputs: dict[str, Tensor],
        decoder: str = "best_path",
        return_segments: bool = False,
        num_clusters: tuple[int, ...] | None = None,
    ) -> dict[str, Tensor]:
        outputs = self.model(**inputs, num_clusters=num_clusters, output_levels=True)
        level_logits = [x.float() for x in outputs.level_logits]
        decoded = self.model.config.get_calibration().decode(level_logits, self.taxonomy, decoder)
        answer = vars(decoded).copy()  # tensors with one row a picture, so that transformers can split the batch
        if return_segments:
            maps = [outputs.segment_map(stage) for stage in self.model.config.head_stages]
            answer["segments"] = torch.stack(maps, 1)  # [B, L, H, W]

        return answer

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, Any]:
        """Turn the tensors of one picture into names and plain numbers."""
        tree, config = self.taxonomy, self.model.config
        row = {key: value[0] for key, value in outputs.items()}
        levels = []
        for level, node in enumerate(row["paths"].tolist()):
            if node < 0:  # below a shallow leaf
                break
            levels.append(
                {
                    "level": config.level_names[level],
                    "label": tree.names[level][node],
                    "score": row["level_probabilities"][level].item(),
                }
            )
            if "segments" in row:
                levels[-1]["segments"] = row["segments"][level].numpy()

        return {
            "path": [level["label"] for level in levels],
            "score": row["path_probabilities"].item(),
            "levels": levels,
            "runner_up": list(tree.path_names(row["runner_up"].tolist())),
            "runner_up_score": row["runner_up_probabilities"].item(),
        }

    @functools.cached_property
    def taxonomy(self) -> Taxonomy:
        """The tree of the model's labels.

        Raises:
            ValueError: if the model has none.
        """
        taxonomy = self.model.config.get_taxonomy()
        if taxonomy is None:
            raise ValueError("this model has no taxonomy to name paths with: set model.config.taxonomy")
        return taxonomy


__all__ = ["HierarchicalImageClassificationPipeline"]
