"""The paper's benchmarks, and its authors' later ones: contents, published numbers, and settings of the code."""

import dataclasses
from typing import cast

README = "the authors' README"
CITED = "second-hand: a paper that cites H-CAST"
FREE_GRAIN = "FreeGrainLearning's README: H-CAST with its text attributes, which hcast-zoo does not implement"
# The official code's normalisation of iNaturalist pictures in evaluation (docs/official_differences.md, 24).
INAT_MEAN, INAT_STD = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)
ILSVRC = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
}
# docs/official_differences.md, 22
BREEDS_NOTES = (
    "The classes are those of the BREEDS data set's source domain, half of all; the test pictures are "
    "ImageNet's validation pictures.",
    "256 superpixels, whatever the official option says.",
)
FREE_GRAIN_NOTES = (
    "The lists and the tree are those of https://github.com/pseulki/FreeGrainLearning (folder data/): download them, "
    "and give their folder beside the pictures.",
)
DRAWN_NOTES = (
    "The level down to which each training picture is labelled is drawn at random (--seed), as in FreeGrainLearning's "
    "code; its text attributes are not implemented here.",
)


@dataclasses.dataclass(frozen=True)
class Lists:
    """Lists of pictures with the numbers of their nodes, which their authors publish and the user downloads.

    Attributes:
        files: The lists of ``train`` and ``test``.
        pictures: The data set of the pictures: ``imagenet``, ``cub`` or ``inat``.
        has_depth: Each line of the training list ends with the picture's label, which may be at any level.
        use_depth: Training pictures are labelled down to that level only.
        leaf_only: Lines have only the leaf, and the tree is in a separate file.
        tree_files: Possible names of that file.
        names: A file of node names for each level, if there are any.
    """

    files: dict[str, str]
    pictures: str
    has_depth: bool = True
    use_depth: bool = True
    leaf_only: bool = False
    tree_files: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set of the paper.

    Attributes:
        name: Name on the command line.
        title: Name in text.
        layout: The reader in :mod:`hcast_zoo.paper.readers`: ``cub``, ``aircraft``, ``breeds`` or ``inat``; or
            ``lists``, of :mod:`hcast_zoo.paper.lists`.
        archives: File names as the owners distribute them, and their MD5.
        pictures: Number of pictures in ``train`` and ``test``; a split is missing if its number is not known.
        per_leaf: Fewest and most pictures per leaf in ``train`` and ``test``, where known.
        published: Full-path accuracies in percent, and their sources.
        official: Config fields of the official models that their checkpoints do not determine.
        notes: What is unusual about it.
        tree: Its tree in :mod:`hcast_zoo.paper.trees`; None if the tree comes with the lists.
        levels: Classes of each level, coarse to fine, where the tree is not in the package.
        lists: For the layout ``lists``.
        known: Fractions of each leaf's training pictures that are labelled down to the leaf, and down to the leaf or
            the level above; None if all are labelled down to the leaf, or the lists say.
    """

    name: str
    title: str
    layout: str
    archives: dict[str, str]
    pictures: dict[str, int]
    per_leaf: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    published: tuple[tuple[float, str], ...] = ()
    official: dict = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tree: str | None = None
    levels: dict[str, int] = dataclasses.field(default_factory=dict)
    lists: Lists | None = None
    known: tuple[float, float] | None = None


def _breeds(name: str, title: str, leaves: int, fpa: float) -> Benchmark:
    # ImageNet has 732 to 1300 training pictures and 50 validation pictures per class.
    return Benchmark(
        name=name,
        title=title,
        layout="breeds",
        archives=ILSVRC,
        pictures={"test": 50 * leaves},
        per_leaf={"train": (732, 1300), "test": (50, 50)},
        published=((fpa, README),),
        official={"num_superpixels": 256},
        notes=BREEDS_NOTES,
        tree=name,
    )


BENCHMARKS: dict[str, Benchmark] = {
    b.name: b
    for b in (
        Benchmark(
            name="cub",
            title="CUB-200-2011",
            layout="cub",
            archives={"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"},
            pictures={"train": 5994, "test": 5794},
            published=((84.9, CITED), (83.28, CITED)),
            notes=(
                "The data set names species only: orders and families are numbers, in the tree's order.",
                "The tree puts the gull Red_legged_Kittiwake with the kingfishers (order 4), in a family of its own.",
                # docs/official_differences.md, 33
                "The official code chooses its checkpoint on the test pictures.",
            ),
            tree="cub",
        ),
        Benchmark(
            name="aircraft",
            title="FGVC-Aircraft",
            layout="aircraft",
            archives={"fgvc-aircraft-2013b.tar.gz": "d4acdd33327262359767eeaa97a4f732"},
            pictures={"train": 6667, "test": 3333},
            published=((83.72, CITED),),
            notes=(
                "Training pictures are the data set's train and val together.",
                "Each picture has a 20 pixel banner with its source at the bottom, which is not cropped.",
            ),
            tree="aircraft",
        ),
        _breeds("living17", "BREEDS Living-17", 34, 85.11),
        _breeds("nonliving26", "BREEDS Non-Living-26", 52, 82.53),
        _breeds("entity13", "BREEDS Entity-13", 130, 85.61),
        _breeds("entity30", "BREEDS Entity-30", 120, 84.86),
        Benchmark(
            name="inat21_mini",
            title="iNat21-Mini",
            layout="inat",
            archives={
                "train_mini.tar.gz": "db6ed8330e634445efc8fec83ae81442",
                "train_mini.json.tar.gz": "395a35be3651d86dc3b0d365b8ea5f92",
                "val.tar.gz": "f6f6e0e242e3d4c9569ba56400938afc",
                "val.json.tar.gz": "4d761e0f6a86cc63e8f7afc91f6a8f0b",
            },
            pictures={"train": 500_000, "test": 100_000},
            per_leaf={"train": (50, 50), "test": (10, 10)},
            published=((65.00, README),),
            official={"mean": INAT_MEAN, "std": INAT_STD},
            notes=(
                "The test pictures are the data set's validation pictures; its own test pictures have no labels.",
                # docs/official_differences.md, 24
                "The official code trains with ImageNet's normalisation and evaluates with another.",
            ),
            tree="inat21_mini",
        ),
    )
}


def _later() -> list[Benchmark]:
    """Return the data sets that the authors' code reads beyond the paper's, and those of their follow-up paper."""
    cub, aircraft, inat21 = (BENCHMARKS[name] for name in ("cub", "aircraft", "inat21_mini"))
    bird_levels = {"order": 13, "family": 38, "species": 200}
    imagenet = Benchmark(
        name="imagenet_3l",
        title="ImageNet-3L",
        layout="lists",
        archives=ILSVRC,
        pictures={"train": 645_480, "test": 25_250},
        notes=FREE_GRAIN_NOTES,
        levels={"basic": 20, "subordinate": 127, "fine-grained": 505},
        lists=Lists(
            {"train": "imagenet-F-train.txt", "test": "imagenet-F-val.txt"},
            "imagenet",
            use_depth=False,
            names=tuple(f"imagenet-3L-id_{level}_dic.json" for level in ("basic", "subord", "finegrained")),
        ),
    )
    return [
        Benchmark(
            name="inat18",
            title="iNaturalist 2018",
            layout="lists",
            archives={"train_val2018.tar.gz": "b1c6952ce38f31868cc50ea72d066cc3"},
            pictures={"train": 437_513, "test": 24_426},
            official={"mean": INAT_MEAN, "std": INAT_STD},
            notes=(
                "The test pictures are the data set's validation pictures.",
                "The lists iNaturalist18_train.txt and iNaturalist18_val.txt (a path and a species on each line) are "
                "those of work on long-tailed recognition. The tree inat18_tree.json is missing from the authors' "
                "repository, but forks have it. Give all three beside the pictures.",
                "The counts of pictures and supercategories are those of the competition's page. The authors' code has "
                "274 orders, but the tree in a fork ends with the 272nd.",
            ),
            levels={"supercategory": 14, "order": 274, "species": 8142},
            lists=Lists(
                {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
                "inat",
                has_depth=False,
                leaf_only=True,
                tree_files=("inat18_tree.json", "inat18_3tree.json"),
            ),
        ),
        imagenet,
        dataclasses.replace(
            imagenet,
            name="imagenet_f",
            title="ImageNet-F",
            published=((63.20, FREE_GRAIN),),
            lists=dataclasses.replace(cast(Lists, imagenet.lists), use_depth=True),
        ),
        dataclasses.replace(
            inat21,
            name="inat21_f",
            title="iNat21-F",
            layout="lists",
            published=(),
            notes=(*FREE_GRAIN_NOTES, *inat21.notes),
            levels={"order": 273, "family": 1103, "species": 10000},
            lists=Lists({"train": "inat21-F-train.txt", "test": "inat21-F-val.txt"}, "inat"),
        ),
        dataclasses.replace(
            cub, name="cub_f", title="CUB-F", published=(), notes=(*DRAWN_NOTES, *cub.notes), known=(0.1, 0.5)
        ),
        dataclasses.replace(
            cub,
            name="cub_real",
            title="CUB-Real",
            layout="lists",
            published=(),
            notes=(*FREE_GRAIN_NOTES, *cub.notes),
            levels=bird_levels,
            lists=Lists({"train": "cub-Real-train.txt", "test": "cub-Real-val.txt"}, "cub"),
        ),
        dataclasses.replace(
            aircraft,
            name="aircraft_f",
            title="Aircraft-F",
            published=(),
            notes=(*DRAWN_NOTES, *aircraft.notes),
            known=(0.3, 0.6),
        ),
    ]


BENCHMARKS.update({benchmark.name: benchmark for benchmark in _later()})


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no data set {name!r}: expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
