"""The commands ``segment`` and ``adapt``, and what several commands need to answer about pictures."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ..adaptation.config import AdaptConfig
from ..common.progress import hides_terminal_bars
from ..common.text import LONGEST_NAME, clip, join_some, printable, to_json


def nodes_within(values: Sequence[str] | None, taxonomy) -> list[str] | None:
    """Return the nodes that `--within` names, directly or in files; report names in files that are not nodes."""
    from ..taxonomy.prior import read_names

    if values is None:
        return None
    nodes = []
    for value in values:
        names, unknown = read_names(value, taxonomy) if os.path.isfile(value) else ([value], [])
        report_unknown(value, unknown)
        nodes += names
    return nodes


def report_unknown(file: str, unknown: Sequence[str]) -> None:
    """Report the names in a file that the tree does not have."""
    if unknown:
        names = join_some(list(map(printable, unknown)), 10)
        print(f"{printable(file)}: not in the tree, and not used: {names}", file=sys.stderr)


def segment(args: argparse.Namespace) -> int:
    """Write a folder of pictures for each picture, and print which."""
    from tqdm import tqdm

    from ..common.claim import own_folder
    from ..inference.predictor import Predictor

    files, missed = find_files(args.pictures)
    predictor = Predictor(args.model, device=args.device, num_clusters=args.num_clusters)
    predictor = predictor.with_settings(
        args.decode,
        num_clusters=args.num_clusters,
        within=nodes_within(args.within, predictor.taxonomy),
        threshold=args.back_off,
    )
    failed = 0
    with own_folder(args.output):
        for file in tqdm(files, unit="picture", disable=len(files) < 2 or hides_terminal_bars()):
            failed += not _segment_one(predictor, file, args)

    if failed:
        print(f"{failed} of {len(files)} pictures failed", file=sys.stderr)
    return 1 if failed or missed else 0


def _segment_one(predictor, file: str, args: argparse.Namespace) -> bool:
    """Write one picture's folder, and print which; return whether the picture could be read."""
    from ..data.pictures import PictureError
    from ..segments.report import segment_picture, write_folder

    try:
        segmented = segment_picture(predictor, file)
    except PictureError as error:
        if args.json:
            print(to_json({"file": file, "error": error.reason}), flush=True)
        else:
            print(f"{printable(clip(file, LONGEST_NAME))}: {printable(error.reason)}", file=sys.stderr)
        return False

    folder = write_folder(segmented, args.output, args.write, dark=args.dark)
    if args.json:
        print(to_json({**segmented.to_dict(), "output": str(folder)}), flush=True)
    else:
        print(printable(f"{file}: {sentence(segmented.prediction)} -> {folder}"), flush=True)

    return True


def find_files(arguments: list[str]) -> tuple[list[str], int]:
    """Return the pictures, and how many items in the folders may hide more of them; report what is left out."""
    from ..data.find import find_pictures

    left_out: list = []
    files = find_pictures(arguments, left_out.append)
    for folder in filter(os.path.isdir, arguments):
        if folder in files:  # returned unchanged
            print(f"{printable(folder)}: no pictures here: their names end in .jpg, .png, .tif ...", file=sys.stderr)
    for item in left_out:
        if not item.hidden:
            print(f"left out: {printable(str(item))}", file=sys.stderr)
    if hidden := sum(item.hidden for item in left_out):
        print(f"left out: {hidden} hidden files and folders", file=sys.stderr)

    return files, sum(not item.hidden and not item.seen_before for item in left_out)


def engine_device(args: argparse.Namespace, processes) -> str:
    """Return where the model runs: by default, the CPU with engines other than torch."""
    on_cpu = args.engine in ("onnxruntime", "openvino") and args.device == "auto"
    return "cpu" if on_cpu else processes.device(args.device)


def message_printer(verbose: bool) -> Callable[[str], None]:
    """Return a function that prints a message to stderr, or, unless ``verbose``, ignores it."""
    return (lambda message: print(message, file=sys.stderr)) if verbose else (lambda message: None)


def sentence(prediction) -> str:
    """Return what is predicted, as one line without the file."""
    levels = " > ".join(f"{n} {p:.1%}" for n, p in zip(prediction.path, prediction.probabilities)) or "no answer"
    facts = [f"path {prediction.path_probability:.1%}"] if prediction.path else []
    if prediction.runner_up:
        facts.append(f"then {' > '.join(prediction.runner_up)} {prediction.runner_up_probability:.1%}")
    if node_set := prediction.node_set:
        facts.append(f"one of {', '.join(node_set.nodes)}")
        facts.append(f"below {' > '.join(node_set.subtree) or 'anything'}")
    if prediction.reason:
        facts.append(prediction.reason)
    return f"{levels} ({'; '.join(facts)})"


def adapt(args: argparse.Namespace) -> int:
    """Print a picture's answer before and after adaptation."""
    from ..adaptation.report import adapt_picture, write_sheet
    from ..inference.predictor import Predictor

    config = AdaptConfig(
        free=args.free,
        steps=args.steps,
        step_size=args.step_size,
        radius=args.radius,
        contrast=args.contrast,
    )
    predictor = Predictor(args.model, device=args.device, num_clusters=args.num_clusters)
    adapted = adapt_picture(predictor, args.picture, args.target, feedback=args.feedback or "target", config=config)
    output = write_sheet(adapted, args.output, dark=args.dark) if args.output else None
    if args.json:
        print(to_json({**adapted.to_dict(), "output": output and str(output)}))
        return 0

    for when, prediction in (("before", adapted.before), ("after", adapted.after)):
        print(printable(f"{when}: {sentence(prediction)}"))

    if adapted.probability is not None:
        before, after = adapted.probability
        print(printable(f"{adapted.target}: {before:.1%} -> {after:.1%}"))

    shares = ", ".join(f"{share:.1f} % at stage {stage}" for stage, share in enumerate(adapted.changed, 2))
    print(f"share of the picture that changed segment: {shares}")
    if output:
        print(f"wrote {output}", file=sys.stderr)

    return 0
