import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from hcast_zoo.network.model import HCast
from hcast_zoo.weights import file as weights
from hcast_zoo.weights import header


def test_round_trip(tiny_model, taxonomy, tiny_weights):
    content = weights.load(tiny_weights)
    assert content.config == tiny_model.config and content.taxonomy == taxonomy and content.metadata["name"] == "tiny"
    images = torch.randn(1, 3, 32, 32)
    model = weights.build(content)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for a, b in zip(model(images).level_logits, tiny_model(images).level_logits):
            assert torch.equal(a, b)


def test_half_precision_storage(tiny_model, tmp_path):
    path = tmp_path / "half.safetensors"
    weights.save(weights.Weights(tiny_model.config, None, tiny_model.state_dict()), path, torch.float16)
    content = weights.load(path)
    assert content.taxonomy is None
    assert content.state_dict["cls_token"].dtype == torch.float16
    assert content.state_dict["stem.0.norm.num_batches_tracked"].dtype == torch.int64
    assert weights.build(content).cls_token.dtype == torch.float32


def test_a_failed_save_keeps_the_old_file(tiny_weights, tiny_model, monkeypatch):
    before = tiny_weights.read_bytes()

    def broken(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        weights.save(weights.Weights(tiny_model.config, None, {}), tiny_weights)
    assert tiny_weights.read_bytes() == before
    assert [p.name for p in tiny_weights.parent.iterdir()] == [tiny_weights.name]


def test_folder_and_missing(tiny_weights):
    tiny_weights.rename(tiny_weights.parent / "model.safetensors")
    assert weights.load(tiny_weights.parent).metadata["name"] == "tiny"
    with pytest.raises(weights.WeightsError, match="no weights 'hcast_unknown'"):
        weights.load("hcast_unknown")


def rewrite(path, tensors=None, **metadata):
    content = weights.load(path)
    base = {"config": json.dumps(content.config.to_dict()), "taxonomy": json.dumps(content.taxonomy.to_dict())}
    save_file(tensors or content.state_dict, path, {k: v for k, v in {**base, **metadata}.items() if v is not None})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "complete safetensors file"),
        (lambda p: p.write_bytes(b""), "complete safetensors file"),
        (lambda p: p.write_bytes(pickle.dumps(print)), "hcast-zoo convert"),
        (lambda p: rewrite(p, config=None), "expected H-CAST weights with a config"),
        (lambda p: rewrite(p, config="{"), "invalid config or taxonomy"),
        (lambda p: rewrite(p, config='{"width": 3}'), "unknown config keys: width"),
        (lambda p: rewrite(p, config='{"embed_dim": "wide"}'), "invalid config"),
        (lambda p: rewrite(p, taxonomy="[]"), "invalid config or taxonomy"),
        (lambda p: rewrite(p, taxonomy='{"levels": ["a"], "names": [["x"]], "parents": []}'), "taxonomy has"),
    ],
)
def test_broken_files_are_explained(tiny_weights, spoil, message):
    spoil(tiny_weights)
    with pytest.raises(weights.WeightsError, match=message):
        weights.load(tiny_weights)


def test_weights_of_another_model(tiny_model, tiny_config, taxonomy):
    state = dict(tiny_model.state_dict())
    state["extra"] = torch.zeros(1)
    del state["cls_token"]
    state["norm.bias"] = torch.zeros(7)
    with pytest.raises(weights.WeightsError, match=r"3 differences: no cls_token; unknown extra; norm.bias is \(7,\)"):
        weights.build(weights.Weights(tiny_config, taxonomy, state))


def test_fit_starts_another_size_and_other_classes(tiny_model, tiny_config):
    other = HCast(tiny_config.replace(image_size=64, level_classes=(2, 9)))
    state = weights.fit(tiny_model.state_dict(), other)
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert missing == ["heads.1.weight", "heads.1.bias"] and not unexpected
    assert torch.equal(other.heads[0].weight, tiny_model.heads[0].weight)
    assert torch.equal(other.pos_embed[:, 0], tiny_model.pos_embed[:, 0])
    assert other.pos_embed.shape[1] == 65
    with pytest.raises(weights.WeightsError, match="another architecture"):
        weights.fit(tiny_model.state_dict(), HCast(tiny_config.replace(embed_dim=96)))


def test_fit_as_the_official_fine_tuning(tiny_model, tiny_config):
    """The finest head stays where it fits; a grid of another size is resampled without antialiasing."""
    flat = HCast(tiny_config.replace(level_classes=(6,)))
    other = HCast(tiny_config.replace(image_size=16))
    assert not any(k.startswith("heads.2") for k in weights.fit(flat.state_dict(), other))
    state = weights.fit(flat.state_dict(), other, official=True)
    assert torch.equal(state["heads.2.weight"], flat.heads[0].weight)
    plain = weights.fit(flat.state_dict(), other)["pos_embed"]
    assert state["pos_embed"].shape == plain.shape and not torch.equal(state["pos_embed"], plain)


def test_packaged_weights_are_verified(tiny_weights, tmp_path, monkeypatch):
    import hashlib

    digest = hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    index = {"tiny.animals": {"file": tiny_weights.name, "sha256": digest}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(header, "INDEX", tmp_path / "index.json")
    assert weights.resolve("tiny") == weights.resolve("tiny.animals") == tiny_weights
    tiny_weights.write_bytes(tiny_weights.read_bytes() + b"x")
    with pytest.raises(weights.WeightsError, match="missing or damaged: reinstall"):
        weights.load("tiny.animals")


def test_equal_content_is_equal_bytes(tiny_model, taxonomy, tmp_path):
    content = weights.Weights(tiny_model.config, taxonomy, tiny_model.state_dict(), {c: c for c in "zxäya"})
    for name in ("a", "b", "c"):
        weights.save(content, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    loaded = weights.read(tmp_path / "a")
    assert loaded.metadata["ä"] == "ä" and loaded.taxonomy == taxonomy
    assert all(torch.equal(loaded.state_dict[k], v) for k, v in content.state_dict.items())


def test_a_folder_that_transformers_wrote(tiny_model, taxonomy, tmp_path):
    config = {
        "model_type": "hcast",
        "architectures": ["HCastForImageClassification"],
        "dtype": "float32",
        "taxonomy": taxonomy.to_dict(),
        **tiny_model.config.to_dict(),
    }
    save_file(tiny_model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    content = weights.load(tmp_path)
    assert content.config == tiny_model.config and content.taxonomy == taxonomy
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(weights.WeightsError, match="expected H-CAST weights"):
        weights.load(tmp_path)


def test_a_run_is_its_best_weights(tmp_path, tiny_weights):
    with pytest.raises(weights.WeightsError, match="or one of a training run with best"):
        weights.resolve(tmp_path)
    for name in ("last.safetensors", "best.safetensors"):
        shutil.copy(tiny_weights, tmp_path / name)
        assert weights.resolve(tmp_path).name == name
