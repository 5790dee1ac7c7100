"""Run timm's own tests/test_models.py, from the sdist of the installed version, on the H-CAST models.

    python tests/frameworks/run_timm_suite.py [PYTEST OPTION ...]

pip fetches the sdist into a temporary folder, unless TIMM_SDIST names an unpacked one. timm's test file is unchanged:
this file is also the pytest plugin that restricts ``list_models`` to ``hcast_*``, and lists these where timm lists its
own transformers. Models whose features are tokens have their own test of the default configs (``NON_STD_FILTERS``;
the test for image-shaped features is left out), and the tests of ``forward_intermediates`` name the modules that they
cover (``FEAT_INTER_FILTERS``). TorchScript is left out, as for timm's ``hiera_*``; FX is tested.
"""

import fnmatch
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


def pytest_configure(config):
    """Restrict timm's model lists before its tests are imported."""
    import timm

    import hcast_zoo  # noqa: F401  (registers the models)

    everything = timm.list_models

    def restricted(filter="", module="", pretrained=False, exclude_filters="", **options):
        filter, module, exclude_filters = (_as_list(x) for x in (filter, module, exclude_filters))
        if "vision_transformer" in module:
            module = ["hcast"]
        if "vit_*" in filter:
            filter = ["hcast_*"]
        if "hiera_*" in exclude_filters and "vit_*" not in exclude_filters:  # EXCLUDE_JIT_FILTERS
            return []
        names = everything(filter, module, pretrained, exclude_filters, **options)
        return fnmatch.filter(names, "hcast_*")

    timm.list_models = restricted
    timm.list_pretrained = lambda filter="", exclude_filters="": restricted(
        filter, "", True, exclude_filters, include_tags=True
    )


def _as_list(names) -> list[str]:
    return [names] if isinstance(names, str) and names else list(names)


def fetch(folder: str) -> Path:
    """Return the unpacked sdist of the installed timm, fetched by pip."""
    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-q", "-d", folder]
    subprocess.run([*words, f"timm=={version('timm')}"], check=True)
    archive = next(Path(folder).glob("timm-*.tar.gz"))
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def main() -> int:
    """Fetch and run; return pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        sdist = Path(os.environ["TIMM_SDIST"]) if "TIMM_SDIST" in os.environ else fetch(folder)
        here = Path(__file__).resolve().parent
        environment = {**os.environ, "PYTHONPATH": str(here), "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, "-m", "pytest", "-p", Path(__file__).stem, "-k", "hcast", "-rs"]
        words += ["--deselect", "tests/test_models.py::test_model_default_cfgs["]
        words += ["-W", "ignore::pytest.PytestUnknownMarkWarning", "tests/test_models.py", *sys.argv[1:]]
        return subprocess.run(words, cwd=sdist, env=environment).returncode


if __name__ == "__main__":
    raise SystemExit(main())
