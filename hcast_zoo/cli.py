"""The command line: ``hcast-zoo predict | evaluate | train | convert | info | mm-train``.

Data goes to stdout, messages and progress to stderr. Exit code 0: all went well; 1: some picture failed; 2: wrong
usage or input; 130: interrupted. Heavy imports are inside the commands, so that --help answers at once.
"""

import argparse
import dataclasses
import importlib
import json
import os
import sys
import types
import typing

from . import __version__
from .config import VARIANTS
from .train_config import TrainConfig

DEFAULT_MODEL = "hcast_small.emoji_art"
DECODERS = ("best_path", "top_down", "independent")  # decode.DECODERS; a test compares


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `hcast-zoo predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:  # bad input, told in words; anything else is our defect
        print(f"hcast-zoo {args.command}: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="hcast-zoo", description="Classify pictures along a taxonomy with H-CAST.")
    parser.add_argument("--version", action="version", version=f"hcast-zoo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    p = command("predict", predict, "print the path in the taxonomy of each picture")
    p.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files, folders, glob patterns")
    _add_model(p)
    p.add_argument("--decode", choices=DECODERS, default="best_path", help="how levels become a path (%(default)s)")
    p.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_loading(p)

    p = command("evaluate", evaluate, "print accuracy, FPA, TICE and wAP on a labelled data set")
    p.add_argument("--data", required=True, help="folder tree, .csv, .jsonl or .parquet file")
    p.add_argument("--split", help="part of the data set")
    p.add_argument("--decode", choices=DECODERS, nargs="+", default=list(DECODERS), help="decodings to compare (all)")
    p.add_argument("--json", action="store_true", help="one JSON object")
    _add_model(p)
    _add_loading(p)

    p = command("train", train, "train or fine-tune; the same command resumes a run that was stopped")
    p.add_argument("--data", required=True, help="folder tree with a folder a split, .csv, .jsonl or .parquet file")
    p.add_argument("--train-split", default="train")
    p.add_argument("--val-split", default="val")
    p.add_argument("--taxonomy", help=".json or .csv file (default: from the training data)")
    p.add_argument("--output", required=True, help="folder of the run")
    p.add_argument("--model", default="hcast_small",
                   help=f"variant to train from scratch ({', '.join(VARIANTS)}), or weights to start from")
    p.add_argument("--image-size", type=int, help="pixels, a multiple of 8")
    p.add_argument("--num-superpixels", type=int)
    p.add_argument("--num-clusters", type=int, nargs=4)
    p.add_argument("--drop-path-rate", type=float)
    p.add_argument("--crop-pct", type=float, help="centre crop at evaluation")
    _add_fields(p, TrainConfig)

    p = command("convert", convert, "turn an official H-CAST or CAST checkpoint into H-CAST Zoo weights")
    p.add_argument("checkpoint", help=".pth (read without running code) or .safetensors file")
    p.add_argument("output", help=".safetensors file to write")
    p.add_argument("--taxonomy", help="labels to store with the weights")
    p.add_argument("--num-superpixels", type=int, default=196)
    p.add_argument("--num-heads", type=int, default=12)
    p.add_argument("--keep-last-pool", action="store_true", help="keep the fourth pooling, which reaches no label")

    p = command("info", info, "list the packaged weights, or describe one model")
    p.add_argument("model", nargs="?", help="name, file or folder")
    p.add_argument("--json", action="store_true", help="one JSON object")
    p = command("mm-train", mm_train, "train by an mmpretrain config, as mmpretrain's tools/train.py does")
    p.add_argument("config", help="file, or hcast_zoo::hcast/NAME.py for one of ours")
    p.add_argument("--work-dir", help="folder of the run (work_dirs/NAME)")
    p.add_argument("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
                   help="go on from the folder's latest checkpoint, or from this one")
    p.add_argument("--cfg-options", nargs="+", metavar="KEY=VALUE", help="settings of the config to change")
    return parser


def predict(args: argparse.Namespace) -> int:
    """Print one line a picture."""
    from tqdm import tqdm

    from .predict import Predictor, find_pictures

    files = find_pictures(args.pictures)
    predictor = Predictor(args.model, args.decode, args.device)
    failed = 0
    bar = tqdm(predictor.predict(files, args.batch_size, args.workers), total=len(files), unit="picture",
               disable=len(files) < 2 or not sys.stderr.isatty())
    for prediction in bar:
        failed += prediction.error is not None
        if args.json:
            print(json.dumps(prediction.to_dict(), ensure_ascii=False), flush=True)
        elif prediction.error is not None:
            print(f"{_printable(prediction.file)}: {_printable(prediction.error)}", file=sys.stderr)
        else:
            levels = " > ".join(f"{n} {p:.1%}" for n, p in zip(prediction.path, prediction.probabilities))
            line = f"{prediction.file}: {levels} (path {prediction.path_probability:.1%}"
            if prediction.runner_up:
                line += f"; then {' > '.join(prediction.runner_up)} {prediction.runner_up_probability:.1%}"
            print(_printable(line + ")"), flush=True)
    if failed:
        print(f"{failed} of {len(files)} pictures failed", file=sys.stderr)
    return 1 if failed else 0


def evaluate(args: argparse.Namespace) -> int:
    """Print a row of metrics for each decoding."""
    from . import weights
    from .data import HierarchicalDataset
    from .evaluate import evaluate as run
    from .transforms import eval_transform

    content = weights.load(args.model)
    if content.taxonomy is None:
        raise ValueError(f"{args.model} has no taxonomy")
    transform = eval_transform(content.config)
    dataset = HierarchicalDataset.load(args.data, content.taxonomy, args.split, transform=transform)
    results = run(weights.build(content, args.device), dataset, args.decode, batch_size=args.batch_size,
                  workers=args.workers)
    if args.json:
        print(json.dumps({"model": args.model, "data": args.data, "split": args.split, "pictures": len(dataset),
                          "results": results}))
        return 0
    names = list(next(iter(results.values())))
    print("\t".join(["decoding", *names]))
    for mode, values in results.items():
        print("\t".join([mode, *(f"{values[n]:.2f}" for n in names)]))
    return 0


def train(args: argparse.Namespace) -> int:
    """Train, or go on with a run."""
    from . import weights
    from .config import HCastConfig
    from .data import HierarchicalDataset
    from .taxonomy import Taxonomy
    from .train import Run

    settings = TrainConfig(**{f.name: getattr(args, f.name) for f in dataclasses.fields(TrainConfig)})
    taxonomy = Taxonomy.load(args.taxonomy) if args.taxonomy else None
    train_set = HierarchicalDataset.load(args.data, taxonomy, args.train_split, cache=settings.cache)
    val_set = HierarchicalDataset.load(args.data, train_set.taxonomy, args.val_split, cache=settings.cache)
    names = ("image_size", "num_superpixels", "num_clusters", "drop_path_rate", "crop_pct")
    changes = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    changes["level_classes"] = train_set.taxonomy.level_classes
    init = None
    if args.model in VARIANTS:
        config = HCastConfig.from_variant(args.model, **changes)
    else:
        init = weights.load(args.model)
        config = init.config.replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})
    best = Run(config, settings, train_set, val_set, args.output, init).train()
    print(json.dumps({"best_val_fpa": best, "weights": os.path.join(args.output, "best.safetensors")}))
    return 0


def convert(args: argparse.Namespace) -> int:
    """Write converted weights."""
    from . import weights
    from .convert import convert_official, read_checkpoint
    from .taxonomy import Taxonomy

    config, state = convert_official(read_checkpoint(args.checkpoint), keep_last_pool=args.keep_last_pool,
                                     num_superpixels=args.num_superpixels, num_heads=args.num_heads)
    taxonomy = Taxonomy.load(args.taxonomy) if args.taxonomy else None
    if taxonomy is not None and taxonomy.level_classes != config.level_classes:
        raise ValueError(f"the taxonomy has {taxonomy.level_classes} classes, the checkpoint {config.level_classes}")
    weights.save(weights.Weights(config, taxonomy, state), args.output)
    print(f"{args.output}: {len(state)} tensors, levels {config.level_classes}", file=sys.stderr)
    return 0


def info(args: argparse.Namespace) -> int:
    """Describe weights."""
    from . import weights

    if args.model is None:
        index = weights.packaged()
        for name, entry in index.items():
            print(json.dumps({"name": name, **entry}) if args.json else f"{name}\t{entry.get('description', '')}")
        return 0
    content = weights.load(args.model)
    description = {
        "config": content.config.to_dict(),
        "parameters": sum(v.numel() for v in content.state_dict.values()),
        "taxonomy": content.taxonomy and content.taxonomy.name,
        "levels": dict(zip(content.taxonomy.levels, content.taxonomy.level_classes)) if content.taxonomy else None,
        "metadata": content.metadata,
    }
    print(json.dumps(description, ensure_ascii=False, indent=None if args.json else 1))
    return 0


def mm_train(args: argparse.Namespace) -> int:
    """Train by an mmpretrain config."""
    try:
        training = importlib.import_module("hcast_zoo.integrations.mmpretrain.train")
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}: pip install 'hcast-zoo[mmpretrain]'") from error
    print(training.train(args.config, args.work_dir, args.resume, args.cfg_options))
    return 0


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="weights: name, file or folder (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where the model runs (%(default)s)")


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, default=16, help="pictures at once (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures (%(default)s)")


def _add_fields(parser: argparse.ArgumentParser, dataclass: type) -> None:
    """Add an option for each field of a dataclass; the help is in the class's docstring."""
    lines = (line.strip() for line in dataclass.__doc__.splitlines())
    texts = {line.split(":")[0]: line.split(": ", 1)[1] for line in lines if ": " in line}
    hints = typing.get_type_hints(dataclass)
    for field in dataclasses.fields(dataclass):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):  # X | None
            kind = next(t for t in typing.get_args(kind) if t is not type(None))
        options = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default,
                            help=texts.get(field.name, "").replace("%", "%%"), **options)


def _printable(text: str) -> str:
    """Return text without control characters, which could write to the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
