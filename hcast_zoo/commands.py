"""What each command of the command line does: read the arguments, call the core, print.

Heavy imports are inside the functions, so that ``hcast-zoo --help`` answers at once. Data goes to stdout, messages and
progress to stderr. Each function returns the exit code.
"""

import argparse
import dataclasses
import importlib
import json
import os
import sys

from .adapt_config import AdaptConfig
from .config import VARIANTS
from .train_config import TrainConfig


def predict(args: argparse.Namespace) -> int:
    """Print one line a picture."""
    from tqdm import tqdm

    from .predict import Predictor, find_pictures
    from .processes import join

    files = find_pictures(args.pictures)
    if args.files_from:
        with open(args.files_from, encoding="utf-8", errors="surrogateescape") as names:
            files += [name for line in names if (name := line.rstrip("\n"))]
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
    bar = tqdm(predictor.predict(files, args.batch_size, args.workers), total=len(files), unit="picture",
               disable=len(files) < 2 or not sys.stderr.isatty())
    for prediction in bar:
        failed += prediction.error is not None
        if args.json:
            print(json.dumps(prediction.to_dict(), ensure_ascii=False), flush=True)
        elif prediction.error is not None:
            print(f"{_printable(prediction.file)}: {_printable(prediction.error)}", file=sys.stderr)
        else:
            print(_printable(f"{prediction.file}: {_sentence(prediction)}"), flush=True)
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
                predictor, files, args.output, {"model_sha256": checksum(args.model), **options},
                part_size=args.part_size, processes=processes, batch_size=args.batch_size, workers=args.workers):
            done, failed = done + pictures, failed + failures
            bar.update(pictures * processes.count)
    done, failed = (sum(numbers) for numbers in zip(*processes.gather((done, failed))))
    if processes.is_main:
        print(json.dumps({"output": args.output, "pictures": done, "failed": failed}))
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
    predictor = Predictor(args.model, args.decode, args.device, num_clusters=args.num_clusters, within=args.within,
                          threshold=args.back_off)
    failed = 0
    for file in tqdm(files, unit="picture", disable=len(files) < 2 or not sys.stderr.isatty()):
        try:
            segmented = segment_picture(predictor, file)
        except PictureError as error:
            failed += 1
            text = str(error).removeprefix(f"{file}: ")
            if args.json:
                print(json.dumps({"file": file, "error": text}, ensure_ascii=False), flush=True)
            else:
                print(f"{_printable(file)}: {_printable(text)}", file=sys.stderr)
            continue
        folder = make_folder(args.output, file)
        write(segmented, folder, args.write)
        if args.json:
            print(json.dumps({**segmented.to_dict(), "output": str(folder)}, ensure_ascii=False), flush=True)
        else:
            print(_printable(f"{file}: {_sentence(segmented.prediction)} -> {folder}"), flush=True)
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
        results = run(model, dataset, args.decode, content.calibration, processes=processes,
                      batch_size=args.batch_size, workers=args.workers, num_clusters=args.num_clusters)
    if not processes.is_main:
        return 0
    if args.card:
        _record(args, results, content.taxonomy.name, len(dataset))
    if args.json:
        print(json.dumps({"model": args.model, "data": args.data, "split": args.split, "pictures": len(dataset),
                          "num_clusters": args.num_clusters, "results": results}))
        return 0
    names = list(next(iter(results.values())))
    print("\t".join(["decoding", *names]))
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
        print(json.dumps({**adapted.to_dict(), "output": output and str(output)}, ensure_ascii=False))
        return 0
    for when, prediction in (("before", adapted.before), ("after", adapted.after)):
        print(_printable(f"{when}: {_sentence(prediction)}"))
    if adapted.probability is not None:
        before, after = adapted.probability
        print(_printable(f"{adapted.target}: {before:.1%} -> {after:.1%}"))
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
        print(json.dumps({"output": args.output, "pictures": len(labels), "calibration": content.calibration.to_dict(),
                          "before": before, "after": after}))
        return 0
    print("\t".join(["of", "temperature", "ece before", "ece after"]))
    temperatures = (*content.calibration.temperatures, content.calibration.path_temperature)
    for (name, error), temperature in zip(before.items(), temperatures):
        print(f"{name.removeprefix('ece/')}\t{temperature:.3f}\t{error:.2f}\t{after[name]:.2f}")
    return 0


def train(args: argparse.Namespace) -> int:
    """Train, or go on with a run."""
    from . import weights
    from .config import HCastConfig
    from .data import HierarchicalDataset
    from .taxonomy import Taxonomy
    try:
        from .train import Run
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}: pip install 'hcast-zoo[train]'") from error

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
    run = Run(config, settings, train_set, val_set, args.output, init)
    best = run.train()
    if run.processes.is_main:
        print(json.dumps({"best_val_fpa": best, "weights": os.path.join(args.output, "best.safetensors")}))
    run.accelerator.end_training()
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


def export(args: argparse.Namespace) -> int:
    """Write a graph; print its inputs and outputs."""
    from .export import export as run

    exported = run(args.model, args.output, args.format, batch_size=args.batch_size, num_clusters=args.num_clusters,
                   opset=args.opset, check=not args.no_check)
    if args.json:
        print(json.dumps(dataclasses.asdict(exported)))
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
        print(json.dumps(dataclasses.asdict(published)))
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
            print(json.dumps({"name": name, **entry}) if args.json else f"{name}\t{entry.get('description', '')}")
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
    card.record(args.card, args.model, card.Evaluation(
        card.checksum(args.model), data or file, args.split, pictures, results, command, card.code_version()))


def _printable(text: str) -> str:
    """Return text without control characters, which could write to the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
