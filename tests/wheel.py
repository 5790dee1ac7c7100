"""The wheel of this checkout, which several tests open."""

import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]


def build_wheel(folder: Path) -> Path:
    """Build the wheel into a folder and return it; one build at a time, because all of them use ``build/``."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(folder), str(ROOT)]
    with FileLock(Path(tempfile.gettempdir()) / "hcast-zoo-wheel.lock"):
        subprocess.run(command, check=True)
    return next(folder.glob("*.whl"))
