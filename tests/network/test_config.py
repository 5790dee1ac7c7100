"""Configs: their defaults, their round trip through JSON, and the checks of every field."""

import json

import pytest

from hcast_zoo.network.config import VARIANTS, HCastConfig, default_head_stages


@pytest.mark.parametrize(
    "levels, stages",
    [(1, (4,)), (2, (4, 3)), (3, (4, 3, 2)), (4, (4, 3, 2, 1)), (5, (4, 4, 3, 2, 1)), (7, (4, 4, 4, 4, 3, 2, 1))],
)
def test_finest_level_reads_the_earliest_stage(levels, stages):
    assert default_head_stages(levels) == stages
    assert HCastConfig(level_classes=(2,) * levels).head_stages == stages


def test_config_survives_json():
    config = HCastConfig.from_variant("hcast_base", level_classes=(13, 38, 200), num_clusters=(48, 24, 12, 6))
    restored = HCastConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert restored == config and hash(restored) == hash(config)


@pytest.mark.parametrize(
    "name, millions",
    [("hcast_tiny", 6.64), ("hcast_small", 26.18), ("hcast_small_deep", 33.28), ("hcast_base", 103.94)],
)
def test_variants_have_their_number_of_parameters(name, millions):
    from hcast_zoo.network.model import HCast

    model = HCast(HCastConfig.from_variant(name, level_classes=(10,)), device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.001)


def test_replace_follows_the_number_of_levels():
    config = HCastConfig(level_classes=(2, 3))
    assert config.replace(level_classes=(2, 3, 4)).head_stages == (4, 3, 2)
    assert config.replace(level_classes=(5, 6)).head_stages == (4, 3)


@pytest.mark.parametrize(
    "field, value",
    [
        ("level_classes", ()),
        ("level_classes", (3, 0)),
        ("image_size", 100),
        ("image_size", 0),
        ("embed_dim", 50),
        ("embed_dim", 10**9),
        ("depths", (3, 3, 3)),
        ("depths", (3, 0, 3, 2)),
        ("num_clusters", (64, 32)),
        ("num_clusters", (64, 32, 16, 0)),
        ("num_clusters", (32, 64, 16, 8)),
        ("num_superpixels", 10),
        ("head_stages", (4, 3)),
        ("head_stages", (3,)),
        ("head_stages", (5,)),
        ("drop_rate", 1.0),
        ("drop_path_rate", -0.1),
        ("superpixels", "watershed"),
        ("interpolation", "magic"),
        ("crop_pct", 0.0),
        ("std", (0.0, 1.0, 1.0)),
        ("mean", (0.5, 0.5)),
    ],
)
def test_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match="num_clusters" if field == "num_superpixels" else field):
        HCastConfig(**{field: value})


def test_unknown_keys_and_variants_are_explained():
    with pytest.raises(ValueError, match="unknown config keys: width"):
        HCastConfig.from_dict({"width": 3})
    with pytest.raises(ValueError, match="hcast_small"):
        HCastConfig.from_variant("hcast_huge")
    assert next(iter(VARIANTS)) == "hcast_tiny"
