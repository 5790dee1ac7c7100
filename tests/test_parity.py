"""The most important test: one weights file and one picture give the same logits, to 1e-5, in every framework.

The Hub, and transformers where hcast_zoo cannot be imported, run in processes of their own; a server on loopback
stands in for the Hub.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from hcast_zoo.cli import main
from hcast_zoo.data.pictures import read_picture
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.sharing.publish import assemble
from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import Weights, build_model, load_weights, save_weights
from tests.weights.test_hub import server  # noqa: F401 (a fixture)

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

NAME = "hcast_small.emoji_art"
PICTURE = Path(__file__).parent / "pictures/lion.png"
REPO = "org/hcast-emoji"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    """The core's logits."""
    weights = load_weights(NAME)
    image = eval_transform(weights.config)(read_picture(PICTURE))[None]
    with torch.inference_mode():
        return [x.numpy() for x in build_model(weights)(image).level_logits]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "repository"
    assemble(NAME, folder, REPO)
    return folder


def equal(logits, expected) -> None:
    assert len(logits) == len(expected)
    for ours, core in zip(logits, expected):
        np.testing.assert_allclose(np.asarray(ours), core, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_safetensors_by_hand(repository, expected):
    with safe_open(repository / "model.safetensors", "pt") as file:
        config = HCastConfig.from_dict(json.loads(file.metadata()["config"]))
        state = {key: file.get_tensor(key).to(torch.float32) for key in file.keys()}
    model = HCast(config).eval()
    model.load_state_dict(state)
    equal(model(eval_transform(config)(read_picture(PICTURE))[None]).level_logits, expected)


@torch.inference_mode()
@pytest.mark.parametrize("source", [NAME, "local-dir:"])
def test_timm(source, repository, expected):
    name = source if source == NAME else f"{source}{repository}"
    model = timm.create_model(name, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    image = transform(read_picture(PICTURE))[None]
    equal(model.forward_levels(image), expected)
    equal([model(image)], expected[-1:])


TIMM_HUB = """
import sys, hcast_zoo, timm, torch, numpy as np
from hcast_zoo.data.pictures import read_picture
model = timm.create_model("hf-hub:" + sys.argv[1], pretrained=True).eval()
image = timm.data.create_transform(**timm.data.resolve_model_data_config(model))(read_picture(sys.argv[2]))[None]
with torch.inference_mode():
    np.savez(sys.argv[3], *(x.numpy() for x in model.forward_levels(image)))
"""

MMPRETRAIN = """
import sys, hcast_zoo, mmpretrain, torch, numpy as np
from mmengine.dataset import Compose, pseudo_collate
model = mmpretrain.get_model("hcast-small_emoji-art", pretrained="hcast-zoo://" + sys.argv[1])
pipeline = Compose([mmpretrain.registry.TRANSFORMS.build(t) for t in model._config.test_dataloader.dataset.pipeline])
batch = model.data_preprocessor(pseudo_collate([pipeline({"img_path": sys.argv[2]})]))
with torch.inference_mode():
    np.savez(sys.argv[3], *(x.numpy() for x in model(**batch)))
"""

TRANSFORMERS = """
import sys
{first}
import numpy as np, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
options = {options!r}
repo, picture, output = sys.argv[1:]
picture = Image.open(picture)
inputs = AutoImageProcessor.from_pretrained(repo, **options)(picture, return_tensors="pt")
model = AutoModelForImageClassification.from_pretrained(repo, **options).eval()
with torch.inference_mode():
    answer = model(**inputs, output_paths=True)
    pooled = AutoModel.from_pretrained(repo, **options).eval()(**inputs).pooler_output
    # The coarsest level reads the last stage, whose class token the headless model gives.
    assert torch.allclose(model.heads[0](pooled), answer.level_logits[0], atol=1e-5)
tree = model.config.taxonomy["names"]
print(" > ".join(names[node] for names, node in zip(tree, answer.paths[0].tolist())))
np.savez(output, *(x.numpy() for x in answer.level_logits))
"""
BLOCKED = """
try:
    import hcast_zoo
except ImportError:
    pass
else:
    raise SystemExit("hcast_zoo can be imported: this proves nothing")
"""


def read(file: Path) -> list[np.ndarray]:
    with np.load(file) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.mark.hub
def test_through_the_hub(server, expected, tmp_path, capsys):  # noqa: F811
    """Publish, then load with the core, timm, mmpretrain, and transformers with and without hcast_zoo."""
    published = server.run("-m", "hcast_zoo", "publish", NAME, "--repo", REPO)
    assert published.returncode == 0, published.stderr
    assert main(["predict", str(PICTURE), "--model", NAME, "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["path"]

    core = server.run("-m", "hcast_zoo", "predict", str(PICTURE), "--model", REPO, "--json")
    assert json.loads(core.stdout)["path"] == path, core.stderr

    for code, module in ((TIMM_HUB, "timm"), (MMPRETRAIN, "mmpretrain")):
        if importlib.util.find_spec(module):
            result = server.run("-c", code, REPO, str(PICTURE), str(tmp_path / f"{module}.npz"))
            assert result.returncode == 0, result.stderr
            equal(read(tmp_path / f"{module}.npz"), expected)

    code = TRANSFORMERS.format(first="import hcast_zoo", options={})
    result = server.run("-c", code, REPO, str(PICTURE), str(tmp_path / "registered.npz"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].split(" > ") == path
    equal(read(tmp_path / "registered.npz"), expected)

    # -S leaves out the hooks of an editable install; hcast_zoo is in none of the folders that are left.
    site = os.pathsep.join(p for p in sys.path if p.endswith("-packages") and not (Path(p) / "hcast_zoo").exists())
    command = [
        sys.executable,
        "-S",
        "-c",
        TRANSFORMERS.format(first=BLOCKED, options={"trust_remote_code": True}),
        REPO,
        str(PICTURE),
        str(tmp_path / "remote.npz"),
    ]
    result = subprocess.run(
        command, env={**server.environment, "PYTHONPATH": site}, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].split(" > ") == path
    equal(read(tmp_path / "remote.npz"), expected)


@torch.inference_mode()
def test_mmpretrain(expected):
    """By name, from the picture file through mmpretrain's own pipeline."""
    mmpretrain = pytest.importorskip("mmpretrain")
    from mmengine.dataset import Compose, pseudo_collate

    model = mmpretrain.get_model("hcast-small_emoji-art", pretrained=True)
    pipeline = Compose(
        [mmpretrain.registry.TRANSFORMS.build(t) for t in model._config.test_dataloader.dataset.pipeline]
    )
    batch = model.data_preprocessor(pseudo_collate([pipeline({"img_path": str(PICTURE)})]))
    equal(model(**batch), expected)


def test_a_folder_written_by_transformers(tmp_path, expected):
    """The core reads what ``save_pretrained`` writes."""
    from hcast_zoo.integrations.transformers import from_core

    from_core(load_weights(NAME)).save_pretrained(tmp_path)
    weights = load_weights(tmp_path)
    assert isinstance(weights.taxonomy, Taxonomy)
    with torch.inference_mode():
        image = eval_transform(weights.config)(read_picture(PICTURE))[None]
        equal(build_model(weights)(image).level_logits, expected)


def test_calibrated_paths(tiny_model, taxonomy, tmp_path):
    """Temperatures stored with the weights give the same path and probability in every framework."""
    from transformers import pipeline

    weights = Weights(
        tiny_model.config,
        taxonomy,
        tiny_model.state_dict(),
        {"name": "tiny"},
        Calibration((0.1, 3.0, 0.5), 0.7, "test"),
    )
    save_weights(weights, tmp_path / "tiny.safetensors")
    assemble(tmp_path / "tiny.safetensors", tmp_path / "repository")
    core = next(Predictor(tmp_path / "tiny.safetensors").predict([PICTURE]))
    plain = Predictor(tmp_path / "tiny.safetensors")
    plain.calibration = Calibration.identity(3)
    assert abs(core.path_probability - next(plain.predict([PICTURE])).path_probability) > 0.01
    answer = pipeline("hierarchical-image-classification", str(tmp_path / "repository"))(str(PICTURE))
    assert tuple(answer["path"]) == core.path
    assert answer["score"] == pytest.approx(core.path_probability, abs=TOLERANCE)
    if importlib.util.find_spec("mmpretrain"):
        from mmpretrain.registry import MODELS

        from hcast_zoo.integrations.mmpretrain.checkpoint import classifier_key

        file = str(tmp_path / "tiny.safetensors")
        model = MODELS.build(
            dict(
                type="HierarchicalClassifier",
                backbone=dict(type="HCast", arch=file),
                head=dict(type="HierarchicalClsHead", in_channels=48, taxonomy=file, calibration=file),
            )
        ).eval()
        model.load_state_dict({classifier_key(k): v for k, v in weights.state_dict.items()})
        with torch.inference_mode():
            image = eval_transform(tiny_model.config)(read_picture(PICTURE))[None]
            sample = model.head.predict(model.backbone(image))[0]
        assert taxonomy.path_names(sample.pred_path.tolist()) == core.path
        assert sample.pred_path_score.item() == pytest.approx(core.path_probability, abs=TOLERANCE)


@pytest.mark.parametrize("crop_mode", ["pad", "squash"])
def test_crop_mode(crop_mode, tiny_model, taxonomy, tmp_path):
    """The crop mode is stored with the weights and gives bit-identical pixels in every framework."""
    from transformers import AutoImageProcessor

    config = tiny_model.config.replace(crop_mode=crop_mode, crop_pct=0.9)
    file, folder = tmp_path / "tiny.safetensors", tmp_path / "repository"
    save_weights(Weights(config, taxonomy, tiny_model.state_dict(), {"name": "tiny"}), file)
    assemble(file, folder)
    picture = read_picture(PICTURE).crop((0, 0, 200, 90))
    expected = eval_transform(load_weights(file).config)(picture)
    assert not torch.equal(expected, eval_transform(config.replace(crop_mode="center"))(picture))

    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    assert torch.equal(transform(picture), expected) and model.config.crop_mode == crop_mode
    processor = AutoImageProcessor.from_pretrained(folder)
    assert torch.equal(processor(picture, return_tensors="pt")["pixel_values"][0], expected)

    if importlib.util.find_spec("mmpretrain"):
        import mmpretrain

        step = mmpretrain.registry.TRANSFORMS.build(dict(type="ResizeToModel", arch=str(file)))
        pixels = np.ascontiguousarray(step({"img": np.asarray(picture)[..., ::-1]})["img"][..., ::-1])
        assert torch.equal(
            eval_transform(config.replace(crop_mode="center", crop_pct=1.0))(Image.fromarray(pixels)), expected
        )


HYBRID, PHOTOGRAPH = "hcast_lite.in1k", PICTURE.with_name("tabby.jpg")


@torch.inference_mode()
def test_a_hybrid_through_every_framework(tmp_path):
    """Weights with a timm stem: by timm's tag and from a folder, in transformers, and in mmpretrain."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    weights = load_weights(HYBRID)
    expected = build_model(weights)(eval_transform(weights.config)(read_picture(PHOTOGRAPH))[None]).level_logits
    folder = tmp_path / "repository"
    assemble(HYBRID, folder, REPO)

    for name in (HYBRID, f"local-dir:{folder}"):
        model = timm.create_model(name, pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        equal(model.forward_levels(transform(read_picture(PHOTOGRAPH))[None]), expected)

    inputs = AutoImageProcessor.from_pretrained(folder)(PHOTOGRAPH, return_tensors="pt")
    equal(AutoModelForImageClassification.from_pretrained(folder)(**inputs).level_logits, expected)

    mmpretrain = pytest.importorskip("mmpretrain")
    from mmengine.dataset import Compose, pseudo_collate

    model = mmpretrain.get_model("hcast-lite_in1k", pretrained=True)
    steps = model._config.test_dataloader.dataset.pipeline
    pipeline = Compose([mmpretrain.registry.TRANSFORMS.build(step) for step in steps])
    batch = model.data_preprocessor(pseudo_collate([pipeline({"img_path": str(PHOTOGRAPH)})]))
    equal(model(**batch), expected)
