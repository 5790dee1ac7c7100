"""Do the levels look at the same place, and does the answer depend on it? H-CAST and a flat network compared.

    python benchmarks/focus.py --data emoji_art.parquet --flat runs/flat/best.safetensors

Writes docs/focus.md. Without --flat, it measures the H-CAST alone; benchmarks/flat_vit.py says how to train a flat ViT.
With a pretrained stem, ``--flat stem`` compares with a flat classifier of the same stem, which needs no training. For
docs/focus_photographs.md, recipes/cut_outs.py draws the pictures:

    python recipes/cut_outs.py --emoji emoji_art.parquet --imagenet --photographs photographs --output composites
    python benchmarks/focus.py --model hcast_lite.in1k --data composites --split "" --flat stem \\
        --page focus_photographs.md
"""

import functools
from collections.abc import Callable

import flat_vit
import numpy as np
import report
import torch
from flat_stem import FlatStem
from torch import Tensor
from tqdm import tqdm

from hcast_zoo.evaluation.metrics import HierarchicalMetrics
from hcast_zoo.segments.explain import agreement, explain_levels, focus_map
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import UNKNOWN, Taxonomy
from hcast_zoo.weights.file import build_model, load_weights

STEM = "stem"  # in place of a file: a flat classifier of the model's own stem
HIDDEN = 0.2  # part of the pixels that is hidden

TEXT = """# Do the levels look at the same place?

Where a level looks is the gradient-weighted attention of its class token to the segments, propagated back through the
pooling assignments to superpixels; see [segments.md](segments.md). The agreement of two levels is the overlap of these
maps (the histogram intersection), from 0 to 1.

{provenance}
## Agreement

{agreement}
The mean over all pairs of levels, with its standard error: of all pictures, of those whose full path is right (decoded
by `best_path`), and of the others. *By chance* is the agreement of levels of two different pictures (each with the
next); only what exceeds it is agreement about the picture.

## Does the answer depend on what was seen?

{hiding}
We explain the most probable node of each level; then {hidden:.0%} of the pixels are painted in the picture's average
colour, and the table gives the node's probability before and after, in percent. Hidden is either where the level looks
most (*seen*) or random whole superpixels (*random*), including plain background. If the explanation is meaningful,
hiding what was seen costs more.

{flat}
"""
FLAT = """The flat ViT was trained by `benchmarks/flat_vit.py`: {blocks} blocks of {width}, {parameters:.1f} M
parameters (H-CAST: {hcast:.1f} M), the same number of tokens, which are square patches, and the heads of all levels on
its single class token.
"""
FLAT_STEM = """\
The flat classifier has the same stem and leaf head, without stages and segments (benchmarks/flat_stem.py): it reads
what all superpixels say, averaged over the picture. Its levels above the leaves are sums of the leaves'
probabilities, so that they cannot contradict each other. A level looks at the superpixels that add to its answer.

The pictures are drawings of things that ImageNet's classes name, at a random place over a crop of a photograph
(`recipes/cut_outs.py --imagenet --photographs`). Most answers are wrong, because the weights know photographs of these
things and not drawings.
"""
NO_FLAT = """No flat ViT has been fully trained on this data, so there is no comparison here; there is one
[on Fashion-MNIST](focus_fashion_mnist.md). These commands make it:

    python benchmarks/flat_vit.py --like runs/emoji/run.json --data emoji_art.parquet --taxonomy taxonomy.json \\
        --output runs/flat
    python benchmarks/focus.py --data emoji_art.parquet --flat runs/flat/best.safetensors

The first trains a flat ViT with the same number of parameters and the settings of an H-CAST run. If it is stopped,
rerun it to resume.
"""


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--flat", help=f"weights of benchmarks/flat_vit.py, or '{STEM}'")
    parser.add_argument("--page", default="focus.md", help="name of the report (%(default)s)")
    args = parser.parse_args()

    weights = load_weights(args.model)
    model = build_model(weights)
    models = {"H-CAST": (model, functools.partial(explain_levels, model))}
    flat_text = NO_FLAT
    if args.flat == STEM:
        flat_stem = FlatStem(model, weights.taxonomy)
        models["flat classifier"] = flat_stem, flat_stem.explain
        flat_text = FLAT_STEM
    elif args.flat:
        flat, flat_weights = flat_vit.load(args.flat)
        if flat_weights.taxonomy != weights.taxonomy or flat.config.image_size != model.config.image_size:
            raise SystemExit("expected a flat ViT of the same taxonomy and picture size")
        models["flat ViT"] = flat, lambda images, segments: flat.explain(images)
        flat_text = FLAT.format(
            blocks=len(flat.vit.blocks),
            width=flat.config.embed_dim,
            parameters=flat_vit.parameters(flat) / 1e6,
            hcast=flat_vit.parameters(model) / 1e6,
        )

    dataset = report.load_data(args, weights)
    batches = report.load_batches(dataset, weights.config, args.batch_size)
    agreements, hiding = [], []
    for title, (network, explain) in models.items():
        values = measure(network, explain, batches, weights.taxonomy)
        groups = (
            values["agreement"],
            values["agreement"][values["right"]],
            values["agreement"][~values["right"]],
            values["chance"],
        )
        agreements.append([title, f"{values['fpa']:.2f}", values["tokens"], *map(mean_and_error, groups)])

        for index, level in enumerate(weights.taxonomy.levels):
            before, seen, random = (100 * values[key][:, index] for key in ("before", "seen", "random"))
            means = [f"{probability.mean():.1f}" for probability in (before, seen, random)]
            hiding.append([title, level, *means, mean_and_error(random - seen, 1)])

    report.write(
        args.docs,
        args.page,
        TEXT.format(
            provenance=report.provenance(args, weights, len(dataset)),
            hidden=HIDDEN,
            flat=flat_text,
            agreement=report.table(["network", "FPA", "tokens", "all", "right", "wrong", "by chance"], agreements),
            hiding=report.table(["network", "level", "before", "seen hidden", "random hidden", "difference"], hiding),
        ),
    )


def measure(model, explain: Callable, batches: list[dict], taxonomy: Taxonomy) -> dict:
    """Measure a network on all pictures.

    Returns:
        (S,) arrays ``right`` (the whole path), ``agreement`` and ``chance``; (S, L) probabilities ``before`` hiding,
        and with pixels hidden that were ``seen`` or are ``random``; the numbers ``fpa`` and ``tokens``.
    """
    metrics = HierarchicalMetrics(taxonomy)
    rows: dict[str, list[Tensor]] = {key: [] for key in ("right", "agreement", "chance", "before", "seen", "random")}
    generator = torch.Generator().manual_seed(0)
    for batch in tqdm(batches, "measure"):
        images, labels = batch["images"], batch["labels"]
        output, explanation = explain(images, batch["segments"])
        segments = output.segments
        paths = decode(output.level_logits, taxonomy).paths
        metrics.update(paths, labels)
        pixels = focus_map(explanation.focus, segments)  # [B, L, H, W]
        rows["right"].append(((paths == labels) | (labels == UNKNOWN)).all(1))
        rows["agreement"].append(agreement(explanation.focus))
        rows["chance"].append(between_pictures(pixels.flatten(2)))
        rows["before"].append(probabilities(output.level_logits, explanation.targets))

        tokens = explanation.focus.shape[-1]
        order = torch.rand(len(images), tokens, generator=generator)
        random = order.gather(1, segments.flatten(1)).view_as(segments)
        for key, ranks in (("seen", pixels.unbind(1)), ("random", [random] * pixels.shape[1])):
            after = []
            for level, rank in enumerate(ranks):
                with torch.inference_mode():
                    logits = model(hide(images, rank), segments).level_logits
                after.append(probabilities(logits, explanation.targets)[:, level])
            rows[key].append(torch.stack(after, 1))

    arrays = {key: torch.cat(parts).numpy() for key, parts in rows.items()}
    return arrays | {"fpa": metrics.compute()["fpa"], "tokens": tokens}


def between_pictures(pixels: Tensor) -> Tensor:
    """Return (B,): the mean overlap of each level's (B, L, P) focus with the other levels' in the next picture."""
    next_pixels = pixels.roll(-1, 0)
    levels = range(pixels.shape[1])
    overlaps = [torch.minimum(pixels, next_pixels[:, level, None]).sum(-1) for level in levels]
    overlap = torch.stack(overlaps, 2)  # [B, L, L]
    others = ~torch.eye(pixels.shape[1], dtype=torch.bool)
    return overlap[:, others].mean(1)


def hide(images: Tensor, rank: Tensor, part: float = HIDDEN) -> Tensor:
    """Paint the ``part`` of the pixels with the highest (B, H, W) rank in each image's average colour."""
    # All pixels of a superpixel have the same rank. Ties at the limit are broken by order: each image loses as many.
    top = rank.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, : round(part * rank[0].numel())]
    hidden = torch.zeros_like(rank.flatten(1), dtype=torch.bool).scatter(1, top, True).view_as(rank)
    return torch.where(hidden[:, None], images.mean((2, 3), keepdim=True), images)


def probabilities(level_logits, targets: Tensor) -> Tensor:
    """Return (B, L): each level's probability of its target."""
    return torch.stack([x.softmax(-1).gather(1, t[:, None])[:, 0] for x, t in zip(level_logits, targets.T)], 1)


def mean_and_error(values: np.ndarray, digits: int = 3) -> str:
    """Return the mean and its standard error as text."""
    if len(values) < 2:
        return "-"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}"


if __name__ == "__main__":
    main()
