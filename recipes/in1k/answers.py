"""Measure the packaged photograph weights on a few pictures with true labels, and show answers on their card.

    python recipes/cut_outs.py --emoji emoji_art/emoji_art.parquet --imagenet --artists twemoji --output drawings
    python recipes/in1k/answers.py --drawings drawings

The pictures may be shipped, and nothing was trained on them: the package's two photographs (CC0), and the drawings of
Twemoji (CC-BY-4.0) whose names are ImageNet's, on white. The demo page goes on to offer the photographs alone, because
photographs are what the weights are for.
"""

import argparse
from importlib import resources
from pathlib import Path

from card import CARD, NAME

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.evaluate import measure
from hcast_zoo.sharing.answer_sheet import answer_sheet, save_beside
from hcast_zoo.sharing.model_card import Evaluation, code_version, record_evaluation
from hcast_zoo.taxonomy.decode import DECODERS
from hcast_zoo.weights.file import build_model, checksum, load_weights

CREDIT = (
    "Chelsea by Stefan van der Walt, a cup at Pikolo Espresso Bar by Rachel Michetti (CC0); Twemoji, (c) Twitter and "
    "contributors, github.com/jdecked/twemoji (CC-BY-4.0)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drawings", type=Path, required=True, help="folder of recipes/cut_outs.py")
    args = parser.parse_args()
    weights = load_weights(NAME)

    photographs = sorted(Path(str(resources.files("hcast_zoo.pictures"))).glob("*.jpg"))
    drawings = sorted(args.drawings.rglob("*.png"))
    names = [*(file.stem for file in photographs), *(file.parent.name for file in drawings)]
    dataset = HierarchicalDataset(
        [*photographs, *drawings],
        [(None, None, name) for name in names],
        weights.taxonomy,
        transform=eval_transform(weights.config),
    )

    measured = measure(build_model(weights), dataset, tuple(DECODERS), weights.calibration)
    sheet = answer_sheet(measured, "best_path", dataset, weights.config)
    evaluation = Evaluation(
        sha256=checksum(NAME),
        data=f"true labels: {len(photographs)} photographs, {len(drawings)} drawings on white",
        split=None,
        pictures=measured.pictures,
        results=measured.results,
        command="python recipes/in1k/answers.py",
        commit=code_version(),
        pictures_file=save_beside(CARD, f"{NAME}.answers.jpg", sheet),
        credit=CREDIT,
    )
    record_evaluation(CARD, NAME, evaluation)
    print(measured.results)


if __name__ == "__main__":
    main()
