"""Our training step against the numbers of the authors' own main(); see fixtures/README.md.

The run is the one that ``hcast-zoo train --recipe cub --paper-exact`` makes. Images, mixing and targets are computed
from the recorded pictures, lambdas and boxes, and checked against the recorded sums.
"""

import dataclasses
import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from hcast_zoo.cli.parser import make_parser
from hcast_zoo.cli.train import _train_options
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.transforms import to_tensor
from hcast_zoo.paper.trees import load_tree
from hcast_zoo.training.losses import soft_targets
from hcast_zoo.training.settings import TrainConfig
from hcast_zoo.training.trainer import Trainer
from hcast_zoo.weights.file import Weights
from hcast_zoo.weights.official import convert_official
from tests.conftest import load_npz

# Largest relative differences: of the loss, a tensor's gradient, a tensor, its average, and a tensor's change.
TOLERANCES = {
    "l3_f64": dict(loss=1e-6, grad=1e-4, parameter=1e-6, average=1e-6),
    "l3_f32": dict(loss=1e-3, parameter=1e-2),
}
SALT = 9


def formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the initial value that the recorded run gave a tensor."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    noise = np.random.RandomState((zlib.crc32(name.encode()) + SALT) & 0xFFFFFFFF).standard_normal(shape)
    if name.endswith("running_var"):
        value = 0.5 + np.abs(noise)
    elif name in ("cls_token", "pos_embed"):
        value = 0.3 * noise
    elif len(shape) == 1 and name.endswith(".weight"):
        value = 1.0 + 0.1 * noise
    elif len(shape) == 1:
        value = 0.1 * noise
    else:
        value = noise * (2.0 if len(shape) == 4 else 1.0) ** 0.5 / np.prod(shape[1:]) ** 0.5
    return value.astype(np.float32)


def projection(name: str, value: torch.Tensor) -> float:
    """Return the dot product with the recorded random direction of a tensor."""
    direction = np.random.RandomState(zlib.crc32(("p" + name).encode())).standard_normal(value.numel())
    return float(direction @ value.detach().double().flatten().numpy())


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()


def make_run(golden: dict, labels: torch.Tensor, pictures: np.ndarray, output) -> tuple[Trainer, dict[str, str]]:
    """Build the run; return it, with the official name of each of ours."""
    words = "train --recipe cub --paper-exact --batch-size 8 --lr 0.016 --epochs 8 --workers 0 --output"
    options = _train_options(make_parser().parse_args([*words.split(), str(output)]))
    settings = TrainConfig(**{f.name: options[f.name] for f in dataclasses.fields(TrainConfig) if f.name in options})
    state = {}
    for name, text in zip(golden["state_keys"].tolist(), golden["state_shapes"].tolist()):
        shape = tuple(int(side) for side in text.split(",") if side)
        state[name] = torch.from_numpy(np.asarray(formula(name, shape))).reshape(shape)

    config, converted = convert_official(state, num_heads=3)
    official = {id(value): name for name, value in state.items()}
    names = {k: "pos_embed" if k == "pos_embed" else official[id(v)] for k, v in converted.items()}
    config = config.replace(num_superpixels=options["num_superpixels"], drop_path_rate=0.0, pool_drop_rate=0.0)
    tree = load_tree("cub")
    rows = [tuple(row) for row in labels.tolist()]
    files = [png(p) for p in pictures]
    train_set, val_set = (HierarchicalDataset(files[:n], rows[:n], tree) for n in (len(files), 2))
    return Trainer(config, settings, train_set, val_set, output, Weights(config, tree, converted)), names


def mix(images: torch.Tensor, golden: dict, step: int) -> torch.Tensor:
    lam, (top, bottom, left, right) = float(golden["lam"][step]), golden["bbox"][step].tolist()
    if not golden["cutmix"][step]:
        return images * lam + images.flip(0) * (1.0 - lam)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed


@pytest.mark.slow
@pytest.mark.parametrize("tag", TOLERANCES)
def test_training_matches_the_authors_run(tag, tmp_path):
    golden, inputs = load_npz(f"training/{tag}.npz"), load_npz("training/inputs.npz")
    dtype = torch.float64 if tag.endswith("64") else torch.float32
    crops = inputs["crop_uint8"]
    pictures = np.concatenate([crops, crops[:, :, ::-1], crops.transpose(0, 2, 1, 3)])
    labels = torch.from_numpy(inputs["labels3"].astype(np.int64)).flip(1)  # ours are coarse to fine
    segments = torch.from_numpy(inputs["segments"].astype(np.int64))

    run, names = make_run(golden, labels, pictures, tmp_path / "run")
    model = run.model.to(dtype)
    run.ema.module.to(dtype)
    normalise = transforms.Compose(to_tensor(run.config))
    images = torch.stack([normalise(np.ascontiguousarray(p)) for p in pictures]).to(dtype)

    index = {name: i for i, name in enumerate(golden["names"].tolist())}
    parameters = {names[n]: p for n, p in model.named_parameters()}
    averages = {names[n]: p for n, p in run.ema.module.named_parameters()}
    worst = dict.fromkeys(("loss", "grad", "parameter", "average"), 0.0)
    group_of = {}
    for group in run.optimizer.param_groups:
        group_of |= {id(p): group for p in group["params"]}

    def before_step(*_):
        for name, parameter in parameters.items():
            kind = int(golden["group"][index[name]])
            assert group_of[id(parameter)]["lr"] == pytest.approx(golden["lr"][run.step][kind], rel=1e-12)
            assert group_of[id(parameter)]["weight_decay"] == golden["wd"][run.step][kind]
            if "gradl2" in golden and parameter.grad is not None:
                expected = golden["gradl2"][run.step][index[name]]
                floor = max(expected, 1e-6 * golden["gradnorm"][run.step])  # key biases have no gradient
                worst["grad"] = max(worst["grad"], abs(float(parameter.grad.norm()) - expected) / floor)

    getattr(run.optimizer, "optimizer", run.optimizer).register_step_pre_hook(before_step)
    model.train()
    run._schedule()
    for step, order in enumerate(golden["order"]):
        batch = mix(images[order], golden, step)

        lam = float(golden["lam"][step])
        targets = soft_targets(labels[order], run.config.level_classes, run.settings.smoothing)
        targets = tuple(t * lam + t.flip(0) * (1 - lam) for t in targets)

        assert float(batch.double().square().sum()) == pytest.approx(golden["imgsum"][step][1], rel=1e-6)
        assert int(segments[order].sum()) == int(golden["segsum"][step])

        loss = run._train_step({"images": batch, "segments": segments[order], "targets": targets})
        worst["loss"] = max(worst["loss"], abs(loss - golden["loss"][step]) / golden["loss"][step])

        for name, value in parameters.items():
            row, norm = index[name], golden["paraml2"][step][index[name]]
            gap = abs(projection(name, value) - golden["paramproj"][step][row]) / norm
            worst["parameter"] = max(worst["parameter"], gap, abs(float(value.detach().double().norm()) - norm) / norm)
            if "emaproj" in golden:
                gap = abs(projection(name, averages[name]) - golden["emaproj"][step][row]) / norm
                worst["average"] = max(worst["average"], gap)

    assert run.step == 24
    for what, tolerance in TOLERANCES[tag].items():
        assert worst[what] <= tolerance, (what, worst)
    print(tag, worst)
