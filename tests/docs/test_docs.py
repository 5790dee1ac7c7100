"""The code blocks of README.md and docs/: Python and the hcast-zoo commands run, on tiny stand-ins.

A page's blocks run in order and share their names, in a folder that holds what the pages mention: pictures, a data set
``birds``, weights ``runs/birds/...``, a repository ``org/name``. A block after ``<!-- not run: REASON -->`` is skipped.
"""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image

from hcast_zoo.cli import main
from hcast_zoo.cli.parser import make_parser
from hcast_zoo.network.config import VARIANTS
from hcast_zoo.paper.benchmarks import BENCHMARKS
from hcast_zoo.weights.file import load_weights, packaged_weights
from hcast_zoo.weights.published import TAGS

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
# Only the arguments of these are parsed: they serve a page or need an extra's config, and have tests of their own.
READ_ONLY = {"demo", "mm-train"}
SHORT = ["--epochs", "1", "--batch-size", "4", "--warmup-epochs", "0", "--workers", "0"]
SMALL = ["--image-size", "32", "--num-superpixels", "16", "--num-clusters", "8", "4", "2", "2", "--crop-pct", "1"]


def blocks(page: str):
    """Yield (language, code, line, reason not to run it or None)."""
    reason = None
    for token in MarkdownIt().parse((ROOT / page).read_text()):
        if token.type == "html_block":
            mark = re.fullmatch(r"<!-- not run: (.+) -->", token.content.strip())
            reason = mark[1] if mark else reason
        elif token.type == "fence":
            yield token.info.split()[0] if token.info else "", token.content, token.map[0] + 1, reason
            reason = None
        elif token.nesting == 0:
            reason = None


def commands(code: str):
    """Yield each command of a block as a list of words; `&&` separates commands too."""
    for line in code.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            if words := shlex.split(part, comments=True):
                yield words


@pytest.fixture
def workspace(tmp_path, monkeypatch, picture_folder, tiny_weights, taxonomy):
    """A folder in which the pages' commands work, with the pictures of tests/pictures."""
    work = tmp_path / "work"
    (work / "tests").mkdir(parents=True)
    (work / "tests/pictures").symlink_to(ROOT / "tests/pictures")
    for name in ("picture.png", "my_picture.jpg", "owl.jpg", "lion.png"):
        (work / name).symlink_to(ROOT / "tests/pictures/lion.png")
    picture_folder.joinpath("test").symlink_to(picture_folder / "val")
    (work / "birds").symlink_to(picture_folder)
    (work / "runs/birds").mkdir(parents=True)
    (work / "model.safetensors").write_bytes(tiny_weights.read_bytes())
    (work / "list.txt").write_text("tests/pictures/lion.png\n")
    taxonomy.save(work / "taxonomy.json")
    write_survey(work, taxonomy)
    write_parquet(work / "pictures.parquet")
    monkeypatch.chdir(work)
    return work


def write_survey(work, taxonomy):
    """Write the files that docs/surveys.md uses: boxes, a table of them, counts, names, and pictures in bursts."""
    files = sorted((work / "birds").rglob("*.png"))
    names = [file.relative_to(work / "birds").as_posix() for file in files]
    box = {"category": "1", "conf": 0.9, "bbox": [0.1, 0.1, 0.7, 0.7]}
    images = [{"file": name, "detections": [box]} for name in names]
    document = {"images": images, "detection_categories": {"1": "animal"}}
    (work / "detections.json").write_text(json.dumps(document))
    rows = [f"birds/{name},5,5,35,35,{','.join(Path(name).parts[1:-1])}" for name in names if "test" not in name]

    (work / "boxes.csv").write_text("\n".join([f"file,xmin,ymin,xmax,ymax,{','.join(taxonomy.levels)}", *rows]))

    leaves = taxonomy.names[-1]
    (work / "counts.csv").write_text("\n".join(["name,count", *(f"{leaf},{5 + i}" for i, leaf in enumerate(leaves))]))
    (work / "place.csv").write_text("\n".join(["species", *leaves[:3]]))
    bursts = [f"birds/{name},{number // 2}" for number, name in enumerate(names)]
    (work / "bursts.csv").write_text("\n".join(["file,sequence", *bursts]))


def write_parquet(file):
    """Write the emoji of tests/pictures twice in every split, because calibration needs ten pictures."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    tree = load_weights("hcast_small.emoji_art").taxonomy
    rows = []
    for picture in sorted((ROOT / "tests/pictures").glob("*.png")):
        path = tree.path_names(tree.path_to(*tree.find(picture.stem.replace("_", " "))))
        for split in ("train", "val", "test") * 2:
            rows.append({"image": picture.read_bytes(), "split": split, **dict(zip(tree.levels, path))})
    pq.write_table(pa.Table.from_pylist(rows), file)


class Shell:
    """Run the commands of a page."""

    def __init__(self, work: Path, request):
        self.work, self.request = work, request

    @property
    def server(self):
        return self.request.getfixturevalue("server")

    def run(self, words: list[str]) -> None:
        if words[0].startswith("<"):
            return
        program = Path(words[0]).name
        known = {
            "pip": self.pip,
            "hcast-zoo": self.hcast_zoo,
            "python": self.python,
            "python3": self.python,
            "torchrun": self.torchrun,
            "mkdocs": lambda words: None,
            "pytest": lambda words: None,
        }
        assert program in known, f"unknown program in the docs: {words}"
        known[program](words[1:])

    def pip(self, words: list[str]) -> None:
        """Check that the extras exist."""
        extras = importlib.metadata.metadata("hcast-zoo").get_all("Provides-Extra")
        asked = [extra for word in words for group in re.findall(r"\[(.+?)\]", word) for extra in group.split(",")]
        assert words[0] == "install" and set(asked) <= set(extras), words

    def python(self, words: list[str]) -> None:
        """Check that the script exists and knows the options; its own test runs it."""
        if words[:2] == ["-m", "hcast_zoo"]:
            return self.hcast_zoo(words[2:])
        if words[0] in ("-m", "-c"):
            return None
        text = (ROOT / words[0]).read_text()
        if words[0].startswith("benchmarks/"):
            text += (ROOT / "benchmarks/report.py").read_text()
        for option in (word.split("=")[0] for word in words[1:] if word.startswith("--")):
            assert f'"{option}"' in text or "sys.argv[1:]" in text, f"{words[0]} has no option {option}"
        return None

    def torchrun(self, words: list[str]) -> None:
        """Parse the arguments after the launcher's own; test_processes.py runs several processes."""
        make_parser().parse_args(words[words.index("hcast_zoo") + 1 :])

    def hcast_zoo(self, words: list[str]) -> None:
        words = [w for word in words for w in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        words = ["hcast_small.emoji_art" if w in ("MODEL", "WEIGHTS") else w for w in words]
        if words[0] == "export":  # a small graph is enough
            words[1] = "model.safetensors"
        if words[-1] in ("--help", "--version"):
            with pytest.raises(SystemExit, match="0"):
                main(words)
            return
        make_parser().parse_args(words)
        if words[0] in READ_ONLY:
            return
        if words[0] == "train":
            fine_tunes = any(word.startswith("hcast_small.") for word in words)
            words += SHORT + ([] if fine_tunes else SMALL)
        if words[0] == "publish" or "me/hcast-birds" in words:
            result = self.server.run("-m", "hcast_zoo", *words, cwd=self.work)
            assert result.returncode == 0, (words, result.stderr)
            return
        assert main(words) == 0, words


@pytest.mark.slow
@pytest.mark.hub
@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page, workspace, request, tiny_weights, tiny_model, taxonomy):
    if page not in ("docs/own_data.md", "README.md"):  # these two pages create it
        (workspace / "runs/birds/best.safetensors").write_bytes(tiny_weights.read_bytes())
    code = (ROOT / page).read_text()
    if '"org/name"' in code or "path/or/org/name" in code:
        pytest.importorskip("transformers")
        from hcast_zoo.sharing.publish import assemble

        for repo in ("org/name", "path/or/org/name"):
            assemble("hcast_small.emoji_art", workspace / repo)

    shell = Shell(workspace, request)
    if "me/hcast-birds" in code and "hcast-zoo train" not in code:
        shell.hcast_zoo(["publish", "model.safetensors", "--repo", "me/hcast-birds"])

    image = torch.zeros(1, 3, 32, 32)
    names = {
        "__name__": "page",
        "images": torch.zeros(1, 3, 96, 96),
        "image": image,
        "model": tiny_model,
        "picture": Image.open(ROOT / "tests/pictures/lion.png").convert("RGB"),
        "my_taxonomy": taxonomy,
        "taxonomy": taxonomy,
    }

    for language, text, line, reason in blocks(page):
        if reason or language not in ("bash", "python"):
            continue
        if language == "bash":
            for words in commands(text):
                shell.run(words)
        elif "me/hcast-birds" in text:  # huggingface_hub reads its endpoint at import
            result = shell.server.run("-c", text, cwd=workspace)
            assert result.returncode == 0, (line, result.stderr)
        else:
            exec(compile("\n" * line + text, str(ROOT / page), "exec"), names)


OFFLINE = """
import socket, sys

def refuse(*args):
    raise OSError("this page wants the network")

socket.socket.connect = refuse
with open(sys.argv[1], encoding="utf-8") as page:
    code = page.read()
exec(compile(code, sys.argv[1], "exec"), {"__name__": "page"})
"""
INTERFACES = ["README.md", "docs/transformers.md", "docs/timm.md", "docs/mmpretrain.md", "docs/other_tools.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", INTERFACES)
def test_python_runs_in_a_fresh_process_without_a_network(page, workspace):
    """As a newcomer would run them: one file with the page's Python blocks, in the prepared folder."""
    for module in ("transformers", "mmpretrain"):
        if f"import {module}" in (ROOT / page).read_text() or f"from {module}" in (ROOT / page).read_text():
            pytest.importorskip(module)

    code = [text for language, text, _, reason in blocks(page) if language == "python" and not reason]
    (workspace / "page.py").write_text("\n".join(code))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(workspace / "hub")}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE, "page.py"],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_skipped_blocks_give_a_reason():
    for page in PAGES:
        marks = re.findall(r"^<!-- not run.*?-->", (ROOT / page).read_text(), re.MULTILINE)
        assert len(marks) == len([b for b in blocks(page) if b[3]]), f"{page}: a mark stands before no block: {marks}"


def test_weights_that_the_pages_name_exist():
    """They are packaged or published, or a model that somebody trains by a recipe."""
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    variants = "|".join(VARIANTS)
    named = set(re.findall(rf"\b(?:{variants})\.(?!py\b|safetensors\b|pth\b|untrained\b)[a-z]\w+", text))
    recipes = {f"hcast_small.{name}" for name in BENCHMARKS}
    assert set(packaged_weights()) <= named
    assert named <= {*packaged_weights(), *TAGS, *recipes}
