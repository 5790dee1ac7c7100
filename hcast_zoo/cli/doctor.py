"""What `hcast-zoo doctor`, `--version` and `completion` do: report what is installed and what to install."""

import argparse
import contextlib
import importlib.metadata
import os
import platform
import re
import shutil

from .. import __version__
from ..common.extras import needs_extra
from ..common.machine import SHARED_MEMORY, processors
from ..common.text import to_json

SHOWN = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "mmpretrain",
    "huggingface-hub",
    "opencv-contrib-python-headless",
)
EXTRAS = {  # extra -> what it is for
    "check": "finding near duplicates in data",
    "train": "training, and parquet files",
    "transformers": "the transformers integration",
    "mmpretrain": "the mmpretrain integration",
    "demo": "the page in a browser",
    "export": "ONNX files",
    "engines": "faster prediction on a CPU",
    "heic": "photographs of an iPhone",
    "excel": "answers in .xlsx files",
    "ray": "prediction on several machines",
    "completion": "completing commands by the tab key",
}
GIB = 2**30


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that matter; None for one that is not installed."""
    return {"hcast-zoo": __version__, "python": platform.python_version()} | {name: _version(name) for name in SHOWN}


def version_text() -> str:
    """Return the versions of the installed packages, on one line."""
    installed = [f"{name} {version}" for name, version in versions().items() if version]
    return f"{installed[0]} ({', '.join(installed[1:])})"


def doctor(args: argparse.Namespace) -> int:
    """Print what this machine and environment offer, what is missing, and what to do about it."""
    packages, machine, extras, weights = versions(), _machine(), _extras(), _weights()
    advice = _advice(weights)
    if args.json:
        facts = {"versions": packages, "machine": machine, "extras": extras, "weights": weights, "advice": advice}
        print(to_json(facts))
        return 1 if advice else 0

    _print_table({name: version or "not installed" for name, version in packages.items()})
    _print_table(machine)
    for extra, missing in extras.items():
        state = f"missing {', '.join(missing)}" if missing else "yes"
        print(f"{f'{EXTRAS[extra]} [{extra}]':48}{state}")

    print()
    _print_table(weights)

    for line in advice:
        print(f"! {line}")
    if not advice:
        print("All is well.")
    return 1 if advice else 0


def _print_table(facts: dict[str, str]) -> None:
    for name, value in facts.items():
        print(f"{name:32}{value}")
    print()


def completion(args: argparse.Namespace) -> int:
    """Print a script that completes commands and options in a shell."""
    with needs_extra("completion", "completions"):
        import shtab

    print(shtab.complete(args.parser, args.shell))
    return 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, str]:
    import torch

    from ..common.processes import choose_device

    capability = torch.backends.cpu.get_cpu_capability()
    bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": f"{processors()}, {capability}",
        "bfloat16 on the CPU": "fast" if bf16 else "no instructions for it: --precision bf16 will be slow",
        "device for --device auto": choose_device("auto"),
    }
    if os.path.isdir(SHARED_MEMORY):
        facts["shared memory for workers"] = f"{shutil.disk_usage(SHARED_MEMORY).free / GIB:.1f} GiB free"
    with contextlib.suppress(OSError):
        facts["disk"] = f"{shutil.disk_usage('.').free / GIB:.1f} GiB free here"
    return facts


def _extras() -> dict[str, list[str]]:
    """Return the packages of each extra that are not installed."""
    from packaging.requirements import Requirement

    missing: dict[str, list[str]] = {extra: [] for extra in EXTRAS}
    for text in importlib.metadata.requires("hcast-zoo") or ():
        requirement = Requirement(text)
        extra = re.search(r'extra == "([^"]+)"', text)
        if extra is None or extra[1] not in missing or requirement.name == "hcast-zoo":
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing[extra[1]].append(str(requirement).partition(";")[0])

    return missing


def _weights() -> dict[str, str]:
    """Return whether each file of weights in the package is whole."""
    from ..weights.errors import WeightsError
    from ..weights.file import find_weights, packaged_weights
    from ..weights.header import header_path, shipped_path

    states = {}
    for name, entry in packaged_weights().items():
        if not shipped_path(entry).exists() and header_path(entry).exists():
            states[name] = "not in this installation; fetched from the Hub on first use"
            continue
        try:
            states[name] = f"{find_weights(name).stat().st_size / 1e6:.0f} MB, checksum right"
        except WeightsError as error:
            states[name] = f"damaged: {error}"
    return states


def _advice(weights: dict[str, str]) -> list[str]:
    """Return one line for each problem, saying how to fix it."""
    from ..network.superpixels import load_cv2

    lines = [f"{name}: {state}" for name, state in weights.items() if state.startswith("damaged")]
    try:
        load_cv2()
    except ImportError as error:
        lines.append(str(error))
    return lines
