"""Put the weights of a run into the package, with the facts for their card.

    python recipes/ship_weights.py runs/emoji/best.safetensors hcast_small.emoji_art --training "From scratch, ..."

The facts (license, description, limits, data, attribution) are read from ``recipes/NAME.json``. Then measure the card:

    hcast-zoo evaluate --model NAME --data emoji_art.parquet --split test --card model_cards/NAME.md
"""

import argparse
import json
from pathlib import Path

import torch

from hcast_zoo.common.files import sha256
from hcast_zoo.weights.file import load_weights, packaged_weights, save_weights
from hcast_zoo.weights.header import SHIPPED, SHIPPED_INDEX


def save_header(file: Path) -> None:
    """Write a file's metadata, without its tensors, into ``headers/``; the wheel has this in place of the file."""
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = json.dumps({"__metadata__": header["__metadata__"]}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    (SHIPPED / "headers").mkdir(exist_ok=True)
    (SHIPPED / "headers" / file.name).write_bytes(len(text).to_bytes(8, "little") + text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="weights of a run")
    parser.add_argument("name", help="VARIANT.DATASET")
    parser.add_argument("--training", required=True, help="how they were trained, a sentence or two")
    args = parser.parse_args()

    weights = load_weights(args.source)
    facts = json.loads((Path(__file__).parent / f"{args.name}.json").read_text(encoding="utf-8"))
    weights.metadata = {"name": args.name, "training": args.training, **facts}
    file = SHIPPED / f"{args.name}.safetensors"
    save_weights(weights, file, torch.float16)
    save_header(file)

    levels = " > ".join(map(str, weights.config.level_classes))
    description = f"{weights.taxonomy.name}: levels {levels}, {weights.config.image_size} pixels; {facts['license']}"
    entry = {"file": file.name, "sha256": sha256(file), "description": description}
    index = {**packaged_weights(), args.name: entry}

    # The first weights of a variant are its default.
    SHIPPED_INDEX.write_text(json.dumps(dict(sorted(index.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
