"""The command ``evaluate``: measure a model on labelled pictures, and compare it with another one."""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from ..common.text import printable, to_json
from .answer import engine_device, message_printer
from .labelled import load_labelled, loading, report_left_out

SHOWN = 10  # disagreements that are printed


def evaluate(args: argparse.Namespace) -> int:
    """Print a row of metrics for each decoding."""
    from ..common.processes import join_job
    from ..evaluation.evaluate import measure
    from ..inference.engines import make_engine
    from ..weights.file import build_model

    if args.card and args.num_clusters:
        raise ValueError("--card is about the weights as they are: leave out --num-clusters")
    if args.card_pictures is not None and not args.card:
        raise ValueError("--card-pictures are shown on a card: give --card CARD.md too")
    weights, dataset = load_labelled(args)
    with join_job() as processes:
        model = build_model(weights, engine_device(args, processes))
        how = loading(args, model, len(dataset), processes.count)
        engine = make_engine(
            model,
            args.engine,
            args.precision,
            num_clusters=args.num_clusters,
            source=args.model,
            tell=message_printer(args.verbose),
        )
        measured = measure(
            engine,  # type: ignore[arg-type]  # stands in for its model
            dataset,
            args.decode,
            weights.calibration,
            processes=processes,
            batch_size=how.batch_size,
            workers=how.workers,
            superpixel_cache=args.superpixel_cache,
            keep_logits=args.beside is not None,
        )

    if not processes.is_main:
        return 0

    details = _details(args, measured, dataset, weights)
    if args.card:
        _record(args, measured, dataset, weights.config)
    code = report_left_out(measured.left_out, len(dataset), args.allow_missing)

    if args.json:
        print(to_json({**_results(args, measured), **details}))
    else:
        _print_results(measured.results)
        if "beside" in details:
            _print_beside(details["beside"])

    # A launcher would take any other code for a crash, and restart the job.
    return code if processes.count == 1 else 0


def _results(args: argparse.Namespace, measured) -> dict:
    """Return the metrics, and what they were measured on, as plain data."""
    return {
        "model": args.model,
        "data": args.data,
        "split": args.split,
        "pictures": measured.pictures,
        "left_out": measured.left_out,
        "num_clusters": args.num_clusters,
        "engine": args.engine,
        "precision": args.precision,
        "results": measured.results,
    }


def _print_results(results: dict[str, dict[str, float]]) -> None:
    """Print a row of metrics for each decoding."""
    names = list(next(iter(results.values())))
    print("\t".join(["decoding", *map(printable, names)]))
    for mode, values in results.items():
        print("\t".join([mode, *(f"{values[name]:.2f}" for name in names)]))


def _details(args: argparse.Namespace, measured, dataset, weights) -> dict:
    """Return more data for the JSON (metrics with intervals, the other model), and write the reports."""
    from ..evaluation.report import make_report, write_report
    from ..taxonomy.prior import read_amounts
    from ..weights.file import checksum

    details: dict = {}
    if args.json or args.report:
        abundance = read_amounts(args.abundance) if args.abundance else None
        reports = [make_report(measured, mode, weights.taxonomy, abundance) for mode in args.decode]
        details["hierarchical"] = {report.decoding: report.to_dict()["metrics"] for report in reports}

    if args.beside:
        details["beside"] = _beside(args, measured, dataset, weights)
    if args.report:
        about = {
            "model": os.path.basename(args.model),
            "sha256": checksum(args.model),
            "data": os.path.basename(args.data),
            "split": args.split,
            "pictures": measured.pictures,
            "left_out": measured.left_out,
        }
        write_report(args.report, measured, reports, dataset=dataset, config=weights.config, about=about)

    return details


def _beside(args: argparse.Namespace, measured, dataset, weights) -> dict:
    """Compare with the other model's probabilities; return metrics and disagreements as plain data."""
    from ..evaluation.beside import compare_beside, read_probabilities
    from ..taxonomy.calibration import Calibration
    from ..taxonomy.decode import path_probabilities

    mode = next((mode for mode in args.decode if mode != "independent"), None)
    if mode is None:
        raise ValueError("--beside needs a decoding that gives paths of the tree: best_path or top_down")
    numbers = measured.numbers.tolist()
    names = [dataset.name(number) for number in range(len(dataset))]
    theirs = read_probabilities(args.beside, weights.taxonomy, names)[numbers]
    calibration = weights.calibration or Calibration.identity(len(weights.taxonomy.levels))
    ours = path_probabilities(measured.logits, weights.taxonomy, mode, path_temperature=calibration.path_temperature)
    paths = measured.answers[mode].paths
    comparison = compare_beside(ours, theirs, measured.labels, paths, weights.taxonomy)

    queue = []
    for row in comparison.queue:
        best = weights.taxonomy.paths[int(theirs[row].argmax())]
        queue.append(
            {
                "file": names[numbers[row]],
                "ours": list(weights.taxonomy.path_names(paths[row].tolist())),
                "theirs": list(weights.taxonomy.path_names(best)),
                "label": list(weights.taxonomy.path_names(measured.labels[row].tolist())),
            }
        )

    return {**dataclasses.asdict(comparison), "decoding": mode, "queue": queue}


def _print_beside(comparison: dict) -> None:
    """Print the metrics of both models and of their product, and the first disagreements."""
    print()
    results, queue = comparison["results"], comparison["queue"]
    names = list(results["ours"])
    print("\t".join(["model", *map(printable, names)]))
    for model, values in results.items():
        print("\t".join([model, *(f"{values[name]:.2f}" for name in names)]))

    best = max(results, key=lambda model: results[model].get("fpa", 0))
    print(
        f"best: {best}; they agree on {comparison['agree']:.1f} % of the pictures, and are right on "
        f"{comparison['right_where_both_agree']:.1f} % of these; the other {len(queue)} have "
        f"{comparison['errors_in_queue']:.1f} % of our errors",
        file=sys.stderr,
    )
    for row in queue[:SHOWN]:
        ours, theirs = (" > ".join(row[name]) for name in ("ours", "theirs"))
        print(printable(f"{row['file']}: ours {ours}; theirs {theirs}"))


def _record(args: argparse.Namespace, measured, dataset, config) -> None:
    """Write an evaluation to its card, with file names in place of this machine's paths."""
    from ..sharing.answer_sheet import answer_sheet, example_answers, save_beside
    from ..sharing.model_card import Evaluation, answer_calibration, code_version, record_evaluation
    from ..weights.file import checksum

    model, file = (os.path.basename(os.path.normpath(path)) for path in (args.model, args.data))
    command = f"hcast-zoo evaluate --model {model} --data {file}" + (f" --split {args.split}" if args.split else "")
    answers = measured.answers[args.decode[0]]
    pictures, examples = None, []
    if args.card_pictures is not None:
        stem = Path(args.card).stem + (f".{_file_name(args.split)}" if args.split else "")
        pictures = save_beside(args.card, f"{stem}.jpg", answer_sheet(measured, args.decode[0], dataset, config))
        for number, picture in enumerate(example_answers(measured, args.decode[0], dataset), 1):
            examples.append(save_beside(args.card, f"{stem}.{number}.jpg", picture))

    record_evaluation(
        args.card,
        args.model,
        Evaluation(
            sha256=checksum(args.model),
            data=dataset.taxonomy.name or file,
            split=args.split,
            pictures=measured.pictures,
            results=measured.results,
            command=command,
            commit=code_version(),
            left_out=measured.left_out,
            calibration=answer_calibration(answers, measured.labels, dataset.taxonomy),
            pictures_file=pictures,
            credit=args.card_pictures or "",
            examples=examples,
        ),
    )


def _file_name(text: str) -> str:
    """Return a text without characters that a file name may not contain."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in text)
