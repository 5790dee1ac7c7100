"""List every timm tag, and time the variants against deit_small: the tables of docs/timm.md.

    python benchmarks/timm_models.py         # the tags, in a second
    python benchmarks/timm_models.py speed   # the times too, in some minutes

A time is a ratio of medians: both models run alternately, in one process, on the same number of images, with
superpixels computed beforehand.
"""

import argparse
import sys
import textwrap
from pathlib import Path

import timm
import torch
from accelerator import RIVAL
from report import processor, table, write_section
from speed import compare, inputs

from hcast_zoo.integrations.timm.cfgs import make_cfgs, sources
from hcast_zoo.network.config import VARIANTS
from hcast_zoo.weights.published import TAGS

BATCH = 8
DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["speed", []], help="also time the variants")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs (%(default)s)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page (%(default)s)")
    args = parser.parse_args()
    write_section(args.docs, "timm.md", "tags", tag_table())
    if "speed" in args.parts:
        write_section(args.docs, "timm.md", "speed", speed_table(args.runs), "speed")


def tag_table() -> str:
    """Return one row per tag: what the weights are for, and where they are."""
    rows = []
    for name, cfg in make_cfgs().items():
        config = sources()[name].config
        levels = " > ".join(map(str, config.level_classes)) if cfg.num_classes else "no head"
        if name.endswith(".untrained"):
            where = "none"
        elif cfg.file:
            where = "in the package"
        else:
            where = f"`{cfg.hf_hub_id}`" if name in TAGS else "not published: convert or train"
        clusters = ", ".join(map(str, config.num_clusters))
        rows.append([f"`{name}`", config.image_size, f"{config.num_superpixels} > {clusters}", levels, where])

    return table(["tag", "pixels", "tokens of the stages", "classes, coarse to fine", "weights"], rows)


@torch.inference_mode()
def speed_table(runs: int) -> str:
    """Return one row per variant at its own size: parameters, features, and its time relative to deit_small's."""
    rival = timm.create_model(RIVAL).eval()
    rows = []
    for name in VARIANTS:
        model = timm.create_model(name).eval()
        images, segments = inputs(model, BATCH)
        other = torch.randn(BATCH, 3, 224, 224)
        ratio, low, high, _ = compare(lambda: model(images, segments), lambda: rival(other), runs)  # noqa: B023
        side = model.config.image_size // model.feature_info[-1]["reduction"]
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        features = f"4 x ({model.num_features}, {side}, {side})"
        rows.append([f"`{name}`", f"{parameters:.1f}", features, f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"])
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)

    against = sum(p.numel() for p in rival.parameters()) / 1e6
    text = table(["variant", "parameters (M)", "feature maps", f"time / {RIVAL}'s", "spread"], rows)
    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}"
    origin = (
        f"`{RIVAL}` has {against:.1f} M. Forward passes of {BATCH} images, medians of {runs} runs in turn, float32, "
        f"{threads}, {processor()}, {versions}."
    )
    return f"{text}\n{textwrap.fill(origin, 120, break_on_hyphens=False)}\n"


if __name__ == "__main__":
    main()
