"""The methods of the timm model, on a tiny one; tests/frameworks/run_timm_suite.py runs timm's own suite."""

import copy

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import FeatureInfo, group_parameters

import hcast_zoo
from hcast_zoo.network.model import HCast
from hcast_zoo.weights.file import Weights, save_weights
from tests.conftest import FIXTURES

TINY = dict(embed_dim=48, depths=(1, 1, 1, 1), num_heads=3, img_size=32, num_superpixels=16, num_clusters=(8, 4, 2, 2))
LEVELS = (2, 4, 6)


def make(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("hcast_tiny", **{**TINY, **kwargs}).eval()


@pytest.fixture(scope="module")
def model():
    return make(level_classes=LEVELS)


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(1)
    return torch.randn(2, 3, 32, 32)


def test_every_level_is_the_cores(model, x):
    core = HCast(model.config).eval()
    core.load_state_dict(model.state_dict())
    segments = torch.arange(16).view(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1).expand(2, -1, -1)
    with torch.no_grad():
        for kwargs in ({}, {"segments": segments}, {"num_clusters": (5, 4, 3, 2)}):
            expected, output = core(x, **kwargs), model.forward_output(x, **kwargs)
            for a, b in zip(expected.level_logits, model.forward_levels(x, **kwargs), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
            torch.testing.assert_close(model(x, **kwargs), expected.level_logits[-1], rtol=0, atol=1e-5)
            for stage in (1, 2, 3, 4):
                assert torch.equal(output.segment_map(stage), expected.segment_map(stage))
    assert not torch.equal(model(x), model(x, segments))
    assert not torch.equal(model(x), model(x, num_clusters=(5, 4, 3, 2)))


def test_an_official_checkpoint_is_accepted_as_it_is(golden, images, segments):
    reference, _, official = golden
    fields = reference.config.to_dict()
    names = ("embed_dim", "depths", "num_heads", "num_superpixels", "num_clusters", "level_classes")
    overlay = dict(state_dict=dict(official), file=None, num_classes=fields["level_classes"][-1])
    model = timm.create_model(
        "hcast_small",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        img_size=reference.config.image_size,
        **{k: fields[k] for k in names},
    ).eval()
    with torch.no_grad():
        for level, logits in zip(reference(images, segments).level_logits, model.forward_levels(images, segments)):
            torch.testing.assert_close(level, logits, rtol=0, atol=1e-5)


def test_the_head_follows_the_features(model, x):
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, 9, 48)  # the finest of three levels reads stage 2
        torch.testing.assert_close(model.forward_head(features), model(x), rtol=0, atol=0)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax", ""])
def test_global_pool_is_applied_to_the_tokens(model, x, pool):
    other = make(level_classes=LEVELS, global_pool=pool)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        tokens = other.forward_features(x)
        expected = {
            "token": tokens[:, 0],
            "avg": tokens[:, 1:].mean(1),
            "max": tokens[:, 1:].amax(1),
            "avgmax": (tokens[:, 1:].mean(1) + tokens[:, 1:].amax(1)) / 2,
            "": tokens,
        }[pool]
        torch.testing.assert_close(other(x), other.heads[-1](expected))
        assert [level.shape[-1] for level in other.forward_levels(x)] == list(LEVELS)
    with pytest.raises(AssertionError, match="expected one of"):
        other.reset_classifier(3, "catavgmax")


@pytest.mark.parametrize(
    "wanted, num_classes, shapes, stage",
    [(7, 7, [7], 4), (0, 0, [], 4), ((3, 5), 5, [3, 5], 3), ((3, 5, 7, 9), 9, [3, 5, 7, 9], 1)],
)
def test_reset_classifier_makes_new_heads(model, x, wanted, num_classes, shapes, stage):
    model = copy.deepcopy(model).to(torch.float64).train()
    model.reset_classifier(wanted)
    assert model.num_classes == num_classes and model.feature_stage == stage
    assert [head.out_features for head in model.heads] == shapes
    assert all(p.dtype == torch.float64 for p in model.parameters()) and all(m.training for m in model.modules())
    classifier = model.get_classifier()
    assert isinstance(classifier, tuple) == (len(shapes) > 1)
    model.eval()
    with torch.no_grad():
        assert model(x.double()).shape == (2, num_classes or 48)
        assert [level.shape[1] for level in model.forward_levels(x.double())] == shapes


def test_a_headless_model_gives_the_last_stages_features(x):
    headless, reset = make(num_classes=0), make(level_classes=LEVELS)
    reset.reset_classifier(0)
    reset.load_state_dict(headless.state_dict())
    with torch.no_grad():
        tokens = headless.forward_features(x)
        assert tokens.shape == (2, 3, 48)
        torch.testing.assert_close(headless(x), tokens[:, 0], rtol=0, atol=0)
        torch.testing.assert_close(reset(x), headless(x), rtol=0, atol=0)


def test_a_flat_model_trains_every_parameter(x):
    model = make(num_classes=5).train()
    model(x).mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert model.config.head_stages == (4,)


def test_intermediates_follow_the_segments(model, x):
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        output = model.forward_output(x)
    torch.testing.assert_close(final, model.forward_features(x), rtol=0, atol=0)
    assert [m.shape for m in maps] == [(2, 48, 4, 4)] * 4
    assert [t.shape for t in tokens] == [(2, n, 48) for n in (16, 8, 4, 2)]
    for stage, (image, rows) in enumerate(zip(maps, tokens), 1):
        cells = output.segment_map(stage)[:, ::8, ::8]
        for b, y, z in ((0, 0, 0), (0, 3, 1), (1, 2, 2)):
            assert torch.equal(image[b, :, y, z], rows[b, cells[b, y, z]])


def test_intermediates_take_timms_options(model, x):
    with torch.no_grad():
        everything = model.forward_intermediates(x, intermediates_only=True)
        last = model.forward_intermediates(x, 1, norm=True, intermediates_only=True)[0]
        picked = model.forward_intermediates(x, [0, -2], stop_early=True, intermediates_only=True)
        pairs = model.forward_intermediates(x, 2, return_prefix_tokens=True, intermediates_only=True)
        layers = model.get_intermediate_layers(x, 2)
        reshaped = model.get_intermediate_layers(x, [1], reshape=True)
        early, _ = model.forward_intermediates(x, [0], stop_early=True)
    assert torch.equal(picked[0], everything[0]) and torch.equal(picked[1], everything[2])
    torch.testing.assert_close(last, model.norm(everything[3].movedim(1, -1)).movedim(-1, 1))
    assert torch.equal(pairs[0][0], everything[2]) and pairs[0][1].shape == (2, 1, 48)
    assert [t.shape[1] for t in layers] == [4, 2] and torch.equal(reshaped[0], everything[1])
    assert early.shape == (2, 17, 48)

    with pytest.raises(ValueError, match="'NCHW' or 'NLC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_features_of_an_odd_size_follow_given_segments(model):
    x, segments = torch.randn(1, 3, 37, 50), torch.randint(0, 16, (1, 37, 50))
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True, segments=segments)
        assert [m.shape[2:] for m in maps] == [(5, 7)] * 4
        assert model(x, segments).isfinite().all()


@pytest.mark.parametrize("indices, left", [(1, 4), ([0], 1), ([0, 2], 3)])
def test_pruning_leaves_no_unused_parameter(model, x, indices, left):
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices, intermediates_only=True)
    pruned = copy.deepcopy(model)
    take = pruned.prune_intermediate_layers(indices, prune_norm=True)
    assert len(pruned.stages) == left and pruned.num_classes == 0
    features = pruned.forward_intermediates(x, take, intermediates_only=True)
    for a, b in zip(expected, features, strict=True):
        assert torch.equal(a, b)
    (sum(f.sum() for f in features) + pruned.forward_features(x).sum()).backward()
    assert not [n for n, p in pruned.named_parameters() if p.grad is None]

    pruned.reset_classifier(3)
    assert pruned(x).shape == (2, 3)

    if left < 4:
        with pytest.raises(ValueError, match=r"expected an int, as only \d of 4 stages"):
            pruned.reset_classifier((2, 3))


def test_pruning_without_the_head_changes_nothing(model, x):
    pruned = copy.deepcopy(model)
    pruned.prune_intermediate_layers(1, prune_head=False)
    with torch.no_grad():
        assert torch.equal(pruned(x), model(x))


def test_features_only_gives_the_intermediates(x):
    torch.manual_seed(0)
    backbone = timm.create_model("hcast_tiny", features_only=True, out_indices=(1, 3), **TINY).eval()
    assert backbone.feature_info.channels() == [48, 48] and backbone.feature_info.reduction() == [8, 8]
    with torch.no_grad():
        expected = make().forward_intermediates(x, [1, 3], intermediates_only=True)
        for a, b in zip(backbone(x), expected, strict=True):
            assert a.shape == (2, 48, 4, 4)
            torch.testing.assert_close(a, b)


def test_feature_info_names_modules(model):
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    assert all(isinstance(model.get_submodule(name), torch.nn.Module) for name in info.module_name())


def test_parameter_groups_follow_the_network(model):
    names = [n for n, _ in model.named_parameters()]
    assert model.no_weight_decay() <= set(names)
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert set(fine) == set(coarse) == set(names)
    order = [
        "pos_embed",
        "stages.0.blocks.0.attn.qkv.weight",
        "stages.0.pool.fc1.1.weight",
        "stages.1.blocks.0.attn.qkv.weight",
        "norm.weight",
        "heads.2.weight",
    ]
    depths = [fine[n] for n in order]
    assert depths == sorted(depths) and len(set(depths)) == 6
    assert fine["norm.weight"] == fine["stages.3.blocks.0.mlp.fc1.weight"]
    assert coarse["stages.0.pool.fc1.1.weight"] == coarse["stages.0.blocks.0.attn.qkv.weight"]


def test_grad_checkpointing_changes_no_gradient(x):
    grads = []
    for enable in (False, True):
        model = make(num_classes=5, drop_path_rate=0.2).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(x).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_drop_rates_act_in_training_only(x):
    model = make(num_classes=5, drop_rate=0.5, drop_path_rate=0.3)
    assert model.head_drop.p == 0.5 and model.stages[3].blocks[0].drop_path.p == pytest.approx(0.3)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_superpixels_follow_other_sizes():
    model = make(in_chans=1, img_size=64, num_superpixels=None)
    assert model.in_chans == 1 and model.pos_embed.shape[1] == 65
    expected = max(round(196 * 64**2 / 224**2), model.config.num_clusters[0])  # superpixels keep their size

    assert model.config.num_superpixels == expected
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 1000)

    wide = make(img_size=(16, 32), num_superpixels=None, num_clusters=(12, 8, 4, 4))
    assert wide.config.num_superpixels == 12  # at least as many as the clusters
    assert wide(torch.randn(1, 3, 16, 32)).isfinite().all()


def test_set_input_size_changes_superpixels_and_positions(model, x):
    resized = copy.deepcopy(model)
    resized.pos_embed.requires_grad_(False)
    resized.set_input_size(64)
    assert resized.config.num_superpixels == 64 and resized.pos_embed.shape[1] == 65
    assert not resized.pos_embed.requires_grad
    assert resized(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_a_model_on_the_meta_device_can_be_initialised(x):
    model = make(level_classes=LEVELS, device="meta")
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert model(x.to("meta")).shape == (2, 6)
    model.to_empty(device="cpu")
    for p in (*model.parameters(), *model.buffers()):
        p.data.fill_(7)
    model.init_weights()
    assert model.stem[0].norm.running_mean.abs().max() == 0 and model.stem[0].norm.num_batches_tracked == 0
    assert model(x).isfinite().all() and model.pos_embed.std() < 0.1


def test_bfloat16_is_kept(x):
    model = make(level_classes=LEVELS)
    model(x)
    assert all(level.dtype == torch.bfloat16 for level in model.bfloat16().forward_levels(x.bfloat16()))
    assert make(dtype=torch.bfloat16).pos_embed.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(not_an_argument=1), TypeError, "not_an_argument"),
        (
            dict(num_classes=5, level_classes=(2, 3)),
            ValueError,
            r"num_classes=5 and the finest of level_classes=\(2, 3\)",
        ),
        (dict(embed_dim=50), ValueError, "embed_dim: expected a multiple of 8"),
        (dict(num_clusters=(99, 4, 2, 2)), ValueError, "cannot choose 99 clusters from 16 tokens"),
        (dict(taxonomy="birds.json"), ValueError, "expected a taxonomy as a JSON object"),
        (dict(global_pool="fast"), AssertionError, "global_pool: expected one of"),
    ],
)
def test_wrong_arguments_are_explained(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_the_filter_drops_what_a_headless_model_lacks(model, x):
    filter_fn = __import__(type(model).__module__, fromlist=["checkpoint_filter_fn"]).checkpoint_filter_fn
    headless = make(num_classes=0)
    headless.load_state_dict(filter_fn(model.state_dict(), headless))
    assert torch.equal(headless.pos_embed, model.pos_embed)
    official = load_file(FIXTURES / "tiny_3level_state.safetensors")
    with pytest.raises(ValueError, match="not an official"):
        filter_fn({**official, "extra": torch.zeros(1)}, model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoint_path_loads_every_format(model, x, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    else:
        save_file(model.state_dict(), path)
    torch.manual_seed(9)
    loaded = timm.create_model("hcast_tiny", checkpoint_path=str(path), level_classes=LEVELS, **TINY).eval()
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("train", [False, True])
def test_fx_traces_the_model(x, train):
    from timm.models import create_feature_extractor, get_graph_node_names

    model = make(num_classes=5).train(train)
    node = get_graph_node_names(model)[1][-1]
    traced = create_feature_extractor(model, {node: "logits"})
    logits = traced.train(train)(x)["logits"]
    if train:
        logits.mean().backward()
        assert not [n for n, p in traced.named_parameters() if p.grad is None]
    else:
        torch.testing.assert_close(logits, model(x))


def test_the_core_accepts_a_model_trained_in_timm(model, taxonomy, tmp_path):
    """It is saved, loaded and evaluated like a model of the core."""
    named = make(taxonomy=taxonomy.to_dict())
    assert named.taxonomy == taxonomy and named.config.level_classes == taxonomy.level_classes
    save_weights(Weights(named.config, named.taxonomy, named.state_dict()), tmp_path / "mine.safetensors")
    core = hcast_zoo.load_model(tmp_path / "mine.safetensors")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(core(x).level_logits[-1], named(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", range(4))
def test_final_features_do_not_depend_on_the_intermediates(model, x, index):
    """The finest level reads stage 2; later stages run only for their own features."""
    with torch.no_grad():
        final, (tokens,) = model.forward_intermediates(x, [index], output_fmt="NLC", norm=False)
        stopped, _ = model.forward_intermediates(x, [index], stop_early=True)
        states = model._forward_stages(x, None, None, 4)[0]
    assert model.feature_stage == 2
    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(tokens, states[index][:, 1:])
    assert torch.equal(stopped, states[min(index, 1)])


@pytest.mark.parametrize("training", [False, True])
def test_new_heads_have_the_mode_of_the_model(training):
    model = make().train(training)
    model.reset_classifier(5)
    assert all(m.training == training for m in model.modules())
