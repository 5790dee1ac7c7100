"""The commands that turn weights into something else: convert, export, publish, info, demo."""

import argparse
import dataclasses
import importlib
import sys

from ..common.extras import needs_extra
from ..common.text import to_json


def demo(args: argparse.Namespace) -> int:
    """Serve a page until interrupted; its address goes to stdout."""
    from ..inference.predictor import Predictor

    with needs_extra("demo", "demo pages"):
        page = importlib.import_module("hcast_zoo.demo.app")
    page.run(Predictor(args.model, device=args.device), port=args.port)
    return 0


def convert(args: argparse.Namespace) -> int:
    """Write converted weights."""
    from ..paper import benchmarks as paper
    from ..paper import trees
    from ..taxonomy.tree import Taxonomy
    from ..weights import file as weights
    from ..weights.official import convert_official, read_checkpoint

    taxonomy = Taxonomy.load(args.taxonomy) if args.taxonomy else None
    told = {}
    if args.dataset:
        told, taxonomy = paper.find(args.dataset).official, taxonomy or trees.load(args.dataset)
    if args.num_superpixels is not None:
        told = {**told, "num_superpixels": args.num_superpixels}
    config, state = convert_official(
        read_checkpoint(args.checkpoint), keep_last_pool=args.keep_last_pool, num_heads=args.num_heads, **told
    )
    if taxonomy is not None and taxonomy.level_classes != config.level_classes:
        raise ValueError(f"the taxonomy has {taxonomy.level_classes} classes, the checkpoint {config.level_classes}")
    weights.save(weights.Weights(config, taxonomy, state), args.output)
    print(f"{args.output}: {len(state)} tensors, levels {config.level_classes}", file=sys.stderr)

    return 0


def export(args: argparse.Namespace) -> int:
    """Write a graph; print its inputs and outputs."""
    from ..sharing.export import export as run

    exported = run(
        args.model,
        args.output,
        args.format,
        batch_size=args.batch_size,
        num_clusters=args.num_clusters,
        opset=args.opset,
        check=not args.no_check,
    )
    if args.json:
        print(to_json(dataclasses.asdict(exported)))
        return 0

    opset = f", opset {exported.opset}" if exported.opset else ""
    checked = "not checked" if args.no_check else f"largest difference from the model {exported.difference:.1e}"
    names = " -> ".join(", ".join(part) for part in (exported.inputs, exported.outputs))
    print(f"{args.output}: {args.format}{opset}; {names}; {checked}")

    return 0


def publish(args: argparse.Namespace) -> int:
    """Publish, or write the would-be repository; print its files and the address of the commit."""
    from ..sharing import model_card as card
    from ..sharing.publish import publish as publish_model
    from ..sharing.space import publish_space

    options = {name: getattr(args, name) for name in ("private", "revision", "tag", "message", "dry_run", "output")}
    for name in ("evaluations", "preview") if args.space else ("requirement",):
        if getattr(args, name):
            raise ValueError(f"--{name} does not go {'with' if args.space else 'without'} --space")

    if args.space:
        published = publish_space(args.model, args.repo, requirement=args.requirement, **options)
    else:
        evaluations = card.read_evaluations(args.evaluations) if args.evaluations else None
        published = publish_model(args.model, args.repo, evaluations=evaluations, preview=args.preview, **options)

    if args.json:
        print(to_json(dataclasses.asdict(published)))
        return 0

    for file in published.files:
        print(f"{file.name}\t{file.size}\t{file.sha256}")
    print(f"{args.repo}: {published.commit or 'nothing was sent'}", file=sys.stderr)
    return 0


def info(args: argparse.Namespace) -> int:
    """Describe weights."""
    from ..weights import file as weights

    if args.model is None:
        index = weights.packaged()
        for name, entry in index.items():
            print(to_json({"name": name, **entry}) if args.json else f"{name}\t{entry.get('description', '')}")
        return 0

    content = weights.load(args.model)
    description = {
        "config": content.config.to_dict(),
        "parameters": sum(v.numel() for v in content.state_dict.values()),
        "taxonomy": content.taxonomy and content.taxonomy.name,
        "levels": dict(zip(content.taxonomy.levels, content.taxonomy.level_classes)) if content.taxonomy else None,
        "calibration": content.calibration and content.calibration.to_dict(),
        "metadata": content.metadata,
    }
    print(to_json(description, None if args.json else 1))

    return 0
