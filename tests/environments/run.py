"""Install the wheel into fresh environments outside the repository, and run the fast tests there.

    python tests/environments/run.py resolve                 # do versions resolve? (nothing is installed)
    python tests/environments/run.py lowest                  # the lowest versions that resolve, on the oldest Python
    python tests/environments/run.py pythons                 # 3.10 to 3.13, as far as installed, with every framework
    python tests/environments/run.py extras                  # the base alone, then with each extra in turn
    python tests/environments/run.py extras --only base --tests cli integrations    # a part of the tests
    python tests/environments/run.py sbom --output sbom.json # CycloneDX, from the environment that runs this
    python tests/environments/run.py lock                    # .ci/constraints.txt, from the same

It needs ``pip install uv``. uv links files from its cache, so each version of torch (6 GB with its CUDA libraries) is
on disk only once; each environment is deleted after its tests. Each prints one line of a Markdown table; the exit code
is 1 if one failed. The results are in docs/environments.md.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = ("", "train", "export", "transformers", "demo", "mmpretrain")
EVERYTHING = ",".join(filter(None, EXTRAS))
# Without this check, tests of an extra that cannot be imported would just be skipped.
IMPORTS = {
    "": "hcast_zoo",
    "train": "accelerate, pyarrow, tensorboard",
    "export": "onnxruntime, onnxscript",
    "transformers": "transformers",
    "demo": "hcast_zoo.demo.app",
    "mmpretrain": "mmpretrain",
    "check": "imagehash",
}
# Gradio needs a newer huggingface-hub than our lowest, so there are two environments of lowest versions.
LOWEST = {"lowest": "export,train,transformers", "lowest, demo and mmpretrain": "demo,mmpretrain,train"}
OPENCV = "opencv-contrib-python-headless"
# These test the repository, or need what the environment must not have.
NOT_HERE = (
    "test_package.py",
    "test_benchmarks.py",
    "test_docs.py",
    "test_notebooks.py",
    "test_site.py",
    "test_no_code.py",
    "test_typing.py",
    "test_contributing.py",
    "test_official_differences.py",
    "test_browser.py",
    "frameworks",
    "mutation",
    "environments",
)
BESIDE = ("docs", "model_cards", "recipes")  # texts and scripts that some tests read; not the package
SHOWN = ("torch", "torchvision", "numpy", "timm", "transformers", "huggingface-hub", OPENCV)


def uv(*words: str, **options) -> subprocess.CompletedProcess:
    """Run uv; raise if it fails."""
    return subprocess.run([shutil.which("uv") or "uv", *words], check=True, text=True, **options)


def build_wheel(folder: Path) -> Path:
    """Build the source distribution of the working tree, and the wheel from that."""
    uv("build", "--quiet", "--out-dir", str(folder), str(ROOT))
    return next(folder.glob("*.whl"))


def resolve() -> bool:
    """Resolve the base and each extra for each Python, lowest and highest; return whether all can be."""
    good = True
    for python in PYTHONS:
        for extra in (*EXTRAS, "recipes", "benchmarks", "docs", "test", "all"):
            for resolution in ("lowest-direct", "highest"):
                words = ["uv", "pip", "compile", "--quiet", "--python-version", python, "--resolution", resolution]
                words += [*(["--extra", extra] if extra else []), str(ROOT / "pyproject.toml")]
                result = subprocess.run(words, capture_output=True, text=True)
                if result.returncode:
                    print(f"Python {python}, {extra or 'base'}, {resolution}:\n{result.stderr}", file=sys.stderr)
                good &= not result.returncode
    return good


def versions_in(interpreter: str) -> dict[str, str]:
    """Return the name and version of each package in an environment."""
    listed = uv("pip", "list", "--format", "json", "--python", interpreter, capture_output=True).stdout
    return {d["name"]: d["version"] for d in json.loads(listed)}


def try_environment(
    name: str,
    python: str,
    wheel: Path,
    extras: str,
    resolution: str = "highest",
    constraints: Path | None = None,
    tests: Sequence[str] = (),
) -> bool:
    """Make an environment, check it, and run the tests; print a line of the table; return whether all passed."""
    start = time.monotonic()
    version = subprocess.run([python, "-V"], capture_output=True, text=True).stdout.split()[-1]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        uv("venv", "--quiet", "--python", python, str(folder / "venv"))
        interpreter = str(folder / "venv/bin/python")
        # With pyproject.toml: for `lowest-direct`, a wheel's requirements are indirect, and get their highest versions.
        wanted = [
            f"hcast-zoo @ {wheel.as_uri()}",
            "-r",
            str(ROOT / "pyproject.toml"),
            *(word for extra in filter(None, extras.split(",")) for word in ("--extra", extra)),
        ]
        more = ["--constraint", str(constraints)] if constraints else []
        try:
            install = ["pip", "install", "--quiet", "--python", interpreter]
            uv(*install, "--resolution", resolution, *more, *wanted, "pytest>=8", "hypothesis>=6.100")

            versions = versions_in(interpreter)
            if "mmpretrain" in extras:  # opencv-python overwrote it, and has no superpixels
                uv(*install, "--reinstall", "--no-deps", f"{OPENCV}=={versions[OPENCV]}")
        except subprocess.CalledProcessError as error:
            print(f"| {name} | {version} | - | - | cannot be installed ({error.returncode}) |", flush=True)
            return False

        check = subprocess.run(["uv", "pip", "check", "--python", interpreter], capture_output=True, text=True)
        for name_beside in BESIDE:
            shutil.copytree(ROOT / name_beside, folder / name_beside)
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns(*NOT_HERE))
        modules = ", ".join(IMPORTS[extra] for extra in ("", *filter(None, extras.split(","))))
        code = f"import {modules}; print(hcast_zoo.__file__)"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        where = subprocess.run([interpreter, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)

        if str(folder) not in where.stdout:
            print(f"| {name} | {version} | - | - | cannot be imported |", flush=True)
            print(where.stdout, where.stderr, file=sys.stderr)
            return False

        words = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not hub", "-ra"]
        words += ["-W", "ignore::pytest.PytestUnknownMarkWarning", *(f"tests/{test}" for test in tests or ("",))]
        result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        summary = result.stdout.strip().splitlines()[-1].strip("= ")

    shown = ", ".join(f"{d} {versions[d]}" for d in SHOWN if d in versions)
    print(f"| {name} | {version} | {shown} | {'conflicts' if check.returncode else 'clean'} | {summary} |", flush=True)
    if check.returncode or result.returncode:
        print(check.stdout, check.stderr, result.stdout[-60000:], result.stderr[-2000:], file=sys.stderr)
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return result.returncode == check.returncode == 0


def find_pythons() -> dict[str, str]:
    """Return the interpreter of each version that is on the path, or that pyenv or uv has installed."""
    folders = [
        Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions",
        Path.home() / ".local/share/uv/python",
    ]
    interpreters = {}
    for version in PYTHONS:
        candidates = [
            shutil.which(f"python{version}"),
            *(p for folder in folders for p in folder.glob(f"*{version}.*/bin/python{version}")),
        ]
        for candidate in filter(None, candidates):  # pyenv puts shims on the path that may not run
            code = "import sys, venv; print(sys.base_prefix == sys.prefix)"
            if subprocess.run([candidate, "-c", code], capture_output=True, text=True).stdout == "True\n":
                interpreters.setdefault(version, str(candidate))
    return interpreters


def write_sbom(output: Path) -> None:
    """Write a CycloneDX file of the current environment: install `.[all]` and cyclonedx-bom into it first."""
    words = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    words += ["--output-reproducible", "--output-file", str(output), sys.executable]
    subprocess.run(words, check=True)


def closure(root: str = "hcast-zoo", extra: str = "all") -> dict[str, str]:
    """Return the installed versions, by name, of everything that a package with an extra needs, without itself.

    Raises:
        PackageNotFoundError: if a required package is not installed.
    """
    todo, seen, versions = [(root, extra)], set(), {}
    while todo:
        name, extra = item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        versions[name] = importlib.metadata.version(name)
        for text in importlib.metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(need.name), more) for more in ("", *need.extras)]
    del versions[root]
    return versions


def write_lock(output: Path) -> None:
    """Write only the names and versions of the installed packages of `all`."""
    lines = [f"{name}=={version}" for name, version in sorted(closure().items())]
    output.write_text(
        "# Written by tests/environments/run.py lock: versions that are installed together.\n" + "\n".join(lines) + "\n"
    )


def main() -> int:
    """Run the command; return 1 if an environment failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("resolve", "lowest", "pythons", "extras", "sbom", "lock"))
    parser.add_argument("--only", nargs="+", help="some Pythons or extras; `base` is no extra")
    parser.add_argument("--tests", nargs="+", default=(), help="files or folders of tests/; all by default")
    parser.add_argument("--constraint", type=Path, help="file of versions, such as .ci/constraints.txt")
    parser.add_argument("--output", type=Path, help="of sbom (sbom.json) and lock (.ci/constraints.txt)")
    args = parser.parse_args()
    if args.what == "sbom":
        write_sbom(args.output or Path("sbom.json"))
        return 0
    if args.what == "lock":
        write_lock(args.output or ROOT / ".ci/constraints.txt")
        return 0
    if args.what == "resolve":
        return 0 if resolve() else 1
    here = platform.python_version().rpartition(".")[0]
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        pythons = find_pythons()
        plans = {
            "lowest": [
                (name, pythons[min(pythons, key=lambda v: int(v[2:]))], extras, "lowest-direct")
                for name, extras in LOWEST.items()
            ],
            "pythons": [(f"Python {v}", p, EVERYTHING, "highest") for v, p in pythons.items()],
            "extras": [(extra or "base", pythons[here], extra, "highest") for extra in EXTRAS],
        }[args.what]
        if args.only:
            plans = [plan for plan in plans if plan[0].removeprefix("Python ") in args.only]
        print("| environment | Python | versions | pip check | tests |\n| --- | --- | --- | --- | --- |")
        good = [
            try_environment(name, python, wheel, extras, resolution, args.constraint, args.tests)
            for name, python, extras, resolution in plans
        ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
