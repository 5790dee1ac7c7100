"""What timm reads from a repository on the Hub."""

import json
import tempfile
from pathlib import Path

import timm
from timm.models._hub import save_config_for_hf

from hcast_zoo.network.config import VARIANTS, HCastConfig
from hcast_zoo.weights.file import Weights

from .pretrained import MODEL_FIELDS, Source, describe_source


def hub_config(weights: Weights) -> dict:
    """Return the entries of ``config.json`` by which ``timm.create_model("hf-hub:org/name")`` builds the model.

    timm itself writes them, from a model on the meta device.
    """
    fields = {k: v for k, v in weights.config.to_dict().items() if k in MODEL_FIELDS}
    taxonomy = weights.taxonomy and weights.taxonomy.to_dict()
    cfg = describe_source(Source(weights.config, taxonomy))
    model = timm.create_model(
        variant_of(weights.config),
        pretrained_cfg=cfg,
        img_size=weights.config.image_size,
        in_chans=weights.config.in_chans,
        taxonomy=taxonomy,
        device="meta",
        **fields,
    )
    model.pretrained_cfg.pop("label_names", None)  # config.json has them as id2label

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        save_config_for_hf(model, str(file))
        return json.loads(file.read_text(encoding="utf-8"))


def variant_of(config: HCastConfig) -> str:
    """Return the variant with the same width, depths and heads, else ``hcast_small``, to be built with these."""
    for name in VARIANTS:
        variant = HCastConfig.from_variant(name)
        if all(getattr(variant, f) == getattr(config, f) for f in ("embed_dim", "depths", "num_heads")):
            return name
    return "hcast_small"
