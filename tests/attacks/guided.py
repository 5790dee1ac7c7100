"""Feed broken input to the pure-Python readers, guided by the branches that each input takes (atheris).

    pip install atheris
    python -m tests.attacks.guided --inputs 10000 [taxonomy-json taxonomy-csv tables-jsonl tables-csv weights]

An input that takes a new branch is kept, and changed further. A quarter of the changes are libFuzzer's, to bytes; the
others are those of fuzz.py, to fields and cells, because text with changed bytes is seldom valid JSON. fuzz.py judges
the outcomes. The input of a finding is written to a file in the current folder.
"""

import argparse
import dataclasses
import functools
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["hcast_zoo"]):
    from tests.attacks import fuzz
from tests.attacks.mutations import mutate_bytes, mutate_plain, mutate_text
from tests.attacks.readers import Reader, Tables, Taxonomies, WeightFiles

# One change at a time: with more, hardly any input would still be JSON. fuzz.py sets the limits and handles crashes.
OPTIONS = ("mutate_depth=1", "rss_limit_mb=0", *(f"handle_{name}=0" for name in ("segv", "bus", "abrt", "ill", "fpe")))
LONGEST = 100_000  # bytes of an input


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader, and how to turn bytes into its input.

    Attributes:
        what: Name in the report.
        reader: Class of the reader.
        seeds: Returns good inputs.
        source: Turns bytes into an input of the reader.
        change: Changes the structure of an input.
    """

    what: str
    reader: type[Reader]
    seeds: Callable[[Any], list[bytes]]
    source: Callable[[Any, bytes], Any]
    change: Callable[[bytes, random.Random], bytes]


def change_json(data: bytes, rng: random.Random) -> bytes:
    text = json.dumps(mutate_plain(json.loads(data), rng), ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def change_lines(data: bytes, rng: random.Random) -> bytes:
    """Change one line of JSON."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = change_json(lines[at], rng)
    return b"\n".join(lines)


def change_csv(data: bytes, rng: random.Random) -> bytes:
    return mutate_text(data.decode("utf-8", "surrogatepass"), rng).encode("utf-8", "surrogatepass")


def metadata(reader: WeightFiles) -> list[bytes]:
    """Return the metadata of a weights file: config, taxonomy and calibration as one JSON object."""
    texts = reader.header["__metadata__"]
    return [json.dumps({k: json.loads(texts[k]) for k in ("config", "taxonomy", "calibration")}).encode()]


def weights_file(reader: WeightFiles, data: bytes) -> tuple[str, bytes]:
    """Return a weights file with this metadata, or with the data as its header if it is not a JSON object."""
    try:
        texts = json.loads(data)
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in texts.items()}
        header = json.dumps({**reader.header, "__metadata__": texts}).encode()
    except (ValueError, AttributeError, RecursionError):
        header = data
    header += b" " * (-len(header) % 8)
    return "w.safetensors", len(header).to_bytes(8, "little") + header + reader.good[reader.end :]


def tables(kind: str) -> Callable[[Any, bytes], Any]:
    return lambda reader, data: (f"t.{kind}", data, bool(data) and data[-1] % 2 == 0, None)


TARGETS = {
    "taxonomy-json": Target(
        "taxonomies: JSON, guided",
        Taxonomies,
        lambda r: [r.json.encode()],
        lambda r, data: ("t.json", data),
        change_json,
    ),
    "taxonomy-csv": Target(
        "taxonomies: CSV, guided", Taxonomies, lambda r: [r.csv.encode()], lambda r, data: ("t.csv", data), change_csv
    ),
    "tables-jsonl": Target(
        "data sets: JSONL, guided", Tables, lambda r: [r.jsonl.encode()], tables("jsonl"), change_lines
    ),
    "tables-csv": Target("data sets: CSV, guided", Tables, lambda r: [r.csv.encode()], tables("csv"), change_csv),
    "weights": Target(
        "weights: config, taxonomy, calibration, guided", WeightFiles, metadata, weights_file, change_json
    ),
}


def mutator(target: Target, data: bytes, longest: int, seed: int) -> bytes:
    """Return an input whose structure or bytes are changed."""
    rng = random.Random(seed)
    if rng.random() < 0.75:
        try:
            return target.change(data, rng)[:longest]
        except (ValueError, RecursionError):  # it can no longer be parsed
            return mutate_bytes(data, rng)[:longest]
    return atheris.Mutate(data, longest)


def child(name: str, seed: int, numbers: range, pipe: int) -> None:
    """Read inputs that libFuzzer finds, and report them as fuzz.py's child does. Does not return."""
    fuzz.prepare()
    target, left, out = TARGETS[name], list(numbers), os.fdopen(pipe, "w")
    temporary = tempfile.TemporaryDirectory(prefix="hcast-zoo-fuzz-")
    folder = Path(temporary.name)
    corpus = folder / "corpus"
    corpus.mkdir()
    reader = target.reader(folder)
    for number, seed_input in enumerate(target.seeds(reader)):
        (corpus / str(number)).write_bytes(seed_input)
    fuzz.limit_memory(reader, numbers[0], target.source(reader, target.seeds(reader)[0]), out)

    def one(data: bytes) -> None:
        number = left.pop(0)
        outcome = fuzz.record(reader, number, target.source(reader, data), out)
        if outcome not in fuzz.FINE:
            Path(f"guided-{name}-{number}").write_bytes(data)
        if not left:  # libFuzzer would end the process too
            temporary.cleanup()
            os._exit(0)

    options = [f"-{option}" for option in (f"seed={seed + 1}", f"max_len={LONGEST}", *OPTIONS)]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=functools.partial(mutator, target))
    atheris.Fuzz()


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(TARGETS)} (all)")
    parser.add_argument("--inputs", type=int, default=10_000, help="of each reader (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report (%(default)s)")
    args = parser.parse_args()
    if unknown := set(args.readers) - set(TARGETS):
        parser.error(f"no reader {', '.join(unknown)}: expected {', '.join(TARGETS)}")
    findings = 0
    for name in args.readers or TARGETS:
        result = fuzz.fuzz(name, args.inputs, functools.partial(child, name, args.seed), args.inputs)
        findings += fuzz.write(TARGETS[name].what, name, args, result)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
