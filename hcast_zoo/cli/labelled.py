"""The pictures and labels that a command works on, as its arguments name them."""

import argparse
import dataclasses
import os
import sys

from ..common.machine import Loading, choose_loading

LISTING_DEFAULTS = {
    "levels": None,
    "synonyms": None,
    "strict_names": False,
    "val_fraction": 0.0,
    "test_fraction": 0.0,
    "group_by": None,
    "keep": None,
    "boxes": None,
    "box_confidence": 0.0,
    "box_labels": None,
}
PICTURES = "pictures.csv"  # in a run's folder: what it was trained on, and what was held out


def load_labelled(args: argparse.Namespace) -> tuple:
    """Return the weights that ``args`` names, and the data set with their taxonomy and preprocessing."""
    from ..data.boxes import BoxGeometry
    from ..data.dataset import HierarchicalDataset
    from ..data.transforms import eval_transform
    from ..taxonomy.tree import TaxonomyError
    from ..weights.file import load_weights

    weights = load_weights(args.model)
    if weights.taxonomy is None:
        raise ValueError(f"{args.model} has no taxonomy")
    options = {**LISTING_DEFAULTS, **vars(args)}
    if options["data"] is None:
        options["data"] = args.data = _run_pictures(args.model)
    listing = list_pictures(options, weights.taxonomy, (args.split,)).part(args.split)
    geometry = box_geometry(options, BoxGeometry.from_metadata(weights.metadata), listing.is_boxed)
    listing = listing if geometry is None else listing.with_geometry(geometry)
    try:
        return weights, HierarchicalDataset.from_listing(
            listing, weights.taxonomy, transform=eval_transform(weights.config)
        )
    except TaxonomyError as error:
        raise TaxonomyError(
            f"{error}. Labels must be names in the model's tree: map yours with --synonyms FILE, or train on them: "
            f"hcast-zoo train --data {args.data} --output runs/mine --val-fraction 0.15"
        ) from error


def list_pictures(options: dict, taxonomy, parts: tuple):
    """Return the pictures that options (``data``, ``levels`` ...) name, split as these say.

    Args:
        options: Of the command, completed by ``LISTING_DEFAULTS``.
        taxonomy: The tree of the labels, or None.
        parts: The parts that the command needs; None among them stands for all.
    """
    from ..data.readers import read_listing, read_synonyms
    from ..data.splits import hold_out, read_parts

    synonyms = read_synonyms(options["synonyms"]) if options["synonyms"] else None
    listing = read_listing(
        options["data"],
        taxonomy,
        tuple(part for part in parts if part is not None),
        levels=options["levels"],
        group_by=options["group_by"],
        synonyms=synonyms,
    )
    if options["boxes"]:
        listing = _in_boxes(listing, options)
    if options["val_fraction"] or options["test_fraction"]:
        kept = read_parts(options["keep"]) if options["keep"] else None
        listing = hold_out(listing, options["val_fraction"], options["test_fraction"], kept)
    elif options["keep"]:
        raise ValueError("--keep needs the fractions to hold out of new pictures: --val-fraction, --test-fraction")

    return listing


def _in_boxes(listing, options: dict):
    """Return a listing of the boxes in a listing's pictures; report what is left out."""
    from ..data.detections import box_listing, read_detections

    if listing.is_boxed:
        raise ValueError(f"{listing.source} already has boxes: leave --boxes out")
    detections = read_detections(options["boxes"])
    data = options["data"]
    folder = data if os.path.isdir(data) else os.path.dirname(options["boxes"])
    boxes = detections.choose(options["box_confidence"], options["box_labels"])
    listing, num_without = box_listing(listing, boxes, folder)
    if num_without:
        print(f"{num_without} pictures have no box and are left out", file=sys.stderr)
    return listing


def box_geometry(options: dict, trained, boxed: bool):
    """Return how boxes become pictures; None if there are none.

    Args:
        options: ``box_padding``, ``box_shape``, ``box_min_size``, where given.
        trained: What the weights were trained on; None for whole pictures.
        boxed: Whether there are boxes.

    Raises:
        ValueError: if the requested geometry is not that of the weights, or there are no boxes.
    """
    from ..data.boxes import BoxGeometry

    given = given_geometry(options)
    if not boxed:
        if given:
            raise ValueError(
                f"--box-{next(iter(given)).replace('_', '-')} goes with boxes, and these are whole pictures"
            )
        if trained is not None:
            print(f"warning: these weights were trained on {trained}; these are whole pictures", file=sys.stderr)
        return None

    if trained is None:
        geometry = BoxGeometry(**given)
        print(
            f"warning: these weights were trained on whole pictures, not on boxes; they see {geometry}. Measure with "
            "`evaluate --boxes` before you trust the answers",
            file=sys.stderr,
        )
        return geometry
    geometry = dataclasses.replace(trained, **given)
    if geometry != trained:
        raise ValueError(f"these weights were trained on {trained}; expected the same, got {geometry}")
    return trained


def given_geometry(options: dict) -> dict:
    """Return the fields of a geometry of boxes that options name."""
    from ..data.boxes import BoxGeometry

    given = {}
    for field in dataclasses.fields(BoxGeometry):
        if f"box_{field.name}" in options:
            given[field.name] = options[f"box_{field.name}"]

    return given


def _run_pictures(model: str) -> str:
    """Return the list of pictures in the folder of the run that made some weights."""
    folder = model if os.path.isdir(model) else os.path.dirname(model)
    path = os.path.join(folder, PICTURES)
    if not os.path.exists(path):
        raise ValueError(f"expected --data, or weights in the folder of a run, with its {PICTURES}; got {model}")
    return path


def loading(args: argparse.Namespace, model, pictures: int, processes: int = 1) -> Loading:
    """Return how to load pictures: as the arguments say, or else as suits the model and this machine."""
    device = next(model.parameters()).device
    return choose_loading(
        pictures,
        model.config.image_size,
        str(device),
        batch_size=args.batch_size,
        workers=args.workers,
        share=int(os.environ.get("LOCAL_WORLD_SIZE", processes)),
    )


def report_left_out(left_out: int, pictures: int, allowed: bool) -> int:
    """Report how many pictures the numbers cover, if not all; return the exit code."""
    if not left_out:
        return 0
    print(
        f"measured on {pictures - left_out} of {pictures} pictures: {left_out} cannot be read and are left out"
        + ("" if allowed else " (with --allow-missing, the exit code is 0 all the same)"),
        file=sys.stderr,
    )
    return 0 if allowed else 1
