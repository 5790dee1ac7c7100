"""Put the weights of a run into the package, with the facts that their card tells.

    python recipes/ship_weights.py runs/emoji/best.safetensors hcast_small.emoji_art --training "From scratch, ..."

Facts (license, description, limits, data, attribution) are read from ``recipes/NAME.json``. Then measure the card:

    hcast-zoo evaluate --model NAME --data emoji_art.parquet --split test --card model_cards/NAME.md
"""

import argparse
import json
from pathlib import Path

import torch

from hcast_zoo.common.files import sha256
from hcast_zoo.weights import file as weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="weights of a run")
    parser.add_argument("name", help="VARIANT.DATASET")
    parser.add_argument("--training", required=True, help="how they were trained, a sentence or two")
    args = parser.parse_args()
    content = weights.load(args.source)
    facts = json.loads((Path(__file__).parent / f"{args.name}.json").read_text(encoding="utf-8"))
    content.metadata = {"name": args.name, "training": args.training, **facts}
    file = weights.FOLDER / f"{args.name}.safetensors"
    weights.save(content, file, torch.float16)
    index = {
        **weights.packaged(),
        args.name: {
            "file": file.name,
            "sha256": sha256(file),
            "description": f"{content.taxonomy.name}: levels {' > '.join(map(str, content.config.level_classes))}, "
            f"{content.config.image_size} pixels; {facts['license']}",
        },
    }

    # The first of a variant is its default.
    weights.INDEX.write_text(json.dumps(dict(sorted(index.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
