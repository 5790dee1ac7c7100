"""Learning rates of parameter groups: layer decay, and a stem's own rate."""

import pytest
from timm.optim import create_optimizer_v2

from hcast_zoo.network.model import HCast
from hcast_zoo.training.optimizer import make_optimizer
from hcast_zoo.training.settings import TrainConfig
from tests.tiny import HYBRID, make_config


def rates(model, **settings) -> dict[str, float]:
    """Return the factor of each parameter's learning rate."""
    optimizer = make_optimizer(model, TrainConfig(**settings), 512)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group.get("lr_scale", 1.0) for group in optimizer.param_groups for p in group["params"]}


def test_earlier_layers_learn_slower(tiny_config):
    scales = rates(HCast(tiny_config), layer_decay=0.5)
    assert scales["heads.0.weight"] == 1
    order = ["stem", "stages.0.blocks", "stages.0.pool", "stages.1.blocks", "stages.3.blocks", "heads"]
    fastest = [max(rate for name, rate in scales.items() if name.startswith(part)) for part in order]
    assert fastest == sorted(fastest) and fastest[0] < fastest[1] < fastest[-1]
    assert set(scales) == {name for name, _ in HCast(tiny_config).named_parameters()}


def test_a_stem_has_its_own_rate(tiny_config):
    model = HCast(make_config(**HYBRID))
    scales = rates(model, lr=1e-3, stem_lr=1e-4)
    assert {round(rate, 9) for name, rate in scales.items() if name.startswith("stem.body.")} == {0.1}
    assert {rate for name, rate in scales.items() if not name.startswith("stem.body.")} == {1.0}

    both = rates(model, lr=1e-3, stem_lr=1e-4, layer_decay=0.5)
    assert both["stem.body.conv_stem.weight"] == pytest.approx(0.1 * both["stem.proj.weight"])
    with pytest.raises(ValueError, match="stem_lr: expected a model with a pretrained stem"):
        rates(HCast(tiny_config), stem_lr=1e-4)
    with pytest.raises(ValueError, match="parameters to train"):
        make_optimizer(model.requires_grad_(False), TrainConfig(), 512)


def test_default_groups_are_timms_decayed_and_not_decayed(tiny_config):
    """Checkpoints of runs from before these options have exactly these groups."""
    model = HCast(tiny_config)
    groups = make_optimizer(model, TrainConfig(), 512).param_groups
    expected = create_optimizer_v2(model, TrainConfig().opt, weight_decay=TrainConfig().weight_decay).param_groups
    assert len(groups) == len(expected) == 2 and not any("lr_scale" in group for group in groups)
    for group, theirs in zip(groups, expected):
        assert list(map(id, group["params"])) == list(map(id, theirs["params"]))
        assert group["weight_decay"] == theirs["weight_decay"]
