"""What the demo page shows: plain functions from a picture and settings to HTML and pictures.

Names come from weights, which anybody may have made, so every text is escaped before it becomes part of HTML.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..adaptation.config import AdaptConfig
from ..adaptation.report import AdaptedPicture, adapt_picture, draw_sheet
from ..common.text import clip, printable
from ..data.pictures import PictureError, read_picture
from ..data.thumbnails import make_thumbnail
from ..inference.predictor import Prediction, Predictor
from ..segments.drawing import Segmentation, stage_panel
from ..sharing.examples import card_examples
from ..taxonomy.tree import Taxonomy
from ..weights.file import packaged_name

PANEL = 448  # pixels: side of a segmentation on the page
STRIP = 224  # pixels: side of a segmentation in the strip, for screens of two pixels a point
SIBLINGS = 4  # nodes shown at a level
WHY = {
    "path": "How likely the whole path is, all levels at once. If the model is calibrated, about 8 of 10 answers of "
    "80 % are right, on pictures like those that it was calibrated on.",
    "next": "The second most likely path. If it is close to the first, do not rely on the last name.",
    "node": "How likely each name is: the sum over all paths through it, so the names below it add up to its number. "
    "With the setting \u201ceach level by itself\u201d, what this level alone says.",
    "others": "How many more names of this level there are, and how likely it is that one of them is right.",
    "alone": "What this level would answer without the others. If it is not the name on the path, the levels disagree: "
    "look at the picture yourself.",
    "changed": "How much of the picture is in another segment than before. A segment before and one after count as the "
    "same if they share most pixels.",
    "adapted": "How likely the model finds this label, before and after it adapted to this picture. Adaptation raises "
    "whatever you ask for, so a high number does not make the label true.",
}
MAX_CHOICES = 2000  # nodes in a list to choose from
ARROW = " \N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK} "


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the tree on the page: its index in its level, name, probability in [0, 1], and whether it is chosen."""

    index: int
    name: str
    probability: float
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Branch:
    """The nodes of one level that the page shows.

    Attributes:
        level: Index of the level.
        nodes: The chosen one first, then the most probable.
        others: Number of nodes that are not shown.
        others_probability: Probability of all of those together, in [0, 1].
        level_choice: Most probable node of this level's head alone, and its probability in [0, 1].
        below: Whether the nodes are the children of the node chosen above; only ``independent`` can leave the tree.
    """

    level: int
    nodes: tuple[Node, ...]
    others: int
    others_probability: float
    level_choice: tuple[str, float]
    below: bool


@dataclasses.dataclass(frozen=True)
class Look:
    """What the page shows for one picture.

    Attributes:
        prediction: The path.
        tree: The chosen path and the nodes beside it, one branch per level.
        panels: The picture as the model sees it, then its segmentation at every stage.
        captions: A sentence for each panel, as plain text.
    """

    prediction: Prediction
    tree: tuple[Branch, ...]
    panels: tuple[Image.Image, ...]
    captions: tuple[str, ...]


def look_at(predictor: Predictor, file: str | Path) -> Look:
    """Label and segment a picture.

    Raises:
        PictureError: if the picture cannot be read, or the model's answer is not finite.
    """
    picture, config = read_picture(file), predictor.model.config
    prediction, output = predictor.answer(picture, str(file))

    probabilities = [x[0] for x in predictor.node_probabilities(output.level_logits, predictor.decoder)]
    independent = [x[0] for x in predictor.node_probabilities(output.level_logits, "independent")]

    segmentation = Segmentation.from_output(picture, output, config)
    stages = range(1, len(segmentation.maps) + 1)
    captions = []
    for stage in stages:
        levels = [name for name, s in zip(predictor.taxonomy.levels, config.head_stages) if s == stage]
        captions.append(_caption(stage, len(np.unique(segmentation.maps[stage - 1])), levels))

    return Look(
        prediction=prediction,
        tree=grow_tree(probabilities, independent, predictor.taxonomy, prediction.path),
        panels=(segmentation.view(PANEL), *(stage_panel(segmentation, stage, PANEL) for stage in stages)),
        captions=("The picture as the model sees it.", *captions),
    )


def grow_tree(
    probabilities: Sequence[Tensor],
    independent: Sequence[Tensor],
    taxonomy: Taxonomy,
    path: Sequence[str],
    siblings: int = SIBLINGS,
) -> tuple[Branch, ...]:
    """Return the nodes along a path and the most probable ones beside them; one more level if the path stops early.

    Args:
        probabilities: One (C_l,) tensor per level; nodes of probability 0 are left out.
        independent: One (C_l,) tensor per level: the probabilities of each level's head alone.
        taxonomy: The tree.
        path: Node names, coarse to fine.
        siblings: Nodes to show per level, the chosen one among them.
    """
    chosen = [names.index(name) for names, name in zip(taxonomy.names, path)]
    branches = []
    for level in range(min(len(chosen) + 1, len(taxonomy.levels))):
        node = chosen[level] if level < len(chosen) else None
        values = probabilities[level].tolist()
        candidates = list(range(len(values)))
        below = True
        if level > 0:
            children = [i for i in candidates if taxonomy.parents[level - 1][i] == chosen[level - 1]]
            below = node is None or node in children
            candidates = children if below else candidates

        ranked = [i for i in candidates if i != node and values[i] > 0]
        ranked.sort(key=values.__getitem__, reverse=True)
        shown = [*([] if node is None else [node]), *ranked][:siblings]
        others = [values[i] for i in ranked if i not in shown]

        if shown:
            names, first = taxonomy.names[level], int(independent[level].argmax())
            nodes = tuple(Node(index=i, name=names[i], probability=values[i], chosen=i == node) for i in shown)
            branches.append(
                Branch(
                    level=level,
                    nodes=nodes,
                    others=len(others),
                    others_probability=sum(others),
                    level_choice=(names[first], independent[level][first].item()),
                    below=below,
                )
            )

    return tuple(branches)


def adapt_to(predictor: Predictor, file: str | Path, target: str, config: AdaptConfig) -> tuple[str, Image.Image]:
    """Adapt to a target; return the outcome as HTML, and the before and after sheet. See :func:`adapt_picture`.

    Raises:
        PictureError, TaxonomyError, AdaptationError: as :func:`adapt_picture` does.
    """
    adapted = adapt_picture(predictor, file, target, config=config)
    return adaptation_html(adapted), draw_sheet(adapted)


def answer_html(look: Look, taxonomy: Taxonomy, head_stages: Sequence[int]) -> str:
    """Return the path as text, and the tree, whose nodes are buttons with ``level:name`` as ``data-node``."""
    answer = look.prediction
    lines = [f'<div class="path">{_path(answer.path)}</div>']
    facts = [f"this path: {_chance(answer.path_probability)}{_why('path', 'this path')}"] if answer.path else []
    if answer.runner_up:
        chance = f"{_chance(answer.runner_up_probability)}{_why('next', 'next best path')}"
        facts.append(f"next best: {_path(answer.runner_up)} {chance}")
    lines += [f'<div class="fact">{fact}</div>' for fact in facts]
    if answer.reason:
        lines.append(f'<div class="reason">{_text(answer.reason[0].upper() + answer.reason[1:])}.</div>')
    strip = strip_html(look, taxonomy, head_stages)
    return f'<div class="answer">{"".join(lines)}</div>{strip}{_branches_html(look.tree, taxonomy, head_stages)}'


def strip_html(look: Look, taxonomy: Taxonomy, head_stages: Sequence[int]) -> str:
    """Return the segmentations of all stages side by side, each with the levels that read their label from it."""
    figures = []
    for stage, (panel, caption) in enumerate(zip(look.panels[1:], look.captions[1:]), 1):
        levels = [level for level, read in zip(taxonomy.levels, head_stages) if read == stage]
        names = _text(", ".join(levels)) if levels else "no label"
        address = make_thumbnail(panel, side=STRIP)
        figures.append(
            f'<figure><img src="{address}" alt="{escape(printable(caption))}"><figcaption>{names}</figcaption></figure>'
        )
    return f'<div class="strip" tabindex="0" role="group" aria-label="Segments">{"".join(figures)}</div>'


def _why(number: str, name: str) -> str:
    """Return a question mark that opens what a number means, for the mouse, the keyboard and a screen reader.

    Args:
        number: Key of ``WHY``.
        name: What the number belongs to, which a screen reader says.
    """
    label = escape(f"What the number means: {printable(name)}")
    return f'<details class="why"><summary aria-label="{label}">?</summary> {WHY[number]}</details>'


def adaptation_html(adapted: AdaptedPicture) -> str:
    """Return the outcome of an adaptation as HTML."""
    if adapted.probability is None or adapted.target is None:
        raise ValueError("expected an adaptation to a target")
    before, after = adapted.probability
    change = ", ".join(f"{share:.0f}% at stage {stage}" for stage, share in enumerate(adapted.changed, 2))

    why = _why("changed", "share that changed")
    return (
        f'<div class="answer"><div class="path">{_text(adapted.target)}: {_chance(before)} → {_chance(after)}'
        f"{_why('adapted', 'before and after')}</div>"
        f'<div class="fact">before: {_path(adapted.before.path)}</div>'
        f'<div class="fact">after: {_path(adapted.after.path)}</div>'
        f'<div class="fact">Share of the picture that changed segment: {change}.{why} '
        "The stored weights are unchanged.</div></div>"
    )


def heading_html(predictor: Predictor) -> str:
    """Return the heading: the model's levels and limits, from the metadata of its weights."""
    taxonomy, metadata = predictor.taxonomy, predictor.metadata
    levels = ARROW.join(f"{_text(name)} ({count})" for name, count in zip(taxonomy.levels, taxonomy.level_classes))
    limits = ""
    if "limits" in metadata:
        limits = f"<details><summary>What it is for, and its limits</summary>{_text(metadata['limits'])}</details>"
    calibrated = "" if predictor.calibration.fitted_on else " Probabilities are not calibrated."
    license = f" Licence of the weights: {_text(metadata['license'])}." if metadata.get("license") else ""
    return (
        f'<div class="heading"><h1>What is in the picture, level by level</h1><p>Model '
        f"<b>{_text(model_name(predictor))}</b> knows {levels} and nothing else.{calibrated}{license} "
        f"Pictures stay where this page runs, and are deleted within two hours.</p>{limits}</div>"
    )


def message_html(text: str) -> str:
    """Return a message, or nothing for an empty one."""
    return f'<div class="message" role="alert">{_text(text)}</div>' if text else ""


def caption_html(text: str) -> str:
    """Return a caption."""
    return f'<div class="caption">{_text(text)}</div>'


def error_text(error: Exception) -> str:
    """Return the message of an error, without the name of the uploaded file on the server."""
    text = error.reason if isinstance(error, PictureError) else str(error)
    return text[:1].upper() + text[1:]


def model_name(predictor: Predictor) -> str:
    """Return the name of the weights."""
    return predictor.metadata.get("name") or "H-CAST"


def subtrees(taxonomy: Taxonomy) -> list[tuple[str, str]]:
    """Return (name, ``level:name``) of the nodes above the finest level, for as many levels as MAX_CHOICES allows."""
    choices: list[tuple[str, str]] = []
    for level, names in zip(taxonomy.levels[:-1], taxonomy.names):
        if len(choices) + len(names) > MAX_CHOICES:
            break
        choices += [(f"{name} ({level})", f"{level}:{name}") for name in names]

    return choices


def example_pictures(taxonomy: Taxonomy) -> list[Path]:
    """Return the packaged photographs that are named after a label of the taxonomy; if there are none, drawings."""
    known = set(itertools.chain.from_iterable(taxonomy.names))
    folder = Path(str(resources.files("hcast_zoo.pictures")))
    for pattern in ("*.jpg", "*.png"):  # photographs, drawings
        if named := sorted(path for path in folder.glob(pattern) if path.stem.replace("_", " ") in known):
            return named

    return []


def offered_examples(predictor: Predictor) -> tuple[list[Path], str]:
    """Return the examples that the page of a model offers, and their heading.

    They are the pictures of its own card; for packaged weights whose card shows none, packaged pictures that fit.
    """
    files, credit = card_examples(predictor.source)
    if files:
        credit = f" ({clip(printable(credit))})" if credit else ""
        return files, f"Examples: right and wrong answers of the card{credit}"
    if packaged_name(predictor.source) and (files := example_pictures(predictor.taxonomy)):
        return files, f"Examples ({'CC0' if files[0].suffix == '.jpg' else 'Twemoji, CC-BY-4.0'})"
    return [], ""


def _branches_html(branches: Sequence[Branch], taxonomy: Taxonomy, head_stages: Sequence[int]) -> str:
    if not branches:
        return ""

    branch, rest = branches[0], _branches_html(branches[1:], taxonomy, head_stages)
    level, (choice, probability) = taxonomy.levels[branch.level], branch.level_choice
    away = "" if branch.below else "; this is not below the node above"
    items = []
    for node in branch.nodes:
        name, chance = _text(node.name), _chance(node.probability)
        button = (
            f'<button type="button" data-node="{escape(f"{level}:{node.name}")}" title="Adapt to {name}">'
            f'<span class="name">{name}</span><span class="bar">'
            f'<span style="width:{100 * node.probability:.1f}%"></span></span>'
            f'<span class="chance">{chance}</span></button>'
        )
        items.append(
            f'<li class="chosen" aria-current="true">{button}{rest}</li>' if node.chosen else f"<li>{button}</li>"
        )

    if branch.others:
        chance = f"{_chance(branch.others_probability)}{_why('others', f'others, {level}')}"
        items.append(f'<li class="others">{branch.others} more: {chance}</li>')
    if not any(node.chosen for node in branch.nodes):
        items.append(rest)
    return (
        f'<div class="branch">{_why("node", f"percentages, {level}")}'
        f'<div class="level">{_text(level)}<span>read from stage {head_stages[branch.level]}; '
        f"this level alone: {_text(choice)} {_chance(probability)}{away}</span>"
        f"{_why('alone', f'{level} alone')}</div>"
        f"<ul>{''.join(items)}</ul></div>"
    )


def _caption(stage: int, count: int, levels: Sequence[str]) -> str:
    what = "superpixel" if stage == 1 else "segment"
    read = f" The model reads {' and '.join(levels)} from this." if levels else ""
    return f"Stage {stage}: {count} {what}{'s' * (count != 1)}.{read}"


def _chance(probability: float) -> str:
    """Return a probability as a percentage; a small one above 0 does not become 0."""
    return "&lt;0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"


def _path(names: Sequence[str]) -> str:
    return ARROW.join(map(_text, names)) or "no answer"


def _text(text: str) -> str:
    """Return text escaped for HTML, with unprintable characters replaced."""
    return escape(printable(text))
