"""What ``hcast-zoo predict`` does: label pictures, and print the answers or write them where they are wanted."""

import argparse
import collections
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..common.extras import needs_extra
from ..common.machine import Loading
from ..common.progress import hides_terminal_bars
from ..common.text import LONGEST_NAME, clip, printable, to_json
from .answer import engine_device, message_printer, nodes_within, report_unknown, sentence
from .labelled import box_geometry, loading
from .work import Work, list_work


def predict(args: argparse.Namespace) -> int:
    """Print one line per picture, or write a table or a folder of parquet files."""
    from ..common.processes import join_job
    from ..data.boxes import with_geometry
    from ..inference.predictor import Predictor
    from ..inference.tables import is_table

    work = list_work(args)
    to_table = args.output is not None and is_table(args.output, args.format)
    to_folder = args.output is not None and not to_table
    _check_options(args, work, to_folder)
    with join_job() as processes:
        if processes.count > 1 and not to_folder:
            raise ValueError("several processes need --output with a folder to write to")
        predictor = Predictor(
            args.model,
            device=engine_device(args, processes),
            num_clusters=args.num_clusters,
            tell=message_printer(args.verbose),
            taxonomy=_tree_above(args.taxonomy),
            engine=args.engine,
            precision=args.precision,
            draft=args.draft,
        )
        predictor, settings = _with_settings(predictor, args)
        geometry = box_geometry(vars(args), predictor.box_geometry, work.boxed)
        work.pictures = with_geometry(work.pictures, geometry)
        how = loading(args, predictor.model, len(work.pictures), processes.count)
        if to_folder:
            return _write_parts(args, predictor, work, settings=settings, how=how, processes=processes)

    return _write_answers(args, predictor, work, settings=settings, how=how, geometry=geometry, to_table=to_table)


def _check_options(args: argparse.Namespace, work: Work, to_folder: bool) -> None:
    """Raise ValueError for options that do not go together."""
    if args.set_level and args.set is None:
        raise ValueError("--set-level goes with --set")
    if args.on and (not to_folder or work.boxed or args.prior):
        raise ValueError("--on needs --output with a folder to write to, whole pictures, and no --prior")
    if to_folder and (args.sort_into or args.report or work.groups):
        raise ValueError("--sort-into, --report and --group-by go with a table, or without --output")


def _write_answers(
    args: argparse.Namespace, predictor, work: Work, *, settings: dict, how: Loading, geometry, to_table: bool
) -> int:
    """Answer picture by picture, and write each answer wherever the options say; return the exit code."""
    from ..inference.gallery import Gallery
    from ..inference.resume import forget
    from ..inference.tables import write_table

    source: Any = _describe_model(predictor, args, work) if to_table or args.sort_into or args.report else None
    table = _describe_table(predictor, args, source, settings) if to_table else None
    predictions = _predictions(predictor, work, how, table)
    if args.sort_into:
        predictions = _sort(predictions, predictor, source, settings, args)
    if args.report:
        gallery = Gallery(predictor.model.config, source, geometry)
        predictions = gallery.collect(predictions)

    answers = _Counted(predictions)
    if to_table:
        pictures, failed = write_table(answers, args.output, source, args.format)
        forget(args.output)
        print(to_json({"output": args.output, "pictures": pictures, "failed": failed}))
    else:
        _print_lines(answers, args.json)

    if args.report:
        gallery.write(args.report)

    show_tree = sys.stdout.isatty() and len(work.pictures) > 1 if args.tree is None else args.tree
    if show_tree and not args.json:
        _print_tree(answers.paths)
    if answers.failed:
        print(f"{answers.failed} of {answers.pictures} pictures failed", file=sys.stderr)
    if answers.missing:
        print(f"names count from the current folder, {printable(os.getcwd())}", file=sys.stderr)
    return 1 if answers.failed or work.missed else 0


class _Counted:
    """Predictions that are counted as they pass."""

    def __init__(self, predictions: Iterable):
        self.predictions = predictions
        self.pictures = self.failed = self.missing = 0
        self.paths: collections.Counter = collections.Counter()

    def __iter__(self) -> Iterator:
        from ..data.pictures import NO_FILE

        for prediction in self.predictions:
            self.pictures += 1
            if prediction.error is None:
                self.paths[prediction.path] += 1
            else:
                self.failed += 1
                self.missing += prediction.error == NO_FILE
            yield prediction


def _with_settings(predictor, args: argparse.Namespace) -> tuple:
    """Return the predictor with the requested settings, and these as plain data."""
    from ..common.files import sha256
    from ..taxonomy.prior import make_prior, read_amounts, read_trained

    taxonomy, prior = predictor.taxonomy, None
    within = nodes_within(args.within, taxonomy)
    if args.prior:
        trained = read_trained(predictor.metadata, taxonomy)
        prior = make_prior(read_amounts(args.prior), taxonomy, trained)
        report_unknown(args.prior, prior.unknown)
        before = "what the model was trained on"
        if not prior.trained:
            before = "equal shares of all leaves, as the weights do not say what they were trained on"
        absent = f"; {prior.left_out} leaves that it does not name are never answered" if prior.left_out else ""
        print(f"prior {printable(args.prior)} against {before}{absent}", file=sys.stderr)

    options = dict(
        decoder=args.decode,
        num_clusters=args.num_clusters,
        within=within,
        threshold=args.back_off,
        top_k=args.top_k,
        coverage=args.set,
        set_level=args.set_level,
    )
    plan = {**options, "engine": args.engine, "precision": args.precision}
    plan["draft"] = args.draft or None
    plan["prior"] = sha256(args.prior) if args.prior else None
    return predictor.with_settings(**options, prior=prior), plan


def _tree_above(source: str | None):
    """Return the requested tree above flat weights: a packaged one by name, or a file."""
    if source is None:
        return None

    from ..paper.trees import load_tree, tree_names
    from ..taxonomy.tree import Taxonomy

    return load_tree(source) if source in tree_names() else Taxonomy.load(source)


def _predictions(predictor, work: Work, how: Loading, table: dict | None) -> Iterable:
    """Return the predictions, with a progress bar on a terminal.

    Args:
        predictor: The model.
        work: What to predict.
        how: How to load it.
        table: The table and what identifies it, to resume a stopped run; None starts afresh.
    """
    from tqdm import tqdm

    from ..data.stores import is_container
    from ..inference.predictor import predict_named
    from ..inference.resume import resume_predictions
    from ..network.memory import pictures_at_once

    files = work.pictures
    contained = any(map(is_container, files))
    if contained and work.groups is not None:
        raise ValueError("--group-by goes with pictures in files")

    def predict(start: int = 0) -> Iterable:
        if work.groups is None:
            return predict_named(predictor, files[start:], how.batch_size, how.workers)
        groups = work.groups[start:]
        return predictor.predict(files[start:], how.batch_size, how.workers, groups)

    if table is None or contained:  # the number of pictures in a container is not known
        predictions = predict()
    else:
        batch_size = pictures_at_once(predictor.model.config, how.batch_size)
        predictions = resume_predictions(predict, files, batch_size=batch_size, groups=work.groups, **table)

    hidden = len(files) < 2 or hides_terminal_bars()
    return tqdm(predictions, total=len(files), unit="picture", disable=hidden)


def _describe_table(predictor, args: argparse.Namespace, source, settings: dict) -> dict:
    """Return a table's file, and what distinguishes it from tables of other models and settings."""
    from ..common.claim import digest_of

    made_of = {"model_sha256": source.sha256, "taxonomy_sha256": digest_of(predictor.taxonomy.to_dict())}
    return {"output": args.output, "plan": {"settings": settings, "made_of": made_of}}


def _describe_model(predictor, args: argparse.Namespace, work: Work):
    """Return what tables and pages say about the model."""
    from ..inference.tables import Source
    from ..weights.file import checksum

    return Source(
        model=os.path.basename(args.model),
        sha256=checksum(args.model),
        levels=predictor.taxonomy.levels,
        top_k=args.top_k or 0,
        sets=args.set is not None,
        boxes=work.boxed,
        groups=work.groups is not None,
        detections=work.detections,
    )


def _sort(predictions: Iterable, predictor, source, settings: dict, args: argparse.Namespace) -> Iterable:
    """Return predictions that put their pictures into folders as they pass."""
    from ..inference.sorting import sort_into

    plan = {"settings": {**settings, "sort_as": args.sort_as}, "made_of": {"model_sha256": source.sha256}}
    return sort_into(predictions, args.sort_into, predictor.taxonomy, plan, copy=args.sort_as == "copy")


def _print_lines(answers: Iterable, as_json: bool) -> None:
    """Print a line for each picture, to stderr if it failed."""
    for prediction in answers:
        if as_json:
            print(to_json(prediction.to_dict()), flush=True)
        elif prediction.error is not None:
            print(f"{printable(clip(prediction.file, LONGEST_NAME))}: {printable(prediction.error)}", file=sys.stderr)
        else:
            print(printable(f"{prediction.file}: {sentence(prediction)}"), flush=True)


def _print_tree(paths: collections.Counter) -> None:
    """Print how many pictures are at each node."""
    from ..inference.summary import tree_lines

    for line in tree_lines(paths):
        print(printable(line))


def _write_parts(args: argparse.Namespace, predictor, work: Work, *, settings: dict, how: Loading, processes) -> int:
    """Write a folder of parquet files; print what it holds, and return the exit code."""
    from ..common.claim import digest_of
    from ..weights.file import checksum

    with needs_extra("train", "parquet files"):
        from ..inference.parquet_job import predict_parts

    made_of = {"model_sha256": checksum(args.model), "taxonomy_sha256": digest_of(predictor.taxonomy.to_dict())}
    plan = {"made_of": made_of, **settings}
    if args.on:
        with needs_extra("ray", "jobs on Ray"):
            from ..inference.ray import predict_on_ray

        of_predictor = {**settings, "taxonomy": _tree_above(args.taxonomy)}
        on_cpu = args.engine in ("onnxruntime", "openvino")
        counts = predict_on_ray(
            args.on,
            os.path.abspath(args.model) if os.path.exists(args.model) else args.model,
            work.pictures,
            args.output,
            plan,
            options={**of_predictor, "device": "cpu" if on_cpu else args.device},
            part_size=args.part_size,
            batch_size=how.batch_size,
            workers=args.workers,
        )
    else:
        counts = predict_parts(
            predictor,
            work.pictures,
            args.output,
            plan,
            part_size=args.part_size,
            processes=processes,
            batch_size=how.batch_size,
            workers=how.workers,
        )

    pictures, failed = _run_parts(counts, len(work.pictures), processes)
    if processes.is_main:
        print(to_json({"output": args.output, "pictures": pictures, "failed": failed}))
        if failed:
            print(f"{failed} of {pictures} pictures failed", file=sys.stderr)

    # A launcher would take any other code for a crash, and restart the job.
    return 1 if (failed or work.missed) and processes.count == 1 else 0


def _run_parts(counts: Iterable[tuple[int, int]], total: int, processes) -> tuple[int, int]:
    """Run a job that yields the pictures and the failures of each part; return the sums of all processes."""
    from tqdm import tqdm

    pictures = failed = 0
    hidden = not processes.is_main or hides_terminal_bars()
    progress = tqdm(total=total, unit="picture", disable=hidden)
    with progress as bar, contextlib.redirect_stdout(sys.stderr):  # Ray reports lost workers on stdout
        for pictures_of_part, failed_of_part in counts:
            pictures, failed = pictures + pictures_of_part, failed + failed_of_part
            bar.update(pictures_of_part * processes.count)

    gathered = processes.gather((pictures, failed))
    return sum(pictures for pictures, _ in gathered), sum(failed for _, failed in gathered)
