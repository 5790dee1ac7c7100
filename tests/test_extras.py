"""Without an extra's packages, a command says in one line which extra to install; the rest of the package works."""

import itertools
import sys

import pytest

from hcast_zoo.cli import main

# Extra: its packages to hide, our modules that import them, and a command.
CASES = {
    "train": (["accelerate"], ["training.trainer"], "train --data {data} --output {out} --model hcast_tiny"),
    "train, parquet": (
        ["pyarrow", "pyarrow.parquet"],
        ["inference.parquet_job"],
        "evaluate --data {out}.parquet --model {model}",
    ),
    "train, parts": (
        ["pyarrow", "pyarrow.parquet"],
        ["inference.parquet_job"],
        "predict {data} --output {out} --model {model}",
    ),
    "export": (["onnxscript"], [], "export {model} --output {out}.onnx"),
    "demo": (["gradio"], ["demo.app"], "demo --model {model}"),
    "mmpretrain": (["mmengine"], ["integrations.mmpretrain.train"], "mm-train config.py"),
    "transformers": (
        ["transformers"],
        ["integrations.transformers.repository", "integrations.transformers"],
        "publish {model} --repo me/tiny --dry-run",
    ),
}


EXTRAS = sorted({case.partition(",")[0] for case in CASES})
COMBINATIONS = [missing for size in range(1, len(EXTRAS) + 1) for missing in itertools.combinations(EXTRAS, size)]


@pytest.mark.parametrize("missing", COMBINATIONS, ids="+".join)
def test_a_missing_extra_is_named(missing, monkeypatch, capsys, tiny_weights, picture_folder, tmp_path):
    """A command names its own extra, whatever else is missing."""
    cases = [case for case in CASES if case.partition(",")[0] in missing]
    for packages, modules, _ in map(CASES.get, cases):
        for name in [*packages, *(f"hcast_zoo.{module}" for module in modules)]:
            for loaded in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
                monkeypatch.delitem(sys.modules, loaded)
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    (tmp_path / "out.parquet").write_bytes(b"")

    for case in cases:
        command = CASES[case][2].format(data=picture_folder, out=tmp_path / "out", model=tiny_weights)
        assert main(command.split()) == 2
        error = capsys.readouterr().err
        assert f"pip install 'hcast-zoo[{case.partition(',')[0]}]'" in error and "Traceback" not in error, error


def test_the_base_predicts_without_any_extra(monkeypatch, capsys, tiny_weights, picture_folder):
    for packages, _, _ in CASES.values():
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)
    assert main(["predict", str(picture_folder / "val"), "--model", str(tiny_weights)]) == 0
    assert capsys.readouterr().out.count("\n") == 12
