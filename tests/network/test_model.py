"""The network against the authors' code, and what must hold of any answer."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.utils.model import reparameterize_model

from hcast_zoo.network.embedding import resample_position
from hcast_zoo.network.model import HCast
from hcast_zoo.training.losses import HierarchicalLoss
from hcast_zoo.weights.official import _rename
from tests.tiny import make_config

TOLERANCE = 1e-5


def close(ours: torch.Tensor, theirs: np.ndarray, atol: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(np.asarray(theirs)), atol=atol, rtol=1e-5)


def logits_match(output, tensors, prefix="") -> None:
    for level, logits in enumerate(reversed(output.level_logits)):  # theirs are fine first
        close(logits, tensors[f"{prefix}logits_{level}"])


@torch.no_grad()
def test_every_tensor_of_the_forward_pass_matches_the_official(golden, images, segments):
    model, tensors, _ = golden
    stem, ins, outs, pools = [], [], [], []
    hooks = [model.stem.register_forward_hook(lambda m, i, o: stem.append(o))]
    for stage in model.stages:
        hooks.append(stage.register_forward_hook(lambda m, i, o: ins.append(i[0]) or outs.append(o[0])))
        hooks.append(stage.pool.register_forward_hook(lambda m, i, o: pools.append(o)))

    output = model(images, segments)
    for hook in hooks:
        hook.remove()

    close(stem[0].permute(0, 2, 3, 1), tensors["stem"])
    assert torch.equal(segments[:, ::8, ::8], torch.from_numpy(tensors["segments_28"]).long())

    for s in range(4):
        close(ins[s], tensors[f"stage{s + 1}_in"])
        close(outs[s], tensors[f"stage{s + 1}_out"])
        pool = pools[s]
        assert torch.equal(pool.indices, torch.from_numpy(tensors[f"pool{s + 1}_inds"]))
        close(pool.node_features, tensors[f"pool{s + 1}_node_features"])
        close(pool.assignment, tensors[f"pool{s + 1}_assign_prob"])
        theirs = torch.from_numpy(tensors[f"pool{s + 1}_assign_logits"])
        close(pool.assignment.log() - pool.assignment.log()[..., :1], theirs - theirs[..., :1])
        close(pool.tokens[:, 1:], tensors[f"pool{s + 1}_centroids"])
        close(pool.tokens[:, :1], tensors[f"pool{s + 1}_cls"])
    for feature, stage in zip(output.level_features, model.config.head_stages):
        close(feature, tensors[f"out{stage}"])
    logits_match(output, tensors)


@torch.no_grad()
def test_model_computes_the_official_superpixels(golden, images, segments):
    model, tensors, _ = golden
    output = model(images)
    assert torch.equal(output.segments, segments)
    logits_match(output, tensors)


@torch.no_grad()
def test_logits_match_at_the_official_token_counts(golden, images, segments):
    """The authors' code has as many tokens as the batch's largest label: 195 for `chelsea` alone."""
    model, tensors, _ = golden
    logits_match(model(images[:1], segments[:1]), tensors, "alone0_")
    chelsea = segments[1:].clamp(max=194)  # label 195 covers no cell's corner
    logits_match(model(images[1:], chelsea, num_superpixels=195), tensors, "alone1_")
    few = torch.from_numpy(tensors["fewseg_segments"].astype(np.int64))
    logits_match(model(images, few), tensors, "fewseg_")


def test_gradients_match_the_official(golden, images, segments):
    model, tensors, _ = golden
    model.zero_grad()
    levels = len(model.config.level_classes)
    targets = [torch.from_numpy(tensors[f"grad_target_{i}"]) for i in reversed(range(levels))]
    loss = HierarchicalLoss(kl_weight=0.5)(model(images, segments).level_logits, targets)

    close(loss, tensors["grad_total_loss"])
    loss.backward()

    parameters = dict(model.named_parameters())
    compared = 0
    for name, norm, none in zip(tensors["grad_names"], tensors["grad_l2"], tensors["grad_none"]):
        ours = _rename(str(name), model.config)
        gradient = parameters[ours].grad
        if none:
            assert gradient is None or not gradient.any(), name
            continue
        assert gradient.norm().item() == pytest.approx(float(norm), rel=1e-3, abs=1e-6), name
        compared += 1
    assert compared > 100

    for key in (k for k in tensors if k.startswith("grad:")):
        ours = parameters[_rename(key.removeprefix("grad:"), model.config)].grad
        torch.testing.assert_close(ours, torch.from_numpy(tensors[key]), atol=1e-5, rtol=1e-3)


def test_training_mode_matches_the_official(golden, images, segments):
    model, tensors, _ = golden
    model = HCast(model.config.replace(pool_drop_rate=0.0))
    model.load_state_dict(golden[0].state_dict())
    model.train()

    with torch.no_grad():
        output = model(images, segments)

    for level, logits in enumerate(reversed(output.level_logits)):
        close(logits, tensors[f"train_nodrop_logits_{level}"], atol=5e-5)
    close(model.stem[0].norm.running_mean, tensors["train_bn0_running_mean"])
    close(model.stem[0].norm.running_var, tensors["train_bn0_running_var"])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_answer_does_not_depend_on_the_batch(golden, images, segments, dtype):
    model = HCast(golden[0].config, dtype=dtype).eval()
    model.load_state_dict(golden[0].state_dict())

    few = segments.clone()
    few[1] = torch.minimum(few[1] // 2, torch.tensor(40))  # fewer labels than the 64 clusters
    three = segments[:1] % 3
    batch = torch.cat([images, images[:1], 1e3 * torch.randn(1, 3, 224, 224), images.flip(0)]).to(dtype)
    maps = torch.cat([few, three, segments[:1], segments.flip(0)])

    together = model(batch, maps).level_logits
    order = torch.tensor([5, 3, 1, 0, 4, 2])
    permuted = model(batch[order], maps[order]).level_logits

    for row in (0, 1, 2, 4, 5):
        alone = model(batch[row : row + 1], maps[row : row + 1]).level_logits
        for a, t, p in zip(alone, together, permuted):
            assert a.isfinite().all()
            # oneDNN has other kernels for one image than for several on some CPUs: the last bit of the largest logit.
            tolerance = (2e-6 if dtype == torch.float32 else 1e-12) * max(1.0, a.abs().max().item())
            torch.testing.assert_close(a[0], t[row], atol=tolerance, rtol=0)
            torch.testing.assert_close(a[0], p[order.tolist().index(row)], atol=tolerance, rtol=0)


@torch.no_grad()
def test_one_segment_is_enough(tiny_model):
    image = torch.randn(2, 3, 32, 32)
    nothing = torch.zeros(2, 32, 32, dtype=torch.int64)
    first, second = tiny_model(image, nothing), tiny_model(image, nothing)
    for a, b in zip(first.level_logits, second.level_logits):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@torch.no_grad()
def test_nan_stays_in_its_row(tiny_model):
    images = torch.randn(3, 3, 32, 32)
    clean = tiny_model(images)
    images[1, 0, 3, 3] = torch.nan
    output = tiny_model(images)
    for dirty, logits in zip(output.level_logits, clean.level_logits):
        assert dirty[1].isnan().any()
        torch.testing.assert_close(dirty[[0, 2]], logits[[0, 2]], atol=2e-6, rtol=0)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 6])
def test_gradient_reaches_every_parameter(levels):
    classes = tuple(range(2, 2 + levels))
    model = HCast(make_config(level_classes=classes, head_stages=None, depths=(1, 2, 1, 1), drop_path_rate=0.1)).train()
    labels = torch.zeros(4, levels, dtype=torch.int64)
    torch.manual_seed(0)
    HierarchicalLoss()(model(torch.randn(4, 3, 32, 32)).level_logits, labels).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_output_has_every_part_that_is_asked_for(tiny_model):
    images = torch.randn(2, 3, 32, 32)
    output = tiny_model(images, output_hidden_states=True, output_attentions=True)

    assert [tuple(x.shape) for x in output.level_logits] == [(2, 2), (2, 4), (2, 6)]
    assert [tuple(a.shape) for a in output.assignments] == [(2, 16, 8), (2, 8, 4), (2, 4, 2)]
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, n, 48) for n in (17, 17, 9, 5, 3)]
    assert [tuple(a.shape) for a in output.attentions] == [(2, 3, n, n) for n in (17, 9, 5, 3)]
    for rows in (*output.assignments, *output.attentions):
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))

    fused = tiny_model(images)
    assert fused.hidden_states is None and fused.attentions is None
    for a, b in zip(fused.level_logits, output.level_logits):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@torch.no_grad()
def test_segment_maps_are_nested(tiny_model):
    output = tiny_model(torch.randn(2, 3, 32, 32))
    maps = [output.segment_map(stage) for stage in (1, 2, 3, 4)]
    assert torch.equal(maps[0], output.segments)
    for fine, coarse, tokens in zip(maps, maps[1:], (8, 4, 2)):
        assert coarse.shape == (2, 32, 32) and coarse.max() < tokens
        for image in range(2):
            for label in fine[image].unique():
                assert len(coarse[image][fine[image] == label].unique()) == 1

    with pytest.raises(ValueError, match="stage from 1 to 4"):
        output.segment_map(5)


@torch.no_grad()
def test_clusters_and_size_change_at_inference(tiny_model):
    images = torch.randn(2, 3, 48, 40)
    output = tiny_model(images, num_clusters=(10, 5, 3, 1), num_superpixels=20)
    assert [a.shape[1:] for a in output.assignments] == [(20, 10), (10, 5), (5, 3)]

    for wrong in ((8, 4, 2), (17, 4, 2, 2), (8, 4, 0, 2), (4, 8, 2, 2)):
        with pytest.raises(ValueError, match="clusters"):
            tiny_model(images, num_clusters=wrong)


@torch.no_grad()
def test_mask_empty_ignores_empty_tokens(tiny_config):
    """Extra empty tokens change nothing with masking, and do without (docs/official_differences.md, 5)."""
    images = torch.randn(1, 3, 32, 32)
    maps = torch.arange(32)[None, :, None].expand(1, 32, 32) // 4  # 4 of the 8 labels fall on a cell
    for masked in (True, False):
        torch.manual_seed(0)
        model = HCast(tiny_config.replace(mask_empty=masked, num_clusters=(3, 2, 2, 1))).eval()

        a = model(images, maps, num_superpixels=8).level_logits
        b = model(images, maps, num_superpixels=30).level_logits
        same = all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a, b))
        assert same is masked


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(images=torch.randn(2, 1, 32, 32)), r"expected images \(B, 3, H, W\)"),
        (dict(images=torch.randn(3, 32, 32)), r"expected images \(B, 3, H, W\)"),
        (dict(images=torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), "floating-point"),
        (
            dict(segments=torch.zeros(2, 3, dtype=torch.int64)),
            r"expected segments \(B, H, W\) = \(2, 32, 32\), got \(2, 3\)",
        ),
        (dict(segments=torch.zeros(2, 32, 32)), "integer dtype"),
        (dict(segments=torch.full((2, 32, 32), 16)), "labels from 0 to 15"),
        (dict(segments=torch.full((2, 32, 32), -1)), "labels from 0 to 15"),
    ],
)
def test_wrong_input_is_explained(tiny_model, change, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**{"images": torch.randn(2, 3, 32, 32), **change})


def test_a_model_made_on_the_meta_device_can_be_initialised(tiny_config):
    model = HCast(tiny_config, device="meta")
    output = model(torch.randn(2, 3, 32, 32, device="meta"))
    assert [x.shape[1] for x in output.level_logits] == [2, 4, 6]
    model.to_empty(device="cpu")
    model.init_weights()
    assert all(x.isfinite().all() for x in model.eval()(torch.randn(1, 3, 32, 32)).level_logits)


@torch.no_grad()
def test_bfloat16_and_other_numbers_of_channels_work(tiny_config):
    model = HCast(tiny_config, dtype=torch.bfloat16).eval()
    assert model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).level_logits[0].dtype == torch.bfloat16
    for channels in (1, 2, 4):
        model = HCast(tiny_config.replace(in_chans=channels)).eval()
        assert model(torch.randn(1, channels, 32, 32)).level_logits[0].isfinite().all()


def test_training_is_deterministic_given_a_seed(tiny_config):
    model = HCast(tiny_config).train()
    images = torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    a = model(images).level_logits
    torch.manual_seed(1)
    b = model(images).level_logits
    assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_folded_norms_change_nothing_but_rounding(tiny_config, images):
    images = images[:, :, :64, :64]
    model = HCast(tiny_config).train()
    for _ in range(2):
        model(images)  # so that the norms have statistics
    expected = model.eval()(images).level_logits
    folded = reparameterize_model(model)
    torch.testing.assert_close(folded(images).level_logits, expected, atol=TOLERANCE, rtol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def test_stochastic_depth_keeps_the_mean(tiny_config):
    """A branch that is kept in training is scaled up, so that its expectation is the branch itself."""
    model = HCast(tiny_config.replace(drop_path_rate=0.5)).train()
    drops = [m for name, m in model.named_modules() if name.endswith("drop_path") and m.training]
    assert drops
    torch.manual_seed(0)

    dropped = drops[-1](torch.ones(20_000, 2, 3))
    kept = dropped[:, 0, 0] > 0
    assert 0.4 < kept.float().mean() < 0.6 and (dropped.amax((1, 2)) == dropped.amin((1, 2))).all()
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 2.0))


def test_position_resampling_averages_what_it_makes_smaller():
    """Against Pillow's bicubic filter, which widens with the reduction; without that, one cell in four is read."""
    embedding = torch.randn(1, 1 + 16 * 16, 2, generator=torch.Generator().manual_seed(0))
    ours = resample_position(embedding, (4, 4))

    assert torch.equal(ours[:, 0], embedding[:, 0])
    for channel in range(2):
        image = Image.fromarray(embedding[0, 1:, channel].view(16, 16).numpy())
        theirs = torch.from_numpy(np.array(image.resize((4, 4), Image.Resampling.BICUBIC)))
        torch.testing.assert_close(ours[0, 1:, channel].view(4, 4), theirs, rtol=1e-4, atol=1e-5)


def test_an_output_is_detached_from_its_graph(tiny_model):
    output = tiny_model(torch.randn(2, 3, 32, 32), output_hidden_states=True)
    detached = output.detach()
    assert output.level_logits[0].requires_grad and detached.attentions is None
    for name in ("level_logits", "assignments", "level_features", "hidden_states"):
        for before, after in zip(getattr(output, name), getattr(detached, name), strict=True):
            assert torch.equal(before, after) and not after.requires_grad
