"""What was measured, as files: JSON, CSV, and a page with the tree, the worst confusions and reliability diagrams."""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.files import write_whole
from ..common.page import write_page, write_text
from ..data.dataset import HierarchicalDataset
from ..data.pictures import PictureError
from ..data.thumbnails import make_thumbnail
from ..network.config import HCastConfig
from ..taxonomy.paths import UNKNOWN
from ..taxonomy.tree import Taxonomy
from .evaluate import Answers, Measured
from .hierarchical import CurvePoint, Interval, NodeScore, hierarchical_metrics, node_scores, tree_curve

WORST = 12  # confusions that are shown
EXAMPLES = 4  # pictures of each
BINS = 10


@dataclasses.dataclass(frozen=True)
class Report:
    """Metrics of one decoding, in every detail.

    Attributes:
        decoding: Its name.
        metrics: Name to value and interval.
        nodes: A row for each node.
        curve: Risk over coverage along the tree.
    """

    decoding: str
    metrics: dict[str, Interval]
    nodes: list[NodeScore]
    curve: list[CurvePoint]

    def to_dict(self) -> dict:
        """Return plain data for JSON."""
        return dataclasses.asdict(self)


def make_report(
    measured: Measured, decoding: str, taxonomy: Taxonomy, abundance: dict[str, float] | None = None
) -> Report:
    """Return everything that is measured of a decoding.

    Args:
        measured: With its answers.
        decoding: One of them.
        taxonomy: The tree.
        abundance: Name of a leaf to how frequent it is where the model will be used; leaves without one count 0.
    """
    answers, labels = measured.answers[decoding], measured.labels
    weights = None if abundance is None else _weights(labels, taxonomy, abundance)
    return Report(
        decoding=decoding,
        metrics=hierarchical_metrics(answers.paths, labels, taxonomy, answers.confidences, weights),
        nodes=node_scores(answers.paths, labels, taxonomy),
        curve=tree_curve(answers.trust, answers.paths, labels, taxonomy),
    )


def _weights(labels: Tensor, taxonomy: Taxonomy, abundance: dict[str, float]):
    """Return for each picture the abundance of its leaf, over the number of its pictures here."""
    names = [(taxonomy.path_names(row) or ("",))[-1] for row in labels.tolist()]
    counts = {name: names.count(name) for name in set(names)}
    if not any(abundance.get(name, 0) > 0 for name in counts):
        raise ValueError("expected the abundance of leaves that are labels here, got none of them")
    return torch.tensor([abundance.get(name, 0.0) / counts[name] for name in names], dtype=torch.float64).numpy()


def metrics_csv(reports: Sequence[Report], results: dict[str, dict[str, float]]) -> str:
    """Return a table with a row for each metric of each decoding."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["decoding", "metric", "value", "low", "high"])
    for report in reports:
        for name, value in results[report.decoding].items():
            writer.writerow([report.decoding, name, f"{value:.4f}", "", ""])
        for name, found in report.metrics.items():
            writer.writerow([report.decoding, name, *(f"{v:.4f}" for v in dataclasses.astuple(found))])
    return sink.getvalue()


def nodes_csv(report: Report) -> str:
    """Return a table with a row for each node."""
    sink = io.StringIO()
    fields = [field.name for field in dataclasses.fields(NodeScore)]
    writer = csv.DictWriter(sink, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.2f}" if isinstance(v, float) else v for k, v in dataclasses.asdict(n).items()} for n in report.nodes
    )
    return sink.getvalue()


def write_report(
    folder: str | Path,
    measured: Measured,
    reports: Sequence[Report],
    dataset: HierarchicalDataset,
    config: HCastConfig,
    about: dict,
) -> None:
    """Write ``index.html``, ``metrics.json``, ``metrics.csv`` and ``nodes.csv`` into a folder.

    The page shows the first report.

    Args:
        folder: Where to.
        measured: What the reports are of.
        reports: One for each decoding.
        dataset: The pictures.
        config: Of the model, to outline what it saw.
        about: Plain data for the JSON: the model, its checksum, the data.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, "results": measured.results, "reports": [report.to_dict() for report in reports]}
    write_whole(folder / "metrics.json", json.dumps(content, indent=1, ensure_ascii=False))
    write_whole(folder / "metrics.csv", metrics_csv(reports, measured.results))
    write_whole(folder / "nodes.csv", nodes_csv(reports[0]))

    report = reports[0]
    answers, labels = measured.answers[report.decoding], measured.labels
    parts = [
        f"<p>{measured.pictures} pictures, decoding {write_text(report.decoding)}. "
        f'<span class="faint">{write_text(", ".join(f"{k} {v}" for k, v in about.items() if v))}</span></p>',
        _metric_table(report, measured.results[report.decoding]),
        "<h2>Risk and coverage along the tree</h2>",
        _plot([(p.coverage, p.risk) for p in report.curve], "what answers tell", "wrong answers", top=None),
        "<h2>Reliability</h2>",
        _reliability(answers, labels, dataset.taxonomy),
        "<h2>Worst confusions</h2>",
        _confusions(measured, report.decoding, dataset, config),
        "<h2>The tree, by recall</h2>",
        _tree(report, dataset.taxonomy),
    ]
    title = f"Evaluation on {dataset.taxonomy.name or 'labelled pictures'}"
    write_whole(folder / "index.html", write_page(title, "\n".join(parts)))


def _metric_table(report: Report, results: dict[str, float]) -> str:
    rows = [f"<tr><td>{write_text(name)}</td><td>{value:.2f}</td><td></td></tr>" for name, value in results.items()]
    for name, found in report.metrics.items():
        interval = f"{found.low:.2f} to {found.high:.2f}"
        rows.append(
            f"<tr><td>{write_text(name.replace('_', ' '))}</td><td>{found.value:.2f}</td><td>{interval}</td></tr>"
        )
    head = "<tr><th>metric</th><th>value</th><th>95 % interval</th></tr>"
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _reliability(answers: Answers, labels: Tensor, taxonomy: Taxonomy) -> str:
    """Return a diagram for each level and the path: how often answers of a confidence are right."""
    figures = []
    for depth, level in enumerate(taxonomy.levels):
        known = (labels[:, depth] != UNKNOWN) & (answers.paths[:, depth] != UNKNOWN)
        right = answers.paths[known, depth] == labels[known, depth]
        figures.append((level, _bins(answers.level_confidences[known, depth], right)))
    known = (labels != UNKNOWN).any(1)
    right = ((answers.paths == labels) | (labels == UNKNOWN)).all(1)
    figures.append(("path", _bins(answers.confidences[known], right[known])))
    drawn = []
    for name, points in figures:
        plot = _plot(points, "confidence", "right", diagonal=True)
        drawn.append(f"<figure><figcaption>{write_text(name)}</figcaption>{plot}</figure>")
    return f'<div class="grid">{"".join(drawn)}</div>'


def _bins(confidence: Tensor, right: Tensor) -> list[tuple[float, float]]:
    index = (confidence * BINS).ceil().long().clamp(1, BINS)
    points = []
    for i in range(1, BINS + 1):
        mine = index == i
        if mine.sum() >= 5:
            points.append((float(confidence[mine].mean()), float(right[mine].double().mean())))
    return points


def _plot(
    points: Sequence[tuple[float, float]], x: str, y: str, top: float | None = 1.0, diagonal: bool = False
) -> str:
    """Return a line through points as SVG; both axes begin at 0."""
    height = top or max([value for _, value in points] + [0.01])
    places = [(20 + 160 * a, 180 - 160 * b / height) for a, b in points]
    joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in places)
    line = '<path d="M20 180L180 20" stroke-dasharray="3" stroke="currentColor" opacity=".4"/>' if diagonal else ""
    return (
        '<svg viewBox="0 0 200 200" width="260" fill="none" font-size="9" role="img">'
        f'<path d="M20 20V180H180" stroke="currentColor"/>{line}'
        f'<polyline points="{joined}" stroke="#00796b" stroke-width="1.5"/><g fill="#00796b">{dots}</g>'
        f'<g fill="currentColor"><text x="100" y="195" text-anchor="middle">{write_text(x)}</text>'
        f'<text x="24" y="16">{write_text(y)}, to {height:.0%}</text></g></svg>'
    )


def _confusions(measured: Measured, decoding: str, dataset: HierarchicalDataset, config: HCastConfig) -> str:
    """Return the pairs of nodes that are taken for one another most often, with example pictures."""
    taxonomy, paths, labels = dataset.taxonomy, measured.answers[decoding].paths, measured.labels
    pairs: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
    for row, (path, label) in enumerate(zip(paths.tolist(), labels.tolist())):
        found, true = (taxonomy.path_names(p) for p in (path, label))
        cut = found[: len(true)]
        if cut != true and cut:
            pairs.setdefault((true, cut), []).append(row)

    parts = []
    worst = sorted(pairs.items(), key=lambda item: (-len(item[1]), -_severity(*item[0])))
    for (true, found), rows in worst[:WORST]:
        figures = [_example(dataset, int(measured.numbers[row]), config) for row in rows[:EXAMPLES]]
        parts.append(f"<p><b>{write_text(true[-1])}</b> taken for <b>{write_text(found[-1])}</b>: {len(rows)}</p>")
        parts.append(f'<div class="grid">{"".join(figures)}</div>')

    return "\n".join(parts) or "<p>None.</p>"


def _severity(true: tuple[str, ...], found: tuple[str, ...]) -> int:
    """Return how many levels of a path are not shared."""
    return len(true) - sum(a == b for a, b in zip(true, found))


def _example(dataset: HierarchicalDataset, number: int, config: HCastConfig) -> str:
    name = Path(dataset.name(number)).name
    try:
        address = make_thumbnail(dataset.open(number), config, side=128)
    except PictureError:
        return f"<figure><figcaption>{write_text(name)}</figcaption></figure>"
    return f'<figure><img src="{address}" alt="{write_text(name)}"><figcaption>{write_text(name)}</figcaption></figure>'


def _tree(report: Report, taxonomy: Taxonomy) -> str:
    """Return all nodes that are labels, nested, each in the colour of its recall."""
    scores = {(score.level, score.name): score for score in report.nodes}
    children: dict[tuple[int, int], list[int]] = {}
    for depth, parents in enumerate(taxonomy.parents):
        for index, parent in enumerate(parents):
            children.setdefault((depth, parent), []).append(index)

    def branch(depth: int, index: int) -> str:
        score = scores.get((taxonomy.levels[depth], taxonomy.names[depth][index]))
        if score is None:
            return ""
        below = "".join(branch(depth + 1, child) for child in children.get((depth, index), []))
        confused = f", most often taken for {write_text(score.confused_with)}" if score.confused_with else ""
        text = (
            f'<span style="border-left: 0.7rem solid hsl({1.2 * score.recall:.0f} 70% 45%); padding-left: 0.4rem">'
            f"{write_text(score.name)}</span> "
            f'<span class="faint">recall {score.recall:.0f} %, precision {score.precision:.0f} %, '
            f"{score.pictures} pictures{confused}</span>"
        )
        return f"<details><summary>{text}</summary>{below}</details>" if below else f"<p>{text}</p>"

    return "\n".join(branch(0, index) for index in range(taxonomy.level_classes[0]))
