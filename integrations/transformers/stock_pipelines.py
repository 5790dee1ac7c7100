"""transformers' own image pipelines for H-CAST models: they read pictures as the core does, and split batches.

transformers' ``load_image`` drops transparency before any image processor sees the picture (a lion on a transparent
background becomes another animal), and its code that splits batches assumes that every output is a tensor. Other
models are not affected. In remote code, :class:`.pipeline_hcast.FinestLabelPipeline` does the same.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from .configuration_hcast import HCastConfig

PIPELINES = ("ImageClassificationPipeline", "ImageFeatureExtractionPipeline")


def register(module: ModuleType) -> None:
    """Wrap the pipelines of ``PIPELINES`` that a module defines, once."""
    for name in PIPELINES:
        pipeline = vars(module).get(name)
        if pipeline is not None and not isinstance(vars(pipeline)["preprocess"], wrapt.FunctionWrapper):
            wrapt.wrap_function_wrapper(pipeline, "preprocess", _preprocess)
            wrapt.wrap_function_wrapper(pipeline, "_forward", _forward)


def _preprocess(wrapped: Callable, pipeline: Any, args: tuple, kwargs: dict) -> Any:
    if not _is_ours(pipeline):
        return wrapped(*args, **kwargs)

    from .pipeline_hcast import read_input

    def call(image, timeout=None, **options):
        return wrapped(read_input(image, timeout), timeout=timeout, **options)

    return call(*args, **kwargs)


def _forward(wrapped: Callable, pipeline: Any, args: tuple, kwargs: dict) -> Any:
    if not _is_ours(pipeline):
        return wrapped(*args, **kwargs)

    from .modeling_hcast import HCastForImageClassification
    from .pipeline_hcast import finest_logits

    if isinstance(pipeline.model, HCastForImageClassification):
        return finest_logits(pipeline.model, *args, **kwargs)
    outputs = wrapped(*args, **kwargs)
    return type(outputs)(last_hidden_state=outputs.last_hidden_state, pooler_output=outputs.pooler_output)


def _is_ours(pipeline: Any) -> bool:
    return pipeline.model.config.model_type == HCastConfig.model_type
