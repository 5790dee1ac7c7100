"""The transformers model against the core: same keys, same numbers, and what else transformers expects of a model."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification

import hcast_zoo  # noqa: F401 (registers the model)
from hcast_zoo import HierarchicalLoss, Taxonomy
from hcast_zoo.integrations.transformers import HCastConfig, HCastForImageClassification, HCastModel, from_core, to_core
from hcast_zoo.network.model import HCast
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.weights.file import Weights, WeightsError, build_model, load_weights, packaged_weights, save_weights

TOLERANCE = dict(atol=1e-5, rtol=0)


@pytest.fixture
def weights(tiny_model, taxonomy):
    return Weights(tiny_model.config, taxonomy, tiny_model.state_dict(), {"name": "tiny"})


@pytest.fixture
def model(weights):
    return from_core(weights)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_same_logits(ours, core):
    for a, b in zip(ours.level_logits, core.level_logits, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    assert ours.logits is ours.level_logits[-1]


@torch.no_grad()
def test_golden_models_match_the_authors(golden, images, segments):
    """And the core."""
    core, tensors, _ = golden
    ours = from_core(Weights(core.config, None, core.state_dict()))
    assert list(ours.state_dict()) == list(core.state_dict())
    output = ours(images, segments)
    assert_same_logits(output, core(images, segments))
    for level, logits in enumerate(reversed(output.level_logits)):  # theirs are fine first
        torch.testing.assert_close(logits, torch.from_numpy(tensors[f"logits_{level}"]), **TOLERANCE)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", list(packaged_weights()))
def test_packaged_weights_give_the_cores_logits(name):
    weights = load_weights(name)
    core, ours = build_model(weights), from_core(weights)
    side = weights.config.image_size
    pixels = torch.randn(2, weights.config.in_chans, side, side, generator=torch.Generator().manual_seed(0))
    assert_same_logits(ours(pixels), core(pixels))


def test_weights_survive_both_ways(weights, model):
    back = to_core(model, weights.metadata)
    assert back.config == weights.config and back.taxonomy == weights.taxonomy and back.metadata == weights.metadata
    assert list(back.state_dict) == list(weights.state_dict)
    assert all(torch.equal(value, weights.state_dict[key]) for key, value in back.state_dict.items())


def test_weights_of_another_model_are_refused(weights):
    del weights.state_dict["norm.weight"]
    with pytest.raises(WeightsError, match=r"norm\.weight"):
        from_core(weights)


@torch.no_grad()
def test_the_core_and_transformers_share_a_file(weights, model, folder, pixels):
    """A file saved by the core loads here, and one saved by transformers loads there."""
    saved = load_file(folder / "model.safetensors")
    core = HCast(weights.config).eval()
    core.load_state_dict(saved)
    save_weights(weights, folder / "model.safetensors")
    for loaded in (AutoModelForImageClassification.from_pretrained(folder), model):
        assert_same_logits(loaded(pixels), core(pixels))
    features, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(features, HCastModel) and not info["missing_keys"] and not info["unexpected_keys"]
    for a, b in zip(features(pixels).level_features, core(pixels).level_features, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


@torch.no_grad()
def test_half_precision_files_load_as_the_config_says(weights, folder, pixels, model):
    save_weights(weights, folder / "model.safetensors", torch.float16)
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    state = {k: v.half() if v.is_floating_point() else v for k, v in weights.state_dict.items()}
    halved = Weights(weights.config, None, state)
    assert_same_logits(loaded(pixels), build_model(halved)(pixels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_outputs_have_the_dtype_asked_for(folder, model, pixels, dtype):
    half = AutoModelForImageClassification.from_pretrained(folder, dtype=dtype)
    output = half(pixels)
    assert all(x.dtype == dtype for x in output.level_logits)
    assert torch.equal(output.segments[0], model(pixels).segments[0])  # superpixels are made before rounding
    assert output.logits.isfinite().all()


@pytest.mark.parametrize("mask_empty", [False, True])
@torch.no_grad()
def test_eager_and_sdpa_agree_with_the_core(weights, pixels, mask_empty):
    """With and without ``mask_empty``, which hides empty superpixels."""
    weights.config = weights.config.replace(mask_empty=mask_empty)
    segments = torch.arange(32)[:, None].expand(2, 32, 32) // 4  # 8 of 16 superpixels
    core = build_model(weights)(pixels, segments, output_attentions=True, output_hidden_states=True)
    for implementation in ("eager", "sdpa"):
        ours = from_core(weights)
        ours.set_attn_implementation(implementation)
        output = ours(pixels, segments, output_attentions=implementation == "eager", output_hidden_states=True)
        assert_same_logits(output, core)
        for a, b in zip(output.hidden_states, core.hidden_states, strict=True):
            torch.testing.assert_close(a, b, **TOLERANCE)
        if implementation == "eager":
            for a, b in zip(output.attentions, core.attentions, strict=True):
                torch.testing.assert_close(a, b, **TOLERANCE)


@torch.no_grad()
def test_outputs_are_the_cores(model, tiny_model, pixels):
    output, core = model(pixels), tiny_model(pixels)
    assert output.loss is None and output.paths is None and output.hidden_states is None and output.attentions is None
    assert torch.equal(output.segments[0], core.segments)
    for a, b in zip(output.segments[1:], core.assignments, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    for stage in range(1, 5):
        assert torch.equal(output.segment_map(stage), core.segment_map(stage))
    as_tuple = model(pixels, return_dict=False)
    assert torch.equal(as_tuple[0], output.logits) and len(as_tuple) == 3
    few = model(pixels, output_levels=False)
    assert set(few) == {"logits"} and torch.equal(few.logits, output.logits)


@torch.no_grad()
def test_features_have_their_shapes(weights, pixels):
    model = HCastModel(HCastConfig.from_core(weights.config, weights.taxonomy)).eval()
    output = model(pixels)
    assert output.last_hidden_state.shape == (2, 1 + 2, 48)
    assert torch.equal(output.pooler_output, output.level_features[0])  # the coarsest level reads stage 4
    assert [x.shape for x in output.level_features] == [(2, 48)] * 3


@torch.no_grad()
def test_clusters_and_superpixels_change_for_one_call(model, tiny_model, pixels):
    change = dict(num_clusters=(12, 6, 3, 2), num_superpixels=25)
    output = model(pixels, **change)
    assert [tuple(x.shape[1:]) for x in output.segments] == [(32, 32), (25, 12), (12, 6), (6, 3)]
    assert_same_logits(output, tiny_model(pixels, **change))
    with pytest.raises(ValueError, match="cannot choose"):
        model(pixels, num_clusters=(12, 16, 3, 2))


@torch.no_grad()
def test_paths_are_decoded_on_request(model, taxonomy, pixels):
    for decoder in ("best_path", "top_down"):
        output = model(pixels, output_paths=True, decoder=decoder)
        assert torch.equal(output.paths, decode(output.level_logits, taxonomy, decoder).paths)
    model.config.taxonomy = None
    with pytest.raises(ValueError, match="no taxonomy"):
        model(pixels, output_paths=True)


@torch.no_grad()
def test_an_answer_does_not_depend_on_the_batch(model, pixels):
    alone = model(pixels[:1])
    beside = model(torch.cat([1e3 * pixels[1:], pixels[:1]]))
    for a, b in zip(alone.level_logits, beside.level_logits):
        torch.testing.assert_close(a[0], b[1], atol=1e-6, rtol=0)


def test_the_loss_is_the_cores(model, pixels):
    labels = torch.tensor([[0, 1, -1], [1, -1, 4]])
    model.config.label_smoothing = 0.1
    output = model(pixels, labels=labels)
    expected = HierarchicalLoss(0.5, smoothing=0.1)(output.level_logits, labels)
    torch.testing.assert_close(output.loss, expected)

    model.config.kl_weight = 0.0
    assert model(pixels, labels=labels).loss < output.loss
    assert model(pixels, labels=torch.full((2, 3), -1)).loss == 0
    with pytest.raises(ValueError, match="label 6 of sample 0 is out of range at level 2"):
        model(pixels, labels=torch.tensor([[0, 1, 6], [0, 1, 0]]))
    with pytest.raises(ValueError, match=r"expected labels \(B, 3\)"):
        model(pixels, labels=torch.zeros(2, dtype=torch.int64))


def test_the_loss_of_flat_models_is_a_cross_entropy(model, pixels, folder):
    """As docs/transformers.md says: 1.5 times the cross-entropy, or once without the Tree-path KL."""
    options = dict(num_labels=4, ignore_mismatched_sizes=True)

    flat = HCastForImageClassification.from_pretrained(folder, kl_weight=0.0, **options).eval()
    assert flat.config.kl_weight == 0.0
    labels = torch.tensor([3, 0])

    flat.config.kl_weight = 0.5
    summed = flat(pixels, labels=labels).loss
    flat.config.kl_weight = 0.0
    output = flat(pixels, labels=labels)
    torch.testing.assert_close(summed, 1.5 * output.loss)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    assert torch.equal(output.loss, flat(pixels, labels=labels[:, None]).loss)

    flat.config.problem_type = "multi_label_classification"
    targets = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, targets)
    torch.testing.assert_close(flat(pixels, labels=targets).loss, expected)


def test_another_taxonomy_gets_new_heads(folder, model):

    tree = Taxonomy.from_paths([("a", "b"), ("a", "c"), ("d", "e")], ("upper", "lower"))
    other = AutoModelForImageClassification.from_pretrained(
        folder, taxonomy=tree.to_dict(), ignore_mismatched_sizes=True
    )
    assert [head.out_features for head in other.heads] == [2, 3]
    assert other.config.level_names == ("upper", "lower")
    assert torch.equal(other.stages[2].pool.fc1[1].weight, model.stages[2].pool.fc1[1].weight)


def test_new_labels_get_new_heads_on_the_same_features(folder, model):
    flat, info = HCastForImageClassification.from_pretrained(
        folder, num_labels=4, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"heads.0.weight", "heads.0.bias"}
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in flat.state_dict().items() if not k.startswith("heads."))
    assert flat.heads[0].weight.std() < 0.05 and not flat.heads[0].bias.any()


def test_wrong_inputs_are_explained(model, pixels):
    with pytest.raises(TypeError, match="unknown keywords: segment"):
        model(pixels, segment=torch.zeros(2, 32, 32))
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\)"):
        model(pixels[:, :1])
    with pytest.raises(ValueError, match="expected segments"):
        model(pixels, torch.zeros(2, 3, dtype=torch.int64))


def test_new_models_start_like_the_cores(tiny_config):
    """Each tensor is constant where the core's is, or has its spread."""
    torch.manual_seed(0)
    ours, core = HCastForImageClassification(HCastConfig.from_core(tiny_config)).state_dict(), HCast(tiny_config)
    for key, value in core.state_dict().items():
        if value.numel() == 1 or not value.is_floating_point() or value.std() == 0:
            assert torch.equal(ours[key], value), key
        else:
            assert 0.6 < ours[key].std() / value.std() < 1.6, key  # biases are as short as 2 numbers


def test_sharded_files_are_loaded(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())


@torch.no_grad()
def test_device_maps_change_no_logits(model, folder, pixels, tmp_path):
    """Automatic, and over two devices, so that every module has to move its inputs."""
    pytest.importorskip("accelerate")
    automatic = AutoModelForImageClassification.from_pretrained(folder, device_map="auto").cpu()
    assert_same_logits(automatic(pixels.cpu()), model(pixels))

    spread = dict.fromkeys(("stem", "cls_token", "pos_embed", "norm", "stages.0", "stages.2"), "cpu")
    spread |= dict.fromkeys(("stages.1", "stages.3", "heads"), "disk")
    split = AutoModelForImageClassification.from_pretrained(folder, device_map=spread, offload_folder=tmp_path / "disk")
    assert split.stages[1].blocks[0].attn.qkv.weight.is_meta
    assert_same_logits(split(pixels), model(pixels))


def test_gradient_checkpointing_changes_no_gradient(model, pixels):
    labels = torch.tensor([[0, 1, 2], [1, 3, 5]])
    model.config.pool_drop_rate = 0.0
    gradients = {}
    for checkpointing in (False, True):
        twin = copy.deepcopy(model).train()
        for module in twin.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            twin.gradient_checkpointing_enable()
            assert twin.is_gradient_checkpointing
            twin.enable_input_require_grads()
        twin(pixels, labels=labels).loss.backward()
        assert all(p.grad is not None for p in twin.parameters())
        gradients[checkpointing] = {name: p.grad for name, p in twin.named_parameters()}
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
@torch.no_grad()
def test_exported_programs_match_the_model(model, pixels):
    """With segments passed; without them the program makes a grid, like a model with ``superpixels="grid"``."""
    segments = model(pixels).segments[0]
    program = torch.export.export(model, (pixels, segments)).module()
    assert_close_logits(program(pixels, segments), model(pixels, segments))
    gridded = torch.export.export(model, (pixels,)).module()(pixels)
    model.config.superpixels = "grid"
    assert_close_logits(gridded, model(pixels))


def assert_close_logits(a, b):
    for x, y in zip(a.level_logits, b.level_logits, strict=True):
        torch.testing.assert_close(x, y, **TOLERANCE)
