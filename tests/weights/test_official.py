"""Official checkpoints in every layout, converted, against the authors' numbers."""

import argparse
import pickle

import numpy as np
import pytest
import torch

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.weights.official import (
    _rename,
    convert_official,
    is_official,
    projection_head,
    read_checkpoint,
)
from tests.weights.layouts import HEADLESS, LAYOUTS, WIDTH, sine_cosine_position


def with_aliases(official):
    """Add blocks1.* to blocks4.* as real checkpoints have them (one block per stage in the fixtures)."""
    aliases = {}
    for key, value in official.items():
        if key.startswith("blocks."):
            _, index, rest = key.split(".", 2)
            aliases[f"blocks{int(index) + 1}.{index}.{rest}"] = value
    return {**official, **aliases}


def test_aliases_and_wrappers_do_not_matter(golden):
    _, _, official = golden
    config, state = convert_official(official, num_heads=3)
    wrapped = {"model": {f"module.{k}": v for k, v in with_aliases(official).items()}, "epoch": 3}
    config_2, state_2 = convert_official(wrapped, num_heads=3)
    assert config == config_2 and state.keys() == state_2.keys()
    assert all(torch.equal(value, state_2[key]) for key, value in state.items())
    assert is_official(wrapped) and not is_official(state) and not is_official({"a": 1})
    HCast(config).load_state_dict(state)


def test_last_pool_is_dropped_unless_asked_for(golden, images, segments):
    model, _, official = golden
    config, state = convert_official(official, num_heads=3)
    assert not any(k.startswith("stages.3.pool") for k in state)

    lean = HCast(config).eval()
    lean.load_state_dict(state)
    with torch.no_grad():
        for a, b in zip(lean(images, segments).level_logits, model(images, segments).level_logits):
            assert torch.equal(a, b)


def official_state(variant, level_classes):
    """Return an official checkpoint's names and shapes, derived from our model."""
    config = HCastConfig.from_variant(variant, level_classes=level_classes, last_pool=True)
    ours = HCast(config, device="meta").state_dict()
    heads = ("manufacturer_head", "family_head", "head")[-len(level_classes) :]
    names = ["cls_token", "pos_embed", "norm.weight", "norm.bias"]
    layers = {0: "conv", 1: "norm", 3: "conv", 4: "norm", 6: "conv", 7: "norm", 9: "conv", 10: "norm"}
    for index, layer in layers.items():
        suffixes = ["weight"]
        if layer == "norm":
            suffixes += ["bias", "running_mean", "running_var", "num_batches_tracked"]
        names += [f"patch_embed.proj.{index}.{s}" for s in suffixes]
    names += ["patch_embed.proj.12.weight", "patch_embed.proj.12.bias"]
    names += [f"{h}.{p}" for h in heads for p in ("weight", "bias")]
    block = [k.removeprefix("stages.0.blocks.0.") for k in ours if k.startswith("stages.0.blocks.0.")]
    pool = [k.removeprefix("stages.0.pool.") for k in ours if k.startswith("stages.0.pool.")]
    names += [f"pool{s}.pool_block.{k}" for s in (1, 2, 3, 4) for k in pool]

    index = 0
    for stage, depth in enumerate(config.depths, 1):
        for _ in range(depth):
            names += [f"{prefix}.{index}.{k}" for k in block for prefix in ("blocks", f"blocks{stage}")]
            index += 1

    state = {}
    for name in names:
        is_alias = name.startswith("blocks") and not name.startswith("blocks.")
        plain = "blocks." + name.split(".", 1)[1] if is_alias else name
        state[name] = torch.zeros(ours[_rename(plain, config)].shape)
    return state, config


@pytest.mark.parametrize(
    "variant, classes, keys",
    [
        ("hcast_small", (13, 38, 200), 360),
        ("hcast_small", (17, 34), 358),
        ("hcast_small", (1000,), 356),
        ("hcast_small_deep", (13, 38, 200), 456),
    ],
)
def test_checkpoints_of_real_sizes_are_converted(variant, classes, keys):
    state, config = official_state(variant, classes)
    assert len(state) == keys
    converted_config, converted_state = convert_official(state, keep_last_pool=True)
    assert converted_config == config
    assert len(converted_state) == len(HCast(config, device="meta").state_dict())


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda s: s.pop("norm.weight"), "missing norm.weight"),
        (lambda s: s.pop("cls_token"), "no cls_token"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unknown keys, such as \\['extra'\\]"),
        (lambda s: s.update({"head.bias": torch.zeros(7)}), r"got \(7,\)"),
        (lambda s: s.update({"pool9.pool_block.fc1.0.bias": torch.zeros(7)}), "unknown keys"),
        (lambda s: s.update({"blocks1.0.norm1.weight": torch.zeros(48)}), "differs from blocks.0.norm1.weight"),
        (lambda s: s.update(note="text"), "other values at \\['note'\\]"),
        (lambda s: s.pop("head.weight"), "expected heads"),
    ],
)
def test_wrong_checkpoints_are_explained(golden, spoil, message):
    state = dict(golden[2])
    spoil(state)
    with pytest.raises(ValueError, match=message):
        convert_official(state, num_heads=3)


def test_read_checkpoint_takes_tensors_and_plain_values_only(golden, tmp_path):
    file = tmp_path / "best.pth"
    torch.save({"model": golden[2], "args": argparse.Namespace(lr=0.1), "epoch": 3}, file)
    assert len(convert_official(read_checkpoint(file), num_heads=3)[1]) > 100

    file.write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="tensors and plain values"):
        read_checkpoint(file)

    file.write_bytes(b"")
    with pytest.raises(ValueError, match="expected a checkpoint"):
        read_checkpoint(file)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "missing.pth")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout, tmp_path):
    torch.save(LAYOUTS[layout](), tmp_path / "file.pth")
    checkpoint = read_checkpoint(tmp_path / "file.pth")
    config, state = convert_official(checkpoint)
    heads = {k.split(".")[1] for k in state if k.startswith("heads.")}
    expected = {"H-CAST": "012", "CAST supervised": "0", "FreeGrainLearning": "012"}.get(layout, "")
    assert heads == set(expected) and (not heads) == (layout in HEADLESS)
    assert config.embed_dim == WIDTH and config.image_size == 224 and state["pos_embed"].shape == (1, 785, WIDTH)
    assert is_official(checkpoint)
    assert len(projection_head(checkpoint)) == (11 if layout == "CAST MoCo" else 0)


def test_moco_takes_the_base_encoder_and_not_its_average():
    state = LAYOUTS["CAST MoCo"]()
    assert torch.equal(convert_official(state)[1]["cls_token"], state["state_dict"]["module.base_encoder.cls_token"])


def test_moco_gives_the_authors_features(golden, images, segments):
    """The variants keep the class token's position in different places (read from cast.py); features must agree.

    There are no golden numbers of the MoCo variant's own code; these are the supervised variant's.
    """
    _, tensors, official = golden
    encoder = {k: v for k, v in official.items() if "head" not in k}
    encoder["pe_token"], encoder["pos_embed"] = encoder["pos_embed"][:, :1], encoder["pos_embed"][:, 1:]
    moco = {"state_dict": {f"module.base_encoder.{k}": v for k, v in encoder.items()}}
    config, state = convert_official(moco, num_heads=3)
    model = HCast(config).eval()
    model.load_state_dict(state, strict=False)

    with torch.no_grad():
        features = model(images, segments).level_features[0]
    np.testing.assert_allclose(features.numpy(), tensors["out4"], atol=1e-5)


@pytest.mark.parametrize(
    "row, column, channel", [(0, 0, 0), (3, 5, 0), (3, 5, 7), (27, 1, 13), (3, 5, 25), (9, 27, 40)]
)
def test_sine_cosine_positions_follow_the_formula(row, column, channel):
    table = sine_cosine_position(28, WIDTH).view(28, 28, WIDTH)
    quarter, index = divmod(channel, WIDTH // 4)
    angle = (row if quarter < 2 else column) / 10000 ** (index / (WIDTH // 4))
    expected = np.cos(angle) if quarter % 2 else np.sin(angle)
    assert float(table[row, column, channel]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda s: s.update({"module.extra": torch.ones(1)}), "not an official MoCo checkpoint: 1 unknown keys"),
        (lambda s: s.update({"module.base_encoder.extra": torch.ones(1)}), r"unknown keys, such as \['extra'\]"),
        (lambda s: s.pop("module.base_encoder.cls_token"), "no cls_token"),
        (lambda s: s.update({"module.base_encoder.pos_embed": torch.ones(1, 785, WIDTH)}), "pe_token beside pos_embed"),
    ],
)
def test_wrong_moco_files_are_explained(spoil, message):
    checkpoint = LAYOUTS["CAST MoCo"]()
    spoil(checkpoint["state_dict"])
    with pytest.raises(ValueError, match=message):
        convert_official(checkpoint)
