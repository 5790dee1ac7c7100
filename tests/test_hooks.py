"""Import hooks: whatever fails in one, the user's own import succeeds, with one warning."""

import subprocess
import sys
import textwrap

import pytest

import hcast_zoo

AUTO = "transformers/models/auto"


def run(code, *folders):
    """Run code in a new process; return its output and our warnings."""
    code = f"import sys; sys.path[:0] = {list(map(str, folders))!r}\n{textwrap.dedent(code)}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout, [line for line in result.stderr.splitlines() if "hcast-zoo" in line or "H-CAST" in line]


def fake(root, version):
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
def test_an_untested_transformers_version_gives_one_warning(tmp_path, version):
    output, notices = run(
        """
        import hcast_zoo
        import transformers.models.auto.configuration_auto, transformers.models.auto.modeling_auto
        import transformers.pipelines
        import transformers.models.auto.image_processing_auto
        print("goes on")
        """,
        fake(tmp_path, version),
    )
    assert output.strip() == "goes on" and len(notices) == 1
    for part in ("transformers", version or "of unknown version", "pip install -U"):
        assert part in notices[0]


def test_a_failed_registration_warns_once(monkeypatch):
    module = type(sys)("somewhere.module")
    monkeypatch.setitem(sys.modules, "somewhere", type(sys)("somewhere"))
    monkeypatch.setattr(hcast_zoo, "_failed", set())

    with pytest.warns(
        UserWarning, match=r"hcast-zoo .* is not registered with somewhere of unknown version"
    ) as notices:
        hcast_zoo._register("none.such:function", module)
        hcast_zoo._register("none.such:function", module)

    assert len(notices) == 1 and "ModuleNotFoundError" in str(notices[0].message)


@pytest.mark.slow
@pytest.mark.parametrize("index", [None, '{"hcast_small', "[]", '{"a.b": {"file": 5}}'])
def test_a_damaged_index_of_weights_does_not_break_imports(tmp_path, index):
    output, notices = run(
        f"""
        from pathlib import Path
        import hcast_zoo
        from hcast_zoo.weights import header
        header.SHIPPED_INDEX = Path({str(tmp_path / "index.json")!r})
        if {index!r} is not None:
            header.SHIPPED_INDEX.write_text({index!r})
        import timm
        print(len(timm.list_models("resnet18")))
        """
    )
    assert output.strip() == "1" and len(notices) <= 1
    assert index is None or "timm" in notices[0]
