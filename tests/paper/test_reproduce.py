"""Reproduction: from an archive to numbers beside the published ones."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from hcast_zoo.cli import main
from hcast_zoo.common.choices import DECODERS
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.pictures import PictureError
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.network.model import HCast
from hcast_zoo.paper.benchmarks import CITED, find_benchmark
from hcast_zoo.paper.prepare import prepare
from hcast_zoo.paper.reproduce import reproduce, table
from hcast_zoo.paper.trees import load_tree, with_names
from hcast_zoo.weights.file import Weights, load_weights, save_weights
from hcast_zoo.weights.official import convert_official
from tests.conftest import FIXTURES
from tests.paper.paper_archives import cub_files, write_tar


@pytest.fixture
def cub(tmp_path):
    """A prepared part of CUB: three pictures of each of four species."""
    archive = write_tar(tmp_path / "CUB_200_2011.tgz", cub_files(classes=4))
    prepare(find_benchmark("cub"), [archive], tmp_path / "cub", partial=True, progress=False)
    return tmp_path / "cub"


@pytest.fixture
def cub_weights(tiny_config, tmp_path):
    """Two tiny models with CUB's tree: one always answers an albatross, one its order and family, and a cuckoo."""
    tree, files = load_tree("cub"), []
    config = tiny_config.replace(level_classes=tree.level_classes)
    for number, answer in enumerate([(11, 34, 0), (11, 34, 3)]):
        state = HCast(config).state_dict()
        for level, node in enumerate(answer):
            state[f"heads.{level}.bias"][node] += 100
        files.append(tmp_path / f"seed{number}.safetensors")
        save_weights(Weights(config, tree, state), files[-1])
    return files


def test_official_checkpoint(cub, tmp_path):
    """An official .pth gives what the official rules give: argmax of each level, of the converted model."""
    official = load_file(FIXTURES / "tiny_3level_state.safetensors")
    torch.save({"model": official, "epoch": 99}, tmp_path / "best_checkpoint.pth")
    benchmark = dataclasses.replace(find_benchmark("cub"), official={"num_heads": 3})
    found = reproduce(benchmark, [tmp_path / "best_checkpoint.pth"], cub, ["independent"], progress=False)
    config, state = convert_official(official, num_heads=3)
    model = HCast(config).eval()
    model.load_state_dict(state)
    data = HierarchicalDataset.load(cub, split="test", transform=eval_transform(config))
    metrics = HierarchicalMetrics(data.taxonomy)
    with torch.inference_mode():
        for image, label in data:
            logits = model(image[None]).level_logits
            metrics.update(torch.stack([x.argmax(-1) for x in logits], 1), label[None])
    assert found.results == ({"independent": metrics.compute()},) and found.mean == found.results[0]
    assert found.pictures == 4 and found.expected == 5794 and found.deviation is None
    assert found.published == ((84.9, CITED), (83.28, CITED))


def test_seeds(cub, cub_weights):
    found = reproduce(find_benchmark("cub"), cub_weights, cub, DECODERS, progress=False)
    first, second = (result["independent"] for result in found.results)
    assert (first["fpa"], first["tice"], first["accuracy/order"]) == (25, 0, 75)  # three albatrosses and a cuckoo
    assert (second["fpa"], second["tice"], second["accuracy/species"]) == (0, 100, 25)
    assert found.mean["independent"]["fpa"] == 12.5
    assert found.deviation["independent"]["fpa"] == pytest.approx(25 / 2**0.5)
    assert found.mean["best_path"]["tice"] == found.deviation["top_down"]["tice"] == 0
    rows = table(found)
    assert rows[0] == ["", "fpa", "tice", "wap", "accuracy/order", "accuracy/family", "accuracy/species"]
    assert [row[0] for row in rows[1:]] == [*DECODERS, f"published ({CITED})", f"published ({CITED})"]
    assert rows[3][1:3] == ["12.50 ± 17.68", "50.00 ± 70.71"] and rows[-1][1:3] == ["83.28", "-"]
    assert reproduce(find_benchmark("cub"), cub_weights[:1], cub, DECODERS, split="val", progress=False).published == ()


def test_another_tree(cub, cub_weights, tiny_weights, tmp_path):
    def fails(message, name="cub", files=cub_weights[:1], data=cub):
        with pytest.raises(ValueError, match=message):
            reproduce(find_benchmark(name), files, data, ["best_path"], progress=False)

    fails("expected the tree of FGVC-Aircraft, got another, named 'CUB-200-2011'", "aircraft")
    fails("nowhere: expected a prepared data set: hcast-zoo data prepare cub", data=tmp_path / "nowhere")
    fails(r"classes of CUB-200-2011, \(13, 38, 200\), got \(2, 4, 6\)", files=[tiny_weights])
    weights = load_weights(cub_weights[0])
    tree = weights.taxonomy
    weights.taxonomy = with_names(tree, [None, None, tree.names[2][::-1]])
    save_weights(weights, tmp_path / "turned.safetensors")
    fails("expected the tree of CUB-200-2011 with nodes in its order", files=[tmp_path / "turned.safetensors"])


def test_a_broken_picture(cub, cub_weights):
    """Numbers from fewer pictures would not be a reproduction."""
    HierarchicalDataset.load(cub, split="test").pictures[0].write_bytes(b"")
    with pytest.raises(PictureError):
        reproduce(find_benchmark("cub"), cub_weights[:1], cub, ["best_path"], progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_from_archive_to_numbers(tmp_path, tiny_weights, capsys, exact):
    """One command each: prepare, train by the recipe, measure beside what was published."""
    archive = write_tar(tmp_path / "CUB_200_2011.tgz", cub_files(classes=20, size=40))
    data, run = str(tmp_path / "cub"), str(tmp_path / "run")
    assert main(["data", "prepare", "cub", str(archive), "--output", data]) == 2
    assert "expected 5994 train pictures, found 40" in capsys.readouterr().err
    assert main(["data", "prepare", "cub", str(archive), "--output", data, "--partial"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["pictures"] == {"train": 20, "val": 20, "test": 20}
    assert "kingfishers" in captured.err
    tiny = [
        "--model",
        str(tiny_weights),
        "--num-superpixels",
        "16",
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--workers",
        "0",
        "--batch-size",
        "10",
    ]
    assert main(["train", "--recipe", "cub", "--data", data, "--output", run, *tiny, *(["--paper-exact"] * exact)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert ("best_val_accuracy/species" in result) == exact == ("best_val_fpa" not in result)
    assert main(["repro", "cub", "--data", data, "--checkpoint", result["weights"]]) == 0
    captured = capsys.readouterr()
    rows = [line.split("\t") for line in captured.out.splitlines()]
    assert [row[0] for row in rows[1:4]] == list(DECODERS) and rows[4][1] == "84.90"
    assert "measured on 20 pictures of 5794: not comparable" in captured.err
    assert (
        main(
            [
                "repro",
                "cub",
                "--data",
                data,
                "--checkpoint",
                result["weights"],
                "--split",
                "val",
                "--decode",
                "independent",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["published"] == [] and found["pictures"] == 20
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    # The split that selected the weights: the test pictures, as in the official code.
    assert (
        main(
            [
                "evaluate",
                "--data",
                data,
                "--split",
                "test" if exact else "val",
                "--model",
                result["weights"],
                "--json",
                "--decode",
                "independent" if exact else "best_path",
            ]
        )
        == 0
    )
    measured = next(iter(json.loads(capsys.readouterr().out)["results"].values()))
    logged = {k.removeprefix("val/"): v for k, v in log[-1].items() if k != "step"}
    assert measured == pytest.approx(logged, abs=5.01)  # one picture: weights are stored in half precision
    settings = json.loads((tmp_path / "run/run.json").read_text())["settings"]
    assert (settings["schedule_epochs"], settings["mixup"], settings["lr"]) == (300, 0.8, 5e-4)
