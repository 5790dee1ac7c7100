"""Draw the figures of README.md and docs/method.md from packaged weights: sheets, a graph pooling, the Tree-path KL.

python benchmarks/figures.py [--picture tests/pictures/tabby.jpg] [--output docs/images]
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from PIL import Image

from hcast_zoo import Predictor
from hcast_zoo.data.pictures import read_picture
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.segments.drawing import Segmentation, stage_panel
from hcast_zoo.segments.metrics import boundaries
from hcast_zoo.segments.report import draw_sheet, segment_picture

ROOT = Path(__file__).parents[1]
PANEL_IN = 2.2  # inches
DPI = 160
DRAWINGS = "hcast_small.emoji_art"  # trained with the Tree-path KL; the weights for photographs are not
PICTURES = ROOT / "tests/pictures"


def draw_stages(predictor: Predictor, file: Path) -> plt.Figure:
    """Draw the picture and what each stage sees, with the number of segments and the label that is read there."""
    segmented = segment_picture(predictor, file)
    maps = segmented.segmentation.maps
    figure, axes = plt.subplots(
        1, 1 + len(maps), figsize=(PANEL_IN * (1 + len(maps)), PANEL_IN * 1.35), layout="constrained"
    )
    axes[0].imshow(segmented.segmentation.view())
    axes[0].set_title("picture", fontsize=10)
    read = {reading.stage: reading.text.replace(": ", "\n", 1) for reading in segmented.readings}
    for stage, (axis, labels) in enumerate(zip(axes[1:], maps), 1):
        axis.imshow(stage_panel(segmented.segmentation, stage))
        axis.set_title(f"stage {stage}: {len(np.unique(labels[labels >= 0]))} segments", fontsize=10)
        axis.set_xlabel(read.get(stage, "no label\nis read here"), fontsize=10)

    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return figure


def draw_pooling(predictor: Predictor, file: Path, shown: int = 3) -> plt.Figure:
    """Draw the first pooling: the order in which centres are chosen, the assignment to some of them, the clusters."""
    config, model = predictor.model.config, predictor.model
    pooled: list = []
    hook = model.stages[0].pool.register_forward_hook(lambda module, inputs, output: pooled.append(output))
    picture = read_picture(file)
    with torch.inference_mode():
        output = model(eval_transform(config)(picture)[None])
    hook.remove()

    segments, pooling = output.segments[0].numpy(), pooled[0]
    centres, assignment = pooling.indices[0].tolist(), pooling.assignment[0].numpy()
    view = Segmentation.from_output(picture, output, config).view(segments.shape[0])
    lines = boundaries(segments)

    figure, axes = plt.subplots(1, shown + 2, figsize=(PANEL_IN * (shown + 2), PANEL_IN * 1.2), layout="constrained")
    axes[0].imshow(np.where(lines[..., None], 0, np.asarray(view)))
    axes[0].set_title(f"{len(centres)} centres, by distance", fontsize=10)
    for order, centre in enumerate(centres, 1):
        rows, columns = np.nonzero(segments == centre)
        axes[0].text(
            columns.mean(),
            rows.mean(),
            str(order),
            ha="center",
            va="center",
            fontsize=8,
            weight="bold",
            bbox=dict(boxstyle="circle,pad=0.15", facecolor="white", alpha=0.8, linewidth=0),
        )

    for number, axis in enumerate(axes[1:-1]):
        image = axis.imshow(assignment[:, number][segments], cmap="magma", vmin=0, vmax=assignment[:, :shown].max())
        axis.set_title(f"probability of cluster {number + 1}", fontsize=10)

    figure.colorbar(image, ax=axes[-2], shrink=0.7)
    axes[-1].imshow(stage_panel(Segmentation.from_output(picture, output, config), 2))
    axes[-1].set_title("most probable cluster", fontsize=10)
    for axis in axes:
        axis.set(xticks=[], yticks=[])

    return figure


def draw_tree_path(predictor: Predictor, file: Path, shown: int = 4) -> plt.Figure:
    """Draw the single distribution over the nodes of all levels, which the Tree-path KL compares with the true path."""
    config, taxonomy = predictor.model.config, predictor.taxonomy
    with torch.inference_mode():
        logits = predictor.model(eval_transform(config)(read_picture(file))[None]).level_logits

    levels = torch.cat(logits, -1)[0].softmax(-1).split([level.shape[-1] for level in logits])
    truth = taxonomy.path_to(*taxonomy.find(file.stem.replace("_", " ")))
    figure, axes = plt.subplots(1, len(levels), figsize=(3.3 * len(levels), 2.2), layout="constrained", sharex=True)
    for axis, level, names, values, node in zip(axes, taxonomy.levels, taxonomy.names, levels, truth):
        best = values.topk(min(shown, len(values))).indices.tolist()
        rows = list(dict.fromkeys([*best[: shown - 1], node, *best]))[:shown][::-1]
        axis.barh(
            [names[i] for i in rows],
            [1 / len(levels) if i == node else 0 for i in rows],
            color="none",
            edgecolor="tab:red",
            linestyle="--",
            label="true path: 1/3 each",
        )
        axis.barh([names[i] for i in rows], values[rows], color="tab:blue", height=0.5, label="softmax over all levels")
        axis.set_title(f"{level}: {values.sum():.0%} of the whole", fontsize=10)
        axis.tick_params(labelsize=8)

    axes[0].legend(fontsize=7, loc="lower right")
    return figure


def draw_sheets(predictor: Predictor, file: Path, output: Path) -> None:
    """Draw the sheet of a picture on light and on dark paper."""
    segmented = segment_picture(predictor, file)
    for dark in (False, True):
        path = output / f"sheet_{file.stem}{'_dark' * dark}.webp"
        draw_sheet(segmented, dark).save(path, quality=90, method=6)


def main() -> None:
    """Draw all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=PICTURES / "tabby.jpg", help="of the stages and the sheets")
    parser.add_argument("--model", default="hcast_lite.in1k", help="weights for that picture (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images", help="folder of the figures")
    args = parser.parse_args()

    photographs, drawings = Predictor(args.model), Predictor(DRAWINGS)
    figures = {
        "stages": draw_stages(photographs, args.picture),
        "pooling": draw_pooling(drawings, PICTURES / "sunflower.png"),
        "tree_path": draw_tree_path(drawings, PICTURES / "sunflower.png"),
    }
    for name, figure in figures.items():
        path = args.output / f"method_{name}.png"
        figure.savefig(path, dpi=DPI)
        Image.open(path).convert("RGB").save(path.with_suffix(".webp"), quality=90, method=6)
        path.unlink()
        plt.close(figure)

    draw_sheets(photographs, args.picture, args.output)


if __name__ == "__main__":
    main()
