"""HierarchicalInferencer: pictures to paths of the taxonomy, and the segmentation that each level saw."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import wrapt
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmpretrain.apis import FeatureExtractor, ImageClassificationInferencer, ImageRetrievalInferencer
from mmpretrain.registry import TRANSFORMS
from mmpretrain.structures import DataSample

from .classifier import HierarchicalClassifier
from .transforms import LoadPicture


class HierarchicalInferencer(ImageClassificationInferencer):
    """Classify pictures along the model's taxonomy.

    Args:
        model: A name (``"hcast-small_emoji-art"``), a config, its file, or a model.
        pretrained: True for the model's own weights, or a checkpoint.
        device: Where the model runs.
        kwargs: For mmpretrain's inferencer.

    Raises:
        TypeError: if the model is not a :class:`.classifier.HierarchicalClassifier` with a taxonomy.

    Example:
        >>> import hcast_zoo
        >>> from hcast_zoo.integrations.mmpretrain.inferencer import HierarchicalInferencer
        >>> HierarchicalInferencer("hcast-small_emoji-art")("lion.png")[0]["path"]
    """

    forward_kwargs: set = {"return_segments"}  # noqa: RUF012  as mmpretrain's own

    def __init__(self, model, pretrained: bool | str = True, device: str | torch.device | None = None, **kwargs):
        super().__init__(model, pretrained, device, **kwargs)
        if not isinstance(self.model, HierarchicalClassifier) or self.model.head.taxonomy is None:
            raise TypeError(
                "expected a HierarchicalClassifier whose head has a taxonomy; for other models use "
                "mmpretrain's ImageClassificationInferencer"
            )
        self.taxonomy = self.model.head.taxonomy

    def __call__(
        self, inputs, return_datasamples: bool = False, batch_size: int = 1, return_segments: bool = True, **kwargs
    ) -> list[dict] | list[DataSample]:
        """Return one answer per picture.

        Args:
            inputs: A file, a folder, an array in B, G, R as :class:`.transforms.LoadPicture` takes (also grey or with
                alpha), or a list of them.
            return_datasamples: Return data samples instead of dictionaries.
            batch_size: Pictures per forward pass; it does not change the answers.
            return_segments: Also give ``segments``.
            kwargs: ``show``, ``show_dir`` and so on, of mmpretrain's inferencer.

        Returns:
            For each picture: ``path`` (names, coarse to fine), ``path_score``, ``level_scores``, ``runner_up``,
            ``runner_up_score``, probabilities in [0, 1]; ``segments`` (L, H, W) int64 of the resized and cropped
            picture; ``pred_scores`` (C,), ``pred_label``, ``pred_score`` and ``pred_class`` of the finest level,
            as from ImageClassificationInferencer.
        """
        return super().__call__(inputs, return_datasamples, batch_size, return_segments=return_segments, **kwargs)

    def _init_pipeline(self, cfg: Config) -> Callable:
        return Compose([TRANSFORMS.build(t) for t in cfg.test_dataloader.dataset.pipeline])

    def preprocess(self, inputs: Sequence[str | np.ndarray], batch_size: int = 1) -> Iterator[dict]:
        """Yield collated batches; the pipeline reads files, so that transparency is handled as in training."""
        batches = self._get_chunk_data(map(self._load, inputs), batch_size)
        yield from map(default_collate, batches)

    def _load(self, picture: str | np.ndarray) -> dict:
        if isinstance(picture, np.ndarray):
            return self.pipeline({"img": picture, "img_shape": picture.shape[:2], "ori_shape": picture.shape[:2]})
        return self.pipeline({"img_path": str(picture)})

    @torch.no_grad()
    def forward(self, inputs: dict, return_segments: bool = True) -> list[DataSample]:
        """Classify a batch."""
        batch = self.model.data_preprocessor(inputs, False)
        return self.model.predict(**batch, return_segments=return_segments)

    def postprocess(
        self, preds: list[DataSample], visualization: list[np.ndarray] | None, return_datasamples: bool = False
    ) -> list[dict] | list[DataSample]:
        """Turn data samples into dictionaries."""
        results = super().postprocess(preds, visualization, return_datasamples)
        if return_datasamples:
            return results
        names = self.taxonomy.path_names
        for result, sample in zip(results, preds):
            levels = sample.pred_level_scores.tolist()
            result.update(
                path=names(sample.pred_path.tolist()),
                path_score=float(sample.pred_path_score),
                level_scores=tuple(p for p in levels if not math.isnan(p)),
                runner_up=names(sample.pred_runner_up.tolist()),
                runner_up_score=float(sample.pred_runner_up_score),
            )
            if "pred_segments" in sample:
                result["segments"] = sample.pred_segments.cpu().numpy()

        return results


def register_stock_inferencers() -> None:
    """Let mmpretrain's own inferencers read files with the pipeline's ``LoadPicture``, if it has one.

    By themselves they read files with OpenCV before the pipeline starts, which drops transparency. Other models are
    not affected.
    """
    for kind in (FeatureExtractor, ImageClassificationInferencer, ImageRetrievalInferencer):
        if not isinstance(vars(kind)["preprocess"], wrapt.FunctionWrapper):
            wrapt.wrap_function_wrapper(kind, "preprocess", _preprocess)


def _preprocess(wrapped: Callable, inferencer, args: tuple, kwargs: dict) -> Iterable[dict]:
    loaders = [t for t in getattr(inferencer.pipeline, "transforms", ()) if isinstance(t, LoadPicture)]
    if not loaders:
        return wrapped(*args, **kwargs)

    def load(picture):
        if isinstance(picture, (str, Path)):
            return loaders[0]({"img_path": str(picture)})["img"]
        return picture  # an array: the loader in the pipeline converts it

    def call(inputs, *rest, **options):
        return wrapped(map(load, inputs), *rest, **options)

    return call(*args, **kwargs)
