"""What the benchmarks share: options, loading of models and pictures, and the layout of reports in docs/."""

import argparse
import platform
import shlex
import sys
import textwrap
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.loading import SuperpixelCollate
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.sharing.model_card import code_version
from hcast_zoo.weights.file import Weights, checksum

MODEL = "hcast_small.emoji_art"
PATHS = ("--model", "--data", "--flat", "--docs", "--example", "--outside", "--photographs")


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=MODEL, help="weights: name, file or folder (%(default)s)")
    parser.add_argument("--data", required=True, help="folder tree, .csv, .jsonl or .parquet file")
    parser.add_argument("--split", default="test", help="part of the data set (%(default)s); '' for all")
    parser.add_argument("--limit", type=int, help="measure only this many pictures, evenly spaced, for a trial")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures per forward pass (%(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report (%(default)s)")
    return parser


def load_data(args: argparse.Namespace, weights: Weights) -> HierarchicalDataset:
    """Return the pictures to measure, with the preprocessing of some weights."""
    transform = eval_transform(weights.config)
    dataset = HierarchicalDataset.load(args.data, weights.taxonomy, args.split or None, transform=transform)
    if args.limit and args.limit < len(dataset):
        kept = torch.linspace(0, len(dataset) - 1, args.limit).long()
        dataset.pictures, dataset.labels = [dataset.pictures[i] for i in kept], dataset.labels[kept]

    return dataset


def load_batches(dataset: HierarchicalDataset, config, batch_size: int) -> list[dict]:
    """Read all pictures and compute their superpixels, once for all measurements."""
    dataset.skip_broken = False  # results refer to pictures by index
    loader = DataLoader(dataset, batch_size, collate_fn=SuperpixelCollate(config))
    return list(tqdm(loader, "read", leave=False))


def provenance(args: argparse.Namespace, weights: Weights, pictures: int) -> str:
    """Return a paragraph that says what was measured, by which code, and with which command."""
    file = Path(args.data)
    name = f"the folder {file.name}" if file.is_dir() else weights.taxonomy.name or file.stem
    data = name + (f", split {args.split}" if args.split else "")
    model = weights.metadata.get("name") or Path(args.model).name
    text = (
        f"Measured on {pictures} pictures of {data}, with `{model}` (SHA-256 {checksum(args.model)[:12]}), "
        f"{code_version()}, {date.today().isoformat()}, torch {torch.__version__.split('+')[0]}. This page is "
        "written by"
    )

    command = f"python {Path(sys.argv[0]).parent.name}/{Path(sys.argv[0]).name} {options_text()}".strip()
    return f"{textwrap.fill(text, 120, break_on_hyphens=False)}\n\n    {command}\n"


def options_text() -> str:
    """Return the options of this command, without folders of this machine."""
    words, is_path = [], False
    for word in sys.argv[1:]:
        words.append(shlex.quote(Path(word).name if is_path else word))
        is_path = word in PATHS
    return " ".join(words)


def processor() -> str:
    """Return the name of this machine's processor, and which of its instructions torch uses."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def table(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines) + "\n"


def write_section(docs: Path, name: str, key: str, text: str, options: str = "") -> None:
    """Replace one part of a report that several benchmarks write, and say how it was measured.

    Args:
        docs: Folder of the report, which has ``<!-- key -->`` and ``<!-- /key -->`` around the part.
        name: File in it.
        key: The part.
        text: Markdown.
        options: Options of the command line that wrote it.
    """
    module = sys.modules["__main__"].__spec__  # of `python -m`
    script = f"-m {module.name}" if module else f"benchmarks/{Path(sys.argv[0]).name}"
    command = f"python {script} {options}".strip()
    origin = f"Measured by `{command}`, {code_version()}, {date.today().isoformat()}."
    before, _, after = _cut(docs / name, key)
    write(docs, name, f"{before}\n{text}\n{textwrap.fill(origin, 120, break_on_hyphens=False)}\n\n{after}")


def write_row(docs: Path, name: str, key: str, header: Sequence[str], row: Sequence) -> None:
    """Replace the row that begins with the same cell in a part's table; for the part see :func:`write_section`."""
    before, text, after = _cut(docs / name, key)
    lines = [line for line in text.splitlines() if "|" in line]
    rows = []
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if cells[0] != row[0]:
            rows.append(cells)

    rows.append(list(row))
    write(docs, name, f"{before}\n{table(header, rows)}\n{after}")


def _cut(page: Path, key: str) -> tuple[str, str, str]:
    """Return the text before, in and after a part of a page; the marks belong to the outer two."""
    begin, end = f"<!-- {key} -->\n", f"<!-- /{key} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    text, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"{page}: expected the marks {begin.strip()} and {end}")
    return before + begin, text, end + after


def write(docs: Path, name: str, text: str) -> None:
    """Write a report, and say where it is."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / name).write_text(text, encoding="utf-8")
    print(docs / name)
