"""The wheel that goes to PyPI: the default weights are in it, the others come from the Hub (a server on loopback)."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = "hcast_tiny.fashion_mnist"
PICTURE = str(ROOT / "tests/pictures/tabby.jpg")
PREDICT = "from hcast_zoo.cli import main; raise SystemExit(main(['predict', {!r}, *{!r}]))"
TIMM = "import hcast_zoo, timm, json; print(json.dumps(timm.create_model({!r}, pretrained=True).num_classes))"
pytestmark = [pytest.mark.slow, pytest.mark.hub]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build")
    folders = [tmp_path_factory.mktemp("dist") for _ in range(2)]
    for folder, mask in zip(folders, (0o022, 0o077)):
        environment = {**os.environ, "DIST": str(folder), "PYTHON": sys.executable}
        command = [str(ROOT / ".ci/dist"), "--wheel", "--no-isolation"]
        done = subprocess.run(command, env=environment, umask=mask, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    first, second = (next(folder.glob("*.whl")) for folder in folders)
    assert first.name == second.name and first.read_bytes() == second.read_bytes()
    return first


def test_weights_of_the_wheel_and_of_the_hub(wheel, tmp_path, server):
    assert wheel.stat().st_size < 50e6
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    held = {path.name for path in (site / "hcast_zoo/weights/shipped").glob("*.safetensors")}
    assert held == {"hcast_lite.in1k.safetensors"}

    def run(code, **environment):
        return server.run("-c", code, cwd=tmp_path, **{"PYTHONPATH": str(site), **environment})

    offline = {"HF_HUB_OFFLINE": "1"}
    done = run(PREDICT.format(PICTURE, []), **offline)
    assert done.returncode == 0 and "> cat >" in done.stdout, done.stderr

    with_tiny = PREDICT.format(PICTURE, ["--model", TINY])
    done = run(with_tiny, **offline)
    assert done.returncode == 2 and f"`hcast-zoo info {TINY}` fetches it once" in done.stderr
    done = run("from hcast_zoo.cli import main; main(['doctor'])", **offline)
    assert "fetched from the Hub on first use" in done.stdout
    done = run("from hcast_zoo.cli import main; main(['info', '--list'])", **offline)
    assert f"hf://hcast-zoo/{TINY}/model.safetensors" in done.stdout, done.stderr

    publish = "from hcast_zoo.cli import main; raise SystemExit(main(['publish', {!r}, '--repo', 'hcast-zoo/{}']))"
    assert server.run("-c", publish.format(TINY, TINY)).returncode == 0  # from the checkout, which holds it
    done = run(TIMM.format(TINY))
    assert done.returncode == 0 and done.stdout.split()[-1] == "10", done.stderr
    done = run(with_tiny, **offline)  # from the cache
    assert done.returncode == 0, done.stderr

    other = server.run("-c", publish.format("hcast_tiny.emoji_art", TINY))
    assert other.returncode == 0, other.stderr
    done = run(with_tiny)
    assert done.returncode == 2 and "has another SHA-256 than this version expects" in done.stderr
