"""What transformers reads from a repository on the Hub."""

import json
from pathlib import Path

from hcast_zoo.weights.file import Weights

from . import remote_code
from .configuration_hcast import HCastConfig
from .image_processing_hcast import HCastImageProcessor


def write_repository(content: Weights, folder: Path) -> dict:
    """Write ``preprocessor_config.json`` and the remote code; return the content of ``config.json``.

    The model loads in float32, whatever type the tensors are stored in.
    """
    config = HCastConfig.from_core(content.config, content.taxonomy, content.calibration, dtype="float32")
    config.architectures = ["HCastForImageClassification"]
    config.save_pretrained(folder)
    HCastImageProcessor.from_core(content.config).save_pretrained(folder)
    remote_code.write(folder)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
