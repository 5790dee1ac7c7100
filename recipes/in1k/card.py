"""Measure the packaged weights on held-out pictures, and write their card.

    python recipes/in1k/card.py --shards runs/in1k/shards --teacher efficientnet-lite0-57934424.pth

Run it after ``recipes/ship_weights.py``, which puts the weights and their facts into the package.
"""

import argparse
import os
from pathlib import Path

import torch
from measure import encodings, measure_gates, read_heads
from shards import load
from teacher import Teacher
from torch import Tensor

from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.paper.trees import load_tree
from hcast_zoo.sharing.model_card import Evaluation, code_version, record_evaluation
from hcast_zoo.taxonomy.decode import DECODERS, decode
from hcast_zoo.weights.file import build_model, checksum, load_weights

NAME = "hcast_lite.in1k"
CARD = Path(__file__).parents[2] / "model_cards" / f"{NAME}.md"
DATA = {
    "photograph": "crops of photographs, labelled by EfficientNet-Lite0",
    "composite": "cut-outs over photographs, labelled by EfficientNet-Lite0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True, help="folder of the run's cached superpixels")
    parser.add_argument("--teacher", type=Path, required=True, help="weights of EfficientNet-Lite0, .pth")
    args = parser.parse_args()

    teacher = Teacher(args.teacher, load_tree("imagenet"))
    weights = load_weights(NAME)
    model = build_model(weights)
    for part in ("fresh", "development"):
        for kind, name in DATA.items():
            data = load(sorted(args.shards.glob(f"{part}_{kind}_?.pt")))
            encoded = encodings(model, data)
            write(name, part, data, measure_decoders(read_heads(model, encoded), data, teacher))
            gates = {"leaf head and segments": measure_gates(model, data, encoded)}
            write(f"role of the segments: {name}", part, data, gates)


def measure_decoders(logits: tuple[Tensor, ...], data: dict, teacher: Teacher) -> dict[str, dict[str, float]]:
    """Return the metrics of each decoding; labels are the teacher's, rolled up the tree."""
    labels = torch.stack([level.argmax(-1) for level in teacher.roll_up(data["logits"])], 1)
    results = {}
    for mode in DECODERS:
        metrics = HierarchicalMetrics(teacher.taxonomy)
        metrics.update(decode(logits, teacher.taxonomy, mode).paths, labels)
        results[mode] = metrics.compute()
    return results


def write(name: str, part: str, data: dict, results: dict[str, dict[str, float]]) -> None:
    """Print results, and put them into the card and the file beside it."""
    print(name, part, results, flush=True)
    evaluation = Evaluation(
        sha256=checksum(NAME),
        data=name,
        split=part,
        pictures=len(data["area"]),
        results=results,
        command=f"python recipes/in1k/{os.path.basename(__file__)}",
        commit=code_version(),
    )
    record_evaluation(CARD, NAME, evaluation)


if __name__ == "__main__":
    main()
