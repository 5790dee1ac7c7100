"""What the weights predict for pictures that they were not made for; writes docs/limits.md from limits.md.in.

pip install '.[benchmarks]' scikit-image
python benchmarks/limits.py --data emoji_art.parquet --limit 200 --outside fashion_mnist.parquet
"""

import json
import tempfile
import textwrap
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
    """Yield pictures of uniform noise, pixel by pixel and in blocks."""
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
    """Yield test pictures of another data set, evenly spaced."""
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
    """Return a row of the table, and the predictions.

    Args:
        name: First cell.
        predictor: Of the weights.
        pictures: To predict.
        inside: Probabilities of the paths of pictures that the weights know, to compare with.
        truth: Paths, if there are true labels.
    """
    answers = measure(predictor, pictures)
    probabilities = [answer.path_probability for answer in answers]
    of_levels = np.mean([answer.probabilities for answer in answers], 0)
    cells = [name, str(len(answers)), f"{100 * np.mean(probabilities):.1f}"]
    cells += [f"{100 * probability:.1f}" for probability in of_levels]

    for threshold in THRESHOLDS:
        backed_off = measure(predictor.with_settings(threshold=threshold), pictures)
        depths = np.array([len(answer.path) for answer in backed_off])
        cells += [f"{100 * np.mean(depths >= depth):.0f}" for depth in (1, 3)]

    cells.append("-" if inside is None else f"{separation(inside, probabilities):.0f}")
    if truth is None:
        cells.append("-")
    else:
        cells.append(f"{100 * np.mean([answer.path == path for answer, path in zip(answers, truth)]):.0f}")
    return cells, answers


def main() -> None:
    """Measure and write."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--outside", type=Path, help="parquet file of another data set")
    args = parser.parse_args()

    weights = load_weights(args.model)
    predictor = Predictor(args.model)
    dataset = load_data(args, weights)
    dataset.transform = None
    pictures, truth = [], []
    for index in range(len(dataset)):
        picture, labels = dataset[index]
        pictures.append(picture.convert("RGB"))
        truth.append(weights.taxonomy.path_names(labels.tolist()))

    first, known = row("**EmojiArt, the artist never seen**", predictor, pictures, None, truth)
    rows, inside = [first], [answer.path_probability for answer in known]
    for name, change in CHANGES.items():
        changed = [change(picture) for picture in pictures]
        rows.append(row(f"the same, {name}", predictor, changed, inside, truth)[0])

    photos = dict(photographs())
    cells, photo_answers = row("photographs (scikit-image)", predictor, list(photos.values()), inside, None)
    rows.append(cells)

    others = {"noise": dict(draw_noise(50)), "one colour": dict(draw_plain(50))}
    if args.outside:
        others[f"{args.outside.stem}, split test"] = dict(outside(args.outside, 100))
    common = {}
    for name, items in others.items():
        cells, answers = row(name, predictor, list(items.values()), inside, None)
        rows.append(cells)
        common[name] = Counter(" > ".join(answer.path) for answer in answers).most_common(3)

    shown = {name: (photos[name], photo_answers[PHOTOGRAPHS.index(name)]) for name in SHOWN}
    for name, items in (("noise", others["noise"]), ("plain white", others["one colour"])):
        picture = next(iter(items.values()))
        shown[name] = (picture, measure(predictor, [picture])[0])
    draw(shown).save(args.docs / "images/limits.png", optimize=True)

    header = ["pictures", "number", "path", *weights.taxonomy.levels]
    for threshold in THRESHOLDS:
        header += [f"{threshold:g}: any", f"{threshold:g}: emoji"]
    text = Path(__file__).with_name("limits.md.in").read_text()
    text = text.replace("{provenance}", provenance(args, weights, len(pictures)))
    text = text.replace("{table}", table([*header, "told apart", "right"], rows))
    text = text.replace("{common}", "\n".join(common_lines(common)))
    write(args.docs, "limits.md", text)
    print(json.dumps(common))


def common_lines(common: dict[str, list[tuple[str, int]]]) -> Iterator[str]:
    """Yield a list item for each kind of pictures: its most frequent answers, and how often they are given."""
    for name, answers in common.items():
        listed = "; ".join(f"{path} ({count})" for path, count in answers)
        yield textwrap.fill(f"- {name}: {listed}", 120, subsequent_indent="  ")


def draw(shown: dict[str, tuple[Image.Image, Prediction]]) -> Image.Image:
    """Set pictures side by side, each with its answer below."""
    columns = []
    for name, (picture, answer) in shown.items():
        caption = [name, *answer.path, f"path {answer.path_probability:.0%}"]
        columns.append([(ImageOps.fit(picture, (PANEL, PANEL)), caption)])
    return compose_sheet(columns)


if __name__ == "__main__":
    main()
