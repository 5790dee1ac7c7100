"""What ``hcast-zoo predict`` does: label pictures, and print the answers or write them where they are wanted."""

import argparse
import collections
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..common.extras import needs_extra
from ..common.files import check_file
from ..common.machine import Loading
from ..common.progress import hides_bars
from ..common.text import printable, to_json
from .answer import engine_device, find, sentence, teller
from .labelled import loading


def predict(args: argparse.Namespace) -> int:
    """Print one line per picture, or write a table or a folder of parquet files."""
    from ..common.processes import join
    from ..inference.gallery import Gallery
    from ..inference.predictor import Predictor
    from ..inference.tables import is_table, write_table

    files, missed = _pictures(args)
    table = args.output is not None and is_table(args.output, args.format)
    options = dict(
        decoder=args.decode,
        num_clusters=args.num_clusters,
        within=args.within,
        threshold=args.back_off,
        top_k=args.top_k,
        engine=args.engine,
        precision=args.precision,
        coverage=args.set,
        set_level=args.set_level,
    )
    if args.set_level and args.set is None:
        raise ValueError("--set-level goes with --set")
    with join() as processes:
        if processes.count > 1 and (table or not args.output):
            raise ValueError("several processes need --output with a folder to write to")
        predictor = Predictor(
            args.model,
            device=engine_device(args, processes),
            tell=teller(args.verbose),
            taxonomy=_tree_above(args.taxonomy),
            **options,
        )
        how = loading(args, predictor.model, len(files), processes.count)
        if args.output and not table:
            if args.sort_into or args.report:
                raise ValueError("--sort-into and --report go with a table, or without --output")
            return _predict_parts(
                args=args,
                predictor=predictor,
                files=files,
                options=options,
                how=how,
                processes=processes,
                missed=missed,
            )

    source: Any = _source(predictor, args) if table or args.sort_into or args.report else None
    predictions = _predictions(predictor, files, how)
    if args.sort_into:
        predictions = _sort(predictions, predictor, source, options, args)
    if args.report:
        gallery = Gallery(predictor.model.config, source)
        predictions = gallery.collect(predictions)

    answers = _Counted(predictions)
    if table:
        pictures, failed = write_table(answers, args.output, source, args.format)
        print(to_json({"output": args.output, "pictures": pictures, "failed": failed}))
    else:
        _print_lines(answers, args.json)

    if args.report:
        gallery.write(args.report)

    show_tree = sys.stdout.isatty() and len(files) > 1 if args.tree is None else args.tree
    if show_tree and not args.json:
        _print_tree(answers.paths)
    if answers.failed:
        print(f"{answers.failed} of {len(files)} pictures failed", file=sys.stderr)
    return 1 if answers.failed or missed else 0


class _Counted:
    """Predictions that are counted as they pass."""

    def __init__(self, predictions: Iterable):
        self.predictions = predictions
        self.failed = 0
        self.paths: collections.Counter = collections.Counter()

    def __iter__(self) -> Iterator:
        for prediction in self.predictions:
            if prediction.error is None:
                self.paths[prediction.path] += 1
            else:
                self.failed += 1
            yield prediction


def _pictures(args: argparse.Namespace) -> tuple[list[str], int]:
    """Return the pictures that are asked for, and how many things in folders may hide more of them."""
    files, missed = find(args.pictures)
    if args.files_from:
        check_file(args.files_from)
        with open(args.files_from, encoding="utf-8-sig", errors="surrogateescape") as names:
            files += [name for line in names if (name := line.rstrip("\r\n"))]
        if any("\0" in name for name in files):
            raise ValueError(f"{args.files_from}: expected a text file that names a picture per line, got NUL bytes")

    if not files:
        raise ValueError("expected pictures, or --files-from with a list of them")
    return files, missed


def _tree_above(source: str | None):
    """Return the tree above flat weights that is asked for: one of the package by its name, or a file."""
    if source is None:
        return None

    from ..paper.trees import load_tree, tree_names
    from ..taxonomy.tree import Taxonomy

    return load_tree(source) if source in tree_names() else Taxonomy.load(source)


def _predictions(predictor, files: list[str], how: Loading) -> Iterable:
    """Return the predictions of files, behind a bar of progress on a terminal."""
    from tqdm import tqdm

    return tqdm(
        predictor.predict(files, how.batch_size, how.workers),
        total=len(files),
        unit="picture",
        disable=len(files) < 2 or hides_bars() or not sys.stderr.isatty(),
    )


def _source(predictor, args: argparse.Namespace):
    """Return what tables and pages say of the model."""
    from ..inference.tables import Source
    from ..weights.file import checksum

    return Source(
        model=os.path.basename(args.model),
        sha256=checksum(args.model),
        levels=predictor.taxonomy.levels,
        top_k=args.top_k or 0,
        sets=args.set is not None,
    )


def _sort(predictions: Iterable, predictor, source, options: dict, args: argparse.Namespace) -> Iterable:
    """Return predictions that put their pictures into folders as they pass."""
    from ..inference.sorting import sort_into

    plan = {"settings": {**options, "sort_as": args.sort_as}, "made_of": {"model_sha256": source.sha256}}
    return sort_into(predictions, args.sort_into, predictor.taxonomy, plan, copy=args.sort_as == "copy")


def _print_lines(answers: Iterable, as_json: bool) -> None:
    """Print a line for each picture; of one that failed, to stderr."""
    for prediction in answers:
        if as_json:
            print(to_json(prediction.to_dict()), flush=True)
        elif prediction.error is not None:
            print(f"{printable(prediction.file)}: {printable(prediction.error)}", file=sys.stderr)
        else:
            print(printable(f"{prediction.file}: {sentence(prediction)}"), flush=True)


def _print_tree(paths: collections.Counter) -> None:
    """Print how many pictures are at each node."""
    from ..inference.summary import tree_lines

    for line in tree_lines(paths):
        print(printable(line))


def _predict_parts(
    args: argparse.Namespace,
    predictor,
    files: list[str],
    options: dict,
    how: Loading,
    processes,
    missed: int,
) -> int:
    """Write a folder of parquet files; print what it holds."""
    from tqdm import tqdm

    from ..common.claim import digest_of
    from ..weights.file import checksum

    with needs_extra("train", "parquet files"):
        from ..inference.parquet_job import predict_parts

    made_of = {"model_sha256": checksum(args.model), "taxonomy_sha256": digest_of(predictor.taxonomy.to_dict())}
    done = failed = 0
    hidden = not processes.is_main or hides_bars() or not sys.stderr.isatty()
    with tqdm(total=len(files), unit="picture", disable=hidden) as bar:
        for pictures, failures in predict_parts(
            predictor,
            files,
            args.output,
            {"made_of": made_of, **options},
            part_size=args.part_size,
            processes=processes,
            batch_size=how.batch_size,
            workers=how.workers,
        ):
            done, failed = done + pictures, failed + failures
            bar.update(pictures * processes.count)

    done, failed = (sum(numbers) for numbers in zip(*processes.gather((done, failed))))
    if processes.is_main:
        print(to_json({"output": args.output, "pictures": done, "failed": failed}))
        if failed:
            print(f"{failed} of {done} pictures failed", file=sys.stderr)

    # A launcher would take any other code for a crash, and start the job again.
    return 1 if (failed or missed) and processes.count == 1 else 0
