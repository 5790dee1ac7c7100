"""mmpretrain's text configs are what recipes/mmpretrain_configs.py writes from the pure Python ones."""

import ast
import importlib.util
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("mmpretrain_configs", ROOT / "recipes/mmpretrain_configs.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
CONFIGS = script.configs()


def comments(text: str) -> list[str]:
    return [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_text_configs_are_up_to_date(path):
    """Line breaks are the formatter's, and may differ."""
    stored = path.read_text()
    assert ast.dump(ast.parse(stored)) == ast.dump(ast.parse(CONFIGS[path])), "run python recipes/mmpretrain_configs.py"
    assert comments(stored) == comments(CONFIGS[path])


def test_no_text_config_is_written_by_hand():
    assert set(script.TEXT.rglob("*.py")) == set(CONFIGS) and len(CONFIGS) >= 12


def test_a_pure_config_is_rewritten_as_a_text_config():
    pure = '''"""Title.

The command reads the text config of the same name. A pure Python config inherits this file under `read_base()`:

    from x import *

End.
"""

from mmengine.config import read_base
from mmpretrain.datasets import CUB, RandomFlip

with read_base():
    from .._base_.default_runtime import *
    from .._base_.hcast_small import *

# A comment.
a = [dict(type=RandomFlip, prob=0.5)]
b.update(type=CUB, ema_type=CUB)
'''
    text = script.to_text(pure, is_base=False)
    values = {}
    exec(text, values)
    assert values["__doc__"] == "Title.\n\nEnd.\n" and "# A comment." in text
    assert values["_base_"] == ["../_base_/models/hcast-small.py", "mmpretrain::_base_/default_runtime.py"]
    assert values["a"] == [{"type": "RandomFlip", "prob": 0.5}]
    assert values["b"]["type"] == values["b"]["ema_type"] == "CUB"
