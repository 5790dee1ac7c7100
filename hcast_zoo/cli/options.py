"""Options that several commands share, and how their values are read."""

import argparse
import dataclasses
import types
import typing
from fractions import Fraction

from ..common.choices import BOX_SHAPES, DECODERS, DEFAULT_MODEL, ENGINES, PRECISIONS
from ..common.text import clip
from ..training.settings import MAX_WORKERS


def add_listing(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how pictures and labels are listed; options not given are absent."""
    absent = argparse.SUPPRESS
    parser.add_argument(
        "--levels", nargs="+", metavar="COLUMN", default=absent, help="columns that are levels, coarse to fine"
    )
    parser.add_argument(
        "--synonyms", metavar="FILE", default=absent, help="table of two columns: names to replace, and by what"
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        default=absent,
        help="hold out this fraction of each leaf's training pictures as part val, chosen by their content",
    )
    parser.add_argument(
        "--test-fraction", type=float, metavar="F", default=absent, help="the same for an unseen part test"
    )
    parser.add_argument(
        "--group-by",
        metavar="COLUMN",
        default=absent,
        help="hold out what belongs together as a whole: a column (camera, individual), or `folder`",
    )
    parser.add_argument(
        "--keep",
        metavar="LIST",
        default=absent,
        help="earlier list of `data split` or a run's pictures.csv: its pictures stay in their parts",
    )
    add_boxes(parser)


def add_facts(parser: argparse.ArgumentParser) -> None:
    """Add the options for what a model card says about the weights."""
    parser.add_argument("--title", metavar="NAME", help="name of the weights on their card")
    parser.add_argument(
        "--license", metavar="ID", help="licence of the weights, such as cc-by-4.0 (default: that of the start weights)"
    )


def add_boxes(parser: argparse.ArgumentParser, default: object = argparse.SUPPRESS) -> None:
    """Add the options that say which boxes are pictures."""
    parser.add_argument(
        "--boxes",
        metavar="FILE",
        default=default,
        help="each box is a picture: MegaDetector's or COCO's JSON, or a table with columns xmin, ymin, xmax, ymax; "
        "names of pictures are relative to the given folder, else to this file's",
    )
    parser.add_argument(
        "--box-confidence",
        type=float,
        metavar="C",
        default=default,
        help="leave out boxes with a lower confidence of the detector, 0 to 1 (0)",
    )
    parser.add_argument(
        "--box-labels", nargs="+", metavar="NAME", default=default, help="keep only boxes with these detector labels"
    )


def add_geometry(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a box becomes a picture; options not given are absent."""
    absent = argparse.SUPPRESS
    parser.add_argument(
        "--box-padding",
        type=float,
        metavar="F",
        default=absent,
        help="margin added at each edge of a box, as a fraction of its sides (that of the weights, else 0.1)",
    )
    parser.add_argument(
        "--box-shape",
        choices=BOX_SHAPES,
        default=absent,
        help="whether a box is then made a square (as for the weights, else square)",
    )
    parser.add_argument(
        "--box-min-size",
        type=int,
        metavar="PIXELS",
        default=absent,
        help="smallest side of what is cut out (that of the weights, else 0)",
    )


def add_model(parser: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    """Add the options that choose a model."""
    parser.add_argument(
        "--model", default=default, help="weights: name, file, folder, or org/name on the Hub (%(default)s)"
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the model runs."""
    parser.add_argument(
        "--device",
        default="auto",
        help="where the model runs: cpu, cuda, cuda:1, mps, xpu, or auto: an accelerator if there is one (%(default)s)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the options for the engine and its precision."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="torch",
        help="what runs the model: torch, another engine on the CPU, or auto, the fastest one here whose answers to "
        "the first batch are torch's (%(default)s)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="precision of the computation (%(default)s)"
    )


def add_decoding(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how probabilities become an answer."""
    parser.add_argument(
        "--decode", choices=DECODERS, default="best_path", help="how levels become a path (%(default)s)"
    )
    parser.add_argument(
        "--within",
        action="append",
        metavar="NODE",
        help="answer only at or below this node, a name or level:name, or a file of names, one per row (repeatable)",
    )
    parser.add_argument(
        "--back-off",
        type=threshold,
        metavar="THRESHOLD|auto",
        help="stop at the deepest level where the levels agree and the path has this probability, 0 to 1, and say why; "
        "auto takes the threshold for which `calibrate --target-accuracy` promised an accuracy",
    )


def add_clusters(parser: argparse.ArgumentParser) -> None:
    """Add the option that replaces the weights' cluster counts."""
    parser.add_argument(
        "--num-clusters",
        type=int,
        nargs=4,
        metavar="N",
        help="segments made after each stage (default: as in training)",
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how pictures are read."""
    parser.add_argument("--batch-size", type=int, help="pictures per batch (16 on the CPU, 64 elsewhere)")
    parser.add_argument(
        "--workers",
        type=workers,
        help="processes that read pictures (default: depends on the machine and the number of pictures)",
    )


def threshold(text: str) -> float | str:
    """Return a number, or ``auto``."""
    return text if text == "auto" else float(text)


def workers(text: str) -> int:
    """Return a number of processes, after a check of its range."""
    if not 0 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"expected 0 to {MAX_WORKERS}, got {clip(text, 50)}")
    return int(text)


def batch_size(text: str) -> int | None:
    """Return a number, or None for ``dynamic``."""
    return None if text == "dynamic" else int(text)


def fraction(text: str) -> Fraction:
    """Return a number written as ``1/3`` or ``0.25``."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"expected a number such as 1/3 or 0.25, got {text!r}") from error


def add_fields(parser: argparse.ArgumentParser, dataclass: type) -> None:
    """Add an option for each field of a dataclass, absent where not given; the help is in the field's metadata."""
    hints = typing.get_type_hints(dataclass)
    for field in dataclasses.fields(dataclass):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):  # X | None
            kind = next(t for t in typing.get_args(kind) if t is not type(None))
        options = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        if choices := field.metadata.get("choices"):
            options["choices"] = choices
        default = "" if field.default in (None, "") else f" ({field.default})"
        text = (field.metadata["help"] + default).replace("%", "%%")
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=argparse.SUPPRESS, help=text, **options)
