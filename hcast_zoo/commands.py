"""What each command of the command line does: read the arguments, call the core, print.

Heavy imports are inside the functions, so that ``hcast-zoo --help`` answers at once. Data goes to stdout, messages and
progress to stderr. Each function returns the exit code.
"""

import argparse
import dataclasses
import importlib
import os
import shutil
import sys

from .adapt_config import AdaptConfig
from .config import VARIANTS
from .text import printable, to_json
from .train_config import TrainConfig

TRAIN_DEFAULTS = {"train_split": "train", "val_split": "val", "taxonomy": None, "model": "hcast_small"}
MODEL_OPTIONS = (
    "image_size",
    "superpixels",
    "num_superpixels",
    "num_clusters",
    "drop_path_rate",
    "crop_pct",
    "mean",
    "std",
)


def predict(args: argparse.Namespace) -> int:
    """Print one line a picture."""
    from tqdm import tqdm

    from .predict import Predictor, find_pictures
    from .processes import join

    files = find_pictures(args.pictures)
    if args.files_from:
        with open(args.files_from, encoding="utf-8", errors="surrogateescape") as names:
            files += [name for line in names if (name := line.rstrip("\n"))]
        if any("\0" in name for name in files):
            raise ValueError(f"{args.files_from}: expected a text file that names a picture a line, got NUL bytes")
    if not files:
        raise ValueError("expected pictures, or --files-from with a list of them")
    options = dict(decoder=args.decode, num_clusters=args.num_clusters, within=args.within, threshold=args.back_off)
    with join() as processes:
        predictor = Predictor(args.model, device=processes.device(args.device), **options)
        if args.output:
            return _predict_parts(args, predictor, files, options, processes)
        if processes.count > 1:
            raise ValueError("several processes need --output, a folder to write to")
    failed = 0
    bar = tqdm(
        predictor.predict(files, args.batch_size, args.workers),
        total=len(files),
        unit="picture",
        disable=len(files) < 2 or not sys.stderr.isatty(),
    )
    for prediction in bar:
        failed += prediction.error is not None
        if args.json:
            print(to_json(prediction.to_dict()), flush=True)
        elif prediction.error is not None:
            print(f"{printable(prediction.file)}: {printable(prediction.error)}", file=sys.stderr)
        else:
            print(printable(f"{prediction.file}: {_sentence(prediction)}"), flush=True)
    if failed:
        print(f"{failed} of {len(files)} pictures failed", file=sys.stderr)
    return 1 if failed else 0


def _predict_parts(args: argparse.Namespace, predictor, files: list[str], options: dict, processes) -> int:
    """Write a folder of parquet files; print what it holds."""
    from tqdm import tqdm

    from .card import checksum

    try:
        from .parts import predict_parts
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'hcast-zoo[train]'") from error

    done = failed = 0
    with tqdm(total=len(files), unit="picture", disable=not processes.is_main or not sys.stderr.isatty()) as bar:
        for pictures, failures in predict_parts(
            predictor,
            files,
            args.output,
            {"model_sha256": checksum(args.model), **options},
            part_size=args.part_size,
            processes=processes,
            batch_size=args.batch_size,
            workers=args.workers,
        ):
            done, failed = done + pictures, failed + failures
            bar.update(pictures * processes.count)
    done, failed = (sum(numbers) for numbers in zip(*processes.gather((done, failed))))
    if processes.is_main:
        print(to_json({"output": args.output, "pictures": done, "failed": failed}))
        if failed:
            print(f"{failed} of {done} pictures failed", file=sys.stderr)
    # A launcher would take any other code for a crash, and start the job again.
    return 1 if failed and processes.count == 1 else 0


def segment(args: argparse.Namespace) -> int:
    """Write a folder of pictures for each picture, and print which."""
    from tqdm import tqdm

    from .predict import Predictor, find_pictures
    from .segment import make_folder, segment_picture, write
    from .transforms import PictureError

    files = find_pictures(args.pictures)
    predictor = Predictor(
        args.model,
        args.decode,
        args.device,
        num_clusters=args.num_clusters,
        within=args.within,
        threshold=args.back_off,
    )
    failed = 0
    for file in tqdm(files, unit="picture", disable=len(files) < 2 or not sys.stderr.isatty()):
        try:
            segmented = segment_picture(predictor, file)
        except PictureError as error:
            failed += 1
            text = str(error).removeprefix(f"{file}: ")
            if args.json:
                print(to_json({"file": file, "error": text}), flush=True)
            else:
                print(f"{printable(file)}: {printable(text)}", file=sys.stderr)
            continue
        folder = make_folder(args.output, file)
        try:
            write(segmented, folder, args.write)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a part of the files would look like all of them
            raise
        if args.json:
            print(to_json({**segmented.to_dict(), "output": str(folder)}), flush=True)
        else:
            print(printable(f"{file}: {_sentence(segmented.prediction)} -> {folder}"), flush=True)
    if failed:
        print(f"{failed} of {len(files)} pictures failed", file=sys.stderr)
    return 1 if failed else 0


def evaluate(args: argparse.Namespace) -> int:
    """Print a row of metrics for each decoding."""
    from . import weights
    from .evaluate import evaluate as run
    from .processes import join

    if args.card and args.num_clusters:
        raise ValueError("--card tells what the weights do as they are: leave out --num-clusters")
    content, dataset = _load_labelled(args)
    with join() as processes:
        model = weights.build(content, processes.device(args.device))
        results = run(
            model,
            dataset,
            args.decode,
            content.calibration,
            processes=processes,
            batch_size=args.batch_size,
            workers=args.workers,
            num_clusters=args.num_clusters,
            superpixel_cache=args.superpixel_cache,
        )
    if not processes.is_main:
        return 0
    if args.card:
        _record(args, results, content.taxonomy.name, len(dataset))
    if args.json:
        print(
            to_json(
                {
                    "model": args.model,
                    "data": args.data,
                    "split": args.split,
                    "pictures": len(dataset),
                    "num_clusters": args.num_clusters,
                    "results": results,
                }
            )
        )
        return 0
    names = list(next(iter(results.values())))
    print("\t".join(["decoding", *map(printable, names)]))
    for mode, values in results.items():
        print("\t".join([mode, *(f"{values[n]:.2f}" for n in names)]))
    return 0


def _sentence(prediction) -> str:
    """Return what is predicted, as one line without the file."""
    levels = " > ".join(f"{n} {p:.1%}" for n, p in zip(prediction.path, prediction.probabilities)) or "no answer"
    facts = [f"path {prediction.path_probability:.1%}"] if prediction.path else []
    if prediction.runner_up:
        facts.append(f"then {' > '.join(prediction.runner_up)} {prediction.runner_up_probability:.1%}")
    if prediction.reason:
        facts.append(prediction.reason)
    return f"{levels} ({'; '.join(facts)})"


def adapt(args: argparse.Namespace) -> int:
    """Print a picture's answer before and after adaptation."""
    from .adapt_picture import adapt_picture, write_sheet
    from .predict import Predictor

    config = AdaptConfig(args.free, args.steps, args.step_size, args.radius)
    predictor = Predictor(args.model, device=args.device, num_clusters=args.num_clusters)
    adapted = adapt_picture(predictor, args.picture, args.target, feedback=args.feedback or "target", config=config)
    output = write_sheet(adapted, args.output) if args.output else None
    if args.json:
        print(to_json({**adapted.to_dict(), "output": output and str(output)}))
        return 0
    for when, prediction in (("before", adapted.before), ("after", adapted.after)):
        print(printable(f"{when}: {_sentence(prediction)}"))
    if adapted.probability is not None:
        before, after = adapted.probability
        print(printable(f"{adapted.target}: {before:.1%} -> {after:.1%}"))
    changes = ", ".join(f"{change:.1f} % at stage {stage}" for stage, change in enumerate(adapted.segment_change, 2))
    print(f"pixel pairs joined or parted: {changes}")
    if output:
        print(f"wrote {output}", file=sys.stderr)
    return 0


def demo(args: argparse.Namespace) -> int:
    """Serve a page until interrupted; its address goes to stdout."""
    from .predict import Predictor

    try:
        page = importlib.import_module("hcast_zoo.demo")
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}: pip install 'hcast-zoo[demo]'") from error
    page.run(Predictor(args.model, device=args.device), port=args.port)
    return 0


def calibrate(args: argparse.Namespace) -> int:
    """Write weights with fitted temperatures; print them, and the calibration error before and after."""
    from . import weights
    from .calibration import calibration_errors, fit_calibration
    from .evaluate import collect_logits

    content, dataset = _load_labelled(args)
    logits, labels = collect_logits(weights.build(content, args.device), dataset, args.batch_size, args.workers)
    fitted_on = f"{content.taxonomy.name or 'data'}, split {args.split}"
    content.calibration = fit_calibration(logits, labels, content.taxonomy, fitted_on)
    before = calibration_errors(logits, labels, content.taxonomy)
    after = calibration_errors(logits, labels, content.taxonomy, content.calibration)
    weights.save(content, args.output)
    if args.json:
        print(
            to_json(
                {
                    "output": args.output,
                    "pictures": len(labels),
                    "calibration": content.calibration.to_dict(),
                    "before": before,
                    "after": after,
                }
            )
        )
        return 0
    print("\t".join(["of", "temperature", "ece before", "ece after"]))
    temperatures = (*content.calibration.temperatures, content.calibration.path_temperature)
    for (name, error), temperature in zip(before.items(), temperatures):
        print(f"{printable(name.removeprefix('ece/'))}\t{temperature:.3f}\t{error:.2f}\t{after[name]:.2f}")
    return 0


def train(args: argparse.Namespace) -> int:
    """Train, or go on with a run."""
    from .config import HCastConfig
    from .data import HierarchicalDataset
    from .taxonomy import Taxonomy

    try:
        from .train import Run
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}: pip install 'hcast-zoo[train]'") from error

    options = _train_options(args)
    settings = TrainConfig(**{f.name: options[f.name] for f in dataclasses.fields(TrainConfig) if f.name in options})
    taxonomy = Taxonomy.load(options["taxonomy"]) if options["taxonomy"] else None
    train_set = HierarchicalDataset.load(options["data"], taxonomy, options["train_split"], cache=settings.cache)
    val_set = HierarchicalDataset.load(options["data"], train_set.taxonomy, options["val_split"], cache=settings.cache)
    changes = {name: options[name] for name in MODEL_OPTIONS if name in options}
    changes["level_classes"] = train_set.taxonomy.level_classes
    init = None
    if options["model"] in VARIANTS:
        config = HCastConfig.from_variant(options["model"], **changes)
    else:
        init = _load_start(options["model"], args.recipe)
        config = init.config.replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()})
    run = Run(config, settings, train_set, val_set, args.output, init)
    best = run.train()
    if run.processes.is_main:
        print(to_json({f"best_val_{run.criterion}": best, "weights": os.path.join(args.output, "best.safetensors")}))
    run.accelerator.end_training()
    return 0


def _train_options(args: argparse.Namespace) -> dict:
    """Return what to train with: options that were given, else the recipe's, else the defaults; tell of the recipe."""
    from . import recipe

    given = {k: v for k, v in vars(args).items() if k not in ("command", "run", "recipe", "output")}
    told: dict = {}
    if args.recipe:
        content = recipe.load(args.recipe)
        exact = given.get("paper_exact", content.settings.get("paper_exact", False))
        told = content.options(exact)
        known = {*TRAIN_DEFAULTS, *MODEL_OPTIONS, "data", *(f.name for f in dataclasses.fields(TrainConfig))}
        if unknown := sorted(set(told) - known):
            raise ValueError(f"recipe {content.name}: unknown settings {', '.join(unknown)}")
        print(
            f"recipe {content.name}: {content.description}; {recipe.EXACT if exact else recipe.MENDED}", file=sys.stderr
        )
    options = {**TRAIN_DEFAULTS, **told, **given}
    if "data" not in options:
        raise ValueError("expected --data, or a --recipe that tells it")
    return options


def _load_start(model: str, recipe: str | None):
    """Return the weights that training starts from."""
    from . import weights

    try:
        content = weights.load(model)
    except weights.WeightsError as error:
        hint = (
            f". The recipe starts from an ImageNet CAST checkpoint: hcast-zoo convert CHECKPOINT.pth {model}; or "
            "say --model hcast_small to start from nothing"
        )
        raise weights.WeightsError(f"{error}{hint if recipe and not os.path.exists(model) else ''}") from error
    weights.check(content)
    return content


def convert(args: argparse.Namespace) -> int:
    """Write converted weights."""
    from . import paper, trees, weights
    from .convert import convert_official, read_checkpoint
    from .taxonomy import Taxonomy

    taxonomy = Taxonomy.load(args.taxonomy) if args.taxonomy else None
    told = {}
    if args.dataset:
        told, taxonomy = paper.find(args.dataset).official, taxonomy or trees.load(args.dataset)
    if args.num_superpixels is not None:
        told = {**told, "num_superpixels": args.num_superpixels}
    config, state = convert_official(
        read_checkpoint(args.checkpoint), keep_last_pool=args.keep_last_pool, num_heads=args.num_heads, **told
    )
    if taxonomy is not None and taxonomy.level_classes != config.level_classes:
        raise ValueError(f"the taxonomy has {taxonomy.level_classes} classes, the checkpoint {config.level_classes}")
    weights.save(weights.Weights(config, taxonomy, state), args.output)
    print(f"{args.output}: {len(state)} tensors, levels {config.level_classes}", file=sys.stderr)
    return 0


def export(args: argparse.Namespace) -> int:
    """Write a graph; print its inputs and outputs."""
    from .export import export as run

    exported = run(
        args.model,
        args.output,
        args.format,
        batch_size=args.batch_size,
        num_clusters=args.num_clusters,
        opset=args.opset,
        check=not args.no_check,
    )
    if args.json:
        print(to_json(dataclasses.asdict(exported)))
        return 0
    opset = f", opset {exported.opset}" if exported.opset else ""
    checked = "not checked" if args.no_check else f"largest difference from the model {exported.difference:.1e}"
    names = " -> ".join(", ".join(part) for part in (exported.inputs, exported.outputs))
    print(f"{args.output}: {args.format}{opset}; {names}; {checked}")
    return 0


def publish(args: argparse.Namespace) -> int:
    """Publish, or write the would-be repository; print its files and the address of the commit."""
    from . import card
    from .publish import publish as publish_model
    from .space import publish_space

    options = {name: getattr(args, name) for name in ("private", "revision", "tag", "message", "dry_run", "output")}
    for name in ("evaluations", "preview") if args.space else ("requirement",):
        if getattr(args, name):
            raise ValueError(f"--{name} does not go {'with' if args.space else 'without'} --space")
    if args.space:
        published = publish_space(args.model, args.repo, requirement=args.requirement, **options)
    else:
        evaluations = card.read_evaluations(args.evaluations) if args.evaluations else None
        published = publish_model(args.model, args.repo, evaluations=evaluations, preview=args.preview, **options)
    if args.json:
        print(to_json(dataclasses.asdict(published)))
        return 0
    for file in published.files:
        print(f"{file.name}\t{file.size}\t{file.sha256}")
    print(f"{args.repo}: {published.commit or 'nothing was sent'}", file=sys.stderr)
    return 0


def info(args: argparse.Namespace) -> int:
    """Describe weights."""
    from . import weights

    if args.model is None:
        index = weights.packaged()
        for name, entry in index.items():
            print(to_json({"name": name, **entry}) if args.json else f"{name}\t{entry.get('description', '')}")
        return 0
    content = weights.load(args.model)
    description = {
        "config": content.config.to_dict(),
        "parameters": sum(v.numel() for v in content.state_dict.values()),
        "taxonomy": content.taxonomy and content.taxonomy.name,
        "levels": dict(zip(content.taxonomy.levels, content.taxonomy.level_classes)) if content.taxonomy else None,
        "calibration": content.calibration and content.calibration.to_dict(),
        "metadata": content.metadata,
    }
    print(to_json(description, None if args.json else 1))
    return 0


def mm_train(args: argparse.Namespace) -> int:
    """Train by an mmpretrain config."""
    try:
        training = importlib.import_module("hcast_zoo.integrations.mmpretrain.train")
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}: pip install 'hcast-zoo[mmpretrain]'") from error
    print(training.train(args.config, args.work_dir, args.resume, args.cfg_options))
    return 0


def _load_labelled(args: argparse.Namespace) -> tuple:
    """Return the content of the weights ``args`` names, and the data set with their taxonomy and preprocessing."""
    from . import weights
    from .data import HierarchicalDataset
    from .transforms import eval_transform

    content = weights.load(args.model)
    if content.taxonomy is None:
        raise ValueError(f"{args.model} has no taxonomy")
    transform = eval_transform(content.config)
    return content, HierarchicalDataset.load(args.data, content.taxonomy, args.split, transform=transform)


def _record(args: argparse.Namespace, results: dict, data: str, pictures: int) -> None:
    """Write an evaluation to its card, with file names in place of this machine's paths."""
    from . import card

    model, file = (os.path.basename(os.path.normpath(path)) for path in (args.model, args.data))
    command = f"hcast-zoo evaluate --model {model} --data {file}" + (f" --split {args.split}" if args.split else "")
    card.record(
        args.card,
        args.model,
        card.Evaluation(
            card.checksum(args.model), data or file, args.split, pictures, results, command, card.code_version()
        ),
    )
