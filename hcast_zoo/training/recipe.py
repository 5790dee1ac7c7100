"""Recipes: named training settings, which replace the defaults of ``hcast-zoo train``."""

import dataclasses
from importlib import resources
from pathlib import Path

from ..common.files import MAX_TEXT, check_file
from ..common.text import from_json

CORRECTED = (
    "the official code's quirks are corrected: weights are chosen by full-path accuracy on a validation split of the "
    "training pictures, their EMA is kept, training and evaluation normalise pictures alike, and superpixels are "
    "computed on the mixed pictures; --paper-exact keeps the quirks"
)
EXACT = (
    "as in the official code: trained on all training pictures, weights chosen by the finest level's accuracy on the "
    "test pictures (so the best number is optimistic), superpixels of the pictures before mixing and of bytes that "
    "wrap around, ImageNet's normalisation in training, fp16 on a GPU, repeated augmentation where several processes "
    "train. Still different: the number of tokens, which varies by batch in the official code; random numbers, and "
    "the order of pictures where one process trains; RandAugment's strongest posterising, which keeps one bit, not none"
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Attributes:
        name: Its name.
        description: One line.
        settings: Options of ``hcast-zoo train``, with ``_`` for ``-``.
        paper_exact: The options that ``--paper-exact`` changes.
    """

    name: str
    description: str
    settings: dict
    paper_exact: dict

    def options(self, paper_exact: bool) -> dict:
        """Return the settings, with or without the official quirks."""
        return {**self.settings, **self.paper_exact} if paper_exact else dict(self.settings)


FEW_PICTURES = 2_000  # with fewer training pictures, the small recipe is taken
MANY_PICTURES = 20_000  # with this many or more, the paper's recipe
_GENTLE = {
    "mix_prob": 0.0,
    "random_erasing": 0.0,
    "batch_size": 32,
    "lr": 4e-3,
    "warmup_epochs": 1,
}
_FROZEN = {  # from weights with a pretrained stem
    **_GENTLE,
    "fit_heads": True,
    "auto_augment": "",
    "crop_scale": 0.6,
    "lr": 1e-3,
    "ema_decay": 0.9,
}
_KEPT = {  # what is then frozen, and the settings that freeze it
    "small": ("all but the heads", {"freeze": "encoder", "epochs": 1, "warmup_epochs": 0}),
    "medium": ("the stem", {"freeze": "stem", "epochs": 12}),
}
BY_SIZE = {
    "small": (
        "a few hundred pictures: little augmentation and a fast average",
        {**_GENTLE, "epochs": 15, "ema_decay": 0.95, "crop_scale": 0.6},
    ),
    "medium": (
        "a few thousand pictures: moderate augmentation",
        {**_GENTLE, "epochs": 30, "batch_size": 64, "ema_decay": 0.99, "crop_scale": 0.35, "mix_prob": 0.5},
    ),
    "paper": ("tens of thousands of pictures: the settings of the paper, from scratch unless --model is given", {}),
}
START = "hcast_lite.in1k"  # start weights of the small and the medium recipe
VIEWS = 1_600  # views of all pictures together, which take about 1 GiB on disk
MOST_VIEWS = 4  # views per picture


def recipe_by_size(pictures: int, pretrained_stem: bool, name: str | None = None) -> "Recipe":
    """Return the recipe for a number of training pictures.

    Args:
        pictures: Number of training pictures.
        pretrained_stem: Whether training starts from a model with a pretrained stem.
        name: The recipe to take; chosen by the number of pictures if None.
    """
    name = name or name_by_size(pictures)
    recipe = load_recipe(name)
    if name == "paper":
        return recipe

    batch = min(recipe.settings["batch_size"], max(pictures - pictures % 2, 2))
    if not pretrained_stem:
        return dataclasses.replace(recipe, settings={**recipe.settings, "batch_size": batch})

    views = min(max(VIEWS // max(pictures, 1), 2), MOST_VIEWS)
    kept, frozen = _KEPT[name]
    settings = {**_FROZEN, **frozen, "batch_size": min(batch, _FROZEN["batch_size"]), "augment_views": views}
    size = recipe.description.split(":")[0]
    description = f"{size}: from packaged weights; {kept} stays as it is, and sees {views} views of each picture once"
    return dataclasses.replace(recipe, settings=settings, description=description)


def allows_views(options: dict) -> bool:
    """Tell whether a training with these options can use views that are computed once."""
    if any(options.get(name) for name in ("teacher", "on_device", "mix_prob", "paper_exact")):
        return False  # these need the pictures themselves

    return options.get("freeze", "none") != "none"


def name_by_size(pictures: int) -> str:
    """Return the name of the recipe for a number of training pictures."""
    if pictures < FEW_PICTURES:
        return "small"
    return "medium" if pictures < MANY_PICTURES else "paper"


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package: by the number of pictures, then the paper's data sets."""
    return [*BY_SIZE, *_paper_names()]


def _paper_names() -> list[str]:
    return sorted(file.name.removesuffix(".json") for file in _folder().iterdir() if file.name.endswith(".json"))


def load_recipe(source: str) -> Recipe:
    """Return a recipe of the package by its name, or one in a JSON file.

    Raises:
        ValueError: if there is none, or the file has keys other than ``description``, ``settings``, ``paper_exact``
            and ``like`` (another recipe, whose settings are the defaults of this one).
    """
    if source in BY_SIZE:
        description, settings = BY_SIZE[source]
        return Recipe(name=source, description=description, settings=settings, paper_exact={})
    if source in _paper_names():
        text = (_folder() / f"{source}.json").read_text(encoding="utf-8")
    elif Path(source).suffix == ".json" and Path(source).exists():
        check_file(source, MAX_TEXT)
        text = Path(source).read_text(encoding="utf-8")
    else:
        raise ValueError(f"no recipe {source!r}: expected a .json file, or one of {', '.join(recipe_names())}")

    try:
        data = {"description": "", "paper_exact": {}, **from_json(text)}
        if like := data.pop("like", None):
            base = load_recipe(like)
            data["settings"] = {**base.settings, **data["settings"]}
            data["paper_exact"] = {**base.paper_exact, **data["paper_exact"]}
        return Recipe(Path(source).stem, **data)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{source}: expected a JSON object with settings, and perhaps description, paper_exact and like: {error}"
        ) from error


def _folder():
    return resources.files("hcast_zoo.paper.recipes")
