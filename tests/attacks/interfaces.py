"""Readers for `fuzz.py` of configs by every interface: core, timm, transformers, its image processor, mmpretrain."""

import json
import random
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from tests.attacks.mutations import HOSTILE, mutate_plain
from tests.attacks.readers import Reader, expect

TINY = HCastConfig(
    level_classes=(2, 4),
    image_size=32,
    embed_dim=24,
    depths=(1, 1, 1, 1),
    num_heads=3,
    pool_heads=3,
    num_superpixels=16,
    num_clusters=(8, 4, 2, 2),
    superpixels="grid",
).to_dict()
LARGE = (0.05, 1, 7, 64, 100, 255, 1024, 4096, 8000, 65536, 10**8, 10**12)
FIELDS = (
    "size",
    "crop_size",
    "num_superpixels",
    "superpixels",
    "image_mean",
    "image_std",
    "resample",
    "crop_mode",
    "crop_pct",
)


def mutate(fields: dict, rng: random.Random) -> dict:
    """Return the fields with some values replaced by large or hostile ones."""
    changed = json.loads(json.dumps(fields))
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(list(fields))
        if name not in changed:
            continue
        kind = rng.randrange(4)
        if kind == 0:
            changed[name] = rng.choice(HOSTILE)
        elif isinstance(changed[name], list) and kind == 1 and changed[name]:
            changed[name][rng.randrange(len(changed[name]))] = rng.choice(LARGE)
        elif isinstance(changed[name], list):
            changed[name] = [rng.choice(LARGE)] * len(changed[name])
        elif isinstance(changed[name], bool) or not isinstance(changed[name], int | float):
            changed = mutate_plain(changed, rng)
            changed = changed if isinstance(changed, dict) else dict(fields)
        else:
            changed[name] = rng.choice(LARGE)
    return changed


class Configs(Reader):
    """Fields of the core's config."""

    what, clear = "configs: core", (ValueError,)

    def make(self, rng: random.Random) -> dict:
        return mutate(TINY, rng)

    def read(self, source: dict) -> None:
        config = HCastConfig.from_dict(source)
        self.run_model(HCast(config).eval(), config)

    def run_model(self, model: torch.nn.Module, config) -> None:
        """Run the model on one image of its input size."""
        side = config.image_size
        with torch.inference_mode():
            output = model(torch.zeros(1, config.in_chans, side, side))
        logits = getattr(output, "level_logits", None)
        if logits is None:
            logits = getattr(output, "logits", output)
        logits = [logits] if isinstance(logits, torch.Tensor) else list(logits)
        expect(all(len(x) == 1 for x in logits), "an answer for one picture")

    def warm(self) -> None:
        self.read(dict(TINY))


class Timm(Configs):
    """Arguments of ``timm.create_model``."""

    what, foreign = "configs: timm", True
    clear = (ValueError, AssertionError, TypeError)

    def read(self, source: dict) -> None:
        import timm

        fields = dict(source)
        size, channels = fields.pop("image_size", 32), fields.pop("in_chans", 3)
        overlay = {k: fields.pop(k) for k in ("mean", "std", "interpolation", "crop_pct", "crop_mode") if k in fields}
        model = timm.create_model(
            "hcast_tiny", img_size=size, in_chans=channels, pretrained_cfg_overlay=overlay, **fields
        ).eval()
        self.run_model(model, model.config)


class Transformers(Configs):
    """A ``config.json`` read by transformers."""

    what, foreign = "configs: transformers", True

    def __init__(self, folder: Path):
        super().__init__(folder)
        from huggingface_hub.errors import StrictDataclassError

        self.clear = (ValueError, StrictDataclassError)

    def read(self, source: dict) -> None:
        from transformers import AutoConfig, AutoModelForImageClassification

        (self.folder / "config.json").write_text(json.dumps({"model_type": "hcast", **source}))
        config = AutoConfig.from_pretrained(self.folder)
        self.run_model(AutoModelForImageClassification.from_config(config).eval(), config)


class Processor(Configs):
    """A ``preprocessor_config.json`` read by transformers."""

    what, foreign = "configs: image processor", True

    def __init__(self, folder: Path):
        super().__init__(folder)
        from hcast_zoo.integrations.transformers import HCastImageProcessorPil

        self.good = json.loads(HCastImageProcessorPil.from_core(HCastConfig.from_dict(TINY)).to_json_string())
        self.kind = HCastImageProcessorPil
        self.picture = Image.fromarray(np.zeros((30, 40, 3), np.uint8))

    def make(self, rng: random.Random) -> dict:
        changed = json.loads(json.dumps(self.good))
        for _ in range(rng.choice((1, 1, 2))):
            field = rng.choice(FIELDS)
            value = changed.get(field)
            if field.startswith("crop_") and rng.random() < 0.5:
                changed["crop_mode"] = rng.choice(("pad", "squash", "center"))
            if field == "superpixels":
                changed[field] = rng.choice(("grid", "slic", "seeds", "none", *LARGE))
            elif isinstance(value, dict):
                value[rng.choice(list(value))] = rng.choice(LARGE)
            elif isinstance(value, list):
                changed[field] = [rng.choice(LARGE)] * len(value)
            else:
                changed[field] = rng.choice(LARGE)
        return {**changed, "return_segments": rng.random() < 0.5}

    def read(self, source: dict) -> None:
        (self.folder / "preprocessor_config.json").write_text(json.dumps(source))
        batch = self.kind.from_pretrained(self.folder)(self.picture, return_tensors="pt")
        expect(len(batch["pixel_values"]) == 1, "one picture")

    def warm(self) -> None:
        self.read(self.good)


class Mmpretrain(Configs):
    """A backbone's ``arch`` in a config of mmpretrain."""

    what = "configs: mmpretrain"

    def read(self, source: dict) -> None:
        from hcast_zoo.integrations.mmpretrain.backbone import HCast as Backbone

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = Backbone(source).eval()
        self.run_model(model, model.config)


INTERFACES: dict[str, type[Configs]] = {
    "core": Configs,
    "timm": Timm,
    "transformers": Transformers,
    "processor": Processor,
    "mmpretrain": Mmpretrain,
}
