"""Small models, pictures and the golden fixtures (made by the authors' code; see fixtures/README.md)."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the workers and the commands that they start share the cores
    THREADS = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
else:
    THREADS = 2

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.sharing.model_card import Evaluation
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import Weights, save_weights
from hcast_zoo.weights.official import convert_official
from tests.hub import Server
from tests.tiny import make_config, make_model, make_taxonomy

FIXTURES = Path(__file__).parent / "fixtures"
torch.set_num_threads(THREADS)


def load_npz(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / name) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="session")
def inputs() -> dict[str, np.ndarray]:
    return load_npz("inputs.npz")


@pytest.fixture(scope="session")
def images(inputs) -> torch.Tensor:
    return torch.from_numpy(inputs["images"])


@pytest.fixture(scope="session")
def segments(inputs) -> torch.Tensor:
    return torch.from_numpy(inputs["segments"].astype(np.int64))


@pytest.fixture(scope="session", params=[2, 3], ids=["2level", "3level"])
def golden(request):
    """An official tiny model, converted, and the tensors that the authors' code computed with it."""
    name = f"tiny_{request.param}level"
    official = load_file(FIXTURES / f"{name}_state.safetensors")
    config, state = convert_official(official, keep_last_pool=True, num_heads=3)
    model = HCast(config).eval()
    model.load_state_dict(state)
    return model, load_npz(f"{name}_tensors.npz"), official


@pytest.fixture
def taxonomy() -> Taxonomy:
    return make_taxonomy()


@pytest.fixture
def tiny_config() -> HCastConfig:
    return make_config()


@pytest.fixture
def tiny_model() -> HCast:
    return make_model()


@pytest.fixture
def tiny_weights(tiny_model, taxonomy, tmp_path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_weights(Weights(tiny_model.config, taxonomy, tiny_model.state_dict(), {"name": "tiny"}), path)
    return path


@pytest.fixture
def picture_folder(taxonomy, tmp_path) -> Path:
    """Two coloured pictures per leaf, in each of train and val."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for leaf, path in enumerate(taxonomy.paths):
            folder = tmp_path / "pictures" / split / Path(*taxonomy.path_names(path))
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 60, (40, 40, 3)) + np.array([leaf * 30, 200 - leaf * 30, number * 20])
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def val_files(picture_folder) -> list[str]:
    """The twelve validation pictures, sorted."""
    return sorted(map(str, (picture_folder / "val").rglob("*.png")))


@pytest.fixture
def server(tmp_path):
    """A Hub server on loopback that has no repository yet."""
    script = str(Path(__file__).with_name("hub_server.py"))
    command = [sys.executable, script, "--root", str(tmp_path / "hub")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield Server(process.stdout.readline().strip(), tmp_path / "home")
        process.terminate()


@pytest.fixture
def evaluation() -> Evaluation:
    """Made-up results of one decoding, for model cards."""
    results = {"best_path": {"fpa": 12.345, "tice": 0.0, "wap": 20.0, "accuracy/class": 50.0}}
    return Evaluation("00", "Animals", "test", 12, results, "hcast-zoo evaluate", "commit a", "2026-01-01", "2.14")
