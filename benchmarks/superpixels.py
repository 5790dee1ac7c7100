"""Compare SEEDS, SLIC and the grid: cost and accuracy on the same pictures with the same weights.

    pip install '.[benchmarks]'
    python benchmarks/superpixels.py --data emoji_art.parquet --photographs photographs

Writes docs/superpixels.md. Pictures need an alpha channel, which is the mask of the object. With ``--photographs``
they are also measured over photographs, at 224 pixels (scenes.py).
"""

import statistics
import textwrap
from pathlib import Path

import report
import torch
from adaptation import object_mask
from cost import seconds
from scenes import make_scenes
from torch import Tensor
from tqdm import tqdm

from hcast_zoo.network.config import SUPERPIXELS, HCastConfig
from hcast_zoo.network.superpixels import segment_normalized
from hcast_zoo.segments.metrics import best_union_iou, boundary_recall
from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.weights.file import build_model, load_weights

TEXT = """# Superpixels

H-CAST starts from superpixels: `superpixels="seeds"` in a config, the default and what the authors use, is OpenCV's
SEEDS. It runs on the CPU, in the loader's workers. `"slic"` is plain PyTorch and runs on the images' device, a whole
batch at once, without synchronisation; it can replace SEEDS where an accelerator would have to wait for the CPU.
`"grid"` is a regular grid, for comparison and for tiny images.

```bash
hcast-zoo train --data birds --output runs/slic --superpixels slic
```

```python
import hcast_zoo, timm

model = timm.create_model("hcast_small", superpixels="slic")
```

{provenance}
{table}
{measures}

## What tokens see of them

{tokens}
{meaning}
"""
MEASURES = """*FPA* by `best_path`, in percent, of the same weights with each kind of superpixels. Their config says
`{configured}`; the model card says how they were trained. So it shows what another kind costs a trained model, not
what a model trained with that kind would reach. *Boundary recall*: the percentage of the object's outline (of its
alpha channel) with a superpixel boundary within one pixel. *IoU*: of the object and the best union of superpixels,
in percent. *Time* for one image on one core of this CPU, relative to SEEDS: median of {runs} alternating pairs, and
the smallest and largest. SLIC was not timed on an accelerator."""
MEANING = """*IoU* of the object and the best union of superpixels, in percent, and of the pixels that tokens stand for.
With `token_pooling` `top_left`, the default and what the authors do, a cell of the feature map belongs to the
superpixel of its top-left pixel; cells are 8 pixels wide, or 4 with `feature_stride` 4. *Lost* is the share of
superpixels that get no cell. With `area`, as `hcast_lite` has it, each pixel counts, and tokens stand for whole
superpixels.{composites}"""
COMPOSITES = """ *Over photographs*: {count} drawings, at random places over crops of photographs, at {size} pixels with
{superpixels} superpixels."""
STRIDES = (8, 4)  # pixels of a cell
PHOTOGRAPHS = "hcast_lite.in1k"  # whose picture size is taken for photographs


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, help="folder of photographs to put the drawings on")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of drawings put there (%(default)s)")
    parser.add_argument("--runs", type=int, default=50, help="images to time, each by every method (%(default)s)")
    args = parser.parse_args()

    weights = load_weights(args.model)
    model = build_model(weights)
    dataset = report.load_data(args, weights)
    calibration = weights.calibration or Calibration.identity(len(weights.config.level_classes))
    batches = report.load_batches(dataset, weights.config, args.batch_size)
    masks = [object_mask(dataset, i, weights.config) for i in range(len(dataset))]
    images = torch.cat([batch["images"] for batch in batches])
    times = measure_time(images[: args.runs], weights.config)

    rows = []
    for method in SUPERPIXELS:
        right, recall, iou = measure(
            model=model, batches=batches, masks=masks, method=method, calibration=calibration, taxonomy=weights.taxonomy
        )
        ratios = [time / seeds_time for time, seeds_time in zip(times[method], times["seeds"])]
        spread = "" if method == "seeds" else f" ({min(ratios):.1f} to {max(ratios):.1f})"
        relative = f"{statistics.median(ratios):.2f}{spread}"
        rows.append([f"`{method}`", f"{100 * right:.2f}", f"{recall:.1f}", f"{iou:.1f}", relative])

    tokens = token_rows("alone", weights.config, [(x, mask) for x, mask in zip(images, masks) if mask is not None])
    composites = ""
    if args.photographs:
        config = load_weights(PHOTOGRAPHS).config
        scenes = make_scenes(args, config)
        tokens += token_rows("over photographs", config, [(scene.image[0], scene.mask) for scene in scenes])
        composites = COMPOSITES.format(count=len(scenes), size=config.image_size, superpixels=config.num_superpixels)

    measures = MEASURES.format(configured=weights.config.superpixels, runs=args.runs)
    meaning = MEANING.format(composites=composites)
    report.write(
        args.docs,
        "superpixels.md",
        TEXT.format(
            provenance=report.provenance(args, weights, len(dataset)),
            table=report.table(["superpixels", "FPA", "boundary recall", "IoU", "time"], rows),
            measures=textwrap.fill(measures, 120, break_on_hyphens=False),
            tokens=report.table(["drawings", "superpixels", "IoU", *(f"{s} pixels, lost" for s in STRIDES)], tokens),
            meaning=textwrap.fill(meaning, 120, break_on_hyphens=False),
        ),
    )


@torch.inference_mode()
def measure(model, batches, masks, method, calibration, taxonomy) -> tuple[float, float, float]:
    """Return the share of right paths, and the mean boundary recall and IoU of the pictures that have a mask."""
    c = model.config
    right, recalls, ious, index = [], [], [], 0
    for batch in tqdm(batches, method, leave=False):
        segments = segment_normalized(batch["images"], c.num_superpixels, c.mean, c.std, method)
        logits = calibration.logits(model(batch["images"], segments).level_logits)
        right += (decode(logits, taxonomy).paths == batch["labels"]).all(1).tolist()

        for labels in segments:
            mask, index = masks[index], index + 1
            if mask is not None:
                recalls.append(boundary_recall(labels, mask))
                ious.append(best_union_iou(labels, mask))

    return statistics.mean(right), statistics.mean(recalls), statistics.mean(ious)


def token_rows(title: str, config: HCastConfig, pictures: list[tuple[Tensor, Tensor]]) -> list[list[str]]:
    """Return the table's row of each method, for pictures and the masks of their objects."""
    rows = []
    for method in SUPERPIXELS:
        whole, seen, lost = [], {stride: [] for stride in STRIDES}, {stride: [] for stride in STRIDES}
        for image, mask in tqdm(pictures, f"{title}, {method}", leave=False):
            (labels,) = segment_normalized(image[None], config.num_superpixels, config.mean, config.std, method)
            whole.append(best_union_iou(labels, mask))
            for stride in STRIDES:
                cells = labels[::stride, ::stride]
                pixels = cells.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
                seen[stride].append(best_union_iou(pixels[: len(labels), : labels.shape[1]], mask))
                lost[stride].append(1 - len(cells.unique()) / len(labels.unique()))

        values = [f"{statistics.mean(seen[s]):.1f}, {100 * statistics.mean(lost[s]):.0f} %" for s in STRIDES]
        rows.append([title, f"`{method}`", f"{statistics.mean(whole):.1f}", *values])

    return rows


def measure_time(images: Tensor, config: HCastConfig) -> dict[str, list[float]]:
    """Return the seconds of each method for the same images, one image at a time, in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {method: [] for method in SUPERPIXELS}
    for image in [images[:1], *images.split(1)]:  # the first is to warm up
        for method in SUPERPIXELS:
            times[method].append(
                seconds(lambda: segment_normalized(image, config.num_superpixels, config.mean, config.std, method))  # noqa: B023
            )

    torch.set_num_threads(threads)
    return {method: values[1:] for method, values in times.items()}


if __name__ == "__main__":
    main()
