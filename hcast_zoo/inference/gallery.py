"""A page of answers: thumbnails grouped along the tree, the most doubtful first, in one file."""

import collections
import dataclasses
import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..common.files import write_whole
from ..common.page import escape_text, make_bar, make_page
from ..data.boxes import BoxedPicture, BoxGeometry
from ..data.pictures import PictureError
from ..data.thumbnails import make_thumbnail
from ..network.config import HCastConfig
from .prediction import Prediction
from .resume import picture_key
from .summary import grow_tree
from .tables import Source

Node = tuple[str, ...]  # names, coarse to fine
PER_NODE = 48  # pictures shown per node, so that the page of a large survey still opens on a phone
MOST_DOUBTFUL = 24  # pictures shown at the top
MOST_ERRORS = 200  # errors shown at the end


@dataclasses.dataclass(order=True)
class _Shown:
    """A prediction in a heap; the first entry of the heap is the one to be replaced, the most confident."""

    certainty: float
    number: int
    prediction: Prediction = dataclasses.field(compare=False)


class Gallery:
    """Collects answers for a page; keeps only those that the page shows.

    Args:
        config: The model's config, to outline the part of a picture that it sees.
        source: What made the predictions.
        geometry: How boxes become pictures, if the predictions are for boxes.
    """

    def __init__(self, config: HCastConfig, source: Source, geometry: BoxGeometry | None = None):
        self.config, self.source, self.geometry = config, source, geometry
        self.counts: collections.Counter[tuple[str, ...]] = collections.Counter()
        self.heaps: dict[tuple[str, ...], list[_Shown]] = collections.defaultdict(list)
        self.doubtful: list[_Shown] = []
        self.errors: list[Prediction] = []
        self.failed = 0
        self.thumbnails: dict[str, str] = {}

    def collect(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yield predictions unchanged, and collect them."""
        for number, prediction in enumerate(predictions):
            self._add(prediction, number)
            yield prediction

    def _add(self, prediction: Prediction, number: int) -> None:
        if prediction.error is not None:
            self.failed += 1
            if len(self.errors) < MOST_ERRORS:
                self.errors.append(prediction)
            return

        self.counts[prediction.path] += 1
        certainty = prediction.path_probability if prediction.path else 0.0
        shown = _Shown(-certainty, number, prediction)
        _push(self.heaps[prediction.path], shown, PER_NODE)
        _push(self.doubtful, shown, MOST_DOUBTFUL)

    def write(self, output: str | Path) -> None:
        """Write the page; a picture that can no longer be read is replaced by its name."""
        pictures = sum(self.counts.values())
        failed = f", {self.failed} could not be read" if self.failed else ""
        model, checksum = escape_text(self.source.model), escape_text(self.source.sha256[:12])
        parts = [
            f'<p>{pictures} pictures labelled{failed}. <span class="faint">Model {model}, SHA-256 {checksum}. '
            "The yellow outline is what the model saw.</span></p>"
        ]

        if pictures:
            parts += ["<h2>Most doubtful</h2>", self._grid(self.doubtful, with_path=True), "<h2>Along the tree</h2>"]
            parts += self._branches((), *grow_tree(self.counts))

        if self.errors:
            parts += ["<h2>Not read</h2>", "<ul>"]
            parts += [f"<li>{escape_text(p.file)}: {escape_text(p.error)}</li>" for p in self.errors]
            parts += ["</ul>"]

        write_whole(output, make_page("What is in these pictures", "\n".join(parts)))

    def _branches(self, path: Node, below: dict[Node, int], children: dict[Node, list[Node]]) -> list[str]:
        """Return the pictures at a node and below it, as nested, collapsible sections."""
        parts = []
        if path in self.heaps:
            if not path:
                parts.append("<p>No level can be trusted:</p>")
            parts.append(self._grid(self.heaps[path]))

            others = self.counts[path] - len(self.heaps[path])
            if others:
                parts.append(f'<p class="faint">and {others} more, of which the model is surer</p>')

        for node in children.get(path, []):
            level = self.source.levels[len(path)]
            opened = " open" if len(node) < len(self.source.levels) else ""
            parts.append(
                f"<details{opened}><summary>{escape_text(node[-1])} "
                f'<span class="faint">{escape_text(level)}, {below[node]}</span></summary>'
            )
            parts += self._branches(node, below, children)
            parts.append("</details>")

        return parts

    def _grid(self, heap: list[_Shown], with_path: bool = False) -> str:
        figures = [self._figure(shown.prediction, with_path) for shown in sorted(heap, reverse=True)]
        return f'<div class="grid">\n{"".join(figures)}</div>'

    def _figure(self, prediction: Prediction, with_path: bool) -> str:
        name = os.path.basename(prediction.file) or prediction.file
        picture: str | BoxedPicture = prediction.file
        if prediction.box is not None:
            picture = BoxedPicture(prediction.file, prediction.box, self.geometry or BoxGeometry())

        key = picture_key(picture)
        if key not in self.thumbnails:
            try:
                self.thumbnails[key] = make_thumbnail(picture, self.config)
            except PictureError:
                self.thumbnails[key] = ""

        address = self.thumbnails[key]
        image = f'<img src="{address}" alt="{escape_text(name)}" loading="lazy">' if address else ""

        title = escape_text(name)
        if prediction.path:
            title = f"<b>{prediction.path_probability:.0%}</b> {title}"
        lines = [title]
        if with_path:
            lines.append(escape_text(" > ".join(prediction.path) or "no answer"))
        if prediction.runner_up:
            lines.append(f"else {escape_text(prediction.runner_up[-1])} {prediction.runner_up_probability:.0%}")
        if prediction.reason:
            lines.append(f"<small>{escape_text(prediction.reason)}</small>")

        bar = make_bar(prediction.path_probability if prediction.path else 0.0)
        return f"<figure>{image}{bar}<figcaption>{'<br>'.join(lines)}</figcaption></figure>\n"


def _push(heap: list[_Shown], shown: _Shown, most: int) -> None:
    """Add a prediction to a heap; of more than ``most``, the most confident is dropped."""
    if len(heap) < most:
        heapq.heappush(heap, shown)
    else:
        heapq.heappushpop(heap, shown)
