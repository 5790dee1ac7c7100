"""Load weights through every interface and compare with the core; prints a JSON table of largest differences.

    python tests/weights/layout_interfaces.py FOLDER PICTURE '[["row", "name of weights"], ["row", "file", "source"]]'

It runs as a process because huggingface_hub reads the Hub's address on import. With a source, ``convert`` first makes
the file from it.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import mmpretrain.models  # noqa: F401
import timm
import torch
from mmpretrain.registry import MODELS
from transformers import AutoModel, AutoModelForImageClassification

from hcast_zoo.cli import main
from hcast_zoo.weights.file import is_headless, load_model, load_weights


def gap(tensors, expected) -> float:
    """Return the largest difference between two lists of tensors of the same length."""
    assert len(tensors) == len(expected) > 0
    return max(float((a - b).abs().max()) for a, b in zip(tensors, expected, strict=True))


def command(*words: str) -> str:
    """Run the command line; return "ok", or its message."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = main(list(words))
    return "ok" if code == 0 else errors.getvalue().strip().splitlines()[-1]


def through_timm(name: str, from_tag: bool) -> torch.nn.Module:
    """Build from the tag alone; from a file, with the fields of its architecture."""
    if from_tag:
        return timm.create_model(name, pretrained=True).eval()
    weights = load_weights(name)
    headless = is_headless(weights)
    fields = {} if headless else {"level_classes": weights.config.level_classes}
    overlay = {"file": name, "num_classes": 0 if headless else weights.config.level_classes[-1]}
    names = ("embed_dim", "depths", "num_superpixels", "num_clusters")
    fields |= {field: getattr(weights.config, field) for field in names}
    fields["img_size"] = weights.config.image_size
    return timm.create_model("hcast_small", pretrained=True, pretrained_cfg_overlay=overlay, **fields).eval()


@torch.no_grad()
def compare_interfaces(images: torch.Tensor, folder: Path, picture: str, name: str, source: str | None = None) -> dict:
    """Return for each interface the largest difference from the core, or its error message."""
    row: dict = {}
    if source:
        row["convert"] = command("convert", source, name)
    weights = load_weights(name)
    output = load_model(name)(images)
    headless = is_headless(weights)
    expected = output.level_features if headless else output.level_logits
    row["load_model"] = "ok"
    row["predict"] = command("predict", picture, "--model", name)

    model = through_timm(name, source is None)
    row["timm"] = gap([model(images)] if headless else model.forward_levels(images), expected)

    repository = folder / f"{Path(name).name}_repository"
    assert command("publish", name, "--repo", "me/copy", "--dry-run", "--output", str(repository)) == "ok"
    loader = AutoModel if headless else AutoModelForImageClassification
    copy = loader.from_pretrained(repository).eval()(images)
    row["transformers"] = gap(copy.level_features if headless else copy.level_logits, expected)

    checkpoint = f"hcast-zoo://{name}" if source is None else name
    start = dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone.")
    backbone = MODELS.build(dict(type="HCast", arch=name, out_indices=3, init_cfg=start))
    backbone.init_weights()
    row["mmpretrain"] = gap(backbone.eval()(images), output.level_features[:1])  # the coarsest level reads stage 4
    return row


if __name__ == "__main__":
    torch.manual_seed(0)
    pictures = torch.randn(2, 3, 224, 224)
    lines = json.loads(sys.argv[3])
    print(
        json.dumps({line[0]: compare_interfaces(pictures, Path(sys.argv[1]), sys.argv[2], *line[1:]) for line in lines})
    )
