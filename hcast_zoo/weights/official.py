"""Convert official H-CAST and CAST checkpoints."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from ..common.files import check_file
from ..common.text import clip
from ..network.config import NUM_STAGES, HCastConfig
from ..network.model import HCast

# Heads of the official models, coarse to fine; `head` is always the finest.
OFFICIAL_HEADS = ("manufacturer_head", "family_head", "head")
STEM_LAYERS = {
    0: "0.conv",
    1: "0.norm",
    3: "1.conv",
    4: "1.norm",
    6: "2.conv",
    7: "2.norm",
    9: "3.conv",
    10: "3.norm",
    12: "4",
}
MOCO_ENCODER = "base_encoder."
PROJECTION_HEAD = re.compile(r"head\.\d+\.")  # MoCo's: three linear layers, with batch norms between them
CAPTION_LAYER = ("feats_layer.weight", "feats_layer.bias")


def convert_official(
    state_dict: dict[str, Tensor], *, keep_last_pool: bool = False, **overrides
) -> tuple[HCastConfig, dict[str, Tensor]]:
    """Convert the state dict of an official H-CAST or CAST model to our config and state dict.

    Accepted are:

    - H-CAST with two or three levels, and flat CAST with one;
    - self-supervised CAST, without a head: ``module.base_encoder.*`` of MoCo v3, and the output of CAST's
      ``convert_to_deit.py``. MoCo's momentum encoder, predictor and projection head are left out;
    - FreeGrainLearning's H-CAST. Its ``feats_layer`` for captions reaches no logit and is left out.

    The tensors may be wrapped in ``model`` or ``state_dict``, and have the prefix ``module.``. Official checkpoints
    repeat their blocks under the aliases ``blocks1.*`` to ``blocks4.*``, which give the depth of each stage; without
    the aliases, 11 blocks are taken as 3+3+3+2, 15 as 6+3+3+3 and 4 as 1+1+1+1.

    Args:
        state_dict: Tensors by their official names.
        keep_last_pool: Keep the fourth graph pooling, which reaches no logit.
        overrides: Config fields that a state dict does not determine: ``num_heads``, ``num_superpixels``,
            ``num_clusters``.

    Returns:
        The config and a state dict that loads strictly into ``HCast(config)``; without ``heads.*`` if the checkpoint
        has no classifier head (the config's one level is then a placeholder).

    Raises:
        ValueError: if keys are missing or unexpected, or a shape differs; the message lists them.
    """
    state = _join_position(_leave_out(_unwrap(state_dict)))
    aliases, state = _split_aliases(state)
    config = _read_config(state, aliases, keep_last_pool, overrides)

    converted, unknown = {}, []
    for key, value in state.items():
        name = _rename(key, config)
        if name is None:
            unknown.append(key)
        elif name:
            converted[name] = value

    if unknown:
        raise ValueError(f"not an official H-CAST checkpoint: {len(unknown)} unknown keys, such as {unknown[:5]}")

    expected = {k: v.shape for k, v in HCast(config, device="meta").state_dict().items()}
    if not any(k in converted for k in expected if k.startswith("heads.")):
        expected = {k: v for k, v in expected.items() if not k.startswith("heads.")}

    problems = [f"missing {k}" for k in expected if k not in converted]
    for key, tensor in converted.items():
        if key not in expected:
            problems.append(f"left over {key}")
        elif expected[key] != tensor.shape:
            problems.append(f"{key}: expected {tuple(expected[key])}, got {tuple(tensor.shape)}")

    if problems:
        raise ValueError(f"checkpoint does not fit {len(expected)} expected tensors: " + "; ".join(problems[:8]))

    return config, converted


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """Read a checkpoint file into a state dict; a pickle is read with ``weights_only=True``, so it runs no code.

    Raises:
        ValueError: if the file holds anything but tensors and plain values.
    """
    check_file(path)
    if str(path).endswith(".safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: expected a complete safetensors file: {clip(error)}") from error

    import argparse

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # official files contain training arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: expected a checkpoint of tensors and plain values: {clip(error)}") from error


def is_official(state_dict: dict) -> bool:
    """Return whether a state dict has the official parameter names."""
    try:
        return "patch_embed.proj.0.weight" in _unwrap(state_dict)
    except ValueError:
        return False


def projection_head(state_dict: dict) -> dict[str, Tensor]:
    """Return MoCo's projection head, ``head.{0,3,6}.weight`` and the batch norms between; empty if there is none."""
    return {k: v for k, v in _unwrap(state_dict).items() if PROJECTION_HEAD.match(k)}


def _unwrap(state_dict: dict) -> dict[str, Tensor]:
    """Return the tensors of one network: for MoCo, which has three, those of the base encoder."""
    for key in ("model", "state_dict"):
        if isinstance(state_dict.get(key), dict):
            state_dict = state_dict[key]

    state = {str(k).removeprefix("module."): v for k, v in state_dict.items()}

    encoder, others = {}, []
    for key, value in state.items():
        if key.startswith(MOCO_ENCODER):
            encoder[key.removeprefix(MOCO_ENCODER)] = value
        elif not key.startswith(("momentum_encoder.", "predictor.")):
            others.append(key)

    if encoder and others:
        raise ValueError(f"not an official MoCo checkpoint: {len(others)} unknown keys, such as {others[:5]}")

    state = encoder or state
    if wrong := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"expected a state dict of tensors, got other values at {wrong[:5]}")

    return state


def _leave_out(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out tensors that reach no logit: MoCo's projection head, and FreeGrainLearning's layer for captions."""
    return {k: v for k, v in state.items() if not PROJECTION_HEAD.match(k) and k not in CAPTION_LAYER}


def _join_position(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the class row to a position embedding that lacks it: the MoCo variant stores it separately, as ``pe_token``.

    Source: CAST's cast_models/cast.py, build_2d_sincos_position_embedding and forward_features.
    """
    position, token = state.get("pos_embed"), state.get("pe_token")
    if position is None or position.ndim != 3:
        return state

    state = {k: v for k, v in state.items() if k != "pe_token"}
    count = position.shape[1]
    if round(count**0.5) ** 2 == count:  # a square grid, so there is no class row
        row = position.new_zeros(1, 1, position.shape[2]) if token is None else token
        state["pos_embed"] = torch.cat([row, position], 1)
    elif token is not None:
        raise ValueError(f"pe_token beside pos_embed {tuple(position.shape)}: expected positions of a square grid")

    return state


def _split_aliases(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Separate ``blocks{1..4}.N.*`` from the rest, checking that they repeat ``blocks.N.*``."""
    aliases = {k: v for k, v in state.items() if re.match(r"blocks[1-4]\.", k)}
    rest = {k: v for k, v in state.items() if k not in aliases}
    for key, value in aliases.items():
        original = re.sub(r"^blocks[1-4]\.", "blocks.", key)
        if original not in rest:
            rest[original] = value
        elif rest[original].shape != value.shape or not torch.equal(rest[original], value):
            raise ValueError(f"{key} differs from {original}: expected the same tensor")

    return aliases, rest


def _read_config(state: dict, aliases: dict, keep_last_pool: bool, overrides: dict) -> HCastConfig:
    try:
        dim, in_chans = state["cls_token"].shape[-1], state["patch_embed.proj.0.weight"].shape[1]
        grid = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    except KeyError as error:
        raise ValueError(f"not an official H-CAST checkpoint: no {error.args[0]}") from error

    heads = [h for h in OFFICIAL_HEADS if f"{h}.weight" in state]
    headless = not any(k.startswith(OFFICIAL_HEADS) for k in state)
    if not headless and (heads[-1:] != ["head"] or ("manufacturer_head" in heads and "family_head" not in heads)):
        raise ValueError(f"expected heads head, family_head and manufacturer_head in this order, got {heads}")

    fields = dict(
        level_classes=tuple(state[f"{h}.weight"].shape[0] for h in heads) or (1,),
        image_size=grid * 8,
        in_chans=in_chans,
        embed_dim=dim,
        depths=_read_depths(state, aliases),
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / dim,
        last_pool=keep_last_pool,
    )

    return HCastConfig(**{**fields, **overrides})


def _read_depths(state: dict, aliases: dict) -> tuple[int, ...]:
    if aliases:
        return tuple(_count_blocks(aliases, f"blocks{stage}.") for stage in range(1, 5))

    count = _count_blocks(state, "blocks.")
    known = {11: (3, 3, 3, 2), 15: (6, 3, 3, 3), 4: (1, 1, 1, 1)}
    if count not in known:
        raise ValueError(f"cannot tell the depths of {count} blocks without the keys blocks1.* to blocks4.*")
    return known[count]


def _count_blocks(keys: Iterable[str], prefix: str) -> int:
    return len({key.split(".")[1] for key in keys if key.startswith(prefix)})


def _rename(key: str, config: HCastConfig) -> str | None:
    """Return our name of an official key, "" if it is dropped, None if it is unknown."""
    if key in ("cls_token", "pos_embed", "norm.weight", "norm.bias"):
        return key

    if match := re.fullmatch(r"patch_embed\.proj\.(\d+)\.(.+)", key):
        layer = STEM_LAYERS.get(int(match[1]))
        return layer and f"stem.{layer}.{match[2]}"

    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
        index = int(match[1])
        for stage, depth in enumerate(config.depths):
            if index < depth:
                return f"stages.{stage}.blocks.{index}.{match[2]}"
            index -= depth
        return None

    if match := re.fullmatch(r"pool([1-4])\.pool_block\.(.+)", key):
        dropped = int(match[1]) == NUM_STAGES and not config.last_pool
        return "" if dropped else f"stages.{int(match[1]) - 1}.pool.{match[2]}"

    if match := re.fullmatch(r"(\w*head)\.(weight|bias)", key):
        heads = OFFICIAL_HEADS[-len(config.level_classes) :]
        return f"heads.{heads.index(match[1])}.{match[2]}" if match[1] in heads else None

    return None
