"""Compare SEEDS, SLIC and the grid: cost and accuracy on the same pictures with the same weights.

    pip install '.[benchmarks]'
    python benchmarks/superpixels.py --data emoji_art.parquet

Writes docs/superpixels.md. Pictures need an alpha channel, which is the mask of the object.
"""

import statistics
import textwrap

import report
import torch
from adaptation import object_mask
from cost import seconds
from tqdm import tqdm

from hcast_zoo.network.config import SUPERPIXELS
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
| superpixels | FPA | boundary recall | IoU | time |
| --- | --- | --- | --- | --- |
{table}

{measures}
"""
MEASURES = """*FPA* by `best_path`, in percent, of the same weights with each kind of superpixels. Their config says
`{configured}`; the model card says how they were trained. So it shows what another kind costs a trained model, not
what a model trained with that kind would reach. *Boundary recall*: the percentage of the object's outline (of its
alpha channel) with a superpixel boundary within one pixel. *IoU*: of the object and the best union of superpixels,
in percent. *Time* for one image on one core of this CPU, relative to SEEDS: median of {runs} alternating pairs, and
the smallest and largest. SLIC was not timed on an accelerator."""


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=50, help="images to time, each by every method (%(default)s)")
    args = parser.parse_args()

    weights = load_weights(args.model)
    model = build_model(weights)
    dataset = report.load_data(args, weights)
    calibration = weights.calibration or Calibration.identity(len(weights.config.level_classes))
    batches = report.load_batches(dataset, weights.config, args.batch_size)
    masks = [object_mask(dataset, i, weights.config) for i in range(len(dataset))]
    times = measure_time(batches, weights.config, args.runs)

    rows = []
    for method in SUPERPIXELS:
        right, recall, iou = measure(
            model=model, batches=batches, masks=masks, method=method, calibration=calibration, taxonomy=weights.taxonomy
        )
        ratios = [time / seeds_time for time, seeds_time in zip(times[method], times["seeds"])]
        spread = "" if method == "seeds" else f" ({min(ratios):.1f} to {max(ratios):.1f})"
        rows.append(
            f"| `{method}` | {100 * right:.2f} | {recall:.1f} | {iou:.1f} | {statistics.median(ratios):.2f}{spread} |"
        )

    measures = MEASURES.format(configured=weights.config.superpixels, runs=args.runs)
    report.write(
        args.docs,
        "superpixels.md",
        TEXT.format(
            provenance=report.provenance(args, weights, len(dataset)),
            table="\n".join(rows),
            measures=textwrap.fill(measures, 120, break_on_hyphens=False),
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


def measure_time(batches, config, runs: int) -> dict[str, list[float]]:
    """Return the seconds of each method for the same images, one image at a time, in turn."""
    images = torch.cat([batch["images"] for batch in batches])[:runs]
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
