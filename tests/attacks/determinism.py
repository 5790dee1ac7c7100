"""Predict the same pictures in many ways, and measure how far the answers differ.

    python -m tests.attacks.determinism [--model WEIGHTS] [--pictures 48]

The reference is one picture at a time, in this process, on one thread. The others change settings or the framework.
"""

import argparse
import importlib.util
import itertools
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import report
from hcast_zoo import Predictor
from hcast_zoo.data.pictures import read_picture
from hcast_zoo.sharing.publish import assemble
from hcast_zoo.weights.file import load_weights
from tests.tiny import make_pictures

TOLERANCE = 1e-5
HEADER = ["what changes", "largest difference of a probability", "other paths", "of pictures"]


def difference(first: list, second: list) -> tuple[float, int]:
    """Return the largest difference between probabilities, and how many paths differ."""
    largest = 0.0
    for a, b in zip(first, second, strict=True):
        pairs = zip((*a.probabilities, a.path_probability), (*b.probabilities, b.path_probability))
        largest = max(largest, *(abs(x - y) for x, y in pairs))
    return largest, sum(a.path != b.path for a, b in zip(first, second))


def ways(predictor: Predictor, files: list[str], seed: int) -> Iterator[tuple[str, list]]:
    """Yield a description of what was changed, and the predictions in the order of the files."""
    for batch in (3, 16, 64):
        yield f"batch size {batch}", list(predictor.predict(files, batch))
    for workers in (1, 2):
        yield f"{workers} worker{'s' * (workers > 1)}, batch size 16", list(predictor.predict(files, 16, workers))
    for order in ("reversed", "shuffled"):
        asked = files[::-1] if order == "reversed" else random.Random(seed).sample(files, len(files))
        by_file = {p.file: p for p in predictor.predict(asked, 16)}
        yield f"order {order}, batch size 16", [by_file[f] for f in files]
    threads = torch.get_num_threads()
    for count, batch in itertools.product((2, 4), (1, 16)):
        torch.set_num_threads(count)
        yield f"{count} threads, batch size {batch}", list(predictor.predict(files, batch))
    torch.set_num_threads(threads)
    yield "asked again", list(predictor.predict(files, 1))


def frameworks(source: str, predictor: Predictor, files: list[str], folder: Path) -> Iterator[tuple[str, list]]:
    """Yield the name of each framework, and the predictions of its own preprocessing and model."""
    import timm
    import timm.data
    import transformers

    import hcast_zoo.integrations.timm
    import hcast_zoo.integrations.transformers  # noqa: F401 (both register what they add)

    os.environ["HF_HUB_OFFLINE"] = "1"
    assemble(source, folder)

    pictures = [read_picture(f) for f in files]
    config = predictor.model.config
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(p) for p in pictures])
    with torch.inference_mode():
        yield "timm", predictor.decode([x.float() for x in model.forward_levels(images)])

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = processor(pictures, return_tensors="pt")
    assert inputs["pixel_values"].shape[-1] == config.image_size
    with torch.inference_mode():
        output = model(**inputs)
    yield "transformers", predictor.decode([x.float() for x in output.level_logits])
    yield from predict_with_mmpretrain(source, predictor, files)


@torch.inference_mode()
def predict_with_mmpretrain(source: str, predictor: Predictor, files: list[str]) -> Iterator[tuple[str, list]]:
    """Yield mmpretrain's predictions; nothing without mmpretrain, or without a config for these weights."""
    if importlib.util.find_spec("mmpretrain") is None:
        return
    import mmpretrain
    from mmengine.dataset import Compose, pseudo_collate

    import hcast_zoo.integrations.mmpretrain  # noqa: F401

    name = str(predictor.metadata.get("name", "")).replace("_", "-").replace(".", "_")
    if name not in mmpretrain.list_models("hcast*"):
        return
    model = mmpretrain.get_model(name, pretrained=f"hcast-zoo://{source}").eval()
    steps = Compose([mmpretrain.registry.TRANSFORMS.build(t) for t in model._config.test_dataloader.dataset.pipeline])
    batch = model.data_preprocessor(pseudo_collate([steps({"img_path": file}) for file in files]))
    yield "mmpretrain", predictor.decode([x.float() for x in model(**batch)])


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=report.MODEL, help="weights: name, file or folder (%(default)s)")
    parser.add_argument("--pictures", type=int, default=48, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    predictor, rows, missed = Predictor(args.model), [], 0
    with tempfile.TemporaryDirectory() as folder:
        files = make_pictures(Path(folder) / "pictures", args.pictures)
        files += sorted(map(str, (Path(__file__).parents[2] / "tests/pictures").glob("*.png")))
        first = list(predictor.predict(files, 1))
        for what, predictions in itertools.chain(
            ways(predictor, files, args.seed), frameworks(args.model, predictor, files, Path(folder) / "repository")
        ):
            largest, other = difference(first, predictions)
            missed += largest > TOLERANCE or other > 0
            rows.append([what, f"{largest:.1e}", other, len(files)])
            print(*rows[-1], flush=True)

    name = load_weights(args.model).metadata.get("name", "the model")
    text = (
        f"`{name}`, float32, CPU; compared with one picture at a time on one thread. Tolerance {TOLERANCE:g}; "
        f"above it, or of another path: {missed} of {len(rows)} ways.\n\n" + report.table(HEADER, rows)
    )
    report.write_section(
        args.docs, "reliability.md", "determinism", text, f"--pictures {args.pictures} --seed {args.seed}"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
