"""The commands about the paper's data sets, recipes and numbers, and about labels that end early."""

import argparse
import dataclasses
import os
import sys

from ..common.machine import choose_loading
from ..common.text import to_json


def data_prepare(args: argparse.Namespace) -> int:
    """Prepare a data set of the paper; print what it holds."""
    from ..paper.benchmarks import find_benchmark
    from ..paper.prepare import prepare

    output = args.output or os.path.join("data", args.dataset)
    prepared = prepare(
        find_benchmark(args.dataset),
        args.sources,
        output,
        seed=args.seed,
        partial=args.partial,
        check=not args.no_check,
        progress=sys.stderr.isatty(),
    )
    for remark in prepared.remarks:
        print(remark, file=sys.stderr)
    print(to_json({"output": prepared.output, "pictures": prepared.pictures, "levels": prepared.levels}))

    return 0


def data_info(args: argparse.Namespace) -> int:
    """Describe the paper's data sets."""
    from ..paper.benchmarks import BENCHMARKS, find_benchmark
    from ..paper.trees import load_tree, only_children, shallow_leaves

    for name in [args.dataset] if args.dataset else BENCHMARKS:
        benchmark = find_benchmark(name)
        tree = None if benchmark.tree is None else load_tree(benchmark.tree)
        single = {} if tree is None else only_children(tree)
        levels = benchmark.levels if tree is None else dict(zip(tree.levels, tree.level_classes))
        if args.json:
            print(
                to_json(
                    {
                        "name": name,
                        "title": benchmark.title,
                        "levels": levels,
                        "pictures": benchmark.pictures,
                        "one_child": single,
                        "archives": benchmark.archives,
                        "published_fpa": benchmark.published,
                        "notes": benchmark.notes,
                    }
                )
            )
            continue

        print(f"{name}\t{benchmark.title}\t{', '.join(f'{count} {level}' for level, count in levels.items())}")

        if args.dataset:
            if tree is not None:
                print(f"every leaf at level {tree.levels[-1]}: {'no' if shallow_leaves(tree) else 'yes'}")
            for level, nodes in single.items():
                print(f"{level} nodes with one child: {len(nodes)} of {levels[level]}")
            for fpa, source in benchmark.published:
                print(f"published full-path accuracy: {fpa} ({source})")
            for text in benchmark.notes:
                print(text)

    return 0


def recipes(args: argparse.Namespace) -> int:
    """List the recipes, or show one."""
    from ..training.recipe import load_recipe, recipe_names

    if args.recipe:
        print(to_json(dataclasses.asdict(load_recipe(args.recipe)), indent=1))
        return 0
    for name in recipe_names():
        print(f"{name}\t{load_recipe(name).description}")
    return 0


def repro(args: argparse.Namespace) -> int:
    """Print our numbers beside the published ones."""
    from ..common.processes import choose_device, join_job
    from ..paper.benchmarks import find_benchmark
    from ..paper.reproduce import OFFICIAL_DECODER, reproduce, table

    benchmark = find_benchmark(args.dataset)
    device = choose_device(args.device)
    loading = choose_loading(benchmark.pictures.get(args.split, 0), 224, device, args.batch_size, args.workers)
    with join_job() as processes:
        reproduction = reproduce(
            benchmark,
            args.checkpoint,
            args.data or os.path.join("data", args.dataset),
            args.decode,
            split=args.split,
            device=device,
            processes=processes,
            batch_size=loading.batch_size,
            workers=loading.workers,
            progress=sys.stderr.isatty(),
        )

    if not processes.is_main:
        return 0

    if reproduction.expected is not None and reproduction.pictures != reproduction.expected:
        print(
            f"measured on {reproduction.pictures} pictures of {reproduction.expected}: not comparable with what was "
            "published",
            file=sys.stderr,
        )

    if args.json:
        print(to_json(dataclasses.asdict(reproduction)))
        return 0

    for row in table(reproduction):
        print("\t".join(row))
    print(
        f"{benchmark.title}, {reproduction.pictures} pictures, {len(reproduction.checkpoints)} checkpoint(s), percent; "
        f"published numbers are of `{OFFICIAL_DECODER}`, and only full-path accuracy (fpa) is known here",
        file=sys.stderr,
    )
    return 0


def free_grain(args: argparse.Namespace) -> int:
    """Write a data set whose labels end early; print how many pictures have labels down to each level."""
    from ..data.free_grain import write_free_grain
    from ..taxonomy.tree import Taxonomy

    written = write_free_grain(
        source=args.source,
        output=args.output,
        taxonomy=Taxonomy.load(args.taxonomy),
        fractions=args.fractions,
        split=args.split,
        seed=args.seed,
    )
    if args.json:
        print(to_json(dataclasses.asdict(written)))
    else:
        for level, pictures in written.known_down_to.items():
            print(f"{level}\t{pictures}")

    if written.leaves_left < written.leaves:
        missing = written.leaves - written.leaves_left
        print(
            f"{missing} of {written.leaves} leaves have no picture that is labelled down to the leaf",
            file=sys.stderr,
        )

    return 0
