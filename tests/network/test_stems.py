"""Pretrained stems, averages by area, grouping on a descriptor; and one answer of a hybrid through every interface."""

import copy
import importlib.util
import itertools
import sys

import pytest
import torch

from hcast_zoo.adaptation.adapt import AdaptationError, adapt
from hcast_zoo.adaptation.config import AdaptConfig
from hcast_zoo.network import stems
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.efficientnet import EfficientNetLite0
from hcast_zoo.network.feature_maps import feature_map
from hcast_zoo.network.model import HCast
from hcast_zoo.network.stems import Carried, area_means, weighted_mean
from hcast_zoo.segments.explain import explain_levels
from hcast_zoo.weights.file import Weights, load_model, load_weights, read_weights, save_weights
from tests.tiny import FIELDS, HYBRID, make_taxonomy

FIELDS = {**FIELDS, "image_size": 64, "mask_empty": True}


@pytest.fixture(scope="module")
def hybrid() -> HCast:
    torch.manual_seed(0)
    model = HCast(HCastConfig.from_dict(HYBRID))
    torch.nn.init.normal_(model.heads[-1].weight)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_defaults_are_the_papers():
    """Configs written before these fields existed are the same networks."""
    config = HCastConfig()
    assert (config.stem, config.grouping, config.token_pooling, config.feature_stride) == (
        "conv",
        "tokens",
        "top_left",
        8,
    )
    old = {k: v for k, v in config.to_dict().items() if not k.startswith("stem")}
    assert HCastConfig.from_dict(old) == config

    assert [type(m).__name__ for m in HCast(config.replace(**FIELDS)).stem][:1] == ["ConvNorm"]


@pytest.mark.parametrize("dense_cells", [0, 10_000], ids=["sums", "matrix products"])
def test_area_means_match_a_loop_over_pixels(dense_cells, monkeypatch):
    """The loop reads features that were enlarged to pixels."""
    monkeypatch.setattr(stems, "DENSE_CELLS", dense_cells)
    segments = torch.randint(0, 5, (2, 12, 20), generator=torch.Generator().manual_seed(0))
    maps = [torch.randn(2, 3, 3, 5), torch.randn(2, 4, 12, 20)]
    means, area = area_means(maps, segments, 6)

    pixels = torch.cat([maps[0].repeat_interleave(4, 2).repeat_interleave(4, 3), maps[1]], 1)

    for picture in range(2):
        for label in range(5):
            inside = segments[picture] == label
            assert area[picture, label] == inside.sum()
            torch.testing.assert_close(means[picture, label], pixels[picture][:, inside].mean(1))

    assert means[:, 5].abs().max() == 0 and area[:, 5].max() == 0
    torch.testing.assert_close(weighted_mean(means, area)[:, 0], pixels.mean((2, 3)))


def test_area_means_of_cells_of_unequal_size(monkeypatch):
    """A map whose cells do not divide the picture is averaged by matrix products, whatever its size."""
    segments = torch.randint(0, 5, (2, 12, 20), generator=torch.Generator().manual_seed(0))
    maps = [torch.randn(2, 3, 5, 7)]
    expected, _ = area_means(maps, segments, 6)
    monkeypatch.setattr(stems, "DENSE_CELLS", 0)
    torch.testing.assert_close(area_means(maps, segments, 6)[0], expected)


def test_pooling_keeps_all_evidence():
    """Soft assignment splits area and evidence between clusters, and loses none of either."""
    carried = Carried(torch.tensor([[1.0, 2.0, 5.0]]), torch.randn(1, 3, 2), torch.randn(1, 3, 4))
    pooled = carried.pool(torch.rand(1, 3, 2).softmax(-1))
    assert pooled.area.sum() == pytest.approx(8)
    torch.testing.assert_close(pooled.seed(), carried.seed())
    assert Carried(carried.area).seed() is None


@torch.inference_mode()
def test_all_evidence_passes_through_the_tokens(hybrid, images):
    """With another picture's superpixels the answer is that picture's."""
    segments = hybrid.prepare_segments(images, None, 16)
    means = hybrid.superpixel_means(images, segments, 16)
    clusters = hybrid.config.num_clusters
    start = hybrid.start_from_means(means, segments)
    features = hybrid.encode_tokens(*start, segments, clusters).level_features
    for logits, expected in zip(hybrid.forward_heads(features), hybrid(images, segments).level_logits):
        torch.testing.assert_close(logits, expected)

    swapped = stems.SuperpixelMeans(means.features.flip(0), means.descriptor.flip(0), means.area.flip(0))
    start = hybrid.start_from_means(swapped, segments.flip(0))
    other = hybrid.encode_tokens(*start, segments.flip(0), clusters).level_features
    for feature, theirs in zip(features, other):
        torch.testing.assert_close(feature.flip(0), theirs, atol=1e-4, rtol=1e-4)
        assert (feature - theirs).abs().max() > 1e-3


def test_a_frozen_stem_gets_no_gradient(images):
    model = HCast(HCastConfig.from_dict(HYBRID))
    model.freeze_stem()
    model.train()
    before = {k: v.clone() for k, v in model.stem.body.state_dict().items()}
    sum(x.square().sum() for x in model(images).level_logits).backward()

    assert all(p.grad is None for p in model.stem.body.parameters())
    assert all(p.grad is not None for p in (model.stem.proj.weight, model.stem.evidence.weight))
    assert all(torch.equal(v, before[k]) for k, v in model.stem.body.state_dict().items())

    with pytest.raises(ValueError, match="expected a model with a pretrained stem"):
        HCast(HCastConfig.from_dict(FIELDS)).freeze_stem()


@pytest.mark.parametrize(
    "options",
    [
        dict(grouping="descriptor"),
        dict(token_pooling="area"),
        dict(feature_stride=4),
        dict(feature_stride=4, token_pooling="area", grouping="descriptor"),
        dict(stem="timm:test_resnet"),
        dict(stem="timm:test_vit", stem_strides=(16,)),
    ],
    ids=str,
)
def test_every_option_trains(options, images):
    model = HCast(HCastConfig.from_dict({**FIELDS, **options}))
    output = model(images)
    assert [tuple(x.shape) for x in output.level_logits] == [(2, 2), (2, 4), (2, 6)]
    sum(x.square().sum() for x in output.level_logits).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("stem.body."))
    assert all(torch.allclose(a.sum(-1), torch.ones(())) for a in output.assignments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(stem="resnet18"), "stem: expected 'conv', or 'timm:NAME'"),
        (dict(stem="timm:hf-hub:org/name"), "stem: expected 'conv'"),
        (dict(stem="timm:resnet1"), "has no model 'resnet1'"),
        (dict(stem="timm:test_resnet", stem_strides=(8, 7)), r"feature maps of strides \[.*\], not 7"),
        (dict(stem="timm:test_resnet", stem_strides=(0,)), "stem_strides: expected strides from 1"),
        (dict(stem_strides=(8,)), "stem_strides: expected none with the stem 'conv'"),
        (dict(stem="timm:test_resnet", feature_stride=4), "feature_stride: expected 8"),
        (dict(grouping="colours"), "grouping: expected 'tokens' or 'descriptor'"),
        (dict(token_pooling="mean"), "token_pooling: expected 'top_left' or 'area'"),
        (dict(feature_stride=2), "feature_stride: expected 4 or 8"),
    ],
)
def test_wrong_options_are_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        HCast(HCastConfig.from_dict({**FIELDS, **fields}))


def test_a_stem_counts_in_the_memory_budget(monkeypatch):
    config = HCastConfig.from_variant("hcast_lite", stem="timm:wide_resnet50_2")  # 255 MiB
    monkeypatch.setenv("HCAST_ZOO_MEMORY_GIB", "0.2")
    with pytest.raises(
        ValueError, match=r"stem: timm:wide_resnet50_2: the model and one picture, most of it \(0\.. GiB"
    ):
        HCast(config)


def test_a_size_that_the_stem_cannot_take_is_explained():
    model = HCast(HCastConfig.from_dict({**FIELDS, "stem": "timm:test_vit", "stem_strides": (16,)}))
    with pytest.raises(ValueError, match=r"cannot take pictures of \(72, 72\)"):
        model(torch.zeros(1, 3, 72, 72))


@pytest.mark.parametrize("in_chans", [3, 4])
def test_efficientnet_lite0_matches_timm(in_chans):
    """Names, shapes, maps, running statistics and gradients are bit-identical; initial values have the same spread."""
    timm = pytest.importorskip("timm")
    models = ours, theirs = [
        EfficientNetLite0(in_chans),
        timm.create_model("efficientnet_lite0", pretrained=False, num_classes=0, in_chans=in_chans),
    ]
    keys = ("reduction", "num_chs")
    assert [[x[k] for k in keys] for x in ours.feature_info] == [[x[k] for k in keys] for x in theirs.feature_info]
    assert ours.num_features == theirs.num_features and ours.head_hidden_size == theirs.head_hidden_size

    state = theirs.state_dict()
    spread = {name: tensor.std().item() for name, tensor in ours.state_dict().items() if "conv" in name}
    assert len(spread) > 40
    for name, value in spread.items():
        assert value == pytest.approx(state[name].std().item(), rel=0.2), name
    ours.load_state_dict(state)

    for training in (True, False):
        answers = []
        for model in models:
            model.train(training)
            images = torch.randn(2, in_chans, 96, 64, generator=torch.Generator().manual_seed(1))
            final, maps = model.forward_intermediates(images, indices=[1, 2, 3, 4])
            (final.square().mean() + maps[1].mean()).backward()
            answers.append([final, *maps, *model.forward_intermediates(images, indices=[2], intermediates_only=True)])

        assert len(answers[0]) == 6 and all(map(torch.equal, *answers))
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters()))


def test_a_timm_stem_without_timm_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="stem is a timm model: pip install timm"):
        HCast(HCastConfig.from_dict(HYBRID))

    # The stem of the packaged weights is built without it.
    HCast(HCastConfig.from_dict({**HYBRID, "stem": "timm:efficientnet_lite0"}))


@torch.inference_mode()
def test_a_hybrid_answers_alike_through_every_interface(hybrid, images, tmp_path):
    """One file holds stem and network; core, timm, transformers and mmpretrain answer alike."""
    expected = hybrid(images).level_logits
    taxonomy = make_taxonomy()
    file = tmp_path / "model.safetensors"
    save_weights(Weights(hybrid.config, taxonomy, hybrid.state_dict(), {"name": "tiny"}), file)

    import timm

    import hcast_zoo  # noqa: F401 (registers)

    timm_fields = {k: v for k, v in HYBRID.items() if k not in ("image_size", "crop_pct")}
    ported = timm.create_model("hcast_tiny", img_size=64, **timm_fields).eval()
    ported.load_state_dict(read_weights(file).state_dict)
    answers = {"core": load_model(file)(images).level_logits, "timm": ported.forward_levels(images)}
    if importlib.util.find_spec("transformers"):
        from hcast_zoo.integrations.transformers import from_core

        from_core(load_weights(file)).save_pretrained(tmp_path / "saved")
        from transformers import AutoModelForImageClassification

        ported = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
        answers["transformers"] = ported(images).level_logits
        answers["core, from transformers"] = load_model(tmp_path / "saved")(images).level_logits

    if importlib.util.find_spec("mmpretrain"):
        from mmpretrain.registry import MODELS

        ported = MODELS.build(dict(type="HCast", arch=str(file), out_indices=(3, 2, 1))).eval()
        ported.load_state_dict({k: v for k, v in hybrid.state_dict().items() if not k.startswith("heads.")})
        answers["mmpretrain"] = hybrid.forward_heads(ported(images))

    for interface, logits in answers.items():
        for ours, core in zip(logits, expected):
            torch.testing.assert_close(
                ours, core, atol=1e-5, rtol=0, msg=lambda text, interface=interface: f"{interface}: {text}"
            )


def test_an_explanation_shows_the_evidence(hybrid, images):
    """Where attention adds nothing, a level's focus is the gradient of its score times the evidence."""
    model = copy.deepcopy(hybrid)
    for stage in model.stages:
        torch.nn.init.zeros_(stage.blocks[0].attn.proj.weight)
    torch.nn.init.normal_(model.stem.evidence.weight)  # so that superpixels speak for and against

    row = torch.arange(64)[:, None] // 16
    segments = (row * 4 + torch.arange(64) // 16).expand(2, 64, 64).clone()
    segments[segments == 14] = 13
    segments[:, 9:15, 9:15] = 14  # holds no cell's top-left pixel; area counts

    kept = []
    handle = model.stem.register_forward_hook(lambda *call: kept.append(call[2][1]))
    output, explanation = explain_levels(model, images, segments)
    again = model(images.clone().requires_grad_(), segments)
    handle.remove()

    for level, scores in enumerate(again.level_logits):
        gradient = torch.autograd.grad(scores.amax(1).sum(), kept[1], retain_graph=True)[0]
        expected = (gradient * kept[1]).sum(-1).clamp(min=0).detach()
        torch.testing.assert_close(
            explanation.focus[:, level], expected / expected.sum(1, keepdim=True), rtol=1e-3, atol=1e-5
        )
    assert (explanation.focus[:, :, 14] > 0).any()
    assert output.evidence.shape == (2, 16, 48) and not output.evidence.requires_grad


def test_feature_maps_average_the_pixels_of_a_cell():
    """With pooling by area; otherwise a cell has the token of its top-left pixel."""
    generator = torch.Generator().manual_seed(0)
    segments = torch.randint(0, 6, (2, 16, 20), generator=generator)
    assignment = torch.rand(2, 6, 3, generator=generator)
    tokens = torch.randn(2, 3, 4, generator=generator)
    parent = assignment.argmax(-1)
    by_pixel = torch.stack([t[p[s]] for t, p, s in zip(tokens, parent, segments)]).permute(0, 3, 1, 2)

    averaged = feature_map(tokens, segments, [assignment], "area")
    assert averaged.shape == (2, 4, 2, 3)
    for row, column in itertools.product(range(2), range(3)):
        inside = by_pixel[:, :, torch.arange(16) * 2 // 16 == row][:, :, :, torch.arange(20) * 3 // 20 == column]
        torch.testing.assert_close(averaged[:, :, row, column], inside.mean((2, 3)))

    torch.testing.assert_close(feature_map(tokens, segments, [assignment], "top_left"), by_pixel[:, :, ::8, ::8])


def test_a_hybrid_can_be_adapted(hybrid, images):
    """Its labels depend on the tokens through attention; where attention adds nothing, adaptation says so."""
    tree, config = make_taxonomy(), AdaptConfig(steps=2)
    adaptation = adapt(hybrid, images[:1], tree, (0, 1), config=config)
    assert adaptation.losses[-1] < adaptation.losses[0] and adaptation.distances["tokens"] > 0
    with adaptation.applied(hybrid) as adapted:
        for logits, expected in zip(adapted(images[:1]).level_logits, adaptation.after.level_logits):
            torch.testing.assert_close(logits, expected)

    model = copy.deepcopy(hybrid)
    for stage in model.stages:
        torch.nn.init.zeros_(stage.blocks[0].attn.proj.weight)
    with pytest.raises(AdaptationError, match=r"do not depend on what may change \(tokens\)"):
        adapt(model, images[:1], tree, (0, 1), config=config)
