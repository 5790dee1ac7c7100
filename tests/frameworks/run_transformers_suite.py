"""Run transformers' own model and image-processor tests on our classes.

    python tests/frameworks/run_transformers_suite.py                 # the tests of the installed transformers
    python tests/frameworks/run_transformers_suite.py -- -k loss -x   # what follows -- goes to pytest

The tests are in the sdist of transformers on PyPI, which pip downloads into a temporary folder; nothing is kept.
They need pytest and parameterized. They are not part of the default test run: they take minutes and need the network.
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# Modules that the mixins import but the sdist lacks. The first two hold mixins for exporters and text generation, the
# third config values that a test sets; the last finds Hub pictures in a cache on transformers' own servers.
STAND_INS = {
    "tests/exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "tests/utils/test_configuration_utils.py": """config_common_kwargs = {
    "output_hidden_states": True, "return_dict": False, "dtype": "float16", "architectures": ["A"],
    "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "problem_type": "regression",
}
""",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url, **kwargs): return url\n",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", default=importlib.metadata.version("transformers"), help="of the sdist")
    parser.add_argument("--sdist", type=Path, help="an sdist that is already here")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tests = unpack(args.sdist or download(args.version, Path(folder)), Path(folder))
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--rootdir", folder]
        command += [str(tests / "hcast" / "test_hcast.py"), *args.pytest]
        print("+", *command, file=sys.stderr)
        return subprocess.run(command, cwd=folder).returncode


def download(version: str, folder: Path) -> Path:
    """Return the sdist, downloaded by pip."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
    subprocess.run([*pip, f"transformers=={version}"], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def unpack(sdist: Path, folder: Path) -> Path:
    """Extract the tests, add the stand-ins and our test classes; return the folder of tests."""
    with tarfile.open(sdist) as archive:
        members = [m for m in archive.getmembers() if m.name.split("/")[1:2] == ["tests"]]
        archive.extractall(folder, members, filter="data")
    tests = folder / "tests"
    next(folder.glob("transformers-*/tests")).rename(tests)
    for name, source in STAND_INS.items():
        path = folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
    (tests / "hcast").mkdir()
    shutil.copy(HERE / "transformers_suite.py", tests / "hcast" / "test_hcast.py")
    for package in (tests, *(p for p in tests.iterdir() if p.is_dir())):
        (package / "__init__.py").touch()
    return tests


if __name__ == "__main__":
    sys.exit(main())
