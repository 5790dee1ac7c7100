"""Configs: both styles agree, can be inherited, and build what the paper describes."""

import ast
import os
import subprocess
import sys
import zipfile
from itertools import product
from pathlib import Path

import mmpretrain
import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmpretrain.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image

import hcast_zoo.integrations.mmpretrain as package
from hcast_zoo.integrations.mmpretrain.hcast import MIM
from hcast_zoo.integrations.mmpretrain.transforms import GenerateSuperpixels, check_pipeline
from hcast_zoo.network.config import IMAGENET_MEAN, IMAGENET_STD
from hcast_zoo.paper.benchmarks import BENCHMARKS
from hcast_zoo.paper.trees import load_tree
from hcast_zoo.weights.file import load_weights, packaged_weights
from tests.wheel import build_wheel

ROOT = Path(__file__).parents[3]
PURE = Path(package.__file__).parent / "configs" / "hcast"
NAMES = sorted(p.stem for p in (MIM / "configs" / "hcast").glob("*.py"))
PAPER = {  # levels, superpixels, and the published full-path accuracy that the docstring must state
    "cub": ((13, 38, 200), 196, "84.9 or 83.28 full-path accuracy (both second-hand"),
    "aircraft": ((30, 70, 100), 196, "83.72 full-path accuracy (second-hand"),
    "living17": ((17, 34), 256, "85.11"),
    "nonliving26": ((26, 52), 256, "82.53"),
    "entity13": ((13, 130), 256, "85.61"),
    "entity30": ((30, 120), 256, "84.86"),
    "inat21-mini": ((273, 1103, 10000), 196, "65.00"),
}


def ours(name: str) -> Config:
    return get_config(f"hcast_zoo::hcast/{name}.py")


def plain(value):
    """Return a config's content without scopes, types by their bare name, lists for tuples."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k != "_scope_"}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, str) and value.startswith(("mmengine.", "mmpretrain.", "torch.", package.__name__)):
        return value.rpartition(".")[2]
    return value


def test_there_is_a_config_for_all_weights_and_data_sets():
    with_weights = [name.replace("_", "-").replace(".", "_") for name in packaged_weights()]
    assert sorted([*with_weights, *(f"hcast-small_{n}" for n in PAPER)]) == NAMES


@pytest.mark.parametrize("weights", packaged_weights())
def test_packaged_weights_are_in_the_model_index(weights):
    """Building fails unless the config has the normalisation, width and levels of the weights."""
    variant, data = weights.split(".")
    model = mmpretrain.get_model(f"{variant.replace('_', '-')}_{data.replace('_', '-')}", pretrained=True)
    assert model.head.level_classes == load_weights(weights).config.level_classes


@pytest.mark.parametrize("name", NAMES)
def test_both_styles_agree(name):
    pure = Config.fromfile(PURE / f"{name.replace('-', '_')}.py")
    assert plain(pure.to_dict()) == plain(ours(name).to_dict())


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_state_result_cost_and_command(name):
    for file in (MIM / "configs" / "hcast" / f"{name}.py", PURE / f"{name.replace('-', '_')}.py"):
        text = ast.get_docstring(ast.parse(file.read_text()))
        assert f"hcast-zoo mm-train hcast_zoo::hcast/{name}.py" in text and "Expected:" in text and "ost" in text


@pytest.mark.parametrize("name", PAPER)
def test_configs_have_the_papers_settings(name):
    levels, superpixels, published = PAPER[name]
    config = ours(f"hcast-small_{name}")
    assert published in ast.get_docstring(ast.parse((MIM / f"configs/hcast/hcast-small_{name}.py").read_text()))
    assert MODELS.build(config.model.head).level_classes == levels
    backbone = config.model.backbone
    benchmark = BENCHMARKS[name.replace("-", "_")]
    assert levels == load_tree(benchmark.name).level_classes
    assert superpixels == benchmark.official.get("num_superpixels", 196)

    assert (backbone.arch, backbone.drop_path_rate) == ("small", 0.1)
    assert backbone.get("num_superpixels", 196) == superpixels
    assert config.train_dataloader.batch_size == 256

    schedule = config.param_scheduler
    lr = config.optim_wrapper.optimizer.lr
    peak, warmup = (1e-3, 1e-4) if name == "aircraft" else (5e-4, 1e-6)
    assert lr == peak * 256 / 512 and lr * schedule[0].start_factor == pytest.approx(warmup)
    assert (schedule[0].end, schedule[1].end, config.train_cfg.max_epochs) == (5, 300, 100)
    assert config.optim_wrapper.optimizer.weight_decay == 0.05
    loss = config.model.head.loss
    assert (loss.kl_weight, loss.smoothing) == (0.5, 0.1)
    assert [(a.type, a.alpha) for a in config.model.train_cfg.augments] == [("Mixup", 0.8), ("CutMix", 1.0)]
    assert config.custom_hooks[1].momentum == pytest.approx(1 - 0.99996)

    erasing = next(
        step for step in config.train_pipeline if step.type == "RandomErasing"
    )  # colours are in the order B, G, R
    assert erasing.fill_color == pytest.approx([255 * value for value in reversed(IMAGENET_MEAN)])
    assert erasing.fill_std == pytest.approx([255 * value for value in reversed(IMAGENET_STD)])
    assert "mean" not in config.data_preprocessor  # the core's, by default


@pytest.mark.parametrize("name", NAMES)
def test_pipelines_can_be_built(name):
    config = ours(name)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        transforms = [TRANSFORMS.build(t) for t in loader.dataset.pipeline]
        check_pipeline(transforms)
    maps = next(t for t in transforms if isinstance(t, GenerateSuperpixels))
    arch = config.model.backbone.arch
    expected = PAPER[name.partition("_")[2]][1] if arch == "small" else load_weights(arch).config.num_superpixels
    assert maps.config.num_superpixels == expected


def test_text_configs_can_be_inherited(tmp_path):
    """An inherited scope finds mmpretrain's registries, and mmpretrain's base configs find ours."""
    (tmp_path / "mine.py").write_text(
        "_base_ = ['hcast_zoo::hcast/hcast-small_cub.py']\n"
        "model = dict(backbone=dict(arch='tiny'), head=dict(in_channels=192))\n"
    )
    config = Config.fromfile(tmp_path / "mine.py")
    assert config.model._scope_ == "hcast_zoo" and config.default_hooks.timer._scope_ == "mmpretrain"
    import mmengine.registry

    model = mmengine.registry.MODELS.build(config.model)  # the root, as Runner does
    assert model.backbone.config.embed_dim == 192 and model.head.level_classes == (13, 38, 200)

    (tmp_path / "scratch.py").write_text(
        "_base_ = ['mmpretrain::_base_/default_runtime.py', 'mmpretrain::_base_/schedules/cub_bs64.py',\n"
        "          'hcast_zoo::_base_/models/hcast-small.py']\n"
        "model = dict(backbone=dict(arch='tiny'), head=dict(in_channels=192, taxonomy='cub'))\n"
    )
    config = Config.fromfile(tmp_path / "scratch.py")
    assert config.optim_wrapper.optimizer.type == "SGD"
    assert mmengine.registry.MODELS.build(config.model).head.level_classes == (13, 38, 200)


def inherit_pure(folder: Path, module: str) -> Path:
    file = folder / "mine.py"
    file.write_text(
        f"from mmengine.config import read_base\n\nwith read_base():\n    from {module} import *\n\n"
        "model.update(backbone=dict(arch='tiny'), head=dict(in_channels=192))\n"
    )
    return file


def test_pure_configs_can_be_inherited(tmp_path):
    (tmp_path / "zoo").symlink_to(PURE.parent)
    config = Config.fromfile(inherit_pure(tmp_path, ".zoo.hcast.hcast_small_cub"))
    assert MODELS.build(config.model).backbone.config.embed_dim == 192
    assert config.train_dataloader.batch_size == 256


@pytest.mark.slow
def test_configs_of_the_wheel_can_be_inherited(tmp_path):
    """The wheel holds all files that are not code, and its configs of both styles are found by package name."""

    root = Path(__file__).parents[3]
    wheel = zipfile.ZipFile(build_wheel(tmp_path))
    listed = subprocess.run(
        ["git", "ls-files", "integrations/mmpretrain"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(listed) > 40
    assert not {f"hcast_zoo/{name}" for name in listed} - set(wheel.namelist())

    wheel.extractall(tmp_path / "site")
    pure = inherit_pure(tmp_path, "hcast_zoo.integrations.mmpretrain.configs.hcast.hcast_small_cub")
    (tmp_path / "base.py").write_text("_base_ = 'hcast_zoo::hcast/hcast-small_cub.py'\n")
    code = (
        f"import hcast_zoo; assert hcast_zoo.__file__.startswith({str(tmp_path)!r}); "
        "from mmengine.config import Config; "
        f"a, b = Config.fromfile({str(pure)!r}), Config.fromfile({str(tmp_path / 'base.py')!r}); "
        "assert a.model.head.taxonomy == b.model.head.taxonomy == 'cub' and a.model.backbone.arch == 'tiny'"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert result.returncode == 0, result.stderr


def test_an_unknown_config_is_named():
    with pytest.raises(FileNotFoundError, match="hcast-small_dogs"):
        ours("hcast-small_dogs")


def test_five_lines_train_on_own_pictures(tmp_path, monkeypatch):
    """The code block of the page, on a folder with splits. The head and the data sets get the same tree."""
    labels = ("owls/snowy", "owls/barn", "gulls/herring")
    for number, (part, path) in enumerate(product(("training", "valid", "test"), labels)):
        file = tmp_path / "birds" / part / path / f"{number}.png"
        file.parent.mkdir(parents=True)
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(file)
    page = (ROOT / "docs/mmpretrain.md").read_text()
    block = page.partition("needs five lines")[2].partition("```python\n")[2].partition("```")[0]
    assert len(block.splitlines()) == 5
    (tmp_path / "own.py").write_text(block)
    monkeypatch.chdir(tmp_path)

    config = Config.fromfile("own.py")
    head = MODELS.build(config.model.head)
    assert head.level_classes == (2, 3) and head.taxonomy.names[1] == ("herring", "barn", "snowy")
    for loader, count in ((config.train_dataloader, 3), (config.val_dataloader, 3), (config.test_dataloader, 3)):
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset) == count and dataset.taxonomy == head.taxonomy

    with pytest.raises(ValueError, match="num_classes=200 is for flat heads, and the finest level here has 3"):
        MODELS.build({**config.model.head, "num_classes": 200})
