"""The memory budget of a config: every interface checks it before allocating. tests/attacks/configs.py tries more."""

import json
import pickle

import pytest
import torch
from PIL import Image

from hcast_zoo import Predictor
from hcast_zoo.network.config import VARIANTS, HCastConfig
from hcast_zoo.network.memory import (
    VARIABLE,
    MemoryBudgetError,
    check_config,
    memory_budget,
    parameter_bytes,
    picture_bytes,
    pictures_at_once,
)
from hcast_zoo.network.model import HCast
from hcast_zoo.weights.file import WeightsError, load_model, load_weights

GIANTS = [
    (dict(num_superpixels=65536, num_clusters=(65536,) * 4), "num_superpixels: 65536: .* GiB"),
    (dict(image_size=4096, crop_pct=0.05), "crop_pct: 0.05: .* GiB"),
    (dict(image_size=1024, crop_pct=0.05), "crop_pct: 0.05: .* GiB"),
    (dict(image_size=65536), "image_size: 65536: .* GiB"),
    (dict(level_classes=(10**8, 10**8)), "level_classes: .* GiB"),
    (dict(embed_dim=65536, num_heads=8, pool_heads=8), "embed_dim: 65536: .* GiB"),
    (dict(embed_dim=4096, num_heads=8, pool_heads=8, depths=(64, 64, 64, 64)), "depths: .* GiB"),
]


@pytest.fixture(params=GIANTS, ids=lambda giant: giant[1].split(":")[0])
def giant(request):
    return request.param


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_estimated(variant):
    config = HCastConfig.from_variant(variant, last_pool=True)
    # Of a pretrained stem only what is learned on it is counted: timm would have to build it first.
    parameters = HCast(config, device="meta").named_parameters()
    actual = 4 * sum(p.numel() for name, p in parameters if not name.startswith("stem.body."))
    labels = 600 * sum(config.level_classes)
    assert actual <= sum(parameter_bytes(config).values()) - labels <= 1.3 * actual


def test_the_core_refuses_a_giant_config(giant):
    fields, message = giant
    with pytest.raises(MemoryBudgetError, match=message) as caught:
        HCastConfig(**fields)
    assert VARIABLE in str(caught.value) and len(str(caught.value)) < 400


def test_loading_refuses_a_giant_config(tiny_weights, giant):
    from tests.attacks.test_hostile import rewrite

    fields, message = giant
    config = {**load_weights(tiny_weights).config.to_dict(), "head_stages": None, **fields}
    rewrite(tiny_weights, config=json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        load_model(tiny_weights)


def test_timm_refuses_a_giant_config(giant):
    timm = pytest.importorskip("timm")
    fields, message = dict(giant[0]), giant[1]
    if "crop_pct" in fields:
        fields = {"img_size": fields["image_size"], "pretrained_cfg_overlay": {"crop_pct": fields["crop_pct"]}}
    elif "image_size" in fields:
        # Superpixels grow with the size in timm.
        fields, message = {"img_size": fields["image_size"]}, "num_superpixels: expected an integer from 1 to 65536"

    with pytest.raises(ValueError, match=message):
        timm.create_model("hcast_small", **fields)


def test_transformers_refuses_a_giant_config(giant):
    pytest.importorskip("transformers")
    from hcast_zoo.integrations.transformers import HCastConfig as Config

    fields, message = giant
    with pytest.raises(Exception, match=message):
        Config(**fields)
    with pytest.raises(MemoryBudgetError, match="num_labels: 100,000,000 classes"):
        Config(num_labels=10**8)


def test_mmpretrain_refuses_a_giant_config(giant):
    pytest.importorskip("mmpretrain")
    from hcast_zoo.integrations.mmpretrain.backbone import HCast as Backbone

    fields, message = giant
    if "level_classes" in fields:
        pytest.skip("a backbone has no classes")
    with pytest.raises(MemoryBudgetError, match=message):
        Backbone({"embed_dim": 384, **fields})


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(size={"shortest_edge": 200_000}), "size: a picture of 200000 pixels would take .* GiB"),
        (dict(crop_size={"height": 200_000, "width": 200_000}), "crop_size: a picture of 200000 x 200000 pixels"),
        (dict(size={"height": 2**20, "width": 2**20}), "size: a picture of"),
        (dict(size={"shortest_edge": -5}), "size: expected positive numbers of pixels"),
        (dict(num_superpixels=10**9, return_segments=True), "num_superpixels: expected 1 to 65536"),
    ],
)
@pytest.mark.parametrize("backend", ["HCastImageProcessor", "HCastImageProcessorPil"])
def test_the_image_processor_refuses_giant_pictures(fields, message, backend):
    transformers = pytest.importorskip("hcast_zoo.integrations.transformers")
    processor = getattr(transformers, backend)(**fields)
    with pytest.raises(ValueError, match=message):
        processor(Image.new("RGB", (40, 30)), return_tensors="pt")


@pytest.mark.parametrize("method, side", [("grid", 4000), ("slic", 2000), (None, 6000)])
def test_superpixels_count_in_the_memory_of_a_crop(monkeypatch, method, side):
    """A picture of such a side would take more than 0.5 GiB."""
    transformers = pytest.importorskip("hcast_zoo.integrations.transformers")

    monkeypatch.setenv(VARIABLE, "0.5")
    processor = transformers.HCastImageProcessorPil(
        crop_size={"height": side, "width": side}, return_segments=method is not None, superpixels=method or "grid"
    )
    with pytest.raises(
        MemoryBudgetError, match=f"crop_size: a picture of {side} x {side} pixels would take 0.[6-9] GiB"
    ):
        processor(Image.new("RGB", (40, 30)), return_tensors="pt")


def test_the_budget_is_set_by_the_environment(monkeypatch):
    config = HCastConfig(num_superpixels=6000, num_clusters=(64, 32, 16, 8))
    assert memory_budget() == 8 * 2**30

    monkeypatch.setenv(VARIABLE, "1.5")
    with pytest.raises(MemoryBudgetError, match=r"expected at most 1\.5 GiB"):
        check_config(config)

    for wrong in ("much", "-1", "nan", "0", "1e99"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(ValueError, match=f"{VARIABLE}: expected a number of GiB"):
            memory_budget()

    assert pickle.loads(pickle.dumps(config)) == config


def test_a_batch_stays_within_the_budget(tiny_weights, picture_folder, monkeypatch):
    """Large pictures are processed in smaller batches, with the same answers."""
    predictor = Predictor(tiny_weights)
    files = sorted(map(str, (picture_folder / "val").rglob("*.png")))[:5]
    expected = list(predictor.predict(files))

    one = sum(picture_bytes(predictor.model.config).values())

    assert pictures_at_once(predictor.model.config, 16) == 16

    taken = sum(parameter_bytes(predictor.model.config).values()) + 2 * one
    monkeypatch.setenv(VARIABLE, str((taken + 1) / 2**30))
    sizes = []
    predictor.model.register_forward_pre_hook(lambda model, arguments: sizes.append(len(arguments[0])))
    with torch.inference_mode():
        again = list(predictor.predict(files))
    assert sizes == [2, 2, 1] and [p.path for p in again] == [p.path for p in expected]
    for ours, theirs in zip(again, expected):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)


@pytest.mark.parametrize("fields", [dict(num_clusters=""), dict(num_clusters=()), dict(level_classes=())], ids=str)
def test_timm_explains_empty_fields(fields):
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match=f"{next(iter(fields))}: expected"):
        timm.create_model("hcast_tiny", **fields)
