"""Can a score tell that a picture is none of the leaves below its node? What do several pictures of one thing gain?

    python benchmarks/novelty.py --data emoji_art.parquet

Leaves are held out in two ways. *Removed*: their rows are taken out of the classifier; the network has seen them in
training, but cannot name them. *Never seen*: new heads are fitted, by logistic regression on the features of a network
trained on ImageNet, to the training pictures of the other leaves alone. Writes two measured parts of docs/trust.md.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import report
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.loading import SuperpixelCollate
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.taxonomy.calibration import expected_calibration_error
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.subtree import Subtree
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.training.start import fit_head
from hcast_zoo.weights.file import Weights, build_model, load_weights

PAGE = "trust.md"
SHARE, DRAWS = 0.2, 20  # share of the leaves that is held out, and how often this is repeated
PROBED, PROBES = "hcast_lite.in1k", 2  # the network whose features the new heads read, and how often
KEPT = 0.8  # share of the known pictures that still get a leaf


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="folder that keeps the model's answers for the next run")
    parser.add_argument("--step", type=int, default=3, help="use every Nth training picture (%(default)s)")
    args = parser.parse_args()

    weights = load_weights(args.model)
    probed_weights = load_weights(PROBED)
    parts = {split: collect(args, weights, weights.taxonomy, split) for split in ("test", "val", "train")}
    probed = {split: collect(args, probed_weights, weights.taxonomy, split, "probed_") for split in ("test", "train")}
    options = f"--data {Path(args.data).name}"
    report.write_section(args.docs, PAGE, "novelty", novelty(weights, parts, probed), options)
    report.write_section(args.docs, PAGE, "groups", groups(weights, parts), options)


@torch.no_grad()
def collect(args, weights: Weights, taxonomy: Taxonomy, split: str, prefix: str = "") -> dict[str, Tensor]:
    """Return logits (``0`` ...), what the finest head reads (``features``) and labels of a split."""
    file = args.cache and args.cache / f"novelty_{prefix}{split}.safetensors"
    if file and file.exists():
        return load_file(file)

    dataset = HierarchicalDataset.load(args.data, taxonomy, split, transform=eval_transform(weights.config))
    step = args.step if split == "train" else 1
    dataset.pictures, dataset.labels = dataset.pictures[::step], dataset.labels[::step]
    model = build_model(weights)
    rows: dict[str, list[Tensor]] = {}
    for batch in DataLoader(dataset, args.batch_size, collate_fn=SuperpixelCollate(weights.config)):
        output = model(batch["images"], batch["segments"])
        values = {"features": output.level_features[-1], "labels": batch["labels"]}
        values |= {str(level): logits for level, logits in enumerate(output.level_logits)}
        for name, value in values.items():
            rows.setdefault(name, []).append(value)

    collected = {name: torch.cat(batches).clone() for name, batches in rows.items()}
    if file:
        save_file(collected, file)
    return collected


def calibrated(weights: Weights, part: dict[str, Tensor]) -> list[Tensor]:
    """Return the logits of every level, divided by its temperature."""
    return weights.calibration.logits([part[str(level)] for level in range(len(weights.taxonomy.levels))])


def novelty(weights: Weights, parts: dict, probed: dict) -> str:
    """Return how well scores tell held-out leaves from known ones, over several draws, for both ways to hold out."""
    tree = weights.taxonomy
    logits = calibrated(weights, parts["test"])
    temperature = weights.calibration.path_temperature
    removed = measure(tree, parts, lambda subtree: subtree.logits(logits), DRAWS, temperature)
    unseen = measure(tree, probed, lambda subtree: probe(subtree, probed), PROBES, 1.0)

    above = tree.levels[-2]
    header = ["held out", "score", "AUROC, novel against known", f"novel that stop at the right {above}, %"]
    rows = [["removed", *row] for row in removed] + [["never seen", *row] for row in unseen]
    return report.table([*header, "known with the right leaf, %"], rows)


def probe(subtree: Subtree, probed: dict) -> list[Tensor]:
    """Return logits of the test pictures, by heads that are fitted to training pictures of the kept leaves alone."""
    train, test = probed["train"], probed["test"]
    rows = torch.isin(train["labels"][:, -1], torch.tensor(subtree.kept[-1]))
    features = train["features"][rows]
    importance = torch.full((len(features),), 1 / len(features))

    logits = []
    for level, kept in enumerate(subtree.kept):
        new_index = torch.full((max(kept) + 1,), -1)
        new_index[list(kept)] = torch.arange(len(kept))
        labels = new_index[train["labels"][rows, level]]
        head = torch.nn.Linear(features.shape[1], len(kept))
        fit_head(head, features, labels, importance=importance, offset=torch.zeros(len(kept)), smoothing=0.1)
        logits.append(head(test["features"]).detach())

    return logits


def measure(tree, parts: dict, answer: Callable, draws: int, temperature: float) -> list[list[str]]:
    """Return a row for each score: mean and standard deviation over draws of the held-out leaves."""
    part = parts["test"]
    labels = part["labels"]
    rng = np.random.default_rng(0)
    results: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(draws):
        kept = draw_leaves(tree, rng)
        subtree = Subtree.below(tree, [f"{tree.levels[-1]}:{tree.names[-1][leaf]}" for leaf in kept])
        logits = answer(subtree)
        decoded = decode(logits, subtree.taxonomy, path_temperature=temperature)
        paths = subtree.whole_paths(decoded.paths)
        known = torch.isin(labels[:, -1], torch.tensor(kept))
        for name, score in scores(decoded, logits, subtree, parts, part["features"]).items():
            results.setdefault(name, []).append(judge(score, known, paths, labels))

    rows = []
    for name, numbers in results.items():
        percents = 100 * np.array(numbers)  # [draws, 3]
        rows.append([name, *(f"{column.mean():.1f} ± {column.std():.1f}" for column in percents.T)])
    return rows


def draw_leaves(tree, rng: np.random.Generator) -> list[int]:
    """Return the leaves that are kept: of each parent at least two, so that every node above stays."""
    parents = np.array(tree.parents[-1])
    held_out: list[int] = []
    for leaf in rng.permutation(len(parents)):
        siblings = np.flatnonzero(parents == parents[leaf])
        if len(held_out) < SHARE * len(parents) and len(set(siblings) - set(held_out)) > 2:
            held_out.append(int(leaf))
    return sorted(set(range(len(parents))) - set(held_out))


def scores(decoded, logits: list[Tensor], subtree: Subtree, parts: dict, features: Tensor) -> dict[str, Tensor]:
    """Return scores that are high for what is known: (B,) each."""
    parents = torch.tensor(subtree.taxonomy.parents[-1])
    leaf, parent = decoded.paths[:, -1], decoded.paths[:, -2]
    siblings = parents == parent[:, None]  # [B, C]
    path = decoded.prefix_probabilities[:, -1]
    energy = logits[-1].masked_fill(~siblings, -torch.inf).logsumexp(-1)

    rolled_up = torch.zeros_like(logits[-2]).index_add(1, parents, logits[-1].softmax(-1))
    agreement = -(rolled_up - logits[-2].softmax(-1)).abs().sum(-1) / 2

    cosines = normalize(features, dim=-1) @ normalize(leaf_means(subtree, parts["train"]), dim=-1).T
    nearest = cosines.masked_fill(~siblings, -1.0).max(-1).values
    return {
        "plain back-off: probability of the path": path,
        "of the leaf, if its parent is right": path / decoded.prefix_probabilities[:, -2].clamp_min(1e-9),
        "energy of the siblings": energy,
        "largest logit": logits[-1].gather(-1, leaf[:, None])[:, 0],
        "agreement of the last two levels": agreement,
        "cosine to the nearest training node": nearest,
        "path probability, energy and cosine, mean rank": (rank(path) + rank(energy) + rank(nearest)) / 3,
    }


def leaf_means(subtree: Subtree, train: dict[str, Tensor]) -> Tensor:
    """Return the sums of the training pictures' normalised features, for each kept leaf."""
    new_index = {leaf: index for index, leaf in enumerate(subtree.kept[-1])}
    index = torch.tensor([new_index.get(label, -1) for label in train["labels"][:, -1].tolist()])
    rows = normalize(train["features"], dim=-1)[index >= 0]
    return torch.zeros(len(new_index), rows.shape[1]).index_add(0, index[index >= 0], rows)


def rank(values: Tensor) -> Tensor:
    """Return the rank of each value, from 0 up to 1."""
    return values.argsort().argsort().float() / len(values)


def judge(score: Tensor, known: Tensor, paths: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return AUROC, the share of novel pictures that stop at the right parent, and of known ones with a right leaf."""
    from sklearn.metrics import roc_auc_score

    threshold = score[known].quantile(1 - KEPT)
    stops = score < threshold
    right_parent = (paths[:, -2] == labels[:, -2]) & stops
    right_leaf = (paths[:, -1] == labels[:, -1]) & ~stops
    auroc = float(roc_auc_score(known.numpy(), score.numpy()))
    return auroc, right_parent[~known].double().mean().item(), right_leaf[known].double().mean().item()


def groups(weights: Weights, parts: dict) -> str:
    """Return accuracy and calibration of single pictures, and of two artists' pictures of one emoji together."""
    tree, calibration = weights.taxonomy, weights.calibration
    test, val = parts["test"], parts["val"]
    test_rows = {leaf: row for row, leaf in enumerate(test["labels"][:, -1].tolist())}
    val_rows = [row for row, leaf in enumerate(val["labels"][:, -1].tolist()) if leaf in test_rows]
    labels = val["labels"][val_rows]
    matching_rows = [test_rows[leaf] for leaf in labels[:, -1].tolist()]

    first = [level[val_rows].log_softmax(-1) for level in calibrated(weights, val)]
    second = [level[matching_rows].log_softmax(-1) for level in calibrated(weights, test)]
    together = [a + b for a, b in zip(first, second)]
    rows = []
    for name, levels in (
        ("one picture, artist fxemoji", first),
        ("one picture, artist twemoji", second),
        ("both, product of probabilities", together),
        ("both, geometric mean", [level / 2 for level in together]),
    ):
        decoded = decode(levels, tree, path_temperature=calibration.path_temperature)
        right = decoded.paths == labels
        shares = [f"{100 * share:.1f}" for share in right.double().mean(0).tolist()]
        error = expected_calibration_error(decoded.path_probabilities.clamp(max=1), right.all(1))
        rows.append([name, len(labels), *shares, f"{error:.1f}"])
    return report.table(["answer from", "emoji", *(f"{level}, %" for level in tree.levels), "ECE of the path"], rows)


if __name__ == "__main__":
    main()
