"""What the weights say of pictures that they were not made for; writes docs/limits.md.

pip install '.[benchmarks]' scikit-image
python benchmarks/limits.py --data emoji_art.parquet --limit 200 [--outside fashion_mnist.parquet]
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import skimage.data
import torch
from PIL import Image, ImageOps
from report import load_data, make_parser, provenance, table, write

from hcast_zoo import Prediction, Predictor
from hcast_zoo.data.pictures import read_picture
from hcast_zoo.segments.sheet import PANEL, compose_sheet
from hcast_zoo.weights.file import load_weights

THRESHOLDS = (0.5, 0.9)
PHOTOGRAPHS = (
    "astronaut",
    "camera",
    "cell",
    "chelsea",
    "coffee",
    "coins",
    "hubble_deep_field",
    "ihc",
    "moon",
    "motorcycle_left",
    "page",
    "retina",
    "rocket",
    "brick",
    "grass",
    "gravel",
    "text",
)
SHOWN = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field")  # in the public domain
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "in grey": lambda p: ImageOps.grayscale(p).convert("RGB"),
    "colours inverted": ImageOps.invert,
    "upside down": ImageOps.flip,
}


def draw_noise(count: int, seed: int = 0) -> Iterator[tuple[str, Image.Image]]:
    """Yield pictures of even noise, pixel by pixel and in blocks."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        side = 96 if number % 2 else 6
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        yield f"noise {number}", Image.fromarray(pixels).resize((96, 96), Image.Resampling.NEAREST)


def draw_plain(count: int, seed: int = 0) -> Iterator[tuple[str, Image.Image]]:
    """Yield pictures of one colour: white, black, then random ones."""
    rng = np.random.default_rng(seed)
    colours = [(255, 255, 255), (0, 0, 0), *map(tuple, rng.integers(0, 256, (count, 3)).tolist())]
    for number, colour in enumerate(colours[:count]):
        yield f"plain {number}", Image.new("RGB", (96, 96), colour)


def photographs() -> Iterator[tuple[str, Image.Image]]:
    """Yield the photographs that come with scikit-image."""
    folder = Path(skimage.data.__file__).parent
    for name in PHOTOGRAPHS:
        yield name, read_picture(next(folder.glob(f"{name}.*")))


def outside(file: Path, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Yield test pictures of another data set, spread over it."""
    rows = pq.read_table(file, filters=[("split", "=", "test")])["image"]
    for index in np.linspace(0, len(rows) - 1, count).astype(int):
        yield f"outside {index}", read_picture(rows[int(index)].as_py())


def measure(predictor: Predictor, pictures: list[Image.Image]) -> list[Prediction]:
    """Predict as a user does, from files."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.png" for number in range(len(pictures))]
        for file, picture in zip(files, pictures):
            picture.save(file)
        return list(predictor.predict(files))


def separation(inside: list[float], other: list[float]) -> float:
    """Return the chance that a random picture inside has a higher probability than a random other one, in percent."""
    a, b = torch.tensor(inside), torch.tensor(other)[:, None]
    return 100 * ((a > b).double() + (a == b).double() / 2).mean().item()


def row(
    name: str,
    predictor: Predictor,
    pictures: list[Image.Image],
    inside: list[float] | None,
    truth: list[tuple[str, ...]] | None,
) -> tuple[list[str], list[Prediction]]:
    """Return a row of the table, and the predictions."""
    whole = measure(predictor, pictures)
    probabilities = [p.path_probability for p in whole]
    cells = [
        name,
        str(len(whole)),
        f"{100 * np.mean(probabilities):.1f}",
        *(f"{100 * np.mean([p.probabilities[level] for p in whole]):.1f}" for level in range(3)),
    ]

    for threshold in THRESHOLDS:
        short = measure(predictor.with_settings(threshold=threshold), pictures)
        cells += [f"{100 * np.mean([len(p.path) >= depth for p in short]):.0f}" for depth in (1, 3)]

    cells.append("-" if inside is None else f"{separation(inside, probabilities):.0f}")
    cells.append("-" if truth is None else f"{100 * np.mean([p.path == t for p, t in zip(whole, truth)]):.0f}")
    return cells, whole


def main() -> None:
    """Measure and write."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--outside", type=Path, help="parquet file of another data set")
    args = parser.parse_args()
    weights = load_weights(args.model)
    predictor = Predictor(args.model)
    dataset = load_data(args, weights)
    dataset.transform = None
    known = [dataset[i] for i in range(len(dataset))]
    pictures = [picture.convert("RGB") for picture, _ in known]
    truth = [weights.taxonomy.path_names(labels.tolist()) for _, labels in known]
    first, whole = row("**EmojiArt, the artist never seen**", predictor, pictures, None, truth)
    rows, inside = [first], [p.path_probability for p in whole]
    for name, change in CHANGES.items():
        rows.append(row(f"the same, {name}", predictor, [change(p) for p in pictures], inside, truth)[0])
    photos = dict(photographs())
    cells, answers = row("photographs (scikit-image)", predictor, list(photos.values()), inside, None)
    rows.append(cells)
    others = {"noise": dict(draw_noise(50)), "one colour": dict(draw_plain(50))}
    if args.outside:
        others[f"{args.outside.stem}, split test"] = dict(outside(args.outside, 100))
    common = {}
    for name, items in others.items():
        cells, found = row(name, predictor, list(items.values()), inside, None)
        rows.append(cells)
        common[name] = Counter(" > ".join(p.path) for p in found).most_common(3)

    shown = {name: (photos[name], answers[PHOTOGRAPHS.index(name)]) for name in SHOWN}
    for name, items in (("noise", others["noise"]), ("plain white", others["one colour"])):
        picture = next(iter(items.values()))
        shown[name] = (picture, measure(predictor, [picture])[0])

    draw(shown).save(args.docs / "images/limits.png", optimize=True)
    text = (
        Path(__file__)
        .with_name("limits.md.in")
        .read_text()
        .replace("{provenance}", provenance(args, weights, len(pictures)))
        .replace(
            "{table}",
            table(
                [
                    "pictures",
                    "number",
                    "path",
                    *weights.taxonomy.levels,
                    *(f"{t:g}: {what}" for t in THRESHOLDS for what in ("any", "emoji")),
                    "told apart",
                    "right",
                ],
                rows,
            ),
        )
        .replace(
            "{common}",
            "\n".join(
                f"- {name}: " + "; ".join(f"{path} ({count})" for path, count in found)
                for name, found in common.items()
            ),
        )
    )
    write(args.docs, "limits.md", text)
    print(json.dumps(common))


def draw(shown: dict[str, tuple[Image.Image, Prediction]]) -> Image.Image:
    """Set pictures side by side, each with its answer below."""
    panel = (PANEL, PANEL)
    return compose_sheet(
        [
            [(ImageOps.fit(picture, panel), [name, *answer.path, f"path {answer.path_probability:.0%}"])]
            for name, (picture, answer) in shown.items()
        ]
    )


if __name__ == "__main__":
    main()
