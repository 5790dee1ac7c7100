"""Exported graphs give the model's outputs, and hold its config and taxonomy."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from hcast_zoo.cli import main
from hcast_zoo.network.model import HCast
from hcast_zoo.sharing.export import Graph, example, export, output_names
from hcast_zoo.weights.file import HCastConfig, Taxonomy, packaged_weights

OUTPUTS = ["logits_class", "logits_family", "logits_species", "assignment_1", "assignment_2", "assignment_3"]


def outputs_of(model, images, segments):
    with torch.inference_mode():
        output = model(images, segments)
    return (*output.level_logits, *output.assignments)


@pytest.mark.parametrize("changes", [{}, {"mask_empty": True}, {"last_pool": True}], ids=["plain", "mask", "pool"])
def test_the_core_is_one_graph(tiny_config, changes):
    """Nor does another batch size make a second graph; the eager backend runs what dynamo captured."""
    model = HCast(tiny_config.replace(**changes)).eval()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.inference_mode():
        for size in (2, 5, 3):
            images, segments = example(tiny_config, size)
            segments[:, :16] = 0  # some superpixels are empty
            for ours, theirs in zip(outputs_of(model, images, segments), outputs_of(compiled, images, segments)):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_a_training_step_is_one_graph(tiny_config):
    model = HCast(tiny_config.replace(drop_path_rate=0.2, drop_rate=0.1)).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    images, segments = example(tiny_config, 4)
    sum(x.square().mean() for x in compiled(images, segments).level_logits).backward()
    assert all(p.grad is not None for p in model.stages.parameters())


@pytest.mark.slow
def test_an_onnx_file_gives_the_models_outputs(tiny_weights, tiny_model, taxonomy, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    file = tmp_path / "tiny.onnx"
    assert main(["export", str(tiny_weights), "--output", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outputs"] == OUTPUTS and 0 < report["difference"] < 1e-4
    assert [p.name for p in tmp_path.glob("tiny.onnx*")] == ["tiny.onnx"]  # and no other file

    graph = onnx.load(file)
    onnx.checker.check_model(graph, full_check=True)
    texts = {p.key: p.value for p in graph.metadata_props}
    assert HCastConfig.from_dict(json.loads(texts["config"])) == tiny_model.config
    assert Taxonomy.from_dict(json.loads(texts["taxonomy"])) == taxonomy and texts["name"] == "tiny"

    session = ort.InferenceSession(file)
    assert [(x.name, x.shape, x.type) for x in session.get_inputs()] == [
        ("images", ["batch", 3, 32, 32], "tensor(float)"),
        ("segments", ["batch", 32, 32], "tensor(int64)"),
    ]
    assert [x.name for x in session.get_outputs()] == OUTPUTS
    assert session.get_outputs()[2].shape == ["batch", 6] and session.get_outputs()[3].shape == ["batch", 16, 8]

    for size in (1, 4):
        images, segments = example(tiny_model.config, size, seed=9)
        segments[0] %= 3  # fewer superpixels than clusters, each with many cells
        outputs = session.run(None, {"images": images.numpy(), "segments": segments.numpy()})
        for ours, theirs in zip(outputs_of(tiny_model, images, segments), outputs):
            np.testing.assert_allclose(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_pt2_file_gives_the_models_outputs(tiny_weights, tiny_model, taxonomy, tmp_path, capsys):
    file = tmp_path / "tiny.pt2"
    assert main(["export", str(tiny_weights), "--output", str(file), "--format", "pt2"]) == 0
    assert "largest difference" in capsys.readouterr().out
    texts = dict.fromkeys(["config", "taxonomy", "outputs"], "")
    program = torch.export.load(file, extra_files=texts)
    assert json.loads(texts["outputs"]) == OUTPUTS
    assert Taxonomy.from_dict(json.loads(texts["taxonomy"])) == taxonomy

    images, segments = example(tiny_model.config, 5, seed=9)
    for ours, theirs in zip(outputs_of(tiny_model, images, segments), program.module()(images, segments)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_batch_size_and_clusters_can_be_fixed(tiny_weights, tiny_model, tmp_path):
    report = export(tiny_weights, tmp_path / "one.pt2", "pt2", batch_size=1, num_clusters=(6, 5, 4, 3))
    assert report.difference < 1e-5
    program = torch.export.load(tmp_path / "one.pt2", extra_files=(texts := {"config": ""})).module()
    assert json.loads(texts["config"])["num_clusters"] == [6, 5, 4, 3]
    assignments = program(*example(tiny_model.config, 1))[3:]
    assert [x.shape for x in assignments] == [(1, 16, 6), (1, 6, 5), (1, 5, 4)]

    with pytest.raises((AssertionError, RuntimeError)):  # RuntimeError in torch 2.7
        program(*example(tiny_model.config, 2))


@pytest.mark.slow
def test_a_wrong_graph_is_refused_and_not_kept(tiny_weights, tmp_path, monkeypatch, capsys):
    forward = Graph.forward

    class Wrong(Graph):
        def forward(self, images, segments):
            outputs = forward(self, images, segments)
            return (outputs[0] + 0.001 * torch.compiler.is_exporting(), *outputs[1:])

    monkeypatch.setattr("hcast_zoo.sharing.export.Graph", Wrong)
    command = ["export", str(tiny_weights), "--output", str(tmp_path / "wrong.pt2"), "--format", "pt2"]
    assert main(command) == 2
    assert "differs from the model by 0.001" in capsys.readouterr().err
    assert not list(tmp_path.glob("wrong*"))

    assert main([*command, "--no-check"]) == 0 and (tmp_path / "wrong.pt2").exists()
    assert "not checked" in capsys.readouterr().out


def test_output_names_without_a_taxonomy_or_with_odd_levels(tiny_config, taxonomy):
    assert output_names(tiny_config, None)[:3] == ("logits_1", "logits_2", "logits_3")
    odd = Taxonomy.from_paths([("a", "b"), ("a", "c")], ("my class", "my/class"))
    config = tiny_config.replace(level_classes=(1, 2), last_pool=True)
    assert output_names(config, odd) == ("logits_1", "logits_2", *(f"assignment_{n}" for n in range(1, 5)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--batch-size", "0"], "batch_size: expected 1 or more, got 0"),
        (["--format", "pt2", "--opset", "20"], "only ONNX has one"),
        (["--num-clusters", "99", "4", "2", "2"], "cannot choose 99 clusters from 16 tokens"),
    ],
)
def test_wrong_export_options_are_explained(tiny_weights, tmp_path, arguments, message, capsys):
    assert main(["export", str(tiny_weights), "--output", str(tmp_path / "x"), *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_packaged_model_can_be_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    name = next(iter(packaged_weights()))
    assert export(name, tmp_path / "packaged.onnx").difference < 1e-4


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named_before_the_work(package, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", types.ModuleType("onnxscript"))
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("hcast_zoo.sharing.export.trace", lambda *a: pytest.fail("traced"))
    with pytest.raises(ImportError, match=r"pip install 'hcast-zoo\[export\]'"):
        export(tiny_weights, tmp_path / "x.onnx")
