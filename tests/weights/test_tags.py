"""Published tags and every layout through every interface, from a Hub on loopback with files in the authors' layout."""

import hashlib
import http.server
import json
import threading

import pytest
import torch

from hcast_zoo import Predictor
from hcast_zoo.cli import main
from hcast_zoo.paper.trees import load_tree
from hcast_zoo.weights.file import WeightsError, is_headless, load_model, load_weights, packaged_weights
from hcast_zoo.weights.hub import HubError
from hcast_zoo.weights.source import open_source
from hcast_zoo.weights.tags import TAGS, pin
from tests.hub import LOAD, TESTS
from tests.weights.layouts import HEADLESS, LAYOUTS, moco, supervised

SUPERVISED, MOCO = "hcast_small.cast_in1k", "hcast_small.cast_moco_in1k"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Return a function that puts a checkpoint where the Hub would: the download is a file, the rest is real."""
    files = {}

    def download(repo, path, revision=None):
        if path not in files:
            raise HubError(f"{repo} has no {path}")
        return files[path]

    def put(name, checkpoint):
        files[TAGS[name].path] = file = tmp_path / f"{name}.pth"
        torch.save(checkpoint, file)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr("hcast_zoo.weights.tags.download_file", download)
    monkeypatch.setattr("hcast_zoo.weights.tags.cache_folder", lambda: _made(tmp_path / "cache"))
    return put


def _made(path):
    path.mkdir(exist_ok=True)
    return path


def test_a_tag_is_converted_once_and_pinned(published, tmp_path, capsys):
    digest = published(SUPERVISED, supervised())
    weights = load_weights(SUPERVISED)
    errors = capsys.readouterr().err
    assert digest in errors and "licence: MIT" in errors and "twke/CAST" in errors
    assert weights.config.level_classes == (1000,) and weights.config.embed_dim == 48
    assert weights.taxonomy.names[0][:2] == ("tench", "goldfish") and len(set(weights.taxonomy.names[0])) == 1000
    assert weights.metadata["source_sha256"] == digest and weights.metadata["license"].startswith("MIT")

    (tmp_path / f"{SUPERVISED}.pth").unlink()
    assert load_weights(SUPERVISED).metadata["name"] == SUPERVISED  # from the cache
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("name, checkpoint", [(SUPERVISED, supervised), (MOCO, moco)])
def test_training_starts_from_a_tag(published, name, checkpoint, picture_folder, tmp_path, capsys):
    """At another size, and at a rate of nearly 0: the features stay the published ones, and the heads are new."""
    pytest.importorskip("accelerate")
    published(name, checkpoint())
    command = ["train", "--model", name, "--data", str(picture_folder), "--output", str(tmp_path / "run")]
    command += ["--lr", "1e-12", "--warmup-lr", "1e-12", "--ema-decay", "0", "--no-cache"]

    sizes = ["--image-size", "64", "--num-superpixels", "64", "--epochs", "1", "--batch-size", "4", "--workers", "0"]
    assert main([*command, *sizes]) == 0
    trained = load_weights(json.loads(capsys.readouterr().out)["weights"])
    start = load_weights(name)

    assert trained.config.level_classes == (2, 4, 6) and len(trained.taxonomy.levels) == 3
    for key in ("stem.0.conv.weight", "stages.1.blocks.0.mlp.fc1.weight", "cls_token"):
        torch.testing.assert_close(trained.state_dict[key], start.state_dict[key].float(), atol=1e-6, rtol=0)


def test_levels_above_imagenets_classes_sum_them(published, request, capsys):
    """By command, along 18 kinds and 117 groups: a node's probability is the sum of its classes'."""
    published(SUPERVISED, supervised())
    picture = next((request.config.rootpath / "tests" / "pictures").glob("*.png"))
    command = ["predict", str(picture), "--model", SUPERVISED, "--json", "--decode", "independent"]
    assert main(command) == 0
    (flat,) = json.loads(capsys.readouterr().out)["path"]
    assert main([*command, "--taxonomy", "imagenet"]) == 0
    answer = json.loads(capsys.readouterr().out)
    tree = load_tree("imagenet")
    assert answer["path"][-1] == flat and len(answer["path"]) == len(tree.levels) == 3

    weights = load_weights(SUPERVISED)
    _, output = Predictor(SUPERVISED).answer(picture)
    leaves = output.level_logits[0][0].softmax(-1).double()
    for level, (name, probability) in enumerate(zip(answer["path"], answer["probabilities"])):
        sums = [sum(leaves[path[-1]] for path in tree.paths if path[level] == i) for i in range(len(tree.names[level]))]
        best = int(torch.tensor(sums).argmax())
        assert tree.names[level][best] == name and probability == pytest.approx(float(sums[best]), abs=1e-5)

    assert main([*command, "--taxonomy", "cub"]) == 2
    assert f"whose {len(weights.taxonomy.names[0])} leaves are the model's classes" in capsys.readouterr().err
    assert main(["predict", str(picture), "--model", "hcast_tiny.emoji_art", "--taxonomy", "imagenet"]) == 2
    assert "got weights with the levels" in capsys.readouterr().err


def test_a_changed_file_is_refused_until_it_is_pinned(published, tmp_path, capsys):
    first = published(SUPERVISED, supervised())
    pin(SUPERVISED, "0" * 64)
    with pytest.raises(WeightsError, match=f"expected {'0' * 64}, got {first}"):
        load_weights(SUPERVISED)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["pins.json"]
    assert main(["info", SUPERVISED, "--pin", first]) == 0
    load_weights(SUPERVISED)

    second = published(SUPERVISED, {**supervised(), "epoch": 300})
    assert load_weights(SUPERVISED).metadata["source_sha256"] == first  # the accepted file stays in use
    assert main(["info", SUPERVISED, "--pin", second]) == 0
    assert load_weights(SUPERVISED).metadata["source_sha256"] == second
    assert main(["info", "hcast_small.nothing", "--pin", first]) == 2
    assert main(["info", SUPERVISED, "--pin", "12"]) == 2


@pytest.mark.parametrize(
    "name, checkpoint, message",
    [
        (SUPERVISED, {"model": {"a": torch.ones(1)}}, "no cls_token"),
        (
            SUPERVISED,
            {"model": {**supervised()["model"], "extra": torch.ones(1)}},
            r"unknown keys, such as \['extra'\]",
        ),
        (SUPERVISED, moco(), "expected a head of 1000 classes, got none"),
        (MOCO, supervised(), "expected no classifier head, got one"),
    ],
)
def test_a_wrong_checkpoint_leaves_nothing_in_the_cache(published, tmp_path, name, checkpoint, message):
    published(name, checkpoint)
    with pytest.raises(WeightsError, match=message):
        load_weights(name)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_file_names_the_alternatives(published, tmp_path):
    with pytest.raises(HubError, match=f"hcast-zoo convert FILE {SUPERVISED}.safetensors"):
        load_weights(SUPERVISED)
    assert list((tmp_path / "cache").iterdir()) == []


def test_weights_without_a_head_give_features_but_no_predictions(published, tmp_path, capsys, request):
    published(MOCO, moco())
    model = load_model(MOCO)
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 224, 224))
    assert output.level_logits == () and output.level_features[0].shape == (1, 48)

    picture = next((request.config.rootpath / "tests" / "pictures").glob("*.png"))
    assert main(["predict", str(picture), "--model", MOCO]) == 2
    assert "has no classifier head" in capsys.readouterr().err


def test_self_supervised_weights_cannot_be_given_levels(tmp_path, capsys):
    torch.save(moco(), tmp_path / "moco.pth")
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path / "moco.pth"), str(out), "--dataset", "cub"]) == 2
    assert "has no classifier head" in capsys.readouterr().err and not out.exists()

    projection = tmp_path / "projection.safetensors"
    assert main(["convert", str(tmp_path / "moco.pth"), str(out), "--keep-projection", str(projection)]) == 0
    assert "no head" in capsys.readouterr().err and projection.exists()
    assert is_headless(load_weights(out))


def test_info_lists_all_packaged_and_published_weights(published, capsys):
    digest = published(SUPERVISED, supervised())
    load_weights(SUPERVISED)
    capsys.readouterr()
    assert main(["info", "--list", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == {*packaged_weights(), *TAGS}
    assert rows[SUPERVISED]["verified"] == "pinned" and rows[SUPERVISED]["sha256"] == digest
    assert rows[MOCO]["verified"].startswith("no") and rows[MOCO]["cached"] is None and rows[MOCO]["classes"] == 0
    assert all(row["license"] and row["where"] and row["parameters"] > 0 for row in rows.values())

    assert main(["info", "--list"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) and "verified" in header


@pytest.fixture
def web(tmp_path):
    """Return the address of a web server on loopback, and the folder that it serves."""
    folder = _made(tmp_path / "web")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_port}", folder
        service.shutdown()


def test_a_checkpoint_is_converted_from_a_web_address(web, tmp_path, capsys):
    address, folder = web
    torch.save(supervised(), folder / "best.pth")
    (folder / "page.html").write_text("<html>too many requests</html>")
    out = tmp_path / "out.safetensors"
    assert main(["convert", f"{address}/page.html", str(out)]) == 2
    assert "got a web page" in capsys.readouterr().err
    assert main(["convert", f"{address}/missing.pth", str(out)]) == 2
    assert "cannot download" in capsys.readouterr().err and not out.exists()
    assert main(["convert", f"{address}/best.pth", str(out)]) == 0
    assert load_weights(out).config.level_classes == (1000,)


@pytest.mark.parametrize(
    "source, message", [("hf://org", "expected hf://org/name/path"), ("http://example.org/x.pth", "https:// address")]
)
def test_malformed_addresses_are_explained(source, message):
    with pytest.raises(ValueError, match=message), open_source(source):
        pass


@pytest.mark.slow
@pytest.mark.hub
def test_a_hub_that_refuses_leaves_nothing_in_the_cache(server, tmp_path):
    """For each reason the message says what to do, and nothing is cached."""
    torch.save(supervised(), tmp_path / "best.pth")
    path, load = TAGS[SUPERVISED].path, LOAD.format(sources=[SUPERVISED])
    homes = [tmp_path / name for name in ("absent", "gated", "broken", "private", "offline", "unreachable")]
    answers = [server.python(load, HF_HOME=str(homes[0]))]

    server.python(f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("twke/CAST", private=True)
api.upload_file(path_or_fileobj={str(tmp_path / "best.pth")!r}, path_in_repo={path!r}, repo_id="twke/CAST")
print(1)""")

    server.fault(".*resolve.*best_checkpoint", status=403, times=9, code="GatedRepo")
    answers.append(server.python(load, HF_HOME=str(homes[1])))
    server.faults_over()

    server.fault("GET .*resolve.*best_checkpoint", status=503, times=9)
    answers.append(server.python(load, HF_HOME=str(homes[2])))
    server.faults_over()

    answers.append(server.python(load, HF_HOME=str(homes[3]), HF_TOKEN=""))
    answers.append(server.python(load, HF_HOME=str(homes[4]), HF_HUB_OFFLINE="1"))
    answers.append(server.python(load, HF_HOME=str(homes[5]), HF_ENDPOINT="http://127.0.0.1:9"))

    expected = ("check the name", "is gated: ask for access", "failed", "if it is private", "OFFLINE", "cannot reach")
    for home, (message,), part in zip(homes, answers, expected, strict=True):
        assert message.startswith(f"{SUPERVISED}: ") and part in message, message
        assert message.endswith(f"A copy of the file works too: hcast-zoo convert FILE {SUPERVISED}.safetensors")
        assert not list(home.rglob("*.safetensors")) and not list(home.rglob("pins.json"))
    assert server.python(load, HF_HOME=str(tmp_path / "works")) == [SUPERVISED]


@pytest.mark.slow
@pytest.mark.hub
def test_every_layout_loads_through_every_interface(server, tmp_path, request):
    folder = _made(tmp_path / "files")
    uploads = {"twke/CAST": {TAGS[SUPERVISED].path: supervised(), TAGS[MOCO].path: moco()}, "org/all": {}}
    lines = [["tag: CAST supervised", SUPERVISED], ["tag: CAST MoCo", MOCO]]
    for number, (layout, make) in enumerate(LAYOUTS.items()):
        uploads["org/all"][f"files/{number}.pth"] = make()
        lines.append([layout, str(folder / f"{number}.safetensors"), f"hf://org/all/files/{number}.pth"])

    commands = ["from huggingface_hub import HfApi", "api = HfApi()"]
    for repo, files in uploads.items():
        commands.append(f"api.create_repo({repo!r})")
        for path, checkpoint in files.items():
            file = folder / f"{repo}_{path}".replace("/", "_")
            torch.save(checkpoint, file)
            commands.append(f"api.upload_file(path_or_fileobj={str(file)!r}, path_in_repo={path!r}, repo_id={repo!r})")
    server.python("\n".join([*commands, "print(1)"]))

    picture = next((request.config.rootpath / "tests" / "pictures").glob("*.png"))
    result = server.run(str(TESTS / "weights" / "layout_interfaces.py"), str(tmp_path), str(picture), json.dumps(lines))
    assert result.returncode == 0, result.stderr[-3000:]
    table = json.loads(result.stdout.splitlines()[-1])
    print(json.dumps(table, indent=1))

    assert len(table) == 2 + len(LAYOUTS)
    for layout, row in table.items():
        assert row.get("convert", "ok") == "ok" and row["load_model"] == "ok", layout
        if layout in HEADLESS or layout == "tag: CAST MoCo":
            assert "has no classifier head" in row["predict"], layout
        elif layout == "tag: CAST supervised":
            assert row["predict"] == "ok"
        for interface in ("timm", "transformers", "mmpretrain"):
            assert row[interface] < 1e-5, (layout, interface)
