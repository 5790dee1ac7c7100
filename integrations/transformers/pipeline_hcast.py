"""The task "hierarchical-image-classification": a picture's path in the taxonomy, and where each level looked."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.pipelines.base import Pipeline
from transformers.pipelines.image_classification import ImageClassificationPipeline

from hcast_zoo.data.pictures import PictureError
from hcast_zoo.taxonomy.backoff import back_off as cut_back
from hcast_zoo.taxonomy.backoff import check_threshold
from hcast_zoo.taxonomy.decode import check_decoder, node_probabilities
from hcast_zoo.taxonomy.subtree import Subtree
from hcast_zoo.taxonomy.tree import UNKNOWN, Taxonomy

from .image_processing_hcast import load_picture

TASK = "hierarchical-image-classification"
NOT_FINITE = "the model's answer is not finite"


class HierarchicalImageClassificationPipeline(Pipeline):
    """Label pictures along the taxonomy of an H-CAST model.

    Call it with a picture: a file name or ``Path``, a URL, base64 text, bytes, a file object, a PIL image, or a
    uint8 or uint16 array (H, W), (H, W, 3) or (H, W, 4); or with several, as a list, a tuple, a generator, a data
    set or a 4-D array. Nested lists are flattened. Options:

    - ``decoder``: how levels become a path: ``best_path`` (default), ``top_down`` or ``independent``.
    - ``within``: answer only with leaves at or below these nodes, such as ``["birds"]``.
    - ``back_off``: stop at the deepest level with at least this probability, in [0, 1], and say why (``reason``).
    - ``top_k``: also give the k most probable nodes of each level.
    - ``return_segments``: also give, for each level, the segmentation that it was read from.
    - ``num_clusters``: cluster counts in place of the config's.
    - ``timeout``: seconds to wait for a URL.

    Each picture gives a dictionary: ``path`` (names, coarse to fine), ``score`` (of the whole path, in [0, 1]),
    ``runner_up`` and ``runner_up_score`` (the second-best path), and ``levels``, a dictionary for each level of the
    path: ``level`` (its name), ``label``, ``score`` (the level's own probability, in [0, 1]), and on request ``top_k``
    (dictionaries of ``label`` and ``score``) and ``segments``, an (H, W) int64 array that gives the segment of each
    pixel of the picture as the model sees it, resized and cropped. All probabilities are calibrated if the model is.
    A picture that cannot be read gives ``{"error": reason}``; the others are answered as usual.

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
        within: str | Sequence[str] | None = None,
        back_off: float | None = None,
        top_k: int | None = None,
        return_segments: bool | None = None,
        num_clusters: tuple[int, ...] | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        if decoder is not None:
            check_decoder(decoder)
        if back_off is not None:
            check_threshold(back_off)
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k: expected an integer of 1 or more, got {top_k!r}")

        forward = {
            "decoder": decoder,
            "within": None if within is None else self._subtree((within,) if isinstance(within, str) else (*within,)),
            "back_off": back_off,
            "top_k": top_k,
            "return_segments": return_segments,
            "num_clusters": num_clusters,
        }
        preprocess = {} if timeout is None else {"timeout": timeout}
        return preprocess, {key: value for key, value in forward.items() if value is not None}, {}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Label one picture or several; see the class."""
        if _is_group(inputs):
            inputs = _flatten(inputs)
            if not inputs:
                return []

        return super().__call__(inputs, **kwargs)

    def preprocess(self, picture: Any, timeout: float | None = None) -> dict[str, Any]:
        """Return ``pixel_values`` (1, C, H, W) and ``segments`` (1, H, W), computed before rounding to half precision.

        ``error`` is a list with one entry: why the picture cannot be read, or None.
        """
        error = None
        try:
            picture = read_input(picture, timeout)
        except PictureError as reason:
            error, picture = str(reason), Image.new("RGB", (1, 1))  # fills its place in the batch

        inputs = self.image_processor(picture, return_segments=True, return_tensors="pt").to(self.dtype)
        return {**inputs, "error": [error]}

    def _forward(
        self,
        inputs: dict[str, Any],
        decoder: str = "best_path",
        within: Subtree | None = None,
        back_off: float | None = None,
        top_k: int | None = None,
        return_segments: bool = False,
        num_clusters: tuple[int, ...] | None = None,
    ) -> dict[str, Any]:
        inputs = dict(inputs)
        errors = [error if isinstance(error, list) else [error] for error in inputs.pop("error")]
        outputs = self.model(**inputs, num_clusters=num_clusters, output_levels=True)
        level_logits = [x.float() for x in outputs.level_logits]
        finite = torch.stack([x.isfinite().all(-1) for x in level_logits]).all(0)
        level_logits = [x.where(finite[:, None], 0.0) for x in level_logits]

        calibration = self.model.config.get_calibration()
        decoded = calibration.decode(level_logits, self.taxonomy, decoder, within)
        # Tensors and lists with one row per picture, so that transformers can split the batch.
        answer: dict[str, Any] = vars(decoded).copy()
        answer["error"] = []
        for error, is_finite in zip(errors, finite.tolist()):
            answer["error"].append([error[0] or (None if is_finite else NOT_FINITE)])

        if back_off is not None:
            short = cut_back(decoded, self.taxonomy, back_off)
            answer["paths"], answer["path_probabilities"] = short.paths, short.path_probabilities
            answer["reason"] = [[reason] for reason in short.reasons]

        if top_k is not None:
            independent = node_probabilities(
                calibration.logits(level_logits), self.taxonomy, "independent", within=within
            )
            for level, probabilities in enumerate(independent):
                best = probabilities.topk(min(top_k, probabilities.shape[-1]))
                answer[f"top_scores_{level}"], answer[f"top_nodes_{level}"] = best.values, best.indices

        if return_segments:
            maps = [outputs.segment_map(stage) for stage in self.model.config.head_stages]
            answer["segments"] = torch.stack(maps, 1)  # [B, L, H, W]

        return answer

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """Turn the tensors of one picture into names and plain numbers."""
        tree, config = self.taxonomy, self.model.config
        row = {key: value[0] for key, value in outputs.items()}
        error = _unwrap(row["error"])
        if error is not None:
            return {"error": error}

        levels = []
        for level, node in enumerate(row["paths"].tolist()):
            if node == UNKNOWN:  # below a shallow leaf, or backed off
                break
            levels.append(
                {
                    "level": config.level_names[level],
                    "label": tree.names[level][node],
                    "score": row["level_probabilities"][level].item(),
                }
            )
            if f"top_nodes_{level}" in row:
                ranking = zip(row[f"top_nodes_{level}"].tolist(), row[f"top_scores_{level}"].tolist())
                levels[-1]["top_k"] = [
                    {"label": tree.names[level][other], "score": score} for other, score in ranking if score > 0
                ]
            if "segments" in row:
                levels[-1]["segments"] = row["segments"][level].numpy()

        answer = {
            "path": [level["label"] for level in levels],
            "score": row["path_probabilities"].item(),
            "levels": levels,
            "runner_up": list(tree.path_names(row["runner_up"].tolist())),
            "runner_up_score": row["runner_up_probabilities"].item(),
        }
        if "reason" in row:
            answer["reason"] = _unwrap(row["reason"])
        return answer

    def _subtree(self, within: tuple[str, ...]) -> Subtree:
        """Return the subtree below some nodes, which is built once and not for every call."""
        subtrees = self.__dict__.setdefault("_subtrees", {})
        if within not in subtrees:
            subtrees[within] = Subtree.below(self.taxonomy, within)
        return subtrees[within]

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


class FinestLabelPipeline(ImageClassificationPipeline):
    """transformers' task "image-classification" for H-CAST models, with pictures read as in the core.

    transformers' own loader drops transparency before any image processor sees the picture, and its code that splits
    batches assumes that every output is a tensor.
    """

    def preprocess(self, image: Any, timeout: float | None = None) -> dict[str, Tensor]:
        """Return ``pixel_values`` (1, C, H, W)."""
        return super().preprocess(read_input(image, timeout), timeout)

    def _forward(self, model_inputs: dict[str, Tensor]) -> Any:
        return finest_logits(self.model, model_inputs)


def read_input(picture: Any, timeout: float | None = None) -> Any:
    """Return an RGB picture; arrays and tensors are returned unchanged, for the image processor to handle.

    Raises:
        PictureError: if it cannot be read.
        ValueError: if it holds several pictures.
    """
    if isinstance(picture, (np.ndarray, Tensor)):
        if picture.ndim > 3:
            raise ValueError(f"expected one picture, got an array {tuple(picture.shape)}: give a list of pictures")
        return picture
    return load_picture(picture, timeout)


def finest_logits(model: Any, inputs: dict[str, Tensor]) -> Any:
    """Run a classifier; return only the finest level's logits, calibrated so that scores mean the same everywhere."""
    outputs = model(**inputs, output_levels=False)
    outputs["logits"] = outputs.logits / model.config.get_calibration().temperatures[-1]
    return outputs


def _is_group(inputs: Any) -> bool:
    """Tell whether these are several pictures; transformers itself iterates over data sets and generators."""
    return isinstance(inputs, (list, tuple)) or (isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == 4)


def _flatten(inputs: Any) -> list:
    """Return the pictures of a group and of its nested groups, in order."""
    pictures = []
    for item in inputs:
        pictures += _flatten(item) if _is_group(item) else [item]
    return pictures


def _unwrap(value: Any) -> Any:
    """Return the text, or None, which transformers may have left in a list when it split the batch."""
    return value[0] if isinstance(value, list) else value


__all__ = ["FinestLabelPipeline", "HierarchicalImageClassificationPipeline"]
