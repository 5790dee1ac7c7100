"""Weight files: saving, loading, and fitting them to other models."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from hcast_zoo.network.model import HCast
from hcast_zoo.weights.file import (
    Weights,
    WeightsError,
    build_model,
    find_weights,
    fit_state_dict,
    load_weights,
    read_weights,
    save_weights,
)


def test_saved_weights_give_the_same_logits(tiny_model, taxonomy, tiny_weights):
    weights = load_weights(tiny_weights)
    assert weights.config == tiny_model.config and weights.taxonomy == taxonomy and weights.metadata["name"] == "tiny"
    images = torch.randn(1, 3, 32, 32)
    model = build_model(weights)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for a, b in zip(model(images).level_logits, tiny_model(images).level_logits):
            assert torch.equal(a, b)


def test_weights_stored_in_half_precision_are_built_in_float32(tiny_model, tmp_path):
    path = tmp_path / "half.safetensors"
    save_weights(Weights(tiny_model.config, None, tiny_model.state_dict()), path, torch.float16)
    weights = load_weights(path)
    assert weights.taxonomy is None
    assert weights.state_dict["cls_token"].dtype == torch.float16
    assert weights.state_dict["stem.0.norm.num_batches_tracked"].dtype == torch.int64
    assert build_model(weights).cls_token.dtype == torch.float32


def test_a_failed_save_keeps_the_old_file(tiny_weights, tiny_model, monkeypatch):
    before = tiny_weights.read_bytes()

    def broken(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save_weights(Weights(tiny_model.config, None, {}), tiny_weights)
    assert tiny_weights.read_bytes() == before
    assert [p.name for p in tiny_weights.parent.iterdir()] == [tiny_weights.name]


def test_folders_are_loaded_and_unknown_names_explained(tiny_weights):
    tiny_weights.rename(tiny_weights.parent / "model.safetensors")

    assert load_weights(tiny_weights.parent).metadata["name"] == "tiny"
    with pytest.raises(WeightsError, match="no weights 'hcast_unknown'"):
        load_weights("hcast_unknown")


def rewrite(path, tensors=None, **metadata):
    weights = load_weights(path)
    base = {"config": json.dumps(weights.config.to_dict()), "taxonomy": json.dumps(weights.taxonomy.to_dict())}
    save_file(tensors or weights.state_dict, path, {k: v for k, v in {**base, **metadata}.items() if v is not None})


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
        (lambda p: rewrite(p, taxonomy='{"levels": ["a"], "names": [["x"]], "parents": []}'), "same classes per level"),
    ],
)
def test_broken_files_are_explained(tiny_weights, spoil, message):
    spoil(tiny_weights)
    with pytest.raises(WeightsError, match=message):
        load_weights(tiny_weights)


def test_weights_of_another_model_are_explained(tiny_model, tiny_config, taxonomy):
    state = dict(tiny_model.state_dict())
    state["extra"] = torch.zeros(1)
    del state["cls_token"]
    state["norm.bias"] = torch.zeros(7)
    with pytest.raises(WeightsError, match=r"3 differences: no cls_token; unknown extra; norm.bias is \(7,\)"):
        build_model(Weights(tiny_config, taxonomy, state))


def test_fit_starts_another_size_and_other_classes(tiny_model, tiny_config):
    other = HCast(tiny_config.replace(image_size=64, level_classes=(2, 9)))
    state = fit_state_dict(tiny_model.state_dict(), other)
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert missing == ["heads.1.weight", "heads.1.bias"] and not unexpected
    assert torch.equal(other.heads[0].weight, tiny_model.heads[0].weight)
    assert torch.equal(other.pos_embed[:, 0], tiny_model.pos_embed[:, 0])
    assert other.pos_embed.shape[1] == 65

    with pytest.raises(WeightsError, match="another architecture"):
        fit_state_dict(tiny_model.state_dict(), HCast(tiny_config.replace(embed_dim=96)))


def test_official_fit_keeps_the_finest_head(tiny_model, tiny_config):
    """The finest head stays where it fits; a grid of another size is resampled without antialiasing."""
    flat = HCast(tiny_config.replace(level_classes=(6,)))
    other = HCast(tiny_config.replace(image_size=16))
    assert not any(k.startswith("heads.2") for k in fit_state_dict(flat.state_dict(), other))
    state = fit_state_dict(flat.state_dict(), other, official=True)
    assert torch.equal(state["heads.2.weight"], flat.heads[0].weight)

    plain = fit_state_dict(flat.state_dict(), other)["pos_embed"]
    assert state["pos_embed"].shape == plain.shape and not torch.equal(state["pos_embed"], plain)


def test_packaged_weights_are_verified(tiny_weights, tmp_path, monkeypatch):
    digest = hashlib.sha256(tiny_weights.read_bytes()).hexdigest()
    index = {"tiny.animals": {"file": tiny_weights.name, "sha256": digest}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr("hcast_zoo.weights.header.SHIPPED", tmp_path)
    monkeypatch.setattr("hcast_zoo.weights.header.SHIPPED_INDEX", tmp_path / "index.json")
    assert find_weights("tiny") == find_weights("tiny.animals") == tiny_weights

    tiny_weights.write_bytes(tiny_weights.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="missing or damaged: reinstall"):
        load_weights("tiny.animals")


def test_equal_weights_are_equal_bytes(tiny_model, taxonomy, tmp_path):
    weights = Weights(tiny_model.config, taxonomy, tiny_model.state_dict(), {c: c for c in "zxäya"})
    for name in ("a", "b", "c"):
        save_weights(weights, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    loaded = read_weights(tmp_path / "a")
    assert loaded.metadata["ä"] == "ä" and loaded.taxonomy == taxonomy
    assert all(torch.equal(loaded.state_dict[k], v) for k, v in weights.state_dict.items())


def test_a_folder_saved_by_transformers_is_loaded(tiny_model, taxonomy, tmp_path):
    config = {
        "model_type": "hcast",
        "architectures": ["HCastForImageClassification"],
        "dtype": "float32",
        "taxonomy": taxonomy.to_dict(),
        **tiny_model.config.to_dict(),
    }
    save_file(tiny_model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_weights(tmp_path)
    assert weights.config == tiny_model.config and weights.taxonomy == taxonomy

    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(WeightsError, match="expected H-CAST weights"):
        load_weights(tmp_path)


def test_a_runs_folder_stands_for_its_best_weights(tmp_path, tiny_weights):
    with pytest.raises(WeightsError, match="or a training run's folder with best"):
        find_weights(tmp_path)

    for name in ("last.safetensors", "best.safetensors"):
        shutil.copy(tiny_weights, tmp_path / name)
        assert find_weights(tmp_path).name == name
