"""What ``hcast-zoo data check`` does: check a data set, and write what needs fixing."""

import argparse
import os
import sys
import warnings

from ..common.machine import processors
from ..common.progress import hides_terminal_bars
from ..common.text import printable, to_json
from .labelled import LISTING_DEFAULTS, list_pictures, loading


def check(args: argparse.Namespace) -> int:
    """Write a page and a JSON file of what needs fixing in a data set; print the number of each kind."""
    from tqdm import tqdm

    from ..common.claim import own_folder
    from ..common.files import write_whole
    from ..data.splits import PARTS
    from ..inspection.check import examine
    from ..inspection.journal import Journal
    from ..inspection.page import write_page
    from ..inspection.scan import scan
    from ..taxonomy.tree import Taxonomy

    taxonomy = Taxonomy.load(args.taxonomy) if args.taxonomy else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        listing = list_pictures({**LISTING_DEFAULTS, **vars(args)}, taxonomy, PARTS)
        taxonomy = taxonomy or listing.taxonomy()

    notes = [str(warning.message) for warning in caught]
    for note in notes:
        warnings.warn(note, stacklevel=1)

    with own_folder(args.output):
        journal = Journal(os.path.join(args.output, "scan.jsonl"))
        pictures = scan(listing.pictures, journal, threads=args.workers or processors())
        bar = tqdm(pictures, "pictures", len(listing.pictures), unit="picture", disable=hides_terminal_bars())
        measured = list(bar)
        report = examine(listing, measured, taxonomy, args.distance)
        report.notes = notes
        if args.model:
            _compare(report, args)

        page, data = (os.path.join(args.output, name) for name in ("index.html", "check.json"))
        write_whole(data, to_json(report.to_dict(), indent=1))
        write_page(report, page)

    counts = report.counts()
    if args.json:
        print(to_json({"output": args.output, "pictures": len(measured), "counts": counts}))
    else:
        print("\n".join(f"{kind.replace('_', ' ')}\t{count}" for kind, count in counts.items()))
        print(f"{printable(page)} shows {len(measured)} pictures", file=sys.stderr)

    return 1 if report.unreadable else 0


def _compare(report, args: argparse.Namespace) -> None:
    """Add to a report which labels a model contradicts."""
    from tqdm import tqdm

    from ..inference.predictor import Predictor
    from ..inspection.journal import Journal
    from ..inspection.suspects import answers
    from ..weights.file import checksum

    predictor = Predictor(args.model, device=args.device, threshold=args.confidence)
    readable = [index for index, measured in enumerate(report.measured) if measured.error is None]
    how = loading(args, predictor.model, len(readable))
    journal = Journal(os.path.join(args.output, f"answers-{checksum(args.model)[:16]}-{args.confidence:g}.jsonl"))
    predictions = answers(
        predictor, [report.listing.pictures[i] for i in readable], journal, how.batch_size, how.workers
    )
    bar = tqdm(predictions, "labels", len(readable), unit="picture", disable=hides_terminal_bars())
    report.compare(zip(readable, bar), predictor.taxonomy)
