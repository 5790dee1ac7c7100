"""Engines give the same answers as torch."""

import json
import sys

import pytest
import torch

from hcast_zoo.cli import main
from hcast_zoo.inference import engines
from hcast_zoo.inference.engines import ChosenEngine, EngineError, Logits, TorchEngine, make_engine
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.network.superpixels import segment_images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "graph_folder", lambda: tmp_path / "engines")
    return tmp_path / "engines"


def answers(capsys, tiny_weights, picture_folder, *options):
    """Return the answers of `predict` for five pictures, and its messages."""
    files = sorted(str(file) for file in picture_folder.rglob("*.png"))[:5]
    assert main(["predict", *files, "--model", str(tiny_weights), "--json", "--batch-size", "2", *options]) == 0
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "auto"])
def test_engines_give_the_same_answers(engine, tiny_weights, picture_folder, capsys, cache):
    if engine != "auto":
        pytest.importorskip(engine)
    expected, _ = answers(capsys, tiny_weights, picture_folder)
    answered, notes = answers(capsys, tiny_weights, picture_folder, "--engine", engine, "--verbose")
    assert [p["path"] for p in answered] == [p["path"] for p in expected]
    for ours, theirs in zip(answered, expected):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-4)
    assert f"engine {engine if engine != 'auto' else ''}" in notes and "is used" in notes

    graphs = {file: file.stat().st_mtime_ns for file in cache.rglob("model.onnx")}
    assert len(graphs) == 1
    answers(capsys, tiny_weights, picture_folder, "--engine", engine)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("model.onnx")} == graphs  # exported once


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_lower_precision_changes_answers_a_little(precision, tiny_weights, picture_folder, capsys):
    if precision == "int8":
        pytest.importorskip("torchao")
    expected, _ = answers(capsys, tiny_weights, picture_folder)
    answered, _ = answers(capsys, tiny_weights, picture_folder, "--precision", precision)
    assert answered != expected
    for ours, theirs in zip(answered, expected):
        assert ours["path_probability"] == pytest.approx(theirs["path_probability"], abs=0.1)


@pytest.mark.slow
def test_an_engine_gives_the_same_evaluation(tiny_weights, picture_folder, capsys):
    command = ["evaluate", "--data", str(picture_folder), "--split", "val", "--model", str(tiny_weights), "--json"]
    results = []
    for options in ([], ["--engine", "onnxruntime"]):
        assert main(command + options) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["results"] == results[1]["results"] and results[1]["engine"] == "onnxruntime"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--engine", "onnxruntime", "--precision", "bf16"], "onnxruntime offers fp32, not bf16"),
        (["--engine", "openvino", "--precision", "int8"], "openvino offers fp32, bf16, not int8"),
    ],
)
def test_unsupported_precisions_are_refused(options, message, tiny_weights, picture_folder, capsys):
    picture = next(picture_folder.rglob("*.png"))
    assert main(["predict", str(picture), "--model", str(tiny_weights), *options]) == 2
    assert message in capsys.readouterr().err


def test_other_engines_run_on_the_cpu(tiny_model):
    with pytest.raises(EngineError, match="onnxruntime runs on the CPU here, not on meta"):
        make_engine(tiny_model.to("meta"), "onnxruntime")


def test_a_missing_engine_names_the_extra(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"hcast-zoo\[engines\]"):
        make_engine(tiny_model, "openvino")


class Off:
    """An engine that mixes a share of the uniform distribution into torch's answers."""

    def __init__(self, model, name, share):
        self.torch, self.name, self.share = TorchEngine(model), name, share

    def __call__(self, images, segments):
        levels = []
        for logits in self.torch(images, segments).level_logits:
            uniform = torch.full_like(logits, 1 / logits.shape[-1])
            levels.append(((1 - self.share) * logits.softmax(-1) + self.share * uniform).log())
        return Logits(tuple(levels))


@torch.inference_mode()
def test_an_engine_with_different_answers_is_not_used(tiny_model):
    model = tiny_model
    images = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    segments = segment_images(images, model.config)
    notes = []
    wrong, right = Off(model, "wrong", 0.5), Off(model, "right", 1e-6)
    chosen = ChosenEngine(TorchEngine(model), [wrong, right], "fp32", notes.append)

    chosen(images, segments)
    assert chosen.chosen is right and "not used" in notes[0] and notes[-1] == "engine right is used"

    with pytest.raises(EngineError, match="no engine gives torch's answers at fp32"):
        ChosenEngine(TorchEngine(model), [wrong], "fp32")(images, segments)


def test_other_clusters_make_another_engine(tiny_weights):
    predictor = Predictor(tiny_weights)
    fewer = tuple(max(1, n // 2) for n in predictor.model.config.num_clusters)
    other = predictor.with_settings(num_clusters=fewer)
    assert other.engine.num_clusters == fewer and predictor.engine.num_clusters is None
    assert other.model is predictor.model and other.with_settings(num_clusters=fewer).engine is other.engine
