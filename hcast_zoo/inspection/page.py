"""Write a report as a self-contained HTML page: what to fix, with thumbnails, and the tree."""

import collections
import os
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..common.files import write_whole
from ..common.page import escape_text, make_page
from ..common.sample import spread
from ..common.text import clip
from ..data.boxes import BoxedPicture
from ..data.pictures import PictureError
from ..data.thumbnails import make_thumbnail
from .check import FEW, SMALL, WHOLE, Copies, Node, Report, sizes

STYLE = """
h2 { border-top: 1px solid var(--line); padding-top: 1rem }
.summary { list-style: none; padding: 0 }
.summary li { display: grid; grid-template-columns: 3.5rem 1fr; gap: 0.75rem; padding: 0.2rem 0 }
.summary b { text-align: right; font-variant-numeric: tabular-nums }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 0.75rem }
.group { border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem 0.75rem }
.group.large { grid-column: 1 / -1 }
.part { border: 1px solid var(--line); border-radius: 0.75rem; padding: 0 0.4rem }
figcaption small { display: block }
.doubt { color: var(--alarm); display: block }
th { overflow-wrap: normal } td { min-width: 3.2rem; text-align: left; vertical-align: top } th { text-align: left }
.number { text-align: right; font-variant-numeric: tabular-nums }
summary .bar { display: inline-block; background: var(--accent); margin: 0 0.35rem; min-width: 1px }
""".lstrip()
THUMBNAIL = 160  # pixels
MAX_THUMBNAILS = 1200  # per page, about 5 MB
MAX_GROUPS = 100  # per kind
MAX_IN_GROUP = 12
MAX_PICTURES = 100  # per kind
MAX_ROWS = 300  # per table
OPEN_ROWS = 15  # the others are folded away
EXAMPLES = 4  # per leaf

# Kinds of findings, the worst first: a headline after their number, and advice.
KINDS = {
    "unreadable": ("pictures cannot be read", "They are left out of training. Download them again, or remove them."),
    "across": (
        "groups of copies lie in several parts of the data",
        "Copies of training pictures make test results look better than they are. Keep one picture of each group, or "
        "split again: <code>hcast-zoo data split</code> keeps files with the same content together, and "
        "<code>--group-by</code> keeps whole series together, such as those of one camera or one individual.",
    ),
    "labels_differ": (
        "groups of copies within a part have different labels",
        "At least one label of each group is wrong, or the pictures show both things.",
    ),
    "suspects": (
        "labels are contradicted by the model",
        "The model is confident of another label; the most confident come first. A model trained on these same "
        "pictures has also learned their wrong labels: look at validation and test pictures, or train on one half and "
        "check the other.",
    ),
    "wrong_labels": (
        "pictures have a label that is not in the tree",
        "Training stops at them. Correct the label, or map it to a name in the tree with <code>--synonyms</code>.",
    ),
    "unlabelled": (
        "pictures have no label",
        "They do not help training. Label them, at least at the coarsest level, or remove them.",
    ),
    "few": (
        f"labels have fewer than {FEW} training pictures",
        "That is too few to learn well. Collect more, or label these pictures at the level above.",
    ),
    "untrained": (
        "nodes have no training picture, but pictures elsewhere",
        "The model never sees them in training, so every answer there will be wrong.",
    ),
    "untested": (
        "labels are missing from a part",
        "Their accuracy cannot be measured on that part.",
    ),
    "copies": (
        "groups of other copies within a part",
        "They count several times in training. Camera bursts are fine, as long as all of a burst is in one part.",
    ),
    "blank": ("pictures are of one colour", "They show nothing: covered lenses, or failed downloads."),
    "small": (
        "pictures are much smaller than the others",
        f"Their shorter side is less than 1/{SMALL} of the median: thumbnails among photographs, or tight crops.",
    ),
}


def write_page(report: Report, path: str | Path) -> None:
    """Write a report as HTML.

    Args:
        report: The findings.
        path: The file; links to pictures are relative to its folder.

    Raises:
        OSError: if it cannot be written.
    """
    title = f"{report.listing.source.resolve().name}: what to fix"
    body = "\n".join(_Page(report, Path(path).parent).body())
    write_whole(path, make_page(title, body, STYLE))


class _Page:
    """The parts of a page; thumbnails are made on demand, up to a limit."""

    def __init__(self, report: Report, folder: Path):
        self.report, self.folder, self.thumbnails_left = report, folder, MAX_THUMBNAILS
        source = report.listing.source
        self.root = source if source.is_dir() else source.parent
        self.largest = max((sum(node.pictures.values()) for node in report.tree), default=0)

    def body(self) -> Iterator[str]:
        yield self._facts()
        sections = self._sections()
        yield self._summary({key: count for key, count, _ in sections})
        for key, count, build in sections:
            if count:
                headline, advice = KINDS[key]
                yield f'<section id="{key}"><h2>{count:,} {_text(headline)}</h2><p>{advice}</p>'
                yield from build()
                yield "</section>"

        yield f'<section id="tree"><h2>The tree</h2>{self._table_of_levels()}'
        for node in self.report.tree:
            yield from self._branch(node)
        yield f'</section><section id="sizes"><h2>Sizes</h2>{self._sizes()}</section>'
        yield self._notes()

    def _sections(self) -> list[tuple]:
        """Return the kinds of findings: key, count, and the function that writes the section."""
        report = self.report
        across: list[Copies] = []
        differ: list[Copies] = []
        others: list[Copies] = []
        for group in report.copies:
            if group.across:
                across.append(group)
            elif group.labels_differ:
                differ.append(group)
            else:
                others.append(group)

        return [
            ("unreadable", len(report.unreadable), self._unreadable),
            ("across", len(across), lambda: self._copies(across)),
            ("labels_differ", len(differ), lambda: self._copies(differ)),
            ("suspects", len(report.suspects or ()), self._suspects),
            ("wrong_labels", len(report.wrong_labels), self._wrong_labels),
            ("unlabelled", len(report.unlabelled), lambda: self._pictures(report.unlabelled)),
            ("few", len(report.few), lambda: self._nodes(report.few)),
            ("untrained", len(report.untrained), lambda: self._nodes(report.untrained)),
            ("untested", sum(map(len, report.untested.values())), self._untested),
            ("copies", len(others), lambda: self._copies(others)),
            ("blank", len(report.blank), lambda: self._pictures(report.blank)),
            ("small", len(report.small), lambda: self._pictures(report.small)),
        ]

    def _facts(self) -> str:
        report, tree = self.report, self.report.taxonomy
        levels = [f"{count:,} {level}" for level, count in zip(tree.levels, tree.level_classes)]
        parts = [f"{part} {count:,}" for part, count in report.parts.items() if part != WHOLE]
        facts = [f"{len(report.measured):,} pictures", ", ".join(levels), ", ".join(parts) or "in no parts"]
        return f"<p>{_text(' · '.join(facts))}</p>"

    def _summary(self, counts: dict[str, int]) -> str:
        problems, passed = [], []
        for key, count in counts.items():
            headline = _text(KINDS[key][0])
            if count:
                problems.append(f'<li><b>{count:,}</b><a href="#{key}">{headline}</a></li>')
            elif key != "suspects" or self.report.suspects is not None:
                passed.append(f'<li class="faint"><b>0</b><span>{headline}</span></li>')

        hint = ""
        if self.report.suspects is None:
            hint = "<p>Labels were not compared with a model: <code>--model</code> does that.</p>"
        return f'<ul class="summary">{"".join(problems + passed)}</ul>{hint}'

    def _unreadable(self) -> Iterator[str]:
        rows = [(self._file(i), self._part(i), self.report.measured[i].error or "") for i in self.report.unreadable]
        yield _table(("file", "part", "why"), rows)

    def _wrong_labels(self) -> Iterator[str]:
        rows = [(self._file(i), self._part(i), error) for i, error in self.report.wrong_labels.items()]
        yield _table(("file", "part", "what is wrong"), rows)

    def _untested(self) -> Iterator[str]:
        rows = []
        for part, nodes in self.report.untested.items():
            rows += [(part, node.level, node.name) for node in nodes]
        yield _table(("part", "level", "label"), rows)

    def _nodes(self, nodes: Sequence[Node]) -> Iterator[str]:
        parts = list(self.report.parts)
        rows = []
        for node in nodes:
            counts = [str(node.pictures.get(part, 0)) for part in parts]
            rows.append((node.level, node.name, *counts))
        yield _table(("level", "label", *parts), rows)

    def _copies(self, groups: Sequence[Copies]) -> Iterator[str]:
        yield '<div class="groups">'
        for group in groups[:MAX_GROUPS]:
            facts = [f"{len(group.pictures)} pictures, {'the same file' if group.exact else 'alike'}"]
            if group.across:
                facts.append(", ".join(dict.fromkeys(map(self._part, group.pictures))))
            if group.labels_differ:
                facts.append("different labels")

            figures = [self._figure(i) for i in group.pictures[:MAX_IN_GROUP]]
            large = " large" if len(figures) > 2 else ""
            yield f'<div class="group{large}"><p>{_text(" · ".join(facts))}</p>'
            yield f'<div class="grid">{"".join(figures)}</div>'
            yield _more(len(group.pictures) - MAX_IN_GROUP) + "</div>"

        yield f"</div>{_more(len(groups) - MAX_GROUPS, 'groups')}"

    def _suspects(self) -> Iterator[str]:
        suspects = self.report.suspects or {}
        yield '<div class="grid">'
        for index, suspect in list(suspects.items())[:MAX_PICTURES]:
            answer = " > ".join(suspect.answer)
            yield self._figure(
                index, f'<span class="doubt">model: {_text(answer)}, {suspect.probability:.0%} sure</span>'
            )
        yield f"</div>{_more(len(suspects) - MAX_PICTURES)}"

    def _pictures(self, indices: Sequence[int]) -> Iterator[str]:
        yield '<div class="grid">'
        for index in indices[:MAX_PICTURES]:
            yield self._figure(index)
        yield f"</div>{_more(len(indices) - MAX_PICTURES)}"

    def _figure(self, index: int, remark: str = "") -> str:
        picture, measured = self.report.listing.pictures[index], self.report.measured[index]
        image = self._thumbnail(picture)
        if not isinstance(picture, bytes):
            name = escape_text(f"open {os.path.basename(self._file(index))}")
            image = f'<a href="{escape_text(self._link(picture))}" aria-label="{name}">{image or "open"}</a>'
        part = f'<span class="part">{_text(self._part(index))}</span> ' if self.report.listing.splits else ""
        size = f"{measured.width} x {measured.height}"
        label = _text(self.report.label(index) or "no label")
        caption = f"{part}{label}<small>{_text(self._file(index))} · {size}</small>{remark}"
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"

    def _thumbnail(self, picture: Path | bytes | BoxedPicture) -> str:
        """Return a thumbnail as an element with embedded data, or nothing once the limit is reached."""
        if self.thumbnails_left == 0:
            return ""

        try:
            url = make_thumbnail(picture, side=THUMBNAIL)
        except PictureError:
            return ""

        self.thumbnails_left -= 1
        return f'<img alt="" loading="lazy" src="{url}">'

    def _branch(self, node: Node) -> Iterator[str]:
        total = sum(node.pictures.values())
        parts = [f"{part} {count:,}" for part, count in node.pictures.items() if part != WHOLE]
        count = f"{total:,}" + (f" ({', '.join(parts)})" if len(parts) > 1 else "")
        if node.stops_here:
            count += f", {node.stops_here:,} of them labelled no deeper"

        width = 8 * total / max(self.largest, 1)
        opened = " open" if node.children and len(node.children) <= 12 else ""
        bar = f'<span class="bar" style="width:{width:.2f}rem"></span>'
        yield f"<details{opened}><summary>{_text(node.name)}"
        yield f'{bar}<span class="faint">{_text(count)}</span></summary>'

        for child in node.children:
            yield from self._branch(child)
        if examples := spread(node.examples, EXAMPLES):
            yield f'<div class="grid">{"".join(map(self._figure, examples))}</div>'
        yield "</details>"

    def _table_of_levels(self) -> str:
        rows = []
        tree = self.report.taxonomy
        for level, names, parents in zip(tree.levels, tree.names, ((), *tree.parents)):
            single = list(collections.Counter(parents).values()).count(1)
            rows.append((level, str(len(names)), str(single) if parents else ""))

        return _table(("level", "nodes", "parents with one child, which decide nothing"), rows)

    def _sizes(self) -> str:
        rows = []
        for name, values in sizes(self.report.measured).items():
            rows.append((name.replace("_", " "), *map(str, values.values())))

        return _table(("pixels", "smallest", "median", "largest"), rows)

    def _notes(self) -> str:
        notes = [*self.report.notes]
        for name, count in self.report.unknown_labels.items():
            notes.append(f"{count} pictures were not compared with the model: {name}")
        if not notes:
            return ""

        rows = "".join(f"<li>{_text(note)}</li>" for note in notes)
        return f'<section id="notes"><h2>Notes</h2><ul>{rows}</ul></section>'

    def _file(self, index: int) -> str:
        picture = self.report.listing.pictures[index]
        if isinstance(picture, Path) and picture.is_relative_to(self.root):
            return str(picture.relative_to(self.root))
        return self.report.name(index)

    def _part(self, index: int) -> str:
        part = self.report.part(index)
        return "" if part == WHOLE else part

    def _link(self, picture: Path | BoxedPicture) -> str:
        return urllib.parse.quote(os.fsencode(os.path.relpath(picture, self.folder)))


def _text(text: str) -> str:
    return escape_text(clip(text, 500))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, of which the first rows are open, the next ones folded away, and the others left out."""
    classes = []
    for column in range(len(header)):
        numeric = all(row[column].isdecimal() or not row[column] for row in rows)
        classes.append(' class="number"' if numeric else "")

    def write_row(cells: Sequence[str], tag: str) -> str:
        row = "".join(f"<{tag}{css}>{_text(cell)}</{tag}>" for css, cell in zip(classes, cells))
        return f"<tr>{row}</tr>"

    def write_rows(rows: Sequence[Sequence[str]]) -> str:
        lines = [write_row(header, "th"), *(write_row(row, "td") for row in rows)]
        return f'<div class="wide"><table>{"".join(lines)}</table></div>'

    folded = ""
    if len(rows) > OPEN_ROWS:
        rest = rows[OPEN_ROWS:MAX_ROWS]
        folded = f"<details><summary>{len(rest):,} more</summary>{write_rows(rest)}</details>"
    return f"{write_rows(rows[:OPEN_ROWS])}{folded}{_more(len(rows) - MAX_ROWS)}"


def _more(count: int, noun: str = "") -> str:
    return f'<p class="faint">{count:,} more {noun} in check.json</p>' if count > 0 else ""
