import pytest
import torch

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.training.optimizer import make_optimizer
from hcast_zoo.training.settings import TrainConfig

HYBRID = dict(stem="timm:test_efficientnet", stem_strides=(8, 16), image_size=64)


def rates(model, **settings) -> dict[str, float]:
    """Return the rate of each parameter after timm's scheduler has set them all to 1."""
    optimizer = make_optimizer(model, TrainConfig(**settings), 512)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group.get("lr_scale", 1.0) for group in optimizer.param_groups for p in group["params"]}


@pytest.fixture
def config(tiny_config) -> HCastConfig:
    return tiny_config


def test_earlier_layers_learn_slower(config):
    found = rates(HCast(config), layer_decay=0.5)
    assert found["heads.0.weight"] == 1
    order = ["stem", "stages.0.blocks", "stages.0.pool", "stages.1.blocks", "stages.3.blocks", "heads"]
    means = [max(rate for name, rate in found.items() if name.startswith(part)) for part in order]
    assert means == sorted(means) and means[0] < means[1] < means[-1]
    assert set(found) == {name for name, _ in HCast(config).named_parameters()}


def test_a_stem_has_its_own_rate(config):
    model = HCast(config.replace(**HYBRID))
    found = rates(model, lr=1e-3, stem_lr=1e-4)
    assert {round(rate, 9) for name, rate in found.items() if name.startswith("stem.body.")} == {0.1}
    assert {rate for name, rate in found.items() if not name.startswith("stem.body.")} == {1.0}

    both = rates(model, lr=1e-3, stem_lr=1e-4, layer_decay=0.5)
    assert both["stem.body.conv_stem.weight"] == pytest.approx(0.1 * both["stem.proj.weight"])
    with pytest.raises(ValueError, match="stem_lr: expected a model with a pretrained stem"):
        rates(HCast(config), stem_lr=1e-4)
    with pytest.raises(ValueError, match="parameters to train"):
        make_optimizer(model.requires_grad_(False), TrainConfig(), 512)


def test_default_groups_are_timms(config):
    """Checkpoints of runs from before these options have exactly these groups."""
    groups = make_optimizer(HCast(config), TrainConfig(), 512).param_groups
    assert len(groups) == 2 and not any("lr_scale" in group for group in groups)
    assert torch.is_tensor(groups[0]["params"][0])
