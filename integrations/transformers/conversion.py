"""Weights of the core as a transformers model, and back. Nothing is renamed: the keys are the same."""

from hcast_zoo.weights.file import Weights, WeightsError

from .configuration_hcast import HCastConfig
from .modeling_hcast import HCastForImageClassification


def from_core(weights: Weights, **kwargs) -> HCastForImageClassification:
    """Return a model in eval mode, float32, with these weights.

    Args:
        weights: What :func:`hcast_zoo.weights.file.load_weights` reads.
        kwargs: Further fields of the config, such as ``kl_weight``.

    Raises:
        WeightsError: if the tensors belong to another model.
    """
    config = HCastConfig.from_core(weights.config, weights.taxonomy, weights.calibration, dtype="float32", **kwargs)
    model = HCastForImageClassification(config)
    try:
        model.load_state_dict(weights.state_dict)
    except RuntimeError as error:
        raise WeightsError(f"weights of another model: {error}") from error
    return model.eval()


def to_core(model: HCastForImageClassification, metadata: dict[str, str] | None = None) -> Weights:
    """Return the model's weights for :func:`hcast_zoo.weights.file.save_weights`, sharing its tensors.

    Args:
        model: A classifier.
        metadata: Free text to store with them: ``name``, ``license`` and so on.
    """
    state = {key: value.detach() for key, value in model.state_dict().items()}
    config = model.config
    calibration = None if config.calibration is None else config.get_calibration()
    return Weights(
        config=config.to_core(),
        taxonomy=config.get_taxonomy(),
        state_dict=state,
        metadata=dict(metadata or {}),
        calibration=calibration,
    )


__all__ = ["from_core", "to_core"]
