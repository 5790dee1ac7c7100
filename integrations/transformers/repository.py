"""What transformers reads from a repository on the Hub."""

import json
from pathlib import Path

from hcast_zoo.weights.file import Weights

from .configuration_hcast import HCastConfig
from .image_processing_hcast import HCastImageProcessor
from .remote_code import write_remote_code


def write_repository(weights: Weights, folder: Path) -> dict:
    """Write ``preprocessor_config.json`` and the remote code; return the content of ``config.json``.

    The model loads in float32, whatever type the tensors are stored in.
    """
    config = HCastConfig.from_core(weights.config, weights.taxonomy, weights.calibration, dtype="float32")
    config.architectures = ["HCastForImageClassification"]
    config.save_pretrained(folder)
    add_remote_code(folder, config)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def add_remote_code(folder: str | Path, config: HCastConfig) -> None:
    """Add what a saved model needs to load without hcast-zoo: preprocessing, code, and the ``auto_map`` to find them.

    An existing ``preprocessor_config.json`` is kept.
    """
    folder = Path(folder)
    if not (folder / "preprocessor_config.json").exists():
        HCastImageProcessor.from_core(config.to_core()).save_pretrained(folder)
    write_remote_code(folder)
