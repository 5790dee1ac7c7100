"""Checkpoints: the core's weights by name and file, and mmengine's own under ``weights_only``."""

import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from hcast_zoo.integrations.mmpretrain.checkpoint import classifier_key, load_from_local
from hcast_zoo.weights.file import WeightsError, load_weights, packaged_weights


def core_key(key: str) -> str:
    """Return the name that a tensor of the classifier has in the core."""
    return key.partition(".")[2]


def test_names_map_one_to_one(classifier, tiny_model):
    state = tiny_model.state_dict()
    assert {classifier_key(k) for k in state} == set(classifier.state_dict())
    assert all(core_key(classifier_key(k)) == k for k in state)


def test_a_weights_file_is_loaded_with_its_taxonomy(classifier, tiny_weights, taxonomy):
    for value in classifier.state_dict().values():
        value.zero_()
    checkpoint = load_checkpoint(classifier, str(tiny_weights), strict=True)
    expected = load_weights(tiny_weights).state_dict
    assert all(torch.equal(v, expected[core_key(k)]) for k, v in classifier.state_dict().items())
    meta = checkpoint["meta"]["dataset_meta"]
    assert meta["taxonomy"] == taxonomy.to_dict() and meta["classes"] == taxonomy.names[-1]


@pytest.mark.parametrize("name", list(packaged_weights()))
def test_packaged_weights_are_loaded_by_name(name):
    state = CheckpointLoader.load_checkpoint(f"hcast-zoo://{name}")["state_dict"]
    assert {core_key(k) for k in state} == set(load_weights(name).state_dict)
    with pytest.raises(WeightsError, match="no weights 'hcast_huge'"):
        CheckpointLoader.load_checkpoint("hcast-zoo://hcast_huge")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "nothing.pth"))


@pytest.fixture
def history():
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    history.update(4.5)
    history.update(2)
    return history


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x, 2))])
def test_logs_keep_their_values(history, copy_of):
    history.__getstate__()  # as mmengine's own pickling leaves it
    other = copy_of(history)
    for mine, theirs in zip(history.data, other.data):
        assert np.array_equal(mine, theirs) and mine.dtype == theirs.dtype
    assert (other.max(), other.statistics("min"), other.max_length) == (4.5, 1.0, history.max_length)
    other.update(9.0)
    assert len(other.data[0]) == len(history.data[0]) + 1


def test_logs_load_under_weights_only(history, tmp_path):
    file = tmp_path / "log.pth"
    torch.save({"message_hub": {"loss": history, "best": np.float64(3.5)}}, file)
    assert "builtins.getattr" not in torch.serialization.get_unsafe_globals_in_checkpoint(file)
    with pytest.raises(pickle.UnpicklingError):  # torch's protection is still on
        torch.load(file, weights_only=True)
    before = torch.serialization.get_safe_globals()
    loaded = load_from_local(str(file))["message_hub"]
    assert loaded["loss"].mean() == history.mean() and loaded["best"] == 3.5
    after = torch.serialization.get_safe_globals()
    assert set(after) == set(before) and HistoryBuffer not in after and getattr not in after


class Evil:
    def __reduce__(self):
        return getattr, (HistoryBuffer, "mean")  # as mmengine's own logs do


class Worse:
    def __reduce__(self):
        import os

        return os.system, ("true",)


@pytest.mark.parametrize("payload", [Evil, Worse])
def test_anything_but_logs_is_refused(payload, tmp_path):
    torch.save({"message_hub": payload()}, tmp_path / "evil.pth")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_from_local(str(tmp_path / "evil.pth"))
