"""Arguments of the commands about data sets, and about the paper's recipes and numbers."""

import argparse
from collections.abc import Callable

from ..common.choices import DECODERS
from ..paper.benchmarks import BENCHMARKS
from . import data, paper
from .options import add_device, add_listing, add_loading, fraction
from .train import split


def add_data(command: Callable) -> None:
    """Add `data` with its actions."""
    p = command("data", None, "check or split a data set; prepare, describe or shorten the paper's")
    actions = p.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    _add_prepare(action)
    _add_split(action)
    _add_check(action)
    _add_info(action)
    _add_free_grain(action)


def add_paper(command: Callable) -> None:
    """Add the commands for the paper's recipes and numbers."""
    _add_recipes(command)
    _add_repro(command)


def _add_prepare(action: Callable) -> None:
    text = "unpack archives, check them, and list pictures, labels and splits for train, evaluate and repro"
    p = action("prepare", paper.data_prepare, text)
    p.add_argument("dataset", metavar="NAME", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    p.add_argument(
        "sources",
        nargs="+",
        metavar="ARCHIVE",
        help="archives as their owners distribute them, or the folders they were unpacked to",
    )
    p.add_argument("--output", metavar="DIR", help="folder to unpack and write to (data/NAME)")
    p.add_argument("--seed", type=int, default=0, help="seed of the choice of validation pictures (%(default)s)")
    p.add_argument("--partial", action="store_true", help="accept a part of the data set, for a trial")
    p.add_argument("--no-check", action="store_true", help="do not decode every picture to see that it can be read")


def _add_split(action: Callable) -> None:
    p = action("split", split, "hold pictures out for validation and test, and write the list for train and evaluate")
    p.add_argument("data", metavar="DATA", help="folder tree, .csv, .tsv or .jsonl file")
    p.add_argument("--output", required=True, metavar="FILE", help=".csv file to write")
    add_listing(p)
    p.add_argument("--json", action="store_true", help="one JSON object")


def _add_check(action: Callable) -> None:
    text = "write a page of what to fix: unreadable pictures, copies, suspect labels, labels with few pictures"
    p = action("check", data.check, text)
    p.add_argument("data", metavar="DATA", help="folder tree, .csv, .tsv, .jsonl or .parquet file")
    p.add_argument("--output", required=True, metavar="DIR", help="folder for index.html and check.json")
    p.add_argument("--model", help="weights that labels are compared with: name, file, folder, or org/name on the Hub")
    p.add_argument(
        "--confidence",
        type=float,
        default=0.8,
        help="probability from which the model's answer counts against a label, 0 to 1 (%(default)s)",
    )
    p.add_argument("--taxonomy", help=".json or .csv file (default: from the labels)")
    p.add_argument(
        "--distance",
        type=int,
        default=4,
        help="bits of 64 by which the perceptual hashes of two copies may differ, 0 to 8 (%(default)s)",
    )
    add_listing(p)
    add_device(p)
    add_loading(p)
    p.add_argument("--json", action="store_true", help="one JSON object")


def _add_info(action: Callable) -> None:
    text = "list the data sets, or describe one: its levels, nodes with one child, and peculiarities"
    p = action("info", paper.data_info, text)
    p.add_argument("dataset", nargs="?", metavar="NAME", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    p.add_argument("--json", action="store_true", help="one JSON object per data set")


def _add_free_grain(action: Callable) -> None:
    text = "copy a data set, with training labels known only down to some level, as in real collections"
    p = action("free-grain", paper.free_grain, text)
    p.add_argument("source", metavar="IN", help=".csv, .jsonl or .parquet file")
    p.add_argument("output", metavar="OUT", help="file of the same format to write")
    p.add_argument("--taxonomy", required=True, help=".json or .csv file; its levels name the columns")
    p.add_argument(
        "--fractions",
        type=fraction,
        nargs="+",
        required=True,
        metavar="F",
        help="fraction of the pictures known down to each level, coarse to fine, such as 1/3 1/3 1/3",
    )
    p.add_argument("--split", default="train", help="split whose labels are shortened (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="seed of the choice of pictures (%(default)s)")
    p.add_argument("--json", action="store_true", help="one JSON object")


def _add_recipes(command: Callable) -> None:
    p = command("recipes", paper.recipes, "list the recipes for `train --recipe NAME`, or show one")
    p.add_argument("recipe", nargs="?", metavar="NAME", help="recipe to show, as JSON")


def _add_repro(command: Callable) -> None:
    text = "measure checkpoints on one of the paper's data sets, beside the published numbers"
    p = command("repro", paper.repro, text)
    p.add_argument("dataset", metavar="NAME", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    p.add_argument(
        "--checkpoint",
        required=True,
        action="append",
        metavar="FILE",
        help="official .pth file, or weights of ours; given several times (seeds), mean and standard deviation are "
        "printed",
    )
    p.add_argument("--data", metavar="DIR", help="folder that `hcast-zoo data prepare` wrote (data/NAME)")
    p.add_argument("--split", default="test", help="part of the data set (%(default)s)")
    p.add_argument(
        "--decode",
        choices=DECODERS,
        nargs="+",
        default=list(DECODERS),
        help="decodings to compare (all); published numbers are of `independent`",
    )
    add_device(p)
    p.add_argument("--json", action="store_true", help="one JSON object")
    add_loading(p)
