"""Model cards: purpose and origin of weights, from their metadata; accuracy, from stored evaluations."""

import dataclasses
import itertools
import json
import math
import re
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib import resources
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import Tensor

from .. import __version__
from ..common.files import MAX_TEXT, check_file, write_whole
from ..common.text import brief, from_json, printable
from ..evaluation.evaluate import Answers
from ..network.config import is_number
from ..taxonomy.calibration import expected_calibration_error
from ..taxonomy.guarantee import read_guarantee
from ..taxonomy.paths import UNKNOWN
from ..taxonomy.tree import Taxonomy
from ..weights.file import Weights, find_weights, load_weights, packaged_weights
from ..weights.hub import parse_repository

EVALUATIONS = "evaluations.json"  # in a published repository
METRICS = {"fpa": "FPA", "tice": "TICE", "wap": "wAP"}
NOT_STATED = "Not stated."


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of one weights file on one split, and how they were measured.

    Attributes:
        sha256: SHA-256 of the weights file.
        data: Name of the data set.
        split: Name of the split, or None.
        pictures: Number of pictures measured.
        results: Decoding to metric to percent; see :func:`hcast_zoo.evaluation.evaluate.evaluate`.
        command: The command line, with paths reduced to file names.
        commit: Commit of the code, or the version of the package.
        date: ISO date.
        torch: Version of torch.
        left_out: Number of pictures of the split that could not be read.
        calibration: Level, and ``path``, to expected calibration error in percent.
        pictures_file: Name of a picture beside the card that shows right and wrong answers, or None.
        credit: Credit for the pictures that it shows.
        examples: Names of pictures beside the card, of right and wrong answers, which the demo page offers.
    """

    sha256: str
    data: str
    split: str | None
    pictures: int
    results: dict[str, dict[str, float]]
    command: str
    commit: str
    date: str = dataclasses.field(default_factory=lambda: date.today().isoformat())
    torch: str = torch.__version__.split("+")[0]
    left_out: int = 0
    calibration: dict[str, float] = dataclasses.field(default_factory=dict)
    pictures_file: str | None = None
    credit: str = ""
    examples: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        texts = [self.sha256, self.data, self.split or "", self.command, self.commit, self.date, self.torch]
        texts += [self.pictures_file or "", self.credit]
        if not all(isinstance(text, str) for text in texts) or {type(self.pictures), type(self.left_out)} != {int}:
            raise ValueError("expected strings, and whole numbers of pictures")

        tables = list(self.results.values()) if isinstance(self.results, dict) else []
        if not tables or not all(map(_is_table, tables)):
            raise ValueError(
                f"expected results as {{decoding: {{metric: number}}}}, with at least one of each, got "
                f"{brief(self.results)}"
            )
        if not isinstance(self.calibration, dict) or not all(map(is_number, self.calibration.values())):
            raise ValueError(f"expected calibration errors as numbers, got {brief(self.calibration)}")
        if not isinstance(self.examples, list) or not all(isinstance(name, str) for name in self.examples):
            raise ValueError(f"expected examples as a list of names, got {brief(self.examples)}")
        for name in self.beside:
            if Path(name).name != name:
                raise ValueError(f"expected the name of a picture beside the card, got {brief(name)}")

    @property
    def beside(self) -> list[str]:
        """Names of all pictures beside the card."""
        return [*([self.pictures_file] if self.pictures_file is not None else []), *self.examples]

    @property
    def origin(self) -> str:
        """How the numbers were measured, as a card prints it."""
        return (
            f"Made by `{re.sub('[`<]', '', printable(self.command))}` at {plain(self.commit)}, {plain(self.date)}, "
            f"torch {plain(self.torch)}."
        )

    @property
    def title(self) -> str:
        """Data set and split, as a card prints them."""
        return plain(self.data + (f", split {self.split}" if self.split else ""))

    @property
    def calibrated(self) -> str:
        """Expected calibration errors, as a card prints them."""
        return ", ".join(f"{plain(name)} {value:.1f}" for name, value in self.calibration.items())

    @property
    def answers(self) -> str:
        """Markup of the picture of right and wrong answers, or nothing."""
        if self.pictures_file is None:
            return ""
        credit = f"\n\nPictures: {plain(self.credit)}" if self.credit else ""
        return f"![Right answers above, wrong ones below, of {self.title}]({_code(self.pictures_file)}){credit}"

    @property
    def columns(self) -> list[str]:
        """Names of the metrics, as a card prints them."""
        metrics = next(iter(self.results.values()))
        return [METRICS.get(metric, plain(metric.removeprefix("accuracy/"))) for metric in metrics]

    @property
    def rows(self) -> dict[str, list[str]]:
        """Decoding to numbers, as a card prints them."""
        rows = {}
        for mode, values in self.results.items():
            rows[plain(mode)] = [f"{value:.2f}" for value in values.values()]
        return rows


def _is_table(values: object) -> bool:
    return isinstance(values, dict) and bool(values) and all(map(is_number, values.values()))


def render_card(
    weights: Weights,
    evaluations: Sequence[Evaluation] = (),
    name: str = "",
    repo: str | None = None,
    preview: str | None = None,
    file: str | None = None,
) -> str:
    """Return the text of a card, with metadata that the Hub understands.

    Args:
        weights: The card uses ``name``, ``license``, ``description``, ``limits``, ``training``, ``settings``, ``data``,
            ``base_model``, ``base_license`` and ``attribution`` of their metadata, any of which may be missing.
        evaluations: Measured metrics.
        name: Title, if the metadata has no name.
        repo: Repository on the Hub that the card is for, if any.
        preview: Name of a picture file beside the card that shows the segmentations, if any.
        file: Weights file beside the card that it is for, if there is no repository and no packaged name.
    """
    text = {key: plain(value) for key, value in weights.metadata.items()}
    name = weights.metadata.get("name") or name or repo or "H-CAST"
    license = weights.metadata.get("license")

    data = ModelCardData(
        license=_hub_license(license),
        license_name=plain(license) if license and _hub_license(license) == "other" else None,
        base_model=_hub_base(weights.metadata.get("base_model")),
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["hcast", "hcast-zoo", "timm", "hierarchical-classification", "taxonomy"],
        model_name=plain(name),
        datasets=sorted({_slug(e.data) for e in evaluations}) or None,
        eval_results=list(itertools.chain.from_iterable(map(_hub_results, evaluations))) or None,
    )

    card = ModelCard.from_template(
        data,
        template_str=(resources.files("hcast_zoo.model_cards") / "template.md").read_text(encoding="utf-8"),
        title=plain(name),
        description=text.get("description", "An image classifier along a taxonomy."),
        facts=_facts(weights),
        source=_code(repo or file or name),
        timm_source=None if file and not repo else _code(f"hf-hub:{repo}" if repo else name),
        repo=repo and _code(repo),
        preview=preview,
        evaluations=evaluations,
        limits=text.get("limits") or _default_limits(weights),
        settings=_settings_text(weights.metadata.get("settings", "")),
        license=text.get("license", "Licence not stated"),
        base=_base(text),
        **{key: text.get(key, NOT_STATED) for key in ("training", "data")},
        attribution=text.get("attribution", ""),
    )
    return str(card).rstrip() + "\n"


def _facts(weights: Weights) -> dict[str, str]:
    """Return the rows of the table of facts."""
    config, taxonomy = weights.config, weights.taxonomy
    levels = [str(classes) for classes in config.level_classes]
    if taxonomy:
        levels = [f"{plain(level)} ({classes})" for level, classes in zip(taxonomy.levels, levels)]

    parameters = sum(tensor.numel() for tensor in weights.state_dict.values())
    facts = {
        "levels, coarse to fine": " > ".join(levels),
        "picture": f"{config.image_size}x{config.image_size} pixels, {config.num_superpixels} superpixels",
        "segments of the stages": ", ".join(map(str, (config.num_superpixels, *config.num_clusters[:-1]))),
        "parameters": f"{parameters / 1e6:.1f} M, {config.embed_dim} wide, blocks {'+'.join(map(str, config.depths))}",
        **_calibration_facts(weights),
    }
    if base := _base({key: plain(value) for key, value in weights.metadata.items()}):
        facts["trained from"] = base

    return facts


def _base(text: dict[str, str]) -> str:
    """Return the start weights and their licence, or nothing."""
    if "base_model" not in text:
        return ""

    return f"{text['base_model']} ({text.get('base_license') or 'licence not stated'})"


def _default_limits(weights: Weights) -> str:
    """Return limits that hold for any weights, for weights whose metadata states none."""
    leaves = weights.config.level_classes[-1]
    return (
        f"For pictures like those that it was trained on. It knows {leaves} leaves and nothing else: any other picture "
        "still gets the name of one of them, unless `hcast-zoo predict --back-off 0.5` stops at the deepest level that "
        "is likely. Measure accuracy again for other cameras, places and seasons."
    )


def _settings_text(stored: str) -> str:
    """Return the stored settings of a run, by name, or nothing."""
    try:
        settings = from_json(stored or "{}")
    except ValueError:
        return ""
    if not isinstance(settings, dict):
        return ""

    return plain(", ".join(f"{name} {value}" for name, value in settings.items()))


def _hub_license(license: str | None) -> str:
    """Return the licence as an identifier in the Hub's form, or ``other``, which needs a name beside it."""
    identifier = (license or "other").lower()
    return identifier if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", identifier) else "other"


def _hub_base(base: str | None) -> str | None:
    """Return the start weights if they are a repository; the Hub accepts nothing else as a base model."""
    repository = parse_repository(base) if base else None
    return repository[0] if repository else None


def _calibration_facts(weights: Weights) -> dict[str, str]:
    """Return rows about the calibration and its guarantee, with dates and data; none without a calibration."""
    guarantee = read_guarantee(weights.metadata, weights.calibration)
    if guarantee is None:
        return {}

    facts = {"calibrated": f"{guarantee.date}, on {guarantee.pictures} pictures of {plain(guarantee.data)}"}
    if promise := guarantee.promise:
        facts["promised"] = (
            f"at least {promise.target:.1%} of the answers of `predict --back-off auto` are right on pictures like "
            f"those, with confidence {promise.confidence:.0%}; on those pictures, {promise.answered - promise.wrong} "
            f"of {promise.answered} answers were right"
        )
    return facts


def answer_calibration(answers: Answers, labels: Tensor, taxonomy: Taxonomy) -> dict[str, float]:
    """Return the expected calibration error in percent of each level of some answers, and of their paths.

    Args:
        answers: Of N pictures.
        labels: (N, L) int64, -1 where unknown; unknown labels are left out.
        taxonomy: The tree.
    """
    errors = {}
    for depth, level in enumerate(taxonomy.levels):
        nodes, truth = answers.paths[:, depth], labels[:, depth]
        known = (truth != UNKNOWN) & (nodes != UNKNOWN)
        confidences = answers.level_confidences[known, depth]
        errors[level] = expected_calibration_error(confidences, nodes[known] == truth[known])

    known = (labels != UNKNOWN).any(1)
    right = ((answers.paths == labels) | (labels == UNKNOWN)).all(1)
    errors["path"] = expected_calibration_error(answers.confidences[known], right[known])
    return {name: error for name, error in errors.items() if not math.isnan(error)}


def record_evaluation(path: str | Path, source: str, evaluation: Evaluation) -> None:
    """Add an evaluation to the JSON file beside a card, and write the card again.

    An earlier evaluation of the same split is replaced; evaluations of other weights files are removed.

    Args:
        path: The card, a ``.md`` file.
        source: The weights; see :func:`hcast_zoo.weights.file.load_weights`.
        evaluation: The evaluation to add.
    """
    path = Path(path)
    evaluations = []
    for other in read_evaluations(path.with_suffix(".json")):
        same_split = (other.data, other.split) == (evaluation.data, evaluation.split)
        if other.sha256 == evaluation.sha256 and not same_split:
            evaluations.append(other)

    evaluations.append(evaluation)
    packaged = str(source) in packaged_weights()
    file = None if packaged or not Path(source).exists() else find_weights(source).name
    repo = None if packaged or file else str(source)
    text = render_card(load_weights(source), evaluations, path.stem, repo, file=file)
    write_evaluations(path.with_suffix(".json"), evaluations)
    write_whole(path, text)


def write_evaluations(path: str | Path, evaluations: Sequence[Evaluation]) -> None:
    """Write evaluations as JSON, for :func:`read_evaluations`."""
    write_whole(path, json.dumps([dataclasses.asdict(e) for e in evaluations], indent=1) + "\n")


def read_evaluations(path: str | Path) -> list[Evaluation]:
    """Read stored evaluations; return an empty list if there is no such file.

    Raises:
        ValueError: if the file does not hold a list of evaluations.
    """
    check_file(path, MAX_TEXT)
    try:
        return [Evaluation(**entry) for entry in json.loads(Path(path).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected evaluations written by `hcast-zoo evaluate --card`: {error}") from error


def packaged_evaluations(name: str) -> list[Evaluation]:
    """Return the evaluations that come with packaged weights."""
    with resources.as_file(resources.files("hcast_zoo.model_cards") / f"{name}.json") as path:
        return read_evaluations(path)


def code_version() -> str:
    """Return the commit of the code, with ``+`` if files have changed; outside a checkout, the package's version."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment inside another checkout is not ours
        return f"commit {git('describe', '--always', '--exclude=*', '--dirty=+')}"
    except (OSError, subprocess.CalledProcessError):
        return f"hcast-zoo {__version__}"


def _hub_results(evaluation: Evaluation) -> list[EvalResult]:
    mode, values = next(iter(evaluation.results.items()))
    results = []
    for column, (metric, value) in zip(evaluation.columns, values.items()):
        result = EvalResult(
            task_type="image-classification",
            dataset_type=_slug(evaluation.data),
            dataset_name=plain(evaluation.data),
            dataset_split=evaluation.split,
            metric_type=metric.split("/")[0],
            metric_name=f"{column} ({mode})",
            metric_value=round(value, 2),
        )
        results.append(result)

    return results


def plain(text: str) -> str:
    """Return text as one Markdown paragraph without markup, control characters or table bars."""
    text = " ".join(printable(" ".join(text.split())).split())
    for character in "\\`*[]|":
        text = text.replace(character, f"\\{character}")
    return text.replace("<", "&lt;")


def _code(name: str) -> str:
    """Return a name without characters that could end a string or a block of code."""
    return re.sub(r"[^\w./:@-]", "", name)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_") or "data"
