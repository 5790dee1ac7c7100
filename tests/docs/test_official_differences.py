"""docs/official_differences.md has an entry for everything that the source cites."""

import dataclasses
import re
from pathlib import Path

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.training.settings import TrainConfig
from tests.training.test_recipe import options

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/official_differences.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^### (\d+)\. [^\n]+ \{ #behaviour-(\d+) \}\n\n(.+?)(?=\n\n#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
FOLDERS = ("hcast_zoo", "integrations", "tests", "benchmarks", "recipes")
SOURCES = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py")) if p != Path(__file__)]


def test_entries_are_numbered_and_complete():
    numbers = [int(number) for number, _, _ in ENTRIES]
    assert numbers and len(numbers) == PAGE.count("\n### ")
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    for number, anchor, text in ENTRIES:
        assert anchor == number
        for part in ("**Theirs", "**Ours", "**Why:**"):
            assert part in text, f"entry {number} lacks {part}"


def test_every_citation_has_its_entry():
    numbers = {number for number, _, _ in ENTRIES}
    cited = set()
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"behaviours? \d", text, re.IGNORECASE), f"{path}: cite docs/official_differences.md, N"
        citations = re.findall(r"official_differences\.md, (\d+(?:, \d+)*)", text)
        assert len(citations) == text.count("official_differences.md"), f"{path}: a citation names no entry"
        for citation in citations:
            assert set(citation.split(", ")) <= numbers, f"{path}: no entry {citation}"
            cited.update(citation.split(", "))
    assert len(cited) > 15


def test_comments_on_differences_cite_their_entry():
    checked = set()
    for path in SOURCES:
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
        for comment in re.findall(r"[Dd]iffers from official.{0,200}", text):
            assert "official_differences.md, " in comment, f"{path}: {comment}"
            checked.add(path.stem)
    assert {"graph_pooling", "superpixels", "loading"} <= checked


def test_recipes_differ_from_the_official_only_where_listed():
    """The official values in the table of docs/paper.md are those of our recipes for every data set of the paper."""
    page = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (`--[\w-]+`|\(in the code\)) \| ([^|]+) \| `(\w+)`[^|]* \| ([\d, ]*) ?\|$", page, re.MULTILINE
    )
    assert len(rows) == page.split("| official argument |")[1].split("\n\n")[0].count("\n|") - 1 == 28
    assert {entry for row in rows for entry in re.findall(r"\d+", row[3])} >= {"21", "46"}
    for name in ("cub", "aircraft", "inat21_mini", "living17", "nonliving26", "entity13", "entity30"):
        recipe = options("--recipe", name, "--paper-exact")
        kind = {"aircraft": "Aircraft", "cub": "", "inat21_mini": ""}.get(name, "BREEDS")
        ours = dataclasses.asdict(HCastConfig.from_variant("hcast_small")) | dataclasses.asdict(TrainConfig()) | recipe

        for _, official, setting, entries in rows:
            default, *others = official.strip().split(", ")
            expected = dict(part.split(" ") for part in others).get(kind, default)
            assert str(ours[setting]) == expected or float(ours[setting]) == float(expected), (name, setting)
            assert all(f"#behaviour-{entry} }}" in PAGE for entry in re.findall(r"\d+", entries))
