"""The defaults for device, batch size and workers."""

import collections

import pytest
import torch

from hcast_zoo.common import machine
from hcast_zoo.common.machine import Loading, choose_loading
from hcast_zoo.common.processes import check_device, choose_device

Usage = collections.namedtuple("Usage", "total used free")


@pytest.fixture
def shared_memory(monkeypatch):
    """Return a function that fakes a machine of 16 processors and a number of bytes of shared memory."""

    def make(size):
        monkeypatch.setattr(machine, "processors", lambda: 16)
        monkeypatch.setattr(machine.os.path, "isdir", lambda path: True)
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(size, 0, size))

    return make


def test_loading_follows_the_machine(shared_memory):
    shared_memory(2**40)
    assert choose_loading(10_000, 224, "cpu") == Loading(16, 4)
    assert choose_loading(10_000, 224, "cuda:1") == Loading(64, 8)
    assert choose_loading(10_000, 224, "cuda", share=4) == Loading(64, 3)
    assert choose_loading(10, 224, "cuda") == Loading(64, 0)
    assert choose_loading(10_000, 224, "cuda", batch_size=3, workers=5) == Loading(3, 5)


def test_shared_memory_limits_the_workers(shared_memory):
    """A batch of 16 pictures of 224 pixels takes 16 MB, and each worker may hold three."""
    shared_memory(64 * 10**6)
    assert choose_loading(10_000, 224, "cpu").workers == 1
    shared_memory(10**6)
    assert choose_loading(10_000, 224, "cpu").workers == 0


def test_auto_takes_the_accelerator(monkeypatch):
    assert choose_device("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert choose_device("auto") == "cpu" and check_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert choose_device("auto") == "mps"
