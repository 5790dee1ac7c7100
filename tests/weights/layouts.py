"""Files as the authors publish them, in every layout, from the small official state of the fixtures."""

import argparse

import torch
from safetensors.torch import load_file

from tests.conftest import FIXTURES

WIDTH = 48


def official() -> dict[str, torch.Tensor]:
    """Return the official three-level state, each block twice, as real checkpoints have it."""
    state = load_file(FIXTURES / "tiny_3level_state.safetensors")
    blocks = {k: v for k, v in state.items() if k.startswith("blocks.")}
    twice = {f"blocks{int(k.split('.')[1]) + 1}.{k.removeprefix('blocks.')}": v for k, v in blocks.items()}
    return {**state, **twice}


def sine_cosine_position(grid: int, dim: int, temperature: float = 10000.0) -> torch.Tensor:
    """Return MoCo's fixed position embedding as a (1, grid * grid, dim) float32 table, row by row.

    Sine and cosine of the row, and sine and cosine of the column, take a quarter of the channels each, at wavelengths
    from 2 pi to 2 pi * temperature cells.

    Source: MoCo v3's 2-D sine-cosine embedding, by its formula.
    """
    frequency = temperature ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency  # [grid, dim / 4]
    rows = angle[:, None].expand(grid, grid, -1)
    columns = angle[None].expand(grid, grid, -1)
    table = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], -1)
    return table.flatten(0, 1)[None].float()


def encoder() -> dict[str, torch.Tensor]:
    """Return the self-supervised variant's encoder: no head, positions of sine and cosine, and ``pe_token``."""
    state = {k: v for k, v in official().items() if "head" not in k}
    state["pos_embed"] = sine_cosine_position(28, WIDTH)
    state["pe_token"] = torch.zeros(1, 1, WIDTH)
    return state


def hcast() -> dict:
    return {"model": official(), "optimizer": {}, "lr_scheduler": {}, "epoch": 99, "args": argparse.Namespace(lr=1.0)}


def supervised() -> dict:
    state = {k: v for k, v in official().items() if k.split(".")[0] not in ("head", "family_head", "manufacturer_head")}
    generator = torch.Generator().manual_seed(1)
    head = {"head.weight": torch.randn(1000, WIDTH, generator=generator), "head.bias": torch.zeros(1000)}
    return {"model": {**state, **head}, "model_ema": {}, "epoch": 299, "args": argparse.Namespace(lr=1.0)}


def moco() -> dict:
    head = {f"head.{i}.weight": torch.ones(64, WIDTH if i == 0 else 64) for i in (0, 3, 6)}
    for i in (1, 4):
        head |= {f"head.{i}.{name}": torch.ones(64) for name in ("weight", "bias", "running_mean", "running_var")}
    state = {f"module.base_encoder.{k}": v for k, v in {**encoder(), **head}.items()}
    state |= {f"module.momentum_encoder.{k}": v + 1 for k, v in encoder().items()}
    state["module.predictor.0.weight"] = torch.ones(64, 64)
    return {"epoch": 100, "arch": "cast_small", "state_dict": state, "optimizer": {}, "scaler": {}}


def deit() -> dict:
    return {"model": encoder()}


def free_grain() -> dict:
    captions = {"feats_layer.weight": torch.ones(512, WIDTH), "feats_layer.bias": torch.ones(512)}
    return {"model": {**official(), **captions}, "accuracy": 63.2, "args": argparse.Namespace(lr=1.0)}


LAYOUTS = {
    "H-CAST": hcast,
    "CAST supervised": supervised,
    "CAST MoCo": moco,
    "convert_to_deit.py": deit,
    "FreeGrainLearning": free_grain,
}
HEADLESS = ("CAST MoCo", "convert_to_deit.py")
