"""Adapt and predict with one model from several threads at once; compare each answer with that of the call alone.

    python -m tests.attacks.threads --rounds 200 --model hcast_tiny.emoji_art

In each round, four threads each adapt the model to a picture while four others predict. The exit code is 1 if an
answer differs, or a byte of the weights has changed.
"""

import argparse
import concurrent.futures
import hashlib
import sys
import tempfile
import time
from pathlib import Path

import torch

from hcast_zoo import AdaptConfig, Predictor
from hcast_zoo.adaptation.report import AdaptedPicture, adapt_picture
from tests.tiny import make_pictures, make_weights

THREADS = 4  # of each kind
FREE = (("norms", "pooling"), ("tokens",), ("tokens", "pooling", "norms"))


def digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of every tensor that a model holds."""
    tensors = (tensor.detach().cpu().numpy().tobytes() for tensor in model.state_dict().values())
    return hashlib.sha256(b"".join(tensors)).hexdigest()


def attack(predictor: Predictor, files: list[str], rounds: int, steps: int = 3) -> dict[str, int | bool]:
    """Return the numbers of adaptations and predictions, how many were wrong, and whether the weights are unchanged."""
    targets = [f"{predictor.taxonomy.levels[-1]}:{name}" for name in predictor.taxonomy.names[-1]]
    jobs = [(files[i % len(files)], targets[i % len(targets)], FREE[i % len(FREE)]) for i in range(THREADS * 3)]

    def adapt(job: tuple) -> AdaptedPicture:
        file, target, free = job
        return adapt_picture(predictor, file, target, config=AdaptConfig(free, steps))

    def predict(_: int) -> list:
        return list(predictor.predict(files))

    stored = digest(predictor.model)
    alone = {job: adapt(job).to_dict() for job in jobs}
    expected = predict(0)
    wrong = {"adaptations": 0, "predictions": 0}

    with concurrent.futures.ThreadPoolExecutor(2 * THREADS) as pool:
        for number in range(rounds):
            chosen = [jobs[(number + i) % len(jobs)] for i in range(THREADS)]
            adapted = [pool.submit(adapt, job) for job in chosen]
            predicted = [pool.submit(predict, i) for i in range(THREADS)]
            wrong["adaptations"] += sum(a.result().to_dict() != alone[job] for a, job in zip(adapted, chosen))
            wrong["predictions"] += sum(x != y for p in predicted for x, y in zip(p.result(), expected, strict=True))

    return {
        "adaptations": rounds * THREADS,
        "wrong adaptations": wrong["adaptations"],
        "predictions": rounds * THREADS * len(files),
        "wrong predictions": wrong["predictions"],
        "same bytes": digest(predictor.model) == stored,
    }


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--model", help="weights (a tiny random model)")
    args = parser.parse_args()

    torch.set_num_threads(1)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        predictor = Predictor(args.model or make_weights(Path(folder) / "tiny.safetensors"))
        result = attack(predictor, make_pictures(Path(folder) / "pictures", 4), args.rounds)

    print(f"{result}, {time.monotonic() - start:.0f} s")
    return int(bool(result["wrong adaptations"] or result["wrong predictions"] or not result["same bytes"]))


if __name__ == "__main__":
    sys.exit(main())
