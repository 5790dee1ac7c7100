"""The commands that make weights: train; and data split."""

import argparse
import collections
import dataclasses
import os
import sys
from pathlib import Path

from ..common.extras import needs_extra
from ..common.text import join_some, printable, to_json
from ..network.config import VARIANTS
from ..training.settings import TrainConfig
from .labelled import LISTING_DEFAULTS, PICTURES, given_geometry, list_pictures

NOT_SETTINGS = {  # arguments that are no settings of a training
    "command",
    "run",
    "recipe",
    "output",
    "accept_changes",
    "title",
    "license",
    "quiet",
    "verbose",
    "version",
}
TRAIN_DEFAULTS = {
    "train_split": "train",
    "val_split": "val",
    "taxonomy": None,
    "model": "hcast_small",
    "calibrate": True,
    **LISTING_DEFAULTS,
}
FEW_PICTURES = 5  # of a node; with fewer, training warns
MODEL_OPTIONS = (
    "image_size",
    "superpixels",
    "num_superpixels",
    "num_clusters",
    "drop_path_rate",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
)


def train(args: argparse.Namespace) -> int:
    """Train, or resume a run."""
    from ..data.splits import write_list
    from ..network.config import HCastConfig

    with needs_extra("train", "training runs"):
        from ..training.imbalance import training_prior
        from ..training.provenance import describe_run
        from ..training.recipe import BY_SIZE
        from ..training.start import stem_source
        from ..training.trainer import Trainer

    options = _train_options(args)
    list_file = os.path.join(args.output, PICTURES)
    if (options["val_fraction"] or options["test_fraction"]) and not options["keep"] and os.path.exists(list_file):
        options["keep"] = list_file  # held-out pictures stay held out as data grows

    listing, taxonomy = _list_for_training(options)
    if args.recipe in BY_SIZE or not (args.recipe or options.get("paper_exact")):
        options = _take_recipe_by_size(args, options, len(listing.part(options["train_split"]).pictures))
    settings = TrainConfig(**{f.name: options[f.name] for f in dataclasses.fields(TrainConfig) if f.name in options})

    init = None if options["model"] in VARIANTS else _load_start(options["model"], args.recipe)
    config = HCastConfig.from_variant(options["model"]) if init is None else init.config
    listing, geometry = _with_geometry(listing, options, init)
    train_set, val_set = _training_sets(listing, taxonomy, options, settings.cache)
    config = _change_config(config, options, train_set.taxonomy.level_classes)
    facts = describe_run(
        settings,
        train_set,
        val_set,
        data=Path(options["data"]).resolve().name,
        start=init,
        start_name=None if init is None else options["model"],
        stem_source=stem_source(config, settings.stem_weights) if init is None else None,
        title=getattr(args, "title", None),
        license=getattr(args, "license", None),
    )
    facts.update(geometry, **training_prior(train_set.labels, train_set.taxonomy, settings))
    _report_license(facts)

    trainer = Trainer(
        config=config,
        settings=settings,
        train_set=train_set,
        val_set=val_set,
        output=args.output,
        init=init,
        accept_changes=args.accept_changes,
        facts=facts,
    )
    if trainer.processes.is_main and not any(isinstance(picture, bytes) for picture in listing.pictures):
        write_list(listing, list_file, relative=False)
    best = trainer.train()
    if trainer.processes.is_main:
        if options["calibrate"]:
            _calibrate_run(args.output, val_set, trainer.workers)
        print(
            to_json({f"best_val_{trainer.criterion}": best, "weights": os.path.join(args.output, "best.safetensors")})
        )

    trainer.accelerator.end_training()

    return 0


def _report_license(facts: dict[str, str]) -> None:
    """Report where the given licence differs from that of the weights that training starts from."""
    license, base_license = facts.get("license"), facts.get("base_license")
    if base_license and license != base_license:
        _print_once(
            f"note: licence {printable(license or '')}, but {printable(facts['base_model'])} is "
            f"{printable(base_license)}: the card names both; make sure that they are compatible"
        )


def _list_for_training(options: dict) -> tuple:
    """Return the pictures to train on and to validate, and the taxonomy that was given, or None."""
    from ..data.readers import PREPARED
    from ..taxonomy.tree import Taxonomy

    taxonomy = None
    if options["taxonomy"]:
        taxonomy = Taxonomy.load(options["taxonomy"], strict_names=options["strict_names"])
    elif os.path.exists(os.path.join(options["data"], PREPARED)):
        taxonomy = Taxonomy.load(os.path.join(options["data"], "taxonomy.json"))
    return list_pictures(options, taxonomy, (options["train_split"], options["val_split"])), taxonomy


def _with_geometry(listing, options: dict, init) -> tuple:
    """Return a listing whose boxes become pictures as requested, or as for the start weights; and the metadata."""
    from ..data.boxes import BoxGeometry

    given = given_geometry(options)
    if not listing.is_boxed:
        if given:
            raise ValueError(
                "--box-padding, --box-shape and --box-min-size go with boxes: give --boxes, or a table with columns "
                "xmin, ymin, xmax, ymax"
            )
        return listing, {}

    before = None if init is None else BoxGeometry.from_metadata(init.metadata)
    geometry = dataclasses.replace(before or BoxGeometry(), **given)
    _print_once(f"each picture is a box: {geometry}; stored with the weights")
    return listing.with_geometry(geometry), geometry.to_metadata()


def _change_config(config, options: dict, level_classes: tuple[int, ...]):
    """Return a config with the options of the model; superpixels and clusters follow the image size unless given."""
    changes = {name: options[name] for name in MODEL_OPTIONS if name in options}
    if "image_size" in changes:
        changes = {**config.tokens_at(changes["image_size"]), **changes}
    if changes.get("crop_mode", "center") != "center":
        changes.setdefault("crop_pct", 1.0)  # whoever does not want a centre crop wants the whole picture
    for name, value in changes.items():
        changes[name] = tuple(value) if isinstance(value, list) else value
    return config.replace(level_classes=level_classes, **changes)


def _take_recipe_by_size(args: argparse.Namespace, options: dict, pictures: int) -> dict:
    """Return options, completed with the settings of the recipe for a number of pictures, and print the recipe."""
    from ..training.recipe import BY_SIZE, START, allows_views, name_by_size, recipe_by_size

    if not hasattr(args, "model") and (args.recipe or name_by_size(pictures)) != "paper":
        options = {**options, "model": START}

    recipe = recipe_by_size(pictures, _has_pretrained_stem(options["model"]), args.recipe)
    taken = {name: value for name, value in recipe.settings.items() if not hasattr(args, name)}
    if "augment_views" in taken and not allows_views({**options, **taken}):
        taken["augment_views"] = 0

    given = [_as_option(name, value) for name, value in {"model": options["model"], **taken}.items()]
    _print_once(f"recipe {recipe.name}, for {pictures} training pictures ({recipe.description}): {' '.join(given)}")
    if taken:
        _print_once(f"--recipe {' or '.join(name for name in BY_SIZE if name != recipe.name)} takes another")

    return {**options, **taken}


def _as_option(name: str, value: object) -> str:
    """Return a setting in the form of a command-line option."""
    word = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{word}" if value else f"--no-{word}"
    return f"--{word} {value if value != '' else chr(34) * 2}"


def _has_pretrained_stem(model: str) -> bool:
    """Tell whether a variant or weights have a pretrained timm stem."""
    from ..weights.file import find_weights, read_weights

    if model in VARIANTS:
        return VARIANTS[model].get("stem", "conv") != "conv"
    return read_weights(find_weights(model), tensors=False).config.stem != "conv"


def _print_once(text: str) -> None:
    """Print a message to stderr, if this is the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


def _training_sets(listing, taxonomy, options: dict, cache: bool) -> tuple:
    """Return the training and the validation set; print their sizes, and the nodes with few pictures."""
    from ..data.dataset import HierarchicalDataset

    part = listing.part(options["train_split"])
    strict = options["strict_names"]
    train_set = HierarchicalDataset.from_listing(part, taxonomy, strict_names=strict, cache=cache)
    val_part = listing.part(options["val_split"])
    val_set = HierarchicalDataset.from_listing(val_part, train_set.taxonomy, cache=cache)

    _print_once(f"{len(train_set)} pictures to train on, {len(val_set)} to validate")
    if few := train_set.rare_nodes(FEW_PICTURES):
        nodes = join_some([f"{printable(name)} ({count})" for name, count in few], 8)
        _print_once(f"note: nodes with fewer than {FEW_PICTURES} training pictures, too few to learn well: {nodes}")

    return train_set, val_set


def _calibrate_run(output: str, val_set, workers: int) -> None:
    """Fit temperatures on the validation pictures of a run, and store them with its best weights."""
    from ..evaluation.evaluate import collect_logits
    from ..taxonomy.calibration import fit_calibration
    from ..weights.file import build_model, load_weights, save_weights

    path = os.path.join(output, "best.safetensors")
    weights = load_weights(path)
    taxonomy = weights.taxonomy
    if taxonomy is None:
        return

    logits, labels = collect_logits(build_model(weights), val_set, workers=workers, progress=False)
    try:
        weights.calibration = fit_calibration(logits, labels, taxonomy, f"{taxonomy.name or 'data'}, val")
    except ValueError as error:
        print(f"note: not calibrated: {printable(str(error))}", file=sys.stderr)
        return

    save_weights(weights, path)


def _train_options(args: argparse.Namespace) -> dict:
    """Return the given options, completed from the recipe and then from the defaults; print the recipe."""
    from ..training.recipe import BY_SIZE, CORRECTED, EXACT, load_recipe

    given = {k: v for k, v in vars(args).items() if k not in NOT_SETTINGS}
    settings: dict = {}
    if args.recipe and args.recipe not in BY_SIZE:
        recipe = load_recipe(args.recipe)
        exact = given.get("paper_exact", recipe.settings.get("paper_exact", False))
        settings = recipe.options(exact)
        known = {*TRAIN_DEFAULTS, *MODEL_OPTIONS, "data", *(f.name for f in dataclasses.fields(TrainConfig))}
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"recipe {recipe.name}: unknown settings {', '.join(unknown)}")
        _print_once(f"recipe {recipe.name}: {recipe.description}; {EXACT if exact else CORRECTED}")

    options = {**TRAIN_DEFAULTS, **settings, **given}
    if "data" not in options:
        raise ValueError("expected --data, or a --recipe that names the data")

    return options


def _load_start(model: str, recipe: str | None):
    """Return the weights that training starts from."""
    from ..weights.file import WeightsError, check_weights, load_weights
    from ..weights.hub import HubError

    try:
        weights = load_weights(model)
    except (WeightsError, HubError) as error:
        hint = (
            ". The recipe starts from CAST's ImageNet weights: get the file of hcast_small.cast_in1k, see "
            "`hcast-zoo info --list`, convert it with `hcast-zoo convert FILE cast_small.safetensors`, and give "
            "--model cast_small.safetensors; or give --model hcast_small to start from scratch"
        )
        raise type(error)(f"{error}{hint if recipe and not os.path.exists(model) else ''}") from error

    check_weights(weights)
    return weights


def split(args: argparse.Namespace) -> int:
    """Write a list of pictures with their parts; print how many each part has."""
    from ..data.splits import write_list

    listing = list_pictures({**LISTING_DEFAULTS, **vars(args)}, None, ())
    write_list(listing, args.output)
    counts = dict(collections.Counter(listing.splits or []))
    if args.json:
        print(to_json({"output": args.output, "pictures": len(listing.pictures), "parts": counts}))
    else:
        print("\n".join(f"{printable(part)}\t{count}" for part, count in counts.items()))
    return 0
