"""Arguments of the commands that make, change or share weights."""

import argparse
from collections.abc import Callable

from ..common.choices import EXPORT_FORMATS
from ..network.config import CROP_MODES, SUPERPIXELS, VARIANTS
from ..paper.benchmarks import BENCHMARKS
from ..training.settings import TrainConfig
from . import frameworks, share, trust
from .options import (
    add_clusters,
    add_device,
    add_facts,
    add_fields,
    add_geometry,
    add_listing,
    add_loading,
    batch_size,
)
from .train import train


def add_training(command: Callable) -> None:
    """Add the commands that make or change weights."""
    _add_train(command)
    _add_calibrate(command)
    _add_drift(command)
    _add_convert(command)
    _add_mm_train(command)
    _add_timm(command)


def add_sharing(command: Callable) -> None:
    """Add the commands that share weights."""
    _add_info(command)
    _add_export(command)
    _add_publish(command)


def _add_train(command: Callable) -> None:
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
        help="resume a run even if its data, taxonomy or start weights have changed",
    )
    add_facts(p)

    # Options not given are absent, so that a recipe can set them; train.train has the other defaults.
    p.argument_default = argparse.SUPPRESS
    p.add_argument("--data", help="folder tree with a folder per split, prepared folder, .csv, .jsonl or .parquet file")
    p.add_argument("--train-split", help="part of the data to learn from, or several: train+extra (train)")
    p.add_argument("--val-split", help="part of the data that chooses the weights (val)")
    p.add_argument("--taxonomy", help=".json or .csv file (default: from the training data)")
    p.add_argument("--strict-names", action="store_true", help="refuse a name that has two parents")
    add_listing(p)
    p.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        help="store temperatures fitted on the validation pictures with the best weights (yes)",
    )
    _add_architecture(p)
    add_fields(p, TrainConfig)


def _add_architecture(p: argparse.ArgumentParser) -> None:
    """Add the options of `train` that say which network is trained, and on what input."""
    p.add_argument(
        "--model", help=f"variant to train from scratch ({', '.join(VARIANTS)}), or weights to start from (hcast_small)"
    )
    p.add_argument("--image-size", type=int, help="pixels, a multiple of 8")
    p.add_argument("--superpixels", choices=SUPERPIXELS, help="how they are made (seeds)")
    p.add_argument("--num-superpixels", type=int, help="their number (default: follows the image size)")
    p.add_argument(
        "--num-clusters",
        type=int,
        nargs=4,
        metavar="N",
        help="segments made after each stage (default: follows the image size)",
    )
    p.add_argument("--drop-path-rate", type=float, help="stochastic depth of the last block; grows linearly from 0")
    add_geometry(p)
    p.add_argument("--crop-pct", type=float, help="centre crop at evaluation")
    p.add_argument(
        "--crop-mode",
        choices=CROP_MODES,
        help="what evaluation does with pictures that are not square: center cuts off the ends, pad fills up "
        "with the mean colour, squash resizes both sides alike; with the last two, --crop-pct is 1 by default (center)",
    )
    p.add_argument("--mean", type=float, nargs="+", help="channel means to normalise by, for pixels in [0, 1]")
    p.add_argument("--std", type=float, nargs="+", help="channel standard deviations to normalise by")


def _add_calibrate(command: Callable) -> None:
    text = "fit a temperature for each level on held-out data, and store it with the weights"
    p = command("calibrate", trust.calibrate, text)
    p.add_argument("model", metavar="MODEL", help="weights: name, file, folder, or org/name on the Hub")
    p.add_argument("--data", help="folder tree, .csv, .tsv, .jsonl or .parquet file (the run's own pictures)")
    add_listing(p)
    p.add_argument("--split", default="val", help="part of the data set that was not trained on (%(default)s)")
    p.add_argument("--output", required=True, metavar="FILE", help=".safetensors file to write; may be MODEL itself")
    p.add_argument(
        "--target-accuracy",
        type=float,
        metavar="A",
        help="also find the back-off threshold at which at least this share of the answers is right, such as 0.95; a "
        "third of the pictures is then fitted on, and the others test the threshold",
    )
    p.add_argument(
        "--confidence", type=float, default=0.9, help="least probability that the promise holds (%(default)s)"
    )
    p.add_argument(
        "--sets", action="store_true", help="also store what `predict --set` needs; divides the pictures too"
    )
    add_device(p)
    p.add_argument("--json", action="store_true", help="one JSON object")
    p.add_argument("--allow-missing", action="store_true", help="exit with 0 even if some pictures cannot be read")
    add_loading(p)


def _add_drift(command: Callable) -> None:
    text = "see whether new pictures are like those that a model was calibrated on; exit code 1 if not"
    p = command("drift", trust.drift, text)
    p.add_argument("model", metavar="MODEL", help="weights that `hcast-zoo calibrate` wrote")
    p.add_argument(
        "--data",
        required=True,
        help="folder of new pictures; or a .csv, .tsv, .jsonl or .parquet file with labels, which test the promise too",
    )
    p.add_argument("--labels", action="store_true", help="the names of the subfolders are labels")
    add_listing(p)
    p.add_argument("--split", help="part of a labelled data set")
    add_device(p)
    p.add_argument("--json", action="store_true", help="one JSON object")
    add_loading(p)


def _add_convert(command: Callable) -> None:
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
        help="data set of the paper that an official checkpoint was trained on: stores its tree, superpixels and "
        f"normalisation ({', '.join(BENCHMARKS)})",
    )
    p.add_argument("--num-superpixels", type=int, help="number of superpixels (196, or the data set's)")
    p.add_argument("--num-heads", type=int, default=12, help="attention heads of a block (%(default)s)")
    p.add_argument("--keep-last-pool", action="store_true", help="keep the fourth pooling, which no label depends on")
    p.add_argument(
        "--keep-projection", metavar="FILE", help="write the projection head of a self-supervised checkpoint here"
    )


def _add_mm_train(command: Callable) -> None:
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


def _add_timm(command: Callable) -> None:
    text = "run a script of timm's (train.py, validate.py, inference.py, benchmark.py) with H-CAST models"
    p = command("timm", frameworks.timm, text)
    p.add_argument("script", metavar="SCRIPT.py", help="file, from timm's repository")
    p.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own options")


def _add_info(command: Callable) -> None:
    p = command("info", share.info, "list the packaged weights, or describe one model")
    p.add_argument("model", nargs="?", help="name, file or folder")
    p.add_argument("--list", action="store_true", help="list every name: data, classes, size, licence, where it is")
    p.add_argument(
        "--pin", metavar="SHA256", help="accept only the file with this hash for a name of published weights"
    )
    p.add_argument("--json", action="store_true", help="one JSON object")


def _add_export(command: Callable) -> None:
    p = command("export", share.export, "write a model as one ONNX or torch.export graph, and check it")
    p.add_argument("model", metavar="MODEL", help="weights: name, file, folder, or org/name on the Hub")
    p.add_argument("--output", required=True, metavar="FILE", help="file to write")
    p.add_argument("--format", choices=EXPORT_FORMATS, default="onnx", help="onnx, or torch.export's pt2 (%(default)s)")
    p.add_argument(
        "--batch-size",
        type=batch_size,
        default=None,
        metavar="N|dynamic",
        help="the only batch size that the graph takes (dynamic: any)",
    )
    p.add_argument("--opset", type=int, help="ONNX opset (default: that of the installed torch)")
    p.add_argument("--no-check", action="store_true", help="do not run the file and compare it with the model")
    p.add_argument("--json", action="store_true", help="one JSON object")
    add_clusters(p)


def _add_publish(command: Callable) -> None:
    p = command("publish", share.publish, "publish weights on the Hub, for the core, timm and transformers")
    p.add_argument("model", metavar="WEIGHTS", help="weights: name, file, folder, or org/name on the Hub")
    p.add_argument("--repo", required=True, metavar="ORG/NAME", help="repository; created if it does not exist")
    p.add_argument("--private", action="store_true", help="make the repository private")
    p.add_argument("--revision", help="branch to commit to (main)")
    p.add_argument("--tag", help="tag for the commit, such as v1.0")
    p.add_argument("--message", help="commit message")
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
