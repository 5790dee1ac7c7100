"""Arguments of the commands that answer about pictures."""

import argparse
from collections.abc import Callable

from ..adaptation.config import FREE, AdaptConfig
from ..common.choices import (
    ADAPTED_MODEL,
    DECODERS,
    FEEDBACK,
    PARTS,
    SORT_AS,
    TABLE_LAYOUTS,
    TABLE_SUFFIXES,
)
from . import answer, evaluate, predict, share
from .options import (
    add_boxes,
    add_clusters,
    add_decoding,
    add_engine,
    add_geometry,
    add_listing,
    add_loading,
    add_model,
)


def add_answers(command: Callable) -> None:
    """Add the commands that answer about pictures."""
    _add_predict(command)
    _add_segment(command)
    _add_evaluate(command)
    _add_adapt(command)
    _add_demo(command)


def _add_predict(command: Callable) -> None:
    p = command("predict", predict.predict, "print the path in the taxonomy of each picture")
    p.add_argument(
        "pictures",
        nargs="*",
        metavar="PICTURE",
        help="picture files, folders, glob patterns, tar shards, parquet files, or any of these in a store: s3://BUCKET/DIR",
    )
    p.add_argument(
        "--files-from",
        metavar="FILE",
        help="text file that names a picture per line, or - for standard input; with --group-by, a table",
    )
    p.add_argument(
        "--group-by",
        metavar="COLUMN",
        help="give pictures that belong together, such as a burst or an individual, one answer: a column of the table "
        "that --files-from (or --boxes) names, or `folder`",
    )
    add_boxes(p, None)
    add_geometry(p)
    p.add_argument(
        "--draft",
        action="store_true",
        help="decode JPEG files at 1/2, 1/4 or 1/8 of their size where that is enough for the model: faster, but a few "
        "answers differ",
    )
    _add_prediction(p)
    _add_prediction_output(p)
    add_loading(p)
    add_engine(p)


def _add_prediction(p: argparse.ArgumentParser) -> None:
    """Add the options of `predict` that say what is answered."""
    add_model(p)
    add_clusters(p)
    p.add_argument(
        "--taxonomy",
        metavar="TREE",
        help="tree above the classes of flat weights, a file or a name such as imagenet; a node's probability is the "
        "sum of its classes'",
    )
    add_decoding(p)
    p.add_argument(
        "--prior",
        metavar="FILE.csv",
        help="table with a name and a number per row: expected abundances, to re-weight answers by Bayes' rule",
    )
    p.add_argument("--top-k", type=int, metavar="K", help="also give the K most probable paths")
    p.add_argument(
        "--set",
        type=float,
        metavar="COVERAGE",
        help="also give a set of nodes that contains the true one with this probability, such as 0.9; needs weights "
        "that `calibrate --sets` wrote",
    )
    p.add_argument(
        "--set-level", metavar="LEVEL", help="make the probability hold for each node of this level separately"
    )


def _add_prediction_output(p: argparse.ArgumentParser) -> None:
    """Add the options of `predict` that say where answers go."""
    p.add_argument(
        "--output",
        metavar="FILE|DIR",
        help=f"write a table ({', '.join(TABLE_SUFFIXES)}), or a folder of parquet files, which several processes "
        "(torchrun) can share; the same command resumes an interrupted run",
    )
    p.add_argument(
        "--format",
        choices=TABLE_LAYOUTS,
        default="flat",
        help="columns of the table: one for each level, Darwin Core's occurrence terms, or the JSON that Timelapse "
        "reads (%(default)s)",
    )
    p.add_argument("--part-size", type=int, default=4096, help="pictures per file of a folder (%(default)s)")
    p.add_argument(
        "--on",
        metavar="ADDRESS",
        help="compute the folder on a Ray cluster, ray://HOST:10001, or `local`, with one worker per processor of this "
        "machine",
    )
    p.add_argument(
        "--sort-into", metavar="DIR", help="put each picture into a folder below this one, named by its node"
    )
    p.add_argument("--sort-as", choices=SORT_AS, default="link", help="what to put there (%(default)s)")
    p.add_argument(
        "--report", metavar="FILE.html", help="write a page of thumbnails along the tree, the least certain first"
    )
    p.add_argument("--json", action="store_true", help="one JSON object per line")
    p.add_argument(
        "--tree",
        action=argparse.BooleanOptionalAction,
        help="print how many pictures are at each node (default: on a terminal, for several pictures)",
    )


def _add_segment(command: Callable) -> None:
    p = command("segment", answer.segment, "write pictures of the segmentations, and of where each level looks")
    p.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files, folders, glob patterns")
    p.add_argument("--output", required=True, metavar="DIR", help="folder that gets a folder for each picture")
    p.add_argument(
        "--write",
        choices=PARTS,
        nargs="+",
        default=list(PARTS),
        help="sheet.png, overlays, label maps as .png, arrays as .npz (all)",
    )
    p.add_argument("--dark", action="store_true", help="draw the sheet on dark paper")
    add_model(p)
    add_decoding(p)
    p.add_argument("--json", action="store_true", help="one JSON object per line")
    add_clusters(p)


def _add_evaluate(command: Callable) -> None:
    p = command("evaluate", evaluate.evaluate, "print accuracy, FPA, TICE and wAP on a labelled data set")
    p.add_argument(
        "--data",
        help="folder tree, .csv, .tsv, .jsonl or .parquet file (default for a run's weights: the run's own pictures)",
    )
    add_listing(p)
    p.add_argument("--split", help="part of the data set")
    p.add_argument("--decode", choices=DECODERS, nargs="+", default=list(DECODERS), help="decodings to compare (all)")
    p.add_argument("--json", action="store_true", help="one JSON object")
    p.add_argument("--card", metavar="CARD.md", help="write the numbers to this model card, and to the .json beside it")
    p.add_argument(
        "--card-pictures",
        metavar="CREDIT",
        help="show some right and some wrong answers on the card; CREDIT says whose pictures they are",
    )
    p.add_argument(
        "--report",
        metavar="DIR",
        help="write a page (the tree by recall, worst confusions, reliability), metrics.json, metrics.csv, nodes.csv",
    )
    p.add_argument(
        "--beside",
        metavar="FILE",
        help="compare with another model: its leaf probabilities, .csv or .parquet, a column per leaf and one `file`",
    )
    p.add_argument(
        "--abundance",
        metavar="FILE.csv",
        help="table with a leaf and a number per row: its frequency, to weight accuracy by",
    )
    p.add_argument("--superpixel-cache", metavar="DIR", help="folder that caches the superpixel maps")
    p.add_argument("--allow-missing", action="store_true", help="exit with 0 even if some pictures cannot be read")
    add_model(p)
    add_clusters(p)
    add_loading(p)
    add_engine(p)


def _add_adapt(command: Callable) -> None:
    p = command("adapt", answer.adapt, "raise a label's probability in one picture, and show how its segments follow")
    p.add_argument("picture", metavar="PICTURE", help="picture file")
    feedback = p.add_mutually_exclusive_group(required=True)
    feedback.add_argument("--target", metavar="NODE", help="node at any level to be seen, a name or level:name")
    feedback.add_argument(
        "--feedback",
        choices=[kind for kind in FEEDBACK if kind != "target"],
        help="what to raise instead: the predicted path, confident levels, or levels that agree",
    )
    p.add_argument("--output", metavar="DIR", help="write a sheet of before and after to this folder")
    p.add_argument("--dark", action="store_true", help="draw it on dark paper")
    p.add_argument("--json", action="store_true", help="one JSON object")
    add_model(p, ADAPTED_MODEL)
    add_clusters(p)

    defaults = AdaptConfig()
    p.add_argument("--free", choices=FREE, nargs="+", default=defaults.free, help="what may change (tokens)")
    p.add_argument("--steps", type=int, default=defaults.steps, help="steps of gradient descent (%(default)s)")
    p.add_argument(
        "--step-size",
        type=float,
        default=defaults.step_size,
        help="length of a step, as a fraction of the norm of what changes (%(default)s)",
    )
    p.add_argument(
        "--radius",
        type=float,
        default=defaults.radius,
        help="largest total change, as a fraction of the same norm (%(default)s)",
    )
    p.add_argument(
        "--contrast",
        action="store_true",
        help="keep a step only if it also raises the colour contrast of the segments, which then fit objects better",
    )


def _add_demo(command: Callable) -> None:
    p = command("demo", share.demo, "serve a page on this machine to try a model in a browser")
    add_model(p)
    p.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860)")
