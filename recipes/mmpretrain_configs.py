"""Write mmpretrain's text configs (integrations/mmpretrain/.mim/configs) from the pure Python ones beside them.

Configs of `_base_` strings are what mim and ``hcast_zoo::hcast/NAME.py`` read, and pure Python ones what new projects
inherit. Edit only the latter, in integrations/mmpretrain/configs, then run this:

    python recipes/mmpretrain_configs.py

A test compares the two.
"""

import argparse
import ast
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "integrations/mmpretrain"
PURE, TEXT = FOLDER / "configs", FOLDER / ".mim/configs"
BASES = {  # module of configs/_base_ -> text config, in the order in which they are inherited
    "hcast_small": "models/hcast-small",
    "hierarchical_bs256_224": "datasets/hierarchical_bs256_224",
    "breeds_bs256_224": "datasets/breeds_bs256_224",
    "hcast_bs256_adamw_100e": "schedules/hcast_bs256_adamw_100e",
    "default_runtime": None,  # mmpretrain's own, which a text config can inherit as it is
}
RUNTIME = "mmpretrain::_base_/default_runtime.py"


def text_path(file: Path) -> Path | None:
    """Return where the text config of a pure Python one lies; None for the runtime, which has none."""
    if file.parent.name == "_base_":
        base = BASES[file.stem]
        return base and TEXT / f"_base_/{base}.py"  # type: ignore[return-value]
    family, size, data = file.stem.split("_", 2)
    return TEXT / f"hcast/{family}-{size}_{data.replace('_', '-')}.py"


def to_text(source: str, is_base: bool) -> str:
    """Turn a pure Python config into a text config, not yet formatted.

    Args:
        source: Its text.
        is_base: Whether it lies in ``_base_``.
    """
    tree = ast.parse(source)
    lines = source.splitlines()
    bases, classes, dropped = [], set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if names == ["*"]:
                bases.append((node.module or "").rpartition(".")[2])
            else:
                classes.update(names)
        if isinstance(node, (ast.ImportFrom, ast.With)):
            dropped.update(range(node.lineno - 1, node.end_lineno or node.lineno))

    docstring = tree.body[0].end_lineno or 1
    head = "\n".join(lines[:docstring])
    head = re.sub(r"\nThe command reads the text config.*?import \*\n", "", head, flags=re.DOTALL)
    body = "\n".join(line for i, line in enumerate(lines) if i >= docstring and i not in dropped).strip("\n")
    body = re.sub(rf"(\w*type)=({'|'.join(sorted(classes))})\b", r'\1="\2"', body) if classes else body
    body = re.sub(r"^(\w+)\.update\(", r"\1 = dict(", body, flags=re.MULTILINE)
    inherited = [base_path(base, is_base) for base in BASES if base in bases]
    if len(inherited) == 1:
        head += f'\n\n_base_ = "{inherited[0]}"'
    elif inherited:
        head += "\n\n_base_ = [" + "".join(f'"{path}", ' for path in inherited) + "]"

    return f"{head}\n\n{body}\n"


def base_path(base: str, is_base: bool) -> str:
    """Return how a text config names another that it inherits."""
    if BASES[base] is None:
        return RUNTIME
    return f"./{base}.py" if is_base else f"../_base_/{BASES[base]}.py"


def configs() -> dict[Path, str]:
    """Return the text configs: file to text, not yet formatted."""
    pure = sorted(file for file in PURE.rglob("*.py") if file.name != "__init__.py")
    return {
        path: to_text(file.read_text(encoding="utf-8"), file.parent.name == "_base_")
        for file in pure
        if (path := text_path(file)) is not None
    }


def main() -> None:
    """Write the files."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    texts = configs()
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", *map(str, texts)], check=True)
    print(f"wrote {len(texts)} configs below {TEXT}", file=sys.stderr)


if __name__ == "__main__":
    main()
