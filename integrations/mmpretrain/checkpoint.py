"""Checkpoints: lets mmengine load the core's weights files, and its own checkpoints under torch's ``weights_only``."""

import copyreg
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from hcast_zoo.weights.file import load_weights

SCHEME = "hcast-zoo://"


def load_from_hcast_zoo(filename: str, map_location=None) -> dict:
    """Load weights by name, such as ``hcast-zoo://hcast_small.emoji_art``; see :func:`read_checkpoint`."""
    return read_checkpoint(filename.removeprefix(SCHEME), map_location)


def read_checkpoint(source: str | Path, map_location=None) -> dict:
    """Return weights as a checkpoint of a :class:`.classifier.HierarchicalClassifier`.

    Args:
        source: A name, file or folder, as :func:`hcast_zoo.weights.file.load_weights` takes.
        map_location: Device of the tensors.

    Raises:
        WeightsError: if there are no such weights.
    """
    weights = load_weights(source)
    meta = {}
    if weights.taxonomy is not None:
        meta["dataset_meta"] = {"classes": weights.taxonomy.names[-1], "taxonomy": weights.taxonomy.to_dict()}
    state = {classifier_key(k): v.to(map_location or "cpu") for k, v in weights.state_dict.items()}
    return {"state_dict": state, "meta": meta}


def classifier_key(key: str) -> str:
    """Return the name that a tensor of the core has in the classifier."""
    return f"head.{key}" if key.startswith("heads.") else f"backbone.{key}"


def load_from_local(filename: str, map_location=None) -> dict:
    """Load a local checkpoint: ``.safetensors`` weights of ours, or a file that torch wrote.

    Replaces mmengine's loader, which since torch 2.6 cannot read the checkpoints that mmengine writes: they hold logs
    in classes that torch's unpickler does not allow. This loader allows exactly those, and only during this call.

    Raises:
        FileNotFoundError: if there is no such file.
        UnpicklingError: if the file holds anything but tensors, plain data and logs.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} can not be found.")
    if path.suffix == ".safetensors":
        return read_checkpoint(path, map_location)
    with torch.serialization.safe_globals(_log_globals()):
        return torch.load(path, map_location=map_location, weights_only=True)


def reduce_history(history: HistoryBuffer) -> tuple:
    """Pickle a log without its table of statistics, for ``copyreg``.

    The table holds methods of the class, which are pickled as calls of ``getattr``; allowing those on loading would
    allow everything. HistoryBuffer fills the table again itself, and a user's own statistics are in the class.
    """
    state = {key: value for key, value in vars(history).items() if key != "statistics_methods"}
    return copyreg.__newobj__, (HistoryBuffer,), state


def _log_globals() -> list:
    """Return the classes and functions in a pickled log: the buffer, and NumPy's, by their names in NumPy 1 and 2."""
    array, number = np.zeros(1), np.float64(0)
    rebuild, scalar = array.__reduce__()[0], number.__reduce__()[0]

    names = []
    for core in ("core", "_core"):
        names += [(rebuild, f"numpy.{core}.multiarray._reconstruct"), (scalar, f"numpy.{core}.multiarray.scalar")]

    return [HistoryBuffer, np.ndarray, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.int64)), *names]
