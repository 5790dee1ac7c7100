"""The commands that turn weights into something else: convert, export, publish, info, demo."""

import argparse
import dataclasses
import importlib
import os
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
    from ..paper.benchmarks import find_benchmark
    from ..paper.trees import load_tree
    from ..taxonomy.tree import Taxonomy
    from ..weights.file import Weights, save_weights
    from ..weights.official import convert_official, projection_head, read_checkpoint
    from ..weights.source import open_source

    taxonomy = Taxonomy.load(args.taxonomy) if args.taxonomy else None
    overrides = {}
    if args.dataset:
        benchmark = find_benchmark(args.dataset)
        if taxonomy is None and benchmark.tree is not None:
            taxonomy = load_tree(benchmark.tree)
        if taxonomy is None:
            raise ValueError(
                f"the tree of {benchmark.title} comes with its lists: give --taxonomy FOLDER/taxonomy.json, of the "
                f"folder that hcast-zoo data prepare {args.dataset} wrote"
            )
        overrides = benchmark.official

    if args.num_superpixels is not None:
        overrides = {**overrides, "num_superpixels": args.num_superpixels}

    with open_source(args.checkpoint) as path:
        checkpoint = read_checkpoint(str(path))
        config, state = convert_official(
            checkpoint, keep_last_pool=args.keep_last_pool, num_heads=args.num_heads, **overrides
        )

    headless = not any(key.startswith("heads.") for key in state)
    if headless and taxonomy is not None:
        raise ValueError(
            f"{args.checkpoint} has no classifier head (self-supervised), so it knows no levels: leave out --taxonomy "
            "and --dataset, and train from it"
        )

    if taxonomy is not None and taxonomy.level_classes != config.level_classes:
        raise ValueError(f"the taxonomy has {taxonomy.level_classes} classes, the checkpoint {config.level_classes}")

    metadata = {"heads": "none"} if headless else {}
    if args.keep_projection:
        _keep_projection(projection_head(checkpoint), args)
    save_weights(Weights(config=config, taxonomy=taxonomy, state_dict=state, metadata=metadata), args.output)

    levels = "no head" if headless else f"levels {config.level_classes}"
    print(f"{args.output}: {len(state)} tensors, {levels}", file=sys.stderr)

    return 0


def _keep_projection(head: dict, args: argparse.Namespace) -> None:
    """Write MoCo's projection head, which is not part of the classifier, to a separate file."""
    from safetensors.torch import save

    from ..common.files import write_whole

    if not head:
        raise ValueError(f"{args.checkpoint} has no projection head: leave out --keep-projection")
    write_whole(args.keep_projection, save({key: value.contiguous() for key, value in head.items()}))


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
    from ..sharing.model_card import read_evaluations
    from ..sharing.publish import publish as publish_model
    from ..sharing.space import publish_space

    options = {name: getattr(args, name) for name in ("private", "revision", "tag", "message", "dry_run", "output")}
    of_the_other_kind = ("evaluations", "preview", "title", "license") if args.space else ("requirement",)
    for name in of_the_other_kind:
        if getattr(args, name):
            raise ValueError(f"--{name} does not go {'with' if args.space else 'without'} --space")

    if args.space:
        published = publish_space(args.model, args.repo, requirement=args.requirement, **options)
    else:
        evaluations = None
        if args.evaluations:
            if not os.path.isfile(args.evaluations):
                raise ValueError(
                    f"{args.evaluations}: no such file; `hcast-zoo evaluate --model {args.model} --card CARD.md` "
                    "writes CARD.json beside the card"
                )
            evaluations = read_evaluations(args.evaluations)
        facts = {"name": args.title, "license": args.license}
        published = publish_model(
            args.model,
            args.repo,
            evaluations=evaluations,
            pictures=os.path.dirname(args.evaluations) if args.evaluations else None,
            preview=args.preview,
            facts={key: value for key, value in facts.items() if value},
            **options,
        )

    if args.json:
        print(to_json(dataclasses.asdict(published)))
        return 0

    for file in published.files:
        print(f"{file.name}\t{file.size}\t{file.sha256}")
    print(f"{args.repo}: {published.commit or 'nothing was sent'}", file=sys.stderr)
    return 0


def info(args: argparse.Namespace) -> int:
    """Describe weights, list all tags, or pin a tag's checksum."""
    from ..taxonomy.guarantee import KEY, read_guarantee
    from ..weights.file import load_weights, packaged_weights
    from ..weights.tags import pin

    if args.pin:
        pin(args.model or "", args.pin)
        print(f"{args.model}: pinned SHA-256 {args.pin}", file=sys.stderr)
        return 0

    if args.list:
        _list_tags(args.json)
        return 0

    if args.model is None:
        index = packaged_weights()
        for name, entry in index.items():
            print(to_json({"name": name, **entry}) if args.json else f"{name}\t{entry.get('description', '')}")
        return 0

    weights = load_weights(args.model)
    guarantee = read_guarantee(weights.metadata, weights.calibration)
    description = {
        "config": weights.config.to_dict(),
        "parameters": sum(v.numel() for v in weights.state_dict.values()),
        "taxonomy": weights.taxonomy and weights.taxonomy.name,
        "levels": dict(zip(weights.taxonomy.levels, weights.taxonomy.level_classes)) if weights.taxonomy else None,
        "calibration": weights.calibration and weights.calibration.to_dict(),
        "guarantee": guarantee and guarantee.summary(),
        "metadata": {key: value for key, value in weights.metadata.items() if key != KEY},
    }
    print(to_json(description, None if args.json else 1))

    return 0


def _list_tags(as_json: bool) -> None:
    """Print a row for each name of weights: those in the package, and those that others publish on the Hub."""
    from ..network.model import HCast
    from ..weights.file import packaged_weights, read_weights
    from ..weights.header import OWNER, header_path, shipped_path
    from ..weights.tags import TAGS, describe_tag

    rows = []
    for name, entry in packaged_weights().items():
        weights = read_weights(header_path(entry), tensors=False)
        shipped = shipped_path(entry).exists()
        rows.append(
            {
                "name": name,
                "data": weights.taxonomy.name if weights.taxonomy else "",
                "classes": weights.config.level_classes[-1],
                "parameters": sum(p.numel() for p in HCast(weights.config, device="meta").parameters()),
                "license": weights.metadata.get("license", ""),
                "where": "in the package" if shipped else f"hf://{OWNER}/{name}/model.safetensors",
                "verified": "SHA-256 of the package",
                "sha256": entry["sha256"],
                "cached": str(shipped_path(entry)) if shipped else None,
                "description": entry.get("description", ""),
            }
        )

    rows += [describe_tag(name) for name in TAGS]
    if as_json:
        for row in rows:
            print(to_json(row))
        return

    columns = ("name", "data", "classes", "parameters", "license", "where", "verified")
    print("\t".join(columns))
    for row in rows:
        print("\t".join(str(row[column]) for column in columns))
