"""Remote code: the generated files are our modules, self-contained, and work where hcast_zoo cannot be imported."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import hcast_zoo
from hcast_zoo.integrations.transformers import HCastImageProcessor, from_core, remote_code
from hcast_zoo.integrations.transformers.remote_code import (
    AUTO_MAP,
    CORE,
    CORE_MODULES,
    MODULES,
    RemoteCodeError,
    check_self_contained,
    flatten,
    generate_remote_code,
    write_remote_code,
)
from hcast_zoo.weights.file import build_model, load_weights

PICTURES = sorted((Path(__file__).parents[1] / "pictures").glob("*.png"))


@pytest.fixture
def repository(tiny_weights, tmp_path):
    """A folder as a publisher makes it, with timm's keys in config.json too."""
    weights = load_weights(tiny_weights)
    folder = tmp_path / "hcast-tiny"
    from_core(weights).save_pretrained(folder)
    HCastImageProcessor.from_core(weights.config).save_pretrained(folder)
    write_remote_code(folder)
    data = json.loads((folder / "config.json").read_text())
    data |= {"architecture": "hcast_tiny", "pretrained_cfg": {"tag": "animals"}, "num_classes": 6}
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def source_of(name):
    """Return the source of one of our modules, by its file's name."""
    core = Path(hcast_zoo.__file__).parent
    for folder in (*(core / package for package in CORE), Path(remote_code.__file__).parent):
        if (folder / name).exists():
            return (folder / name).read_text()
    raise AssertionError(f"{name} is not one of our modules")


def test_generated_code_is_our_modules():
    """The syntax trees are equal except for the sources of imports."""

    class Flat(ast.NodeTransformer):
        def visit_ImportFrom(self, node):
            if node.level == 2 or (node.level == 0 and node.module.startswith("hcast_zoo.")):
                node.module, node.level = node.module.split(".")[-1], 1
            return node

    files = generate_remote_code()
    for name, source in files.items():
        assert source.startswith("# Generated from hcast-zoo")
        compile(source, name, "exec")
        assert ast.dump(ast.parse(source)) == ast.dump(Flat().visit(ast.parse(source_of(name)))), name
    modules = {f"{m}.py" for m in (*CORE_MODULES, *MODULES)}
    assert set(files) == modules and {ref.split(".")[0] + ".py" for ref in references()} <= modules


def references():
    for value in AUTO_MAP.values():
        yield from [value] if isinstance(value, str) else value


def test_generated_code_imports_only_its_neighbours_from_our_package():
    installed = {"PIL", "httpx", "huggingface_hub", "numpy", "safetensors"}
    installed |= {"torch", "torchvision", "transformers", "cv2"}
    optional = {"sampling_kernel.py": {"triton"}, "stems.py": {"timm"}}  # in a try block
    files = generate_remote_code()
    for name, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                tops = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                tops = {node.module.split(".")[0]}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and f"{node.module}.py" in files, name
                continue
            else:
                continue
            assert tops <= installed | optional.get(name, set()) | set(sys.stdlib_module_names), (name, tops)


@pytest.mark.parametrize(
    "line",
    [
        "import hcast_zoo",
        "from hcast_zoo import weights",
        "from hcast_zoo.weights.file import load",
        "from . import config",
        "from .file import load",
        "from ..config import HCastConfig",
        "def f():\n    import hcast_zoo.data.dataset",
    ],
)
def test_other_imports_of_our_package_are_refused(line):
    with pytest.raises(RemoteCodeError, match=r"expected `from \.name import"):
        check_self_contained("file.py", flatten(line + "\n"))


def test_configs_name_the_remote_code(repository):
    config = json.loads((repository / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_hcast.HCastModel"
    assert config["model_type"] == "hcast" and config["dtype"] == "float32"
    processor = json.loads((repository / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}
    assert write_remote_code(repository)[-2:] == [repository / "config.json", repository / "preprocessor_config.json"]


def test_registered_classes_come_before_remote_code(repository):
    """With hcast_zoo installed, a published repository needs no trust, and its own code is not run."""
    from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

    (repository / "modeling_hcast.py").write_text("raise SystemExit('this file is not to be run')")
    for trust in ({}, {"trust_remote_code": True}):
        for auto in (AutoModel, AutoModelForImageClassification, AutoImageProcessor):
            assert type(auto.from_pretrained(repository, **trust)).__module__.startswith("hcast_zoo.")


CHILD = textwrap.dedent("""
    import importlib.util, json, sys
    import numpy as np
    import torch
    from PIL import Image

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "hcast_zoo":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocked())
    try:
        import hcast_zoo
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit("hcast_zoo can be imported here, so this proves nothing")

    from transformers import (
        AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline)
    folder, output, picture, *pictures = sys.argv[1:]
    trust = {"trust_remote_code": True}
    model = AutoModelForImageClassification.from_pretrained(folder, **trust)
    features = AutoModel.from_pretrained(folder, **trust)
    tensors = {}
    for backend in ("torchvision", "pil"):
        processor = AutoImageProcessor.from_pretrained(folder, backend=backend, **trust)
        inputs = processor([Image.open(p) for p in pictures], return_tensors="pt", return_segments=True)
        tensors[backend] = inputs["pixel_values"].numpy()
        tensors[f"{backend}_segments"] = inputs["segments"].numpy()
    with torch.no_grad():
        for level, logits in enumerate(model(inputs["pixel_values"]).level_logits):
            tensors[f"logits_{level}"] = logits.numpy()
        tensors["pooler_output"] = features(**inputs).pooler_output.numpy()
    np.savez(output, **tensors)
    classifier = pipeline("hierarchical-image-classification", model=folder, device="cpu", **trust)
    model.save_pretrained(f"{folder}/again")
    again = AutoModelForImageClassification.from_pretrained(f"{folder}/again", **trust)
    print(json.dumps({
        "path": classifier(picture)["path"],
        "levels": AutoConfig.from_pretrained(folder, **trust).level_names,
        "modules": [type(x).__module__ for x in (model, features, processor, again)],
        "ours": [name for name in sys.modules if name.split(".")[0] == "hcast_zoo"],
    }))
""")


@pytest.mark.slow
def test_remote_code_gives_the_cores_numbers_without_hcast_zoo(repository, tiny_weights, tmp_path, picture_folder):
    """In a fresh process without site hooks, where importing hcast_zoo fails."""
    opaque = next((picture_folder / "val").rglob("*.png"))
    site = os.pathsep.join(p for p in sys.path if p.endswith("-packages"))
    environment = {"PYTHONPATH": site, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    arguments = (str(repository), str(tmp_path / "out.npz"), str(opaque), *map(str, PICTURES))
    command = [sys.executable, "-S", "-c", CHILD, *arguments]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["ours"] == [] and all(m.startswith("transformers_modules.") for m in report["modules"])
    assert report["levels"] == ["class", "family", "species"]

    from PIL import Image

    from hcast_zoo import Predictor

    weights = load_weights(tiny_weights)
    processor, pictures = HCastImageProcessor.from_core(weights.config), [Image.open(p) for p in PICTURES]
    inputs = processor(pictures, return_tensors="pt", return_segments=True)

    core = build_model(weights)
    with torch.no_grad():
        expected = core(inputs["pixel_values"])

    with np.load(tmp_path / "out.npz") as tensors:
        for backend in ("torchvision", "pil"):
            assert np.array_equal(tensors[backend], inputs["pixel_values"])
            assert np.array_equal(tensors[f"{backend}_segments"], inputs["segments"])
        for level, logits in enumerate(expected.level_logits):
            np.testing.assert_allclose(tensors[f"logits_{level}"], logits, atol=1e-5, rtol=0)
        np.testing.assert_allclose(tensors["pooler_output"], expected.level_features[0], atol=1e-5, rtol=0)
    assert tuple(report["path"]) == next(Predictor(tiny_weights).predict([opaque])).path


SAVED_AGAIN = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hcast_zoo":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

published, saved, picture = sys.argv[1:]
for auto in (AutoModelForImageClassification, AutoImageProcessor):
    auto.from_pretrained(published, trust_remote_code=True).save_pretrained(saved)
for task in ("hierarchical-image-classification", "image-classification"):
    print(json.dumps(pipeline(task, saved, trust_remote_code=True)(picture)))
"""


@pytest.mark.slow
def test_a_model_saved_again_keeps_its_code(repository, tiny_weights, tmp_path):
    """In both pipelines it also reads a picture with transparency as the core does."""
    command = [sys.executable, "-W", "ignore", "-c", SAVED_AGAIN, str(repository), str(tmp_path / "saved")]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run([*command, str(PICTURES[0])], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith(("{", "["))]
    expected = next(hcast_zoo.Predictor(tiny_weights).predict(PICTURES[0]))
    assert answers[0]["path"] == list(expected.path)

    independent = next(hcast_zoo.Predictor(tiny_weights, decoder="independent").predict(PICTURES[0]))
    assert answers[1][0]["label"] == independent.path[-1]
    assert answers[1][0]["score"] == pytest.approx(independent.probabilities[-1], abs=1e-5)


@pytest.mark.slow
def test_a_registered_model_saves_code_on_request(tiny_weights, tmp_path):
    """The folder of ``save_pretrained(remote_code=True)``, with its image processor, works without hcast_zoo."""
    model = from_core(load_weights(tiny_weights))
    model.save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    model.save_pretrained(tmp_path / "with_code", remote_code=True)

    command = [sys.executable, "-W", "ignore", "-c", SAVED_AGAIN, str(tmp_path / "with_code"), str(tmp_path / "saved")]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run([*command, str(PICTURES[0])], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    answer = next(json.loads(line) for line in result.stdout.splitlines() if line.startswith("{"))
    assert answer["path"] == list(next(hcast_zoo.Predictor(tiny_weights).predict(PICTURES[0])).path)

    with pytest.raises(ValueError, match=r"expected push_to_hub\(name, remote_code=True\)"):
        model.save_pretrained(tmp_path / "both", remote_code=True, push_to_hub=True)


PUSH = """
import sys
import hcast_zoo
from hcast_zoo.integrations.transformers import from_core
from hcast_zoo.weights import file

from_core(file.load_weights(sys.argv[1])).push_to_hub("me/hcast-code", remote_code=True)
"""


@pytest.mark.slow
@pytest.mark.hub
def test_code_is_pushed_with_a_model(tiny_weights, tmp_path, server):
    result = server.run("-c", PUSH, str(tiny_weights), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    load = (
        "from transformers import AutoModelForImageClassification as A; "
        "print(type(A.from_pretrained('me/hcast-code', trust_remote_code=True)).__module__)"
    )
    result = server.run("-c", load, cwd=tmp_path)
    assert result.returncode == 0 and "transformers_modules" in result.stdout, result.stderr
