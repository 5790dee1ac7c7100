"""Metrics for transformers' Trainer, and its label smoothing."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
import wrapt
from transformers import EvalPrediction

from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import Taxonomy


def compute_metrics(
    taxonomy: Taxonomy, decoders: Sequence[str] = ("best_path",)
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return what Trainer takes as ``compute_metrics``: FPA, TICE, wAP and each level's accuracy, in percent.

    Args:
        taxonomy: The tree of the labels.
        decoders: Some of ``hcast_zoo.taxonomy.decode.DECODERS``; the metrics of all but the first are named
            ``fpa/top_down`` and so on. ``independent`` is the paper's, and the only one whose TICE is not always 0.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        level_logits = [torch.as_tensor(logits) for logits in prediction.predictions[1]]  # [0] repeats the finest level
        labels = torch.as_tensor(prediction.label_ids)
        results = {}
        for number, decoder in enumerate(decoders):
            metrics = HierarchicalMetrics(taxonomy)
            metrics.update(decode(level_logits, taxonomy, decoder).paths, labels)
            for name, value in metrics.compute().items():
                results[f"{name}/{decoder}" if number else name] = value

        return results

    return compute


def register(module: ModuleType) -> None:
    """Wrap the loss of ``transformers.trainer``'s Trainer, once."""
    if not isinstance(vars(module.Trainer)["compute_loss"], wrapt.FunctionWrapper):
        wrapt.wrap_function_wrapper(module.Trainer, "compute_loss", _compute_loss)


def _compute_loss(wrapped: Callable, trainer: Any, args: tuple, kwargs: dict) -> Any:
    """Let the model smooth the labels of all levels; Trainer would treat them as labels of the finest."""
    config = getattr(trainer.model, "config", None)
    if trainer.label_smoother is not None and getattr(config, "model_type", None) == "hcast":
        config.label_smoothing = trainer.label_smoother.epsilon
        trainer.label_smoother = None
    return wrapped(*args, **kwargs)
