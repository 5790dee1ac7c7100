"""Write an evaluation to files: JSON, CSV, and a page with the tree, worst confusions and reliability diagrams."""

import collections
import csv
import dataclasses
import io
import json
import operator
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.files import write_whole
from ..common.page import escape_text, make_page
from ..data.dataset import HierarchicalDataset
from ..data.pictures import PictureError
from ..data.thumbnails import make_thumbnail
from ..network.config import HCastConfig
from ..taxonomy.calibration import confidence_bins
from ..taxonomy.paths import UNKNOWN
from ..taxonomy.tree import Taxonomy
from .evaluate import Answers, Measured
from .hierarchical import CurvePoint, Interval, NodeScore, hierarchical_metrics, node_scores, tree_curve

WORST = 12  # confusions shown
EXAMPLES = 4  # pictures per confusion
BINS, MIN_IN_BIN = 10, 5  # of a reliability diagram; bins with fewer than 5 answers are not drawn


@dataclasses.dataclass(frozen=True)
class Report:
    """All metrics of one decoding.

    Attributes:
        decoding: Name of the decoding.
        metrics: Value and confidence interval of each metric, by name.
        nodes: One entry per node.
        curve: Risk and coverage along the tree.
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
    """Return all metrics of a decoding.

    Args:
        measured: An evaluation with its answers.
        decoding: One of its decodings.
        taxonomy: The tree.
        abundance: Frequency of each leaf where the model will be used, by the leaf's name; missing leaves count 0.

    Raises:
        ValueError: if no label is a leaf with an abundance.
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
    """Return, for each picture, the abundance of its leaf divided by the number of the leaf's pictures here."""
    names = [(taxonomy.path_names(row) or ("",))[-1] for row in labels.tolist()]
    counts = collections.Counter(names)
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
        for name, interval in report.metrics.items():
            writer.writerow([report.decoding, name, *(f"{v:.4f}" for v in dataclasses.astuple(interval))])

    return sink.getvalue()


def nodes_csv(report: Report) -> str:
    """Return a table with a row for each node."""
    sink = io.StringIO()
    fields = [field.name for field in dataclasses.fields(NodeScore)]
    writer = csv.DictWriter(sink, fields, lineterminator="\n")
    writer.writeheader()
    for node in report.nodes:
        row = dataclasses.asdict(node)
        for name, value in row.items():
            row[name] = f"{value:.2f}" if isinstance(value, float) else value
        writer.writerow(row)

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
        folder: The folder; created if it does not exist.
        measured: The evaluation.
        reports: One per decoding.
        dataset: The pictures.
        config: The model's config, to outline the part of a picture that it sees.
        about: Plain data for the JSON: the model, its checksum, the data.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = {**about, "results": measured.results, "reports": [report.to_dict() for report in reports]}
    write_whole(folder / "metrics.json", json.dumps(data, indent=1, ensure_ascii=False))
    write_whole(folder / "metrics.csv", metrics_csv(reports, measured.results))
    write_whole(folder / "nodes.csv", nodes_csv(reports[0]))

    report = reports[0]
    answers, labels = measured.answers[report.decoding], measured.labels
    facts = ", ".join(f"{key} {value}" for key, value in about.items() if value)
    parts = [
        f"<p>{measured.pictures} pictures, decoding {escape_text(report.decoding)}. "
        f'<span class="faint">{escape_text(facts)}</span></p>',
        _metric_table(report, measured.results[report.decoding]),
        "<h2>Risk and coverage along the tree</h2>",
        _plot(
            [(p.coverage, p.risk) for p in report.curve],
            "information in answers",
            "wrong answers",
            name="wrong answers by information in answers",
            top=None,
        ),
        "<h2>Reliability</h2>",
        _reliability(answers, labels, dataset.taxonomy),
        "<h2>Worst confusions</h2>",
        _confusions(measured, report.decoding, dataset, config),
        "<h2>The tree, by recall</h2>",
        _tree(report, dataset.taxonomy),
    ]
    title = f"Evaluation on {dataset.taxonomy.name or 'labelled pictures'}"
    write_whole(folder / "index.html", make_page(title, "\n".join(parts)))


def _metric_table(report: Report, results: dict[str, float]) -> str:
    rows = [f"<tr><td>{escape_text(name)}</td><td>{value:.2f}</td><td></td></tr>" for name, value in results.items()]
    for name, interval in report.metrics.items():
        label = escape_text(name.replace("_", " "))
        rows.append(
            f"<tr><td>{label}</td><td>{interval.value:.2f}</td><td>{interval.low:.2f} to {interval.high:.2f}</td></tr>"
        )

    head = "<tr><th>metric</th><th>value</th><th>95 % interval</th></tr>"
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _reliability(answers: Answers, labels: Tensor, taxonomy: Taxonomy) -> str:
    """Return a reliability diagram for each level and the path: accuracy against confidence."""
    figures = []
    for depth, level in enumerate(taxonomy.levels):
        known = (labels[:, depth] != UNKNOWN) & (answers.paths[:, depth] != UNKNOWN)
        right = answers.paths[known, depth] == labels[known, depth]
        figures.append((level, _reliability_points(answers.level_confidences[known, depth], right)))

    known = (labels != UNKNOWN).any(1)
    right = ((answers.paths == labels) | (labels == UNKNOWN)).all(1)
    figures.append(("path", _reliability_points(answers.confidences[known], right[known])))

    drawn = []
    for name, points in figures:
        plot = _plot(points, "confidence", "right", name=f"{name}: right answers by confidence", diagonal=True)
        drawn.append(f"<figure><figcaption>{escape_text(name)}</figcaption>{plot}</figure>")

    return f'<div class="grid">{"".join(drawn)}</div>'


def _reliability_points(confidence: Tensor, right: Tensor) -> list[tuple[float, float]]:
    """Return the mean confidence and the accuracy of each bin with at least ``MIN_IN_BIN`` answers."""
    bins = confidence_bins(confidence, BINS)
    points = []
    for index in range(BINS):
        inside = bins == index
        if inside.sum() >= MIN_IN_BIN:
            points.append((float(confidence[inside].mean()), float(right[inside].double().mean())))

    return points


def _plot(
    points: Sequence[tuple[float, float]], x: str, y: str, name: str, top: float | None = 1.0, diagonal: bool = False
) -> str:
    """Return a line through points as SVG; both axes start at 0."""
    height = top or max([value for _, value in points] + [0.01])
    places = [(20 + 160 * a, 180 - 160 * b / height) for a, b in points]
    joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in places)
    line = '<path d="M20 180L180 20" stroke-dasharray="3" stroke="currentColor" opacity=".4"/>' if diagonal else ""
    return (
        '<svg viewBox="0 0 200 200" width="260" fill="none" font-size="9" role="img" '
        f'aria-label="{escape_text(name)}">'
        f'<path d="M20 20V180H180" stroke="currentColor"/>{line}'
        f'<polyline points="{joined}" style="stroke: var(--accent)" stroke-width="1.5"/>'
        f'<g style="fill: var(--accent)">{dots}</g>'
        f'<g fill="currentColor"><text x="100" y="195" text-anchor="middle">{escape_text(x)}</text>'
        f'<text x="24" y="16">{escape_text(y)}, to {height:.0%}</text></g></svg>'
    )


def _confusions(measured: Measured, decoding: str, dataset: HierarchicalDataset, config: HCastConfig) -> str:
    """Return the most frequent confusions of two nodes, with example pictures."""
    taxonomy, paths, labels = dataset.taxonomy, measured.answers[decoding].paths, measured.labels
    pairs: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
    for row, (path, label) in enumerate(zip(paths.tolist(), labels.tolist())):
        true = taxonomy.path_names(label)
        answer = taxonomy.path_names(path)[: len(true)]
        if answer and answer != true:
            pairs.setdefault((true, answer), []).append(row)

    parts = []
    worst = sorted(pairs.items(), key=lambda item: (-len(item[1]), -_severity(*item[0])))
    for (true, answer), rows in worst[:WORST]:
        figures = [_example(dataset, int(measured.numbers[row]), config) for row in rows[:EXAMPLES]]
        parts.append(f"<p><b>{escape_text(true[-1])}</b> taken for <b>{escape_text(answer[-1])}</b>: {len(rows)}</p>")
        parts.append(f'<div class="grid">{"".join(figures)}</div>')

    return "\n".join(parts) or "<p>None.</p>"


def _severity(true: tuple[str, ...], answer: tuple[str, ...]) -> int:
    """Return the number of levels at which two paths differ."""
    return len(true) - sum(map(operator.eq, true, answer))


def _example(dataset: HierarchicalDataset, number: int, config: HCastConfig) -> str:
    name = Path(dataset.name(number)).name
    try:
        address = make_thumbnail(dataset.open(number), config, side=128)
    except PictureError:
        return f"<figure><figcaption>{escape_text(name)}</figcaption></figure>"

    return (
        f'<figure><img src="{address}" alt="{escape_text(name)}"><figcaption>{escape_text(name)}</figcaption></figure>'
    )


def _tree(report: Report, taxonomy: Taxonomy) -> str:
    """Return the tree of all nodes that occur as labels, coloured by recall."""
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
        confused = f", most often taken for {escape_text(score.confused_with)}" if score.confused_with else ""
        text = (
            f'<span style="border-left: 0.7rem solid hsl({1.2 * score.recall:.0f} 70% 45%); padding-left: 0.4rem">'
            f"{escape_text(score.name)}</span> "
            f'<span class="faint">recall {score.recall:.0f} %, precision {score.precision:.0f} %, '
            f"{score.pictures} pictures{confused}</span>"
        )
        return f"<details><summary>{text}</summary>{below}</details>" if below else f"<p>{text}</p>"

    return "\n".join(branch(0, index) for index in range(taxonomy.level_classes[0]))
