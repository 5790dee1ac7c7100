"""Does a score tell that a picture is none of the leaves below its node? What do several pictures of one thing gain?

    python benchmarks/novelty.py --data emoji_art.parquet

Leaves are held out in two ways. *Removed*: their rows are taken out of the classifier; the network has seen them in
training, but cannot name them. *Never seen*: heads are fitted, by logistic regression on a network of ImageNet, to the
training pictures of the other leaves alone. Writes two measured parts of docs/trust.md.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import report
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.loading import SuperpixelCollate
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.taxonomy.calibration import expected_calibration_error
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.subtree import Subtree
from hcast_zoo.training.start import fit_head
from hcast_zoo.weights.file import build_model, load_weights

PAGE = "trust.md"
SHARE, DRAWS = 0.2, 20  # of the leaves held out, and how many times
PROBED, PROBES = "hcast_lite.in1k", 2
KEPT = 0.8  # share of the known pictures that still get a leaf


def main() -> None:
    parser = report.make_parser(__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="folder that keeps the model's answers for the next time")
    parser.add_argument("--step", type=int, default=3, help="every how manieth training picture tells the nodes' means")
    args = parser.parse_args()
    content = load_weights(args.model)
    parts = {split: collect(args, content, content, split) for split in ("test", "val", "train")}
    probed = {split: collect(args, load_weights(PROBED), content, split) for split in ("test", "train")}
    options = f"--data {Path(args.data).name}"
    report.write_section(args.docs, PAGE, "novelty", novelty(content, parts, probed), options)
    report.write_section(args.docs, PAGE, "groups", groups(content, parts), options)


@torch.no_grad()
def collect(args, content, labelled, split: str) -> dict[str, Tensor]:
    """Return logits (``0`` ...), what the finest head reads (``features``) and labels of a split."""
    mark = "" if content is labelled else "probed_"
    file = args.cache and args.cache / f"novelty_{mark}{split}.safetensors"
    if file and file.exists():
        return load_file(file)

    dataset = HierarchicalDataset.load(args.data, labelled.taxonomy, split, transform=eval_transform(content.config))
    step = args.step if split == "train" else 1
    dataset.pictures, dataset.labels = dataset.pictures[::step], dataset.labels[::step]
    model = build_model(content)
    rows: dict[str, list[Tensor]] = {}
    for batch in DataLoader(dataset, args.batch_size, collate_fn=SuperpixelCollate(content.config)):
        output = model(batch["images"], batch["segments"])
        found = {str(level): x for level, x in enumerate(output.level_logits)}
        for name, value in {**found, "features": output.level_features[-1], "labels": batch["labels"]}.items():
            rows.setdefault(name, []).append(value)

    collected = {name: torch.cat(values).clone() for name, values in rows.items()}
    if file:
        save_file(collected, file)
    return collected


def calibrated(content, part: dict[str, Tensor]) -> list[Tensor]:
    return content.calibration.logits([part[str(level)] for level in range(len(content.taxonomy.levels))])


def novelty(content, parts: dict, probed: dict) -> str:
    """Return how well scores tell held-out leaves from known ones, over several draws, for both ways to hold out."""
    tree = content.taxonomy
    logits = calibrated(content, parts["test"])
    temperature = content.calibration.path_temperature
    removed = measure(tree, parts, lambda subtree: subtree.logits(logits), DRAWS, temperature)
    unseen = measure(tree, probed, lambda subtree: probe(subtree, probed), PROBES, 1.0)

    above = tree.levels[-2]
    header = ["held out", "score", "AUROC, novel against known", f"novel that stop at the right {above}, %"]
    return report.table(
        [*header, "known with the right leaf, %"],
        [["removed", *row] for row in removed] + [["never seen", *row] for row in unseen],
    )


def probe(subtree: Subtree, probed: dict) -> list[Tensor]:
    """Return logits of the test pictures, by heads that are fitted to training pictures of the kept leaves alone."""
    train, test = probed["train"], probed["test"]
    rows = torch.isin(train["labels"][:, -1], torch.tensor(subtree.kept[-1]))
    logits = []
    for level, kept in enumerate(subtree.kept):
        new = torch.full((max(kept) + 1,), -1)
        new[list(kept)] = torch.arange(len(kept))
        head = torch.nn.Linear(train["features"].shape[1], len(kept))
        labels = new[train["labels"][rows, level]]
        importance = torch.full((len(labels),), 1 / len(labels))
        fit_head(
            head, train["features"][rows], labels, importance=importance, offset=torch.zeros(len(kept)), smoothing=0.1
        )
        logits.append(head(test["features"]).detach())
    return logits


def measure(tree, parts: dict, answer: Callable, draws: int, temperature: float) -> list[list[str]]:
    """Return a row for each score: mean and deviation over draws of the held-out leaves."""
    part = parts["test"]
    labels = part["labels"]
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(draws):
        kept = draw_leaves(tree, rng)
        subtree = Subtree.below(tree, [f"{tree.levels[-1]}:{tree.names[-1][leaf]}" for leaf in kept])
        inner = answer(subtree)
        decoded = decode(inner, subtree.taxonomy, path_temperature=temperature)
        paths = subtree.whole_paths(decoded.paths)
        known = torch.isin(labels[:, -1], torch.tensor(kept))
        for name, score in scores(decoded, inner, subtree, parts, part["features"]).items():
            found.setdefault(name, []).append(judge(score, known, paths, labels))

    rows = []
    for name, values in found.items():
        auroc, ancestor, leaf = (np.array(column) * 100 for column in zip(*values))
        cells = [f"{np.mean(column):.1f} ± {np.std(column):.1f}" for column in (auroc, ancestor, leaf)]
        rows.append([name, *cells])

    return rows


def draw_leaves(tree, rng: np.random.Generator) -> list[int]:
    """Return the leaves that are kept: of each parent at least two, so that every node above stays."""
    parents = np.array(tree.parents[-1])
    out: list[int] = []
    for leaf in rng.permutation(len(parents)):
        siblings = np.flatnonzero(parents == parents[leaf])
        if len(out) < SHARE * len(parents) and len(set(siblings) - set(out)) > 2:
            out.append(int(leaf))
    return sorted(set(range(len(parents))) - set(out))


def scores(decoded, inner: list[Tensor], subtree: Subtree, parts: dict, features: Tensor) -> dict[str, Tensor]:
    """Return scores that are high for what is known: (B,) each."""
    tree = subtree.taxonomy
    parents = torch.tensor(tree.parents[-1])
    leaf, parent = decoded.paths[:, -1], decoded.paths[:, -2]
    siblings = parents == parent[:, None]  # [B, C]
    among = inner[-1].masked_fill(~siblings, -torch.inf)
    leaves = inner[-1].softmax(-1)
    rolled = torch.zeros_like(inner[-2]).index_add(1, parents, leaves)
    agreement = -(rolled - inner[-2].softmax(-1)).abs().sum(-1) / 2

    train, number = parts["train"], {whole: i for i, whole in enumerate(subtree.kept[-1])}
    index = torch.tensor([number.get(label, -1) for label in train["labels"][:, -1].tolist()])
    rows = torch.nn.functional.normalize(train["features"], dim=-1)[index >= 0]
    means = torch.zeros(len(number), rows.shape[1]).index_add(0, index[index >= 0], rows)
    near = torch.nn.functional.normalize(features, dim=-1) @ torch.nn.functional.normalize(means, dim=-1).T

    whole = decoded.prefix_probabilities[:, -1]
    distance = near.masked_fill(~siblings, -1.0).max(-1).values
    return {
        "plain back-off: probability of the path": whole,
        "of the leaf, if its parent is right": whole / decoded.prefix_probabilities[:, -2].clamp_min(1e-9),
        "energy of the siblings": among.logsumexp(-1),
        "largest logit": inner[-1].gather(-1, leaf[:, None])[:, 0],
        "agreement of the last two levels": agreement,
        "cosine to the nearest training node": distance,
        "path probability, energy and cosine, mean rank": (rank(whole) + rank(among.logsumexp(-1)) + rank(distance))
        / 3,
    }


def rank(values: Tensor) -> Tensor:
    return values.argsort().argsort().float() / len(values)


def judge(score: Tensor, known: Tensor, paths: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return AUROC, the share of the novel that stops at the right parent, and of the known with the right leaf."""
    from sklearn.metrics import roc_auc_score

    threshold = score[known].quantile(1 - KEPT)
    stops = score < threshold
    right_parent = (paths[:, -2] == labels[:, -2]) & stops
    right_leaf = (paths[:, -1] == labels[:, -1]) & ~stops
    auroc = float(roc_auc_score(known.numpy(), score.numpy()))
    return auroc, right_parent[~known].double().mean().item(), right_leaf[known].double().mean().item()


def groups(content, parts: dict) -> str:
    """Return accuracy and calibration of single pictures, and of two artists' pictures of one emoji together."""
    tree, calibration = content.taxonomy, content.calibration
    test, val = parts["test"], parts["val"]
    by_leaf = {leaf: row for row, leaf in enumerate(test["labels"][:, -1].tolist())}
    pairs = [(row, by_leaf[leaf]) for row, leaf in enumerate(val["labels"][:, -1].tolist()) if leaf in by_leaf]
    first, second = (torch.tensor(column) for column in zip(*pairs))
    labels = val["labels"][first]
    logs = [
        [x[rows].log_softmax(-1) for x in calibrated(content, part)] for part, rows in ((val, first), (test, second))
    ]
    together = [a + b for a, b in zip(*logs)]
    rows = []
    for name, levels in (
        ("one picture, artist fxemoji", logs[0]),
        ("one picture, artist twemoji", logs[1]),
        ("both, product of probabilities", together),
        ("both, geometric mean", [x / 2 for x in together]),
    ):
        decoded = decode(levels, tree, path_temperature=calibration.path_temperature)
        right = decoded.paths == labels
        shares = [f"{100 * share:.1f}" for share in right.double().mean(0).tolist()]
        error = expected_calibration_error(decoded.path_probabilities.clamp(max=1), right.all(1))
        rows.append([name, len(labels), *shares, f"{error:.1f}"])
    return report.table(["answer from", "emoji", *(f"{level}, %" for level in tree.levels), "ECE of the path"], rows)


if __name__ == "__main__":
    main()
