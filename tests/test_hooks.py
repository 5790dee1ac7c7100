"""Import hooks: whatever fails in one, the user's own import succeeds, with one warning."""

import subprocess
import sys
import textwrap

import pytest

import hcast_zoo

AUTO = "transformers/models/auto"


def run(code, *folders):
    """Run code in a new process; return its output and the warnings."""
    code = f"import sys; sys.path[:0] = {list(map(str, folders))!r}\n{textwrap.dedent(code)}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout, [line for line in result.stderr.splitlines() if "hcast-zoo" in line or "H-CAST" in line]


def fake(root, version, **files):
    """Write a fake transformers of another version, without the parts that we need."""
    for name in ("transformers", "transformers/models", AUTO, "transformers/pipelines"):
        (root / name).mkdir()
        (root / name / "__init__.py").write_text("")
    if version is not None:
        (root / "transformers/__init__.py").write_text(f"__version__ = {version!r}")
    for name in ("configuration_auto", "modeling_auto", "image_processing_auto"):
        (root / AUTO / f"{name}.py").write_text("")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("version", ["4.57.1", "5.24rc1", "6.0.0", "main", None])
def test_a_transformers_of_another_version(tmp_path, version):
    out, told = run(
        """
        import hcast_zoo
        import transformers.models.auto.configuration_auto, transformers.models.auto.modeling_auto
        import transformers.pipelines
        import transformers.models.auto.image_processing_auto
        print("goes on")
        """,
        fake(tmp_path, version),
    )
    assert out.strip() == "goes on" and len(told) == 1
    assert "transformers" in told[0] and (version or "of unknown version") in told[0] and "pip install -U" in told[0]


def test_any_failure_is_one_warning(monkeypatch):
    module = type(sys)("somewhere.module")
    monkeypatch.setitem(sys.modules, "somewhere", type(sys)("somewhere"))
    monkeypatch.setattr(hcast_zoo, "_failed", set())
    with pytest.warns(UserWarning, match=r"hcast-zoo .* is not registered with somewhere of unknown version") as told:
        hcast_zoo._register("none.such:function", module)
        hcast_zoo._register("none.such:function", module)
    assert len(told) == 1 and "ModuleNotFoundError" in str(told[0].message)


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, '{"hcast_small', "[]", '{"a.b": {"file": 5}}'])
def test_a_damaged_index_of_weights_does_not_break_imports(tmp_path, content):
    out, told = run(
        f"""
        from pathlib import Path
        import hcast_zoo
        from hcast_zoo.weights import header
        header.SHIPPED_INDEX = Path({str(tmp_path / "index.json")!r})
        if {content!r} is not None:
            header.SHIPPED_INDEX.write_text({content!r})
        import timm
        print(len(timm.list_models("resnet18")))
        """
    )
    assert out.strip() == "1" and len(told) <= 1
    assert content is None or "timm" in told[0]
