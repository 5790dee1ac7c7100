"""Outputs with several levels or stages: a tuple to users, which transformers can split, pickle and rebuild."""

import copy
import pickle

import pytest
import torch

pytest.importorskip("transformers")

import torch.utils._pytree as pytree
from transformers import AutoBackbone, ImageClassificationPipeline
from transformers.utils import ModelOutput

import hcast_zoo  # noqa: F401  registers the models
from hcast_zoo.integrations.transformers import HCastConfig, HCastForImageClassification, HCastImageProcessor, from_core
from hcast_zoo.network.feature_maps import cell_labels
from hcast_zoo.weights.file import load_weights


@pytest.fixture
def model(tiny_weights):
    return from_core(load_weights(tiny_weights))


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_levels_are_a_tuple_and_a_model_output(model, pixels):
    output = model(pixels)
    levels = output.level_logits
    assert isinstance(levels, ModelOutput) and isinstance(output.segments, ModelOutput)
    assert len(levels) == 3 and levels[-1] is output.logits and next(reversed(levels)) is output.logits
    assert [tuple(x.shape) for x in levels] == [(3, 2), (3, 4), (3, 6)] == [tuple(x.shape) for x in levels.to_tuple()]
    copies = (
        pickle.loads(pickle.dumps(output)),
        copy.deepcopy(output),
        pytree.tree_map(lambda x: x, output),
        type(output)(dict(output.items())),
    )
    for other in copies:
        assert type(other) is type(output) and type(other.level_logits) is type(levels)
        assert all(torch.equal(a, b) for a, b in zip(other.level_logits, levels, strict=True))

    model._is_replica = True  # as DataParallel marks its replicas, whose outputs it gathers itself
    assert type(model(pixels).level_logits) is tuple


def test_transformers_splits_a_batch_of_all_levels(model, picture_folder, tiny_weights):
    """In transformers' own pipeline without our code, each picture keeps its labels at every level."""

    class Untouched(ImageClassificationPipeline):
        def preprocess(self, image, timeout=None):
            return self.image_processor(image, return_tensors="pt")

        def _forward(self, inputs):
            return self.model(**inputs)

        def postprocess(self, outputs, **options):
            return outputs

    files = [str(path) for path in sorted((picture_folder / "val").rglob("*.png"))[:5]]
    processor = HCastImageProcessor.from_core(load_weights(tiny_weights).config)
    outputs = Untouched(model=model, image_processor=processor, device="cpu")(files, batch_size=4)
    for file, output in zip(files, outputs, strict=True):
        alone = model(**processor(file, return_tensors="pt"))
        for name in ("level_logits", "segments"):
            for ours, expected in zip(output[name], alone[name], strict=True):
                torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_backbone_maps_have_the_tokens_of_their_segments(tiny_weights, pixels, tmp_path):
    """AutoBackbone gives each stage as (B, C, H/8, W/8)."""
    weights = load_weights(tiny_weights)
    classifier = from_core(weights)
    classifier.save_pretrained(tmp_path)
    backbone = AutoBackbone.from_pretrained(tmp_path, out_indices=(0, 1, 2, 3, 4))
    assert backbone.channels == [weights.config.embed_dim] * 5
    output = backbone(pixels, output_hidden_states=True)
    assert [tuple(x.shape) for x in output.feature_maps] == [(3, weights.config.embed_dim, 4, 4)] * 5
    states, segments = output.hidden_states[-1], classifier(pixels).segments
    cells = cell_labels(segments[0], segments[1:4])[-1]
    expected = states[0, 1:][cells[0]].movedim(-1, 0)
    torch.testing.assert_close(output.feature_maps[-1][0], expected, atol=1e-5, rtol=0)
    assert AutoBackbone.from_pretrained(tmp_path).out_features == ["stage4"]
    assert len(AutoBackbone.from_pretrained(tmp_path, out_features=["stage2"])(pixels).feature_maps) == 1


@torch.no_grad()
def test_backbone_maps_match_timms(pixels):
    """By packaged names in both frameworks."""
    timm = pytest.importorskip("timm")
    backbone = AutoBackbone.from_pretrained("hcast_zoo/hcast_tiny.fashion_mnist", out_indices=(1, 2, 3, 4)).eval()
    features = timm.create_model("hcast_tiny.fashion_mnist", pretrained=True, features_only=True).eval()
    images = pixels[:, : backbone.config.num_channels]
    for ours, theirs in zip(backbone(images).feature_maps, features(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_flash_attention_is_refused_with_its_reason(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"attn_implementation='sdpa' .*flash kernels in half precision"):
        HCastForImageClassification.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@torch.inference_mode()
def test_flex_attention_matches_sdpa(model, pixels, tmp_path, monkeypatch):
    """With PyTorch's own function, uncompiled because its compiler takes minutes; masks are refused."""
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations import flex_attention as theirs

    model.save_pretrained(tmp_path)
    load = HCastForImageClassification.from_pretrained
    with pytest.raises(ValueError, match="use attn_implementation='sdpa'"):
        load(tmp_path, attn_implementation="flex_attention", mask_empty=True)

    def uncompiled(query, key, value, training=False, **kwargs):
        return flex_attention(query, key, value, **kwargs)

    monkeypatch.setattr(theirs, "compile_friendly_flex_attention", uncompiled)
    flex = load(tmp_path, attn_implementation="flex_attention")
    torch.testing.assert_close(flex(pixels).logits, model(pixels).logits, atol=1e-5, rtol=0)


@pytest.mark.slow
@torch.inference_mode()
def test_half_precision_eager_and_sdpa_agree_at_224_pixels():
    """Logits at all of the paper's 196 superpixels, where rounding might choose other clusters."""
    torch.manual_seed(0)
    models = {}
    for name in ("eager", "sdpa"):
        config = HCastConfig(level_classes=(13, 38, 200), attn_implementation=name)
        models[name] = HCastForImageClassification(config).eval()
    models["sdpa"].load_state_dict(models["eager"].state_dict())
    images = torch.nn.functional.interpolate(torch.randn(2, 3, 14, 14), (224, 224), mode="bicubic")
    exact = models["sdpa"](images)
    outputs = {name: model.bfloat16()(images, exact.segments[0]) for name, model in models.items()}
    for level, logits in enumerate(exact.level_logits):
        eager, sdpa = (outputs[name].level_logits[level].float() for name in ("eager", "sdpa"))
        scale = logits.std()
        assert (eager - sdpa).abs().max() < 0.1 * scale, level
        assert (sdpa - logits).abs().max() < 0.1 * scale, level
