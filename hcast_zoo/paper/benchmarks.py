"""The paper's benchmarks: what each data set holds, what was published on it, and what the official code does there."""

import dataclasses

README = "the authors' README"
CITED = "second-hand: a paper that cites H-CAST"
# The official code's normalisation of iNaturalist pictures in evaluation (docs/official_differences.md, 24).
INAT_MEAN, INAT_STD = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)
ILSVRC = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
}
# docs/official_differences.md, 22
BREEDS_NOTES = (
    "The classes are one half of the BREEDS data set's, its source domain; the test pictures are "
    "ImageNet's validation pictures.",
    "256 superpixels, whatever the official option says.",
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A data set of the paper.

    Attributes:
        name: What the command line calls it, and its tree in :mod:`hcast_zoo.paper.trees`.
        title: What it is called.
        layout: The reader in :mod:`hcast_zoo.paper.readers`: ``cub``, ``aircraft``, ``breeds`` or ``inat``.
        archives: File names as the owners distribute them, and their MD5.
        pictures: How many pictures ``train`` and ``test`` have; where it is not known here, left out.
        per_leaf: Fewest and most pictures of a leaf in ``train`` and ``test``, where that is known.
        published: Full-path accuracies in percent, and who says so.
        official: Config fields of the official code's models that a checkpoint does not tell.
        notes: What is odd about it.
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


def _breeds(name: str, title: str, leaves: int, fpa: float) -> Benchmark:
    # ImageNet has 732 to 1300 training pictures of a class, and 50 validation pictures of each.
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
                "Each picture has a 20 pixel banner with its source at the bottom, which is left there.",
            ),
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
                "The test pictures are the data set's validation pictures; its own test has no labels.",
                # docs/official_differences.md, 24
                "The official code trains with ImageNet's normalisation and evaluates with another.",
            ),
        ),
    )
}


def find(name: str) -> Benchmark:
    """Return a benchmark by its name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no data set {name!r}: expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
