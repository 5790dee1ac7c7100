"""Is the segmentation coherent where the full path is right, and fragmented where it is wrong?

    python benchmarks/fragmentation.py --data emoji_art.parquet

Writes docs/fragmentation.md and docs/images/fragmentation.png; with ``--page NAME.md``, that page and its picture.
benchmarks/focus.py says how the pictures of docs/fragmentation_photographs.md are drawn.
"""

import random
import textwrap
from pathlib import Path

import cv2
import numpy as np
import report
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from hcast_zoo import HCast, Taxonomy
from hcast_zoo.data.dataset import WHITE, HierarchicalDataset
from hcast_zoo.data.pictures import on_background
from hcast_zoo.segments.drawing import Segmentation, strip
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import UNKNOWN
from hcast_zoo.weights.file import build_model, load_weights

PANEL, LINE, GAP = 96, 18, 16  # pixels, in the gallery
MEASURES = {"boundary": +1, "compactness": -1, "scatter": +1}  # +1: higher is more fragmented

TEXT = """# Are correct predictions more coherent?

The paper shows examples in which correct predictions have coherent segments and wrong ones fragmented segments. Here we
measure it: {right} pictures are right at every level, {wrong} are not (decoded by `best_path`).

{provenance}
{table}
{verdict}

- *boundary*: percent of neighbouring pixel pairs (right and below) that lie in different segments.
- *compactness*: 4 pi A / P^2 of each segment, A its pixels and P its pixel edges towards other segments or the frame,
  averaged over pixels. A square has 0.79; a thin line or scattered pieces have nearly 0. Lower is more fragmented.
- *scatter*: percent of the pixels that lie outside the largest connected piece of their segment.

Stage 1 is the superpixels, which do not depend on the network. A difference there comes from the pictures (detailed
ones have more boundaries and are harder to classify), not from how the network groups them. *P(wrong > right)* is the
chance that a random wrong picture is more fragmented than a random right one, ties counted half: 0.5 means no
difference, 1 means always. The interval of the difference holds 95 % of 10,000 bootstrap samples of pictures.
{gallery}"""
GALLERY = """
![Right and wrong pictures with their segmentations](images/{image})

Left: right at every level. Right: wrong somewhere. Drawn at random with a fixed seed, not selected. Each row: the
picture, then what stages 1 to 4 see.
"""


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, default=Path("fragmentation.md"), help="name of the report (%(default)s)")
    parser.add_argument("--no-gallery", action="store_true", help="show no pictures, which not every licence allows")
    args = parser.parse_args()
    image = args.page.with_suffix(".png").name

    weights = load_weights(args.model)
    model = build_model(weights)
    dataset = report.load_data(args, weights)
    right, values, paths = measure(model, dataset, args.batch_size)
    if right.all() or not right.any():
        raise SystemExit(f"expected right and wrong pictures, got {right.sum()} right of {len(right)}")

    rng = np.random.default_rng(0)
    header = ["stage", "measure", "right", "wrong", "difference", "95 % interval", "P(wrong > right)"]
    rows, intervals = [], {}
    for stage in range(values.shape[1]):
        for index, (name, sign) in enumerate(MEASURES.items()):
            of_right, of_wrong = values[right, stage, index], values[~right, stage, index]
            low, high = bootstrap(of_right, of_wrong, rng)
            intervals[stage, name] = (low, high) if sign > 0 else (-high, -low)

            digits = 3 if name == "compactness" else 2
            means = of_right.mean(), of_wrong.mean(), of_wrong.mean() - of_right.mean()
            rows.append(
                [
                    stage + 1,
                    name,
                    *(f"{mean:.{digits}f}" for mean in means),
                    f"{low:.{digits}f} to {high:.{digits}f}",
                    f"{exceeds(sign * of_right, sign * of_wrong):.2f}",
                ]
            )

    pictures = ""
    if not args.no_gallery:
        pictures = GALLERY.format(image=image)
        (args.docs / "images").mkdir(parents=True, exist_ok=True)
        gallery(model, dataset, right, paths).save(args.docs / "images" / image, optimize=True)

    report.write(
        args.docs,
        args.page.name,
        TEXT.format(
            right=right.sum(),
            wrong=(~right).sum(),
            gallery=pictures,
            provenance=report.provenance(args, weights, len(dataset)),
            table=report.table(header, rows),
            verdict=verdict(intervals, values.shape[1]),
        ),
    )


@torch.inference_mode()
def measure(model: HCast, dataset: HierarchicalDataset, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (S,) bool whether the full path is right, (S, stages, measures) float, and (S, L) decoded paths."""
    right, values, paths = [], [], []
    for batch in tqdm(report.load_batches(dataset, model.config, batch_size), "measure"):
        output = model(batch["images"], batch["segments"])
        decoded = decode(output.level_logits, dataset.taxonomy).paths
        right.append(((decoded == batch["labels"]) | (batch["labels"] == UNKNOWN)).all(1))
        paths.append(decoded)

        stages = [output.segment_map(stage).numpy() for stage in range(1, len(output.assignments) + 2)]
        for maps in zip(*stages):
            values.append([fragmentation(labels) for labels in maps])

    return torch.cat(right).numpy(), np.array(values), torch.cat(paths).numpy()


def fragmentation(labels: np.ndarray) -> tuple[float, float, float]:
    """Return boundary (percent), compactness (in [0, 1]) and scatter (percent) of an (H, W) label map."""
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    boundary = 100 * (across.sum() + down.sum()) / (across.size + down.size)

    edges = np.zeros(labels.shape, int)  # of each pixel, towards another segment or the frame
    for different, first, second in ((across, np.s_[:, :-1], np.s_[:, 1:]), (down, np.s_[:-1], np.s_[1:])):
        edges[first] += different
        edges[second] += different

    for frame in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        edges[frame] += 1

    area = np.bincount(labels.ravel())
    perimeter = np.bincount(labels.ravel(), edges.ravel())
    quotient = 4 * np.pi * area / np.maximum(perimeter, 1) ** 2
    compactness = (quotient * area).sum() / labels.size

    largest = 0
    for label in np.flatnonzero(area):
        _, _, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=4)
        largest += stats[1:, cv2.CC_STAT_AREA].max()

    return boundary, compactness, 100 * (1 - largest / labels.size)


def exceeds(a: np.ndarray, b: np.ndarray) -> float:
    """Return the chance that a random value of ``b`` exceeds one of ``a``, ties counted half (Mann-Whitney)."""
    return float(((b[:, None] > a).mean() + (b[:, None] >= a).mean()) / 2)


def bootstrap(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, samples: int = 10_000) -> tuple[float, float]:
    """Return the 95 % interval of the difference of means, ``b`` minus ``a``."""
    a_means = np.array([rng.choice(a, len(a)).mean() for _ in range(samples)])
    b_means = np.array([rng.choice(b, len(b)).mean() for _ in range(samples)])
    return tuple(np.quantile(b_means - a_means, (0.025, 0.975)))


def verdict(intervals: dict[tuple[int, str], tuple[float, float]], stages: int) -> str:
    """Say in words what the intervals show; they are signed so that above 0, wrong pictures are more fragmented."""
    more, less, superpixels = [], [], []
    for (stage, name), (low, high) in intervals.items():
        if stage == 0 and low > 0:
            superpixels.append(name)
        elif stage > 0 and low > 0:
            more.append(f"{name} of stage {stage + 1}")
        elif stage > 0 and high < 0:
            less.append(f"{name} of stage {stage + 1}")

    total = (stages - 1) * len(MEASURES)
    text = (
        f"**Of the {total} figures of the network's own stages, wrong pictures are more fragmented by {len(more)}, "
        f"less by {len(less)}, and {total - len(more) - len(less)} show no difference** (the interval holds 0)."
    )
    text += f" More: {', '.join(more)}." if more else ""
    text += f" Less: {', '.join(less)}." if less else ""
    if more and superpixels:
        text += (
            f" Even the superpixels of wrong pictures are more fragmented ({', '.join(superpixels)}), so part of "
            "this is the pictures' own detail."
        )

    return textwrap.fill(f"{text} By chance alone, one interval in twenty would leave out 0.", 120)


def gallery(
    model: HCast, dataset: HierarchicalDataset, right: np.ndarray, paths: np.ndarray, rows: int = 5
) -> Image.Image:
    """Return random right pictures (left) and wrong ones, with their segmentations and paths."""
    panels = len(model.stages) + 1
    width = panels * (PANEL + PANEL // 16)
    canvas = Image.new("RGB", (2 * width + 3 * GAP, rows * (PANEL + 2 * LINE + GAP)), "white")
    draw, font, rng = ImageDraw.Draw(canvas), ImageFont.load_default(12), random.Random(0)
    for side, group in enumerate((right, ~right)):
        indices = np.flatnonzero(group).tolist()
        for row, index in enumerate(rng.sample(indices, min(rows, len(indices)))):
            picture = on_background(dataset.open(index), WHITE)
            with torch.inference_mode():
                output = model(dataset.transform(picture)[None])
            left, top = GAP + side * (width + GAP), row * (PANEL + 2 * LINE + GAP)
            canvas.paste(strip(Segmentation.from_output(picture, output, model.config), PANEL), (left, top))
            draw.text((left, top + PANEL + 2), name(dataset.taxonomy, paths[index]), "black", font)

            if side:
                truth = name(dataset.taxonomy, dataset.labels[index].tolist())
                draw.text((left, top + PANEL + 2 + LINE), f"is {truth}", "firebrick", font)

    return canvas


def name(taxonomy: Taxonomy, path) -> str:
    """Return the names along a path."""
    return " > ".join(taxonomy.path_names(path))


if __name__ == "__main__":
    main()
