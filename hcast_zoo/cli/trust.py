"""The commands about trust: calibrate, and check whether promises still hold."""

import argparse
import dataclasses
import datetime
import os
import sys

from ..common.text import printable, to_json
from .labelled import box_geometry, load_labelled, loading, report_left_out

MIN_PICTURES = 10  # fewer cannot be calibrated on
FEW_PICTURES = 100  # with fewer, temperatures are only rough


def calibrate(args: argparse.Namespace) -> int:
    """Write weights with fitted temperatures and, on request, promises; print them, and the calibration errors."""
    from ..taxonomy.calibration import calibration_errors, cross_fitted_errors, fit_calibration
    from ..taxonomy.guarantee import KEY, measure_guarantee, measure_reference
    from ..weights.file import save_weights

    weights, dataset, logits, labels = _collect(args)
    taxonomy = weights.taxonomy
    if len(labels) < MIN_PICTURES:
        raise ValueError(f"expected at least {MIN_PICTURES} pictures to calibrate on, got {len(labels)}")

    data, today = f"{taxonomy.name or 'data'}, split {args.split}", datetime.date.today().isoformat()
    if args.target_accuracy is not None or args.sets:
        weights.calibration, guarantee = measure_guarantee(
            logits,
            labels,
            taxonomy,
            data=data,
            date=today,
            target=args.target_accuracy,
            confidence=args.confidence,
        )
    else:
        weights.calibration = fit_calibration(logits, labels, taxonomy, data)
        guarantee = measure_reference(logits, labels, taxonomy, weights.calibration, data=data, date=today)

    weights.metadata[KEY] = to_json(guarantee.to_dict())
    before = calibration_errors(logits, labels, taxonomy)
    after = cross_fitted_errors(logits, labels, taxonomy)
    save_weights(weights, args.output)
    code = report_left_out(len(dataset) - len(labels), len(dataset), args.allow_missing)
    if len(labels) < FEW_PICTURES:
        print(
            f"note: {len(labels)} pictures are few: the temperatures, and the errors here, are rough", file=sys.stderr
        )

    if args.json:
        result = {
            "output": args.output,
            "pictures": len(labels),
            "left_out": len(dataset) - len(labels),
            "calibration": weights.calibration.to_dict(),
            "before": before,
            "after": after,
            "guarantee": guarantee.summary(),
        }
        print(to_json(result))
        return code

    _print_calibration(weights.calibration, labels, before, after)
    if guarantee.promise is not None:
        print(_promise_text(guarantee.promise), file=sys.stderr)
    return code


def _print_calibration(calibration, labels, before: dict[str, float], after: dict[str, float]) -> None:
    """Print, for each level and for the path: number of pictures, temperature, and calibration errors in percent."""
    print("\t".join(["of", "pictures", "temperature", "ece before", "ece cross-fitted"]))
    counts = [*(labels >= 0).sum(0).tolist(), int((labels >= 0).any(1).sum())]
    temperatures = (*calibration.temperatures, calibration.path_temperature)
    for (name, error), temperature, count in zip(before.items(), temperatures, counts):
        level = printable(name.removeprefix("ece/"))
        print(f"{level}\t{count}\t{temperature:.3f}\t{error:.2f}\t{after[name]:.2f}")


def _collect(args: argparse.Namespace) -> tuple:
    """Load a model and labelled pictures, and run the model on them; return weights, data set, logits and labels."""
    from ..evaluation.evaluate import collect_logits
    from ..weights.file import build_model

    weights, dataset = load_labelled(args)
    model = build_model(weights, args.device)
    how = loading(args, model, len(dataset))
    logits, labels = collect_logits(model, dataset, how.batch_size, how.workers)
    return weights, dataset, logits, labels


def _promise_text(promise) -> str:
    """Return a promise as a sentence."""
    return (
        f"promised with confidence {promise.confidence:.0%}: with predict --back-off auto (threshold "
        f"{promise.threshold:g}) at least {promise.target:.1%} of the answers are right; tested on {promise.pictures} "
        f"pictures, {promise.answered} answered, {promise.wrong} wrong"
    )


def drift(args: argparse.Namespace) -> int:
    """Compare new pictures with those of the calibration; exit code 1 if the promise no longer holds."""
    import numpy as np

    from ..evaluation.drift import check_drift
    from ..taxonomy.guarantee import read_guarantee
    from ..weights.file import load_weights

    weights = load_weights(args.model, tensors=False)  # the model is loaded below
    guarantee = read_guarantee(weights.metadata, weights.calibration)
    if weights.taxonomy is None or guarantee is None:
        raise ValueError(
            f"{args.model} does not say when, and on what, it was calibrated: run `hcast-zoo calibrate` on it"
        )

    labelled = args.labels or not os.path.isdir(args.data)
    confidences, paths, promise = _answer_labelled(args, guarantee) if labelled else _answer_folder(args)
    checks = check_drift(guarantee, np.asarray(confidences), np.asarray(paths), weights.taxonomy)
    if promise is not None:
        checks.append(promise)
    drifted = [check for check in checks if check.drifted]

    if args.json:
        result = {
            "model": args.model,
            "data": args.data,
            "pictures": len(confidences),
            "calibrated_on": guarantee.summary(),
            "checks": [dataclasses.asdict(check) for check in checks],
            "holds": not drifted,
        }
        print(to_json(result))
        return 1 if drifted else 0

    print("\t".join(["of", "before", "now", "p", "drifted"]))
    for check in checks:
        row = [printable(check.name), f"{check.before:.3f}", f"{check.now:.3f}", f"{check.p_value:.4f}"]
        print("\t".join([*row, "yes" if check.drifted else "no"]))

    verdict = "the promise no longer holds" if drifted else "no sign that the promise no longer holds"
    print(f"{verdict}: {len(confidences)} pictures, compared with {guarantee.data}, {guarantee.date}", file=sys.stderr)
    return 1 if drifted else 0


def _answer_folder(args: argparse.Namespace) -> tuple:
    """Return confidences and paths of pictures without labels, and None, because there is no promise to check."""
    from ..data.boxes import with_geometry
    from ..inference.predictor import Predictor
    from .work import list_work

    predictor = Predictor(args.model, device=args.device)
    boxes = {name: getattr(args, name, None) for name in ("boxes", "box_confidence", "box_labels")}
    work = list_work(argparse.Namespace(pictures=[args.data], files_from=None, group_by=None, **boxes))
    files = with_geometry(work.pictures, box_geometry({}, predictor.box_geometry, work.boxed))
    how = loading(args, predictor.model, len(files))
    confidences, paths = [], []
    for prediction in predictor.predict(files, how.batch_size, how.workers):
        if prediction.error is None:
            confidences.append(prediction.path_probability)
            paths.append(predictor.taxonomy.labels(prediction.path))

    return confidences, paths, None


def _answer_labelled(args: argparse.Namespace, guarantee) -> tuple:
    """Return confidences and paths of labelled pictures, and the check of the promise on them."""
    from ..evaluation.drift import check_promise
    from ..taxonomy.selective import Judged

    weights, _, logits, labels = _collect(args)
    decoded = weights.calibration.decode(logits, weights.taxonomy)
    same_depth = ((decoded.paths >= 0) == (labels >= 0)).all(1)
    judged = Judged.of(decoded, labels, weights.taxonomy).rows(same_depth.numpy())
    return decoded.path_probabilities.numpy(), decoded.paths.numpy(), check_promise(guarantee, judged)
