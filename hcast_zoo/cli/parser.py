"""The commands and their arguments; the modules beside this one run them."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from ..adaptation.config import FREE, AdaptConfig
from ..common.choices import (
    ADAPTED_MODEL,
    DECODERS,
    EXPORT_FORMATS,
    FEEDBACK,
    PARTS,
    SHELLS,
    SORT_AS,
    TABLE_LAYOUTS,
    TABLE_SUFFIXES,
)
from ..common.text import clip, printable
from ..network.config import CROP_MODES, SUPERPIXELS, VARIANTS
from ..paper.benchmarks import BENCHMARKS
from ..training.settings import TrainConfig
from . import answer, data, doctor, evaluate, frameworks, paper, predict, share, trust
from .options import (
    add_boxes,
    add_clusters,
    add_decoding,
    add_device,
    add_engine,
    add_facts,
    add_fields,
    add_geometry,
    add_listing,
    add_loading,
    add_model,
    batch_size,
    fraction,
)
from .overview import Help, Overview, example, overview
from .train import split, train


class Version(argparse.Action):
    """Print the versions of the packages that matter, looked up only on request."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(doctor.version_text())
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are short and contain only printable text."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(clip(message)))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="hcast-zoo",
        description="Classify pictures along a taxonomy with H-CAST.",
        usage="hcast-zoo [-h] [--version] COMMAND ...",
        formatter_class=Overview,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the versions of what matters, and end")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, prog="hcast-zoo")
    texts = {}

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        texts[name] = text
        sub = subparsers.add_parser(name, description=text, epilog=example(name), formatter_class=Help)
        sub.add_argument("-q", "--quiet", action="store_true", help="show no progress and no warnings")
        sub.add_argument("-v", "--verbose", action="store_true", help="tell more; of an error, where it came up")
        sub.set_defaults(run=run)
        return sub

    _add_answers(command)
    _add_training(command)
    _add_data(command)
    _add_paper(command)
    _add_sharing(command)
    _add_own(command, parser)

    parser.epilog = overview(texts)
    return parser


def _add_own(command: Callable, parser: argparse.ArgumentParser) -> None:
    """Add the commands about this program."""
    p = command("doctor", doctor.doctor, "tell what this machine and environment offer, and what is missing")
    p.add_argument("--json", action="store_true", help="one JSON object")

    p = command("completion", doctor.completion, "print a script that completes commands and options in a shell")
    p.set_defaults(parser=parser)
    p.add_argument("shell", choices=SHELLS, help="which shell")


def _add_answers(command: Callable) -> None:
    """Add the commands that answer about pictures."""
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
        "--output",
        metavar="FILE|DIR",
        help=f"write a table that ends in {', '.join(TABLE_SUFFIXES)} instead (the same command goes on where it was "
        "stopped); or, to a folder, parquet files of "
        "--part-size pictures, where the same command resumes and several processes (torchrun) share the work",
    )
    p.add_argument("--part-size", type=int, default=4096, help="pictures per file of a folder (%(default)s)")
    p.add_argument(
        "--on",
        metavar="ADDRESS",
        help="write the folder on a Ray cluster, ray://HOST:10001, or `local`: one worker for each processor here",
    )
    p.add_argument(
        "--draft",
        action="store_true",
        help="decode JPEG files at 1/2, 1/4 or 1/8 of their size where that is enough for the model: faster, and a few "
        "answers differ",
    )
    p.add_argument(
        "--format",
        choices=TABLE_LAYOUTS,
        default="flat",
        help="columns of the table: one for each level, Darwin Core's occurrence terms, or the JSON that Timelapse "
        "reads (%(default)s)",
    )
    add_model(p)
    add_decoding(p)
    p.add_argument(
        "--prior",
        metavar="FILE.csv",
        help="table with a name and a number per row: expected abundances, to re-weight answers by Bayes' rule",
    )
    add_boxes(p, None)
    add_geometry(p)
    p.add_argument(
        "--group-by",
        metavar="COLUMN",
        help="answer together what belongs together, as a burst or an individual: a column of the table that "
        "--files-from (or --boxes) names, or `folder`",
    )
    p.add_argument("--sort-into", metavar="DIR", help="put each picture into the folder of its node here")
    p.add_argument("--sort-as", choices=SORT_AS, default="link", help="what to put there (%(default)s)")
    p.add_argument(
        "--report", metavar="FILE.html", help="write a page of thumbnails along the tree, the most doubtful first"
    )
    p.add_argument(
        "--taxonomy",
        metavar="TREE",
        help="tree above the classes of flat weights, a file or a name such as imagenet: levels above are sums",
    )
    p.add_argument(
        "--set",
        type=float,
        metavar="COVERAGE",
        help="also give a set of nodes that holds the true one with this probability, such as 0.9; needs weights that "
        "`calibrate --sets` wrote",
    )
    p.add_argument("--set-level", metavar="LEVEL", help="level for each of whose nodes that shall hold by itself")
    p.add_argument("--top-k", type=int, metavar="K", help="also give the K most probable paths")
    p.add_argument("--json", action="store_true", help="one JSON object per line")
    p.add_argument(
        "--tree",
        action=argparse.BooleanOptionalAction,
        help="print how many pictures are at each node (on a terminal, of several pictures: yes)",
    )
    add_clusters(p)
    add_loading(p)
    add_engine(p)

    p = command("segment", answer.segment, "write pictures of the segmentations, and of where each level looks")
    p.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files, folders, glob patterns")
    p.add_argument("--output", required=True, metavar="DIR", help="a folder is made here for each picture")
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

    p = command("evaluate", evaluate.evaluate, "print accuracy, FPA, TICE and wAP on a labelled data set")
    p.add_argument(
        "--data", help="folder tree, .csv, .tsv, .jsonl or .parquet file (of a run's weights: the run's own pictures)"
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
    p.add_argument(
        "--allow-missing", action="store_true", help="end with exit code 0 though some pictures cannot be read"
    )
    add_model(p)
    add_clusters(p)
    add_loading(p)
    add_engine(p)

    p = command("adapt", answer.adapt, "raise a label's probability in one picture, and show how its segments follow")
    p.add_argument("picture", metavar="PICTURE", help="picture file")
    about = p.add_mutually_exclusive_group(required=True)
    about.add_argument("--target", metavar="NODE", help="node at any level that should be seen, a name or level:name")
    about.add_argument(
        "--feedback",
        choices=[feedback for feedback in FEEDBACK if feedback != "target"],
        help="what to raise instead: the predicted path, confident levels, or levels that agree",
    )
    p.add_argument("--output", metavar="DIR", help="write the picture of before and after to this folder")
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

    p = command("demo", share.demo, "serve a page on this machine to try a model in a browser")
    add_model(p)
    p.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860)")


def _add_training(command: Callable) -> None:
    """Add the commands that make or change weights."""
    p = command("train", train, "train or fine-tune; the same command resumes a run that was stopped")
    p.add_argument(
        "--recipe",
        metavar="NAME",
        help="settings to take where no option is given: a name that `hcast-zoo recipes` lists, or a .json file",
    )
    p.add_argument("--output", required=True, help="folder of the run")
    p.add_argument(
        "--accept-changes",
        action="store_true",
        help="resume a run though its data, taxonomy or start weights are no longer the same",
    )

    add_facts(p)

    # Options not given are absent, so that a recipe can set them; train.train has the other defaults.
    p.argument_default = argparse.SUPPRESS
    p.add_argument("--data", help="folder tree with a folder a split, prepared folder, .csv, .jsonl or .parquet file")
    p.add_argument("--train-split", help="part of the data to learn from, or several: train+extra (train)")
    p.add_argument("--val-split", help="part of the data that chooses the weights (val)")
    p.add_argument("--taxonomy", help=".json or .csv file (default: from the training data)")
    p.add_argument("--strict-names", action="store_true", help="refuse a name below two parents")
    add_listing(p)
    p.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        help="store temperatures fitted on the validation pictures with the best weights (yes)",
    )
    p.add_argument(
        "--model", help=f"variant to train from scratch ({', '.join(VARIANTS)}), or weights to start from (hcast_small)"
    )
    p.add_argument("--image-size", type=int, help="pixels, a multiple of 8")
    p.add_argument("--superpixels", choices=SUPERPIXELS, help="how they are made (seeds)")
    p.add_argument("--num-superpixels", type=int)
    p.add_argument("--num-clusters", type=int, nargs=4)
    p.add_argument("--drop-path-rate", type=float)
    add_geometry(p)
    p.add_argument("--crop-pct", type=float, help="centre crop at evaluation")
    p.add_argument(
        "--crop-mode",
        choices=CROP_MODES,
        help="what evaluation does with pictures that are not square: center cuts off the ends, pad fills up "
        "with the mean colour, squash resizes both sides alike; with the last two, --crop-pct is 1 by default (center)",
    )
    p.add_argument("--mean", type=float, nargs="+", help="of a channel's pixels in [0, 1], to normalise by")
    p.add_argument("--std", type=float, nargs="+", help="deviation of the same")
    add_fields(p, TrainConfig)

    p = command(
        "calibrate", trust.calibrate, "fit a temperature for each level on held-out data, and store it with the weights"
    )
    p.add_argument("model", metavar="MODEL", help="weights: name, file, folder, or org/name on the Hub")
    p.add_argument("--data", help="folder tree, .csv, .tsv, .jsonl or .parquet file (the run's own pictures)")
    add_listing(p)
    p.add_argument("--split", default="val", help="part of the data set that was not trained on (%(default)s)")
    p.add_argument("--output", required=True, metavar="FILE", help=".safetensors file to write; may be MODEL itself")
    p.add_argument(
        "--target-accuracy",
        type=float,
        metavar="A",
        help="also find the back-off threshold whose answers are right at least so often, such as 0.95; the pictures "
        "are divided, a third to fit on, the others to test on",
    )
    p.add_argument(
        "--confidence", type=float, default=0.9, help="least probability that the promise holds (%(default)s)"
    )
    p.add_argument(
        "--sets", action="store_true", help="also store what `predict --set` needs; divides the pictures too"
    )
    add_device(p)
    p.add_argument("--json", action="store_true", help="one JSON object")
    p.add_argument(
        "--allow-missing", action="store_true", help="end with exit code 0 though some pictures cannot be read"
    )
    add_loading(p)

    p = command(
        "drift",
        trust.drift,
        "see whether new pictures are like those that a model was calibrated on; exit code 1 if not",
    )
    p.add_argument("model", metavar="MODEL", help="weights that `hcast-zoo calibrate` wrote")
    p.add_argument(
        "--data",
        required=True,
        help="folder of new pictures; or a .csv, .tsv, .jsonl or .parquet file with labels, which test the promise too",
    )
    p.add_argument("--labels", action="store_true", help="the names of the folder's folders are labels")
    add_listing(p)
    p.add_argument("--split", help="part of a labelled data set")
    add_device(p)
    p.add_argument("--json", action="store_true", help="one JSON object")
    add_loading(p)

    p = command("convert", share.convert, "turn an official H-CAST or CAST checkpoint into H-CAST Zoo weights")
    p.add_argument(
        "checkpoint",
        help=".pth (read without running code) or .safetensors file, hf://org/name/path, or an https:// address",
    )
    p.add_argument("output", help=".safetensors file to write")
    p.add_argument("--taxonomy", help="labels to store with the weights")
    p.add_argument(
        "--dataset",
        metavar="NAME",
        choices=BENCHMARKS,
        help="data set of the paper that an official "
        f"checkpoint is of: stores its tree, superpixels and normalisation ({', '.join(BENCHMARKS)})",
    )
    p.add_argument("--num-superpixels", type=int, help="(196, or the data set's)")
    p.add_argument("--num-heads", type=int, default=12)
    p.add_argument("--keep-last-pool", action="store_true", help="keep the fourth pooling, which reaches no label")
    p.add_argument(
        "--keep-projection", metavar="FILE", help="write the projection head of a self-supervised checkpoint here"
    )

    p = command("mm-train", frameworks.mm_train, "train by an mmpretrain config, as mmpretrain's tools/train.py does")
    p.add_argument("config", help="file, or hcast_zoo::hcast/NAME.py for one of ours")
    p.add_argument("--work-dir", help="folder of the run (work_dirs/NAME)")
    p.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="resume from the folder's latest checkpoint, or from this one",
    )
    p.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="settings of the config to change")

    text = "run a script of timm's (train.py, validate.py, inference.py, benchmark.py) with H-CAST models"
    p = command("timm", frameworks.timm, text)
    p.add_argument("script", metavar="SCRIPT.py", help="file, from timm's repository")
    p.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its own options")


def _add_data(command: Callable) -> None:
    """Add the commands that make data sets."""
    p = command("data", None, "prepare the paper's data sets, describe them, or shorten labels")
    actions = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "unpack archives, check them, and list pictures, labels and splits for train, evaluate and repro"
    p = actions.add_parser("prepare", help=text, description=text)
    p.set_defaults(run=paper.data_prepare)
    p.add_argument("dataset", metavar="NAME", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    p.add_argument(
        "sources",
        nargs="+",
        metavar="ARCHIVE",
        help="archives as their owners distribute them, or folders they were unpacked to",
    )
    p.add_argument("--output", metavar="DIR", help="folder to unpack and write to (data/NAME)")
    p.add_argument("--seed", type=int, default=0, help="draws the pictures for validation (%(default)s)")
    p.add_argument("--partial", action="store_true", help="accept a part of the data set, for a trial")
    p.add_argument("--no-check", action="store_true", help="do not decode every picture to see that it can be read")
    text = "hold pictures out for validation and test, and write the list, for train and evaluate"
    p = actions.add_parser("split", help=text, description=text)
    p.set_defaults(run=split)
    p.add_argument("data", metavar="DATA", help="folder tree, .csv, .tsv or .jsonl file")
    p.add_argument("--output", required=True, metavar="FILE", help=".csv file to write")
    add_listing(p)
    p.add_argument("--json", action="store_true", help="one JSON object")
    text = "write a page of what is to be mended: unreadable pictures, copies, suspect labels, small nodes"
    p = actions.add_parser("check", help=text, description=text)
    p.set_defaults(run=data.check)
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
    text = "list the data sets, or describe one: its levels, nodes with one child, and peculiarities"
    p = actions.add_parser("info", help=text, description=text)
    p.set_defaults(run=paper.data_info)
    p.add_argument("dataset", nargs="?", metavar="NAME", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    p.add_argument("--json", action="store_true", help="one JSON object per data set")
    text = "copy a data set, with training labels known only down to some level, as in real collections"
    p = actions.add_parser("free-grain", help=text, description=text)
    p.set_defaults(run=paper.free_grain)
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
    p.add_argument("--seed", type=int, default=0, help="chooses which pictures (%(default)s)")
    p.add_argument("--json", action="store_true", help="one JSON object")


def _add_paper(command: Callable) -> None:
    """Add the commands for the paper's recipes and numbers."""
    p = command("recipes", paper.recipes, "list the recipes for `train --recipe NAME`, or show one")
    p.add_argument("recipe", nargs="?", metavar="NAME", help="recipe to show, as JSON")

    p = command(
        "repro",
        paper.repro,
        "measure checkpoints on one of the paper's data sets, beside the published numbers",
    )
    p.add_argument("dataset", metavar="NAME", choices=BENCHMARKS, help=", ".join(BENCHMARKS))
    p.add_argument(
        "--checkpoint",
        required=True,
        action="append",
        metavar="FILE",
        help="official .pth file, or "
        "weights of ours; given several times (seeds), mean and standard deviation are printed",
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


def _add_sharing(command: Callable) -> None:
    """Add the commands that share weights."""
    p = command("info", share.info, "list the packaged weights, or describe one model")
    p.add_argument("model", nargs="?", help="name, file or folder")
    p.add_argument("--list", action="store_true", help="list every name: data, classes, size, licence, where it is")
    p.add_argument("--pin", metavar="SHA256", help="accept only this file behind a name of published weights")
    p.add_argument("--json", action="store_true", help="one JSON object")

    p = command("export", share.export, "write a model as one ONNX or torch.export graph, and check it")
    p.add_argument("model", metavar="MODEL", help="weights: name, file, folder, or org/name on the Hub")
    p.add_argument("--output", required=True, metavar="FILE", help="file to write")
    p.add_argument("--format", choices=EXPORT_FORMATS, default="onnx", help="onnx, or torch.export's pt2 (%(default)s)")
    p.add_argument(
        "--batch-size",
        type=batch_size,
        default=None,
        metavar="N|dynamic",
        help="the only batch size the graph takes (dynamic: any)",
    )
    p.add_argument("--opset", type=int, help="of ONNX (default: the installed torch's)")
    p.add_argument("--no-check", action="store_true", help="do not run the file and compare it with the model")
    p.add_argument("--json", action="store_true", help="one JSON object")
    add_clusters(p)

    p = command("publish", share.publish, "publish weights on the Hub, for the core, timm and transformers")
    p.add_argument("model", metavar="WEIGHTS", help="weights: name, file, folder, or org/name on the Hub")
    p.add_argument("--repo", required=True, metavar="ORG/NAME", help="repository; made if it is not there")
    p.add_argument("--private", action="store_true", help="make the repository private")
    p.add_argument("--revision", help="branch to commit to (main)")
    p.add_argument("--tag", help="name for the commit, such as v1.0")
    p.add_argument("--message", help="of the commit")
    p.add_argument(
        "--evaluations",
        metavar="CARD.json",
        help="numbers that `evaluate --card` wrote (default: those of the packaged weights)",
    )
    p.add_argument("--preview", metavar="PICTURE", help="picture whose segmentations the card shows")
    add_facts(p)
    p.add_argument(
        "--space",
        action="store_true",
        help="publish a Space that serves `hcast-zoo demo`, for weights on the Hub or in the package",
    )
    p.add_argument("--requirement", help="what pip installs in the Space (hcast-zoo[demo])")
    p.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    p.add_argument("--output", metavar="DIR", help="new or empty folder for the repository's files")
    p.add_argument("--json", action="store_true", help="one JSON object")
