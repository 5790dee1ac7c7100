"""The metadata of weights files, and the list of packaged weights, read without importing torch.

A checkout has all weights of the index. The wheel on PyPI has only those of ``DEFAULT_MODEL``, and the headers of all;
the others are downloaded from the Hub when they are first used.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..common.files import check_file
from ..common.text import clip
from .errors import WeightsError

SHIPPED = Path(__file__).parent / "shipped"
OWNER = "hcast-zoo"  # of the repositories on the Hub; reserved, and empty until the first release
SHIPPED_INDEX = SHIPPED / "index.json"  # name -> {"file", "sha256"}; the first of a variant is its default


def packaged_weights() -> dict[str, dict]:
    """Return the index of packaged weights: for each name, ``file``, ``sha256`` and other entries."""
    return json.loads(SHIPPED_INDEX.read_text()) if SHIPPED_INDEX.exists() else {}


def packaged_name(source: str | Path) -> str | None:
    """Return the name of the packaged weights that a source means, also by a variant's name; None if it means none."""
    name = str(source)
    return next((packaged for packaged in packaged_weights() if name in (packaged, packaged.split(".")[0])), None)


def shipped_path(entry: dict) -> Path:
    """Return the path of an entry of :func:`packaged_weights`; the file exists if the installation has it."""
    return SHIPPED / entry["file"]


def header_path(entry: dict) -> Path:
    """Return a file with the metadata of an entry of :func:`packaged_weights`: the weights, or only their header."""
    path = shipped_path(entry)
    return path if path.exists() else SHIPPED / "headers" / entry["file"]


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Raises:
        WeightsError: if the file is damaged, or a pickle.
    """
    check_file(path, error=WeightsError)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: expected a complete safetensors file: {clip(error)}. Convert a pickle, such as an official "
            "checkpoint, with `hcast-zoo convert`; repeat a truncated download"
        ) from error
