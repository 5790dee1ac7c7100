"""timm's registry, pretrained configs, the Hub, local folders and data pipeline with our models."""

import dataclasses
import json
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, save_for_hf

from hcast_zoo import Predictor, load_model
from hcast_zoo.data.pictures import read_picture
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.integrations.timm.cfgs import PAPER_DATASETS, Source, describe_source, make_cfgs, sources
from hcast_zoo.network.config import VARIANTS, HCastConfig
from hcast_zoo.weights.file import WeightsError, load_weights, packaged_weights
from tests.integrations.test_timm_model import TINY

PACKAGED = list(packaged_weights())
SMALL = "hcast_small.emoji_art"


def python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import hcast_zoo, timm",
        "import timm, hcast_zoo",
        "import timm.models; import hcast_zoo",
        "import hcast_zoo; from timm.models import list_models",
        "import hcast_zoo.integrations.timm.hcast, timm",
        "import hcast_zoo.training.trainer, timm",
        "import hcast_zoo; import hcast_zoo.training.trainer; import timm",
    ],
)
def test_models_are_registered_in_any_order_of_imports(imports):
    code = f"import warnings; warnings.simplefilter('error', UserWarning); {imports}; import timm as t; "
    assert python(code + "print(*t.list_models('hcast*'))") == sorted(VARIANTS)


@pytest.mark.slow
def test_importing_timm_imports_no_network():
    loaded = python("import hcast_zoo, timm, sys; print(*[m for m in sys.modules if m.startswith('hcast_zoo')])")
    assert "hcast_zoo.integrations.timm.hcast" in loaded
    assert not {"hcast_zoo.network.model", "hcast_zoo.taxonomy.tree", "hcast_zoo.weights.file"} & set(loaded)


def test_the_registry_lists_models_and_tags():
    assert timm.list_models(module="hcast") == timm.list_models("hcast_*") == sorted(VARIANTS)
    assert timm.list_pretrained("hcast*") == sorted(PACKAGED)
    assert timm.is_model("hcast_small") and timm.is_model_pretrained("hcast_small")
    assert not timm.is_model_pretrained("hcast_small.cub") and not timm.is_model_pretrained("hcast_base")
    names = timm.list_models("hcast_small*", include_tags=True)
    assert {f"hcast_small.{tag}" for tag in (*PAPER_DATASETS, "cast_in1k", "cast_moco_in1k")} < set(names)
    assert timm.get_pretrained_cfg("hcast_small").tag == SMALL.split(".")[1]
    assert timm.get_pretrained_cfg("hcast_small.cast_in1k").hf_hub_id == "twke/CAST"
    assert timm.get_pretrained_cfg("hcast_base").tag == "cast_moco_in1k"
    assert timm.get_pretrained_cfg("hcast_small.cub").hf_hub_id == "hcast-zoo/hcast_small.cub"
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        timm.get_pretrained_cfg("hcast_small.imagenet")


@pytest.mark.parametrize("name", sorted(sources()))
def test_each_tag_makes_the_model_it_describes(name):
    cfg, config = timm.get_pretrained_cfg(name), sources()[name].config
    model = timm.create_model(name, device="meta")
    expected = {**config.to_dict(), "drop_path_rate": 0.0}
    assert model.config.to_dict() == expected
    assert cfg.input_size == (config.in_chans, config.image_size, config.image_size)
    if sources()[name].headless:
        assert cfg.num_classes == model.num_classes == len(model.heads) == 0
        return

    assert [head.out_features for head in model.heads] == list(config.level_classes)
    assert cfg.num_classes == model.num_classes == config.level_classes[-1]
    state = model.state_dict()
    for module in (cfg.first_conv, *([cfg.classifier] if isinstance(cfg.classifier, str) else cfg.classifier)):
        assert f"{module}.weight" in state


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_bare_name_is_the_papers_network(name):
    model = timm.create_model(name, device="meta")
    assert model.config.to_dict() == {**HCastConfig.from_variant(name).to_dict(), "drop_path_rate": 0.0}
    assert model.config.image_size == 224 and model.config.num_superpixels == 196
    assert model.config.num_clusters == (64, 32, 16, 8) and model.num_classes == 1000
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 224, 224)


def test_pretrained_models_have_the_size_of_their_weights():
    assert timm.create_model("hcast_tiny", pretrained=True).config.image_size == 96
    assert timm.create_model("hcast_tiny.fashion_mnist", device="meta").config.image_size == 32


def test_paper_tags_are_the_official_models():
    sizes = {tag: timm.create_model(f"hcast_small.{tag}", device="meta").config for tag in PAPER_DATASETS}
    assert sizes["cub"].level_classes == (13, 38, 200) and sizes["cub"].head_stages == (4, 3, 2)
    assert sizes["living17"].num_superpixels == 256 and sizes["aircraft"].num_superpixels == 196
    assert sizes["inat21_mini"].mean == (0.466, 0.471, 0.380)
    assert all(c.image_size == 224 and c.num_clusters == (64, 32, 16, 8) for c in sizes.values())


@pytest.mark.parametrize("name", PACKAGED)
def test_pretrained_loads_the_packaged_weights(name):
    model = timm.create_model(name, pretrained=True).eval()
    core = load_model(name)
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        for a, b in zip(core(x).level_logits, model.forward_levels(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

    weights = load_weights(name)
    taxonomy = weights.taxonomy
    assert model.taxonomy == taxonomy and model.pretrained_cfg["label_names"] == taxonomy.names[-1]
    assert model.pretrained_cfg["license"] == weights.metadata["license"]


def label_names(model):
    return model.pretrained_cfg.get("label_names")


def test_class_names_are_those_of_the_heads(taxonomy, tmp_path):
    """timm's inference.py prints them, so new heads may not keep those of the weights."""
    name = "hcast_tiny.emoji_art"
    model = timm.create_model(name, pretrained=True, num_classes=10)
    assert model.num_classes == 10 and label_names(model) is None
    assert label_names(timm.create_model("hcast_tiny", num_classes=10)) is None

    model = timm.create_model(name, pretrained=True, taxonomy=taxonomy.to_dict())
    assert label_names(model) == taxonomy.names[-1]
    timm.models.save_for_hf(model, tmp_path / "named")
    assert label_names(timm.create_model(f"local-dir:{tmp_path / 'named'}", pretrained=True)) == taxonomy.names[-1]
    model.reset_classifier(4)
    assert label_names(model) is None

    names = ["a", "b", "c", "d"]
    timm.models.save_for_hf(model, tmp_path / "flat", model_config={"label_names": names})
    assert label_names(timm.create_model(f"local-dir:{tmp_path / 'flat'}", pretrained=True)) == names


def ship(index, folder, monkeypatch):
    """Replace the package's index of weights."""
    (folder / "index.json").write_text(json.dumps(index))
    monkeypatch.setattr("hcast_zoo.weights.header.SHIPPED_INDEX", folder / "index.json")


def test_a_damaged_package_is_reported(tmp_path, monkeypatch):
    index = packaged_weights()
    index[SMALL]["sha256"] = "0" * 64
    ship(index, tmp_path, monkeypatch)
    timm.create_model(SMALL)
    with pytest.raises(WeightsError, match="missing or damaged: reinstall"):
        timm.create_model(SMALL, pretrained=True)


def test_a_damaged_file_does_not_break_the_import(tmp_path, monkeypatch, caplog):
    (tmp_path / "bad.safetensors").write_bytes(b"")
    monkeypatch.setattr("hcast_zoo.weights.header.SHIPPED", tmp_path)
    ship({"hcast_small.bad": {"file": "bad.safetensors", "sha256": "0"}}, tmp_path, monkeypatch)
    sources.cache_clear()
    try:
        assert sources()["hcast_small.bad"].config.image_size == 224
        assert "complete safetensors file" in caplog.text
        assert timm.models.generate_default_cfgs(make_cfgs())["hcast_small"].cfgs["bad"].file
    finally:
        monkeypatch.undo()
        sources.cache_clear()


@pytest.mark.parametrize(
    "kwargs, levels, kept",
    [
        ({}, None, True),
        (dict(num_classes=10), (10,), False),
        (dict(num_classes=5), (5,), False),  # not the coarse head of the checkpoint
        (dict(num_classes=0), (), False),
        (dict(level_classes=(13, 38, 200)), (13, 38, 200), False),
        (dict(num_classes=200, level_classes=(13, 38, 200)), (13, 38, 200), False),
        (dict(in_chans=1), None, True),
        (dict(img_size=64), None, True),
    ],
)
def test_fine_tuning_keeps_what_fits(kwargs, levels, kept):
    source = load_model(SMALL)
    torch.manual_seed(0)
    model = timm.create_model(SMALL, pretrained=True, **kwargs)
    expected = source.config.level_classes if levels is None else levels
    assert tuple(head.out_features for head in model.heads) == expected
    assert torch.equal(model.stages[2].pool.fc1[1].weight, source.stages[2].pool.fc1[1].weight)
    assert torch.equal(model.stem[1].norm.running_var, source.stem[1].norm.running_var)
    same = []
    for ours, theirs in zip(model.heads, source.heads):
        same.append(ours.weight.shape == theirs.weight.shape and torch.equal(ours.weight, theirs.weight))

    assert all(same) if kept else not any(same)
    assert (model.taxonomy is not None) == kept

    if "in_chans" in kwargs:
        torch.testing.assert_close(model.stem[0].conv.weight, source.stem[0].conv.weight.sum(1, keepdim=True))
    if "img_size" in kwargs:
        assert model.pos_embed.shape[1] == 65
        ratio = (64 / source.config.image_size) ** 2
        superpixels = round(source.config.num_superpixels * ratio)
        assert model.config.num_superpixels == max(superpixels, source.config.num_clusters[0])


def test_the_checkpoints_own_number_of_classes_keeps_its_levels():
    """timm's scripts always pass --num-classes. As in timm, the same number keeps the classifier."""
    classes = load_model(SMALL).config.level_classes
    assert timm.create_model(SMALL, num_classes=classes[-1]).config.level_classes == classes


def test_new_levels_with_the_same_finest_number_are_new():
    classes = load_model(SMALL).config.level_classes
    model = timm.create_model(SMALL, pretrained=True, level_classes=(3, classes[-1]))
    assert [head.out_features for head in model.heads] == [3, classes[-1]]


def test_a_checkpoint_of_other_levels_is_refused(tmp_path):
    other = timm.create_model("hcast_small", level_classes=(2, 3), device="meta").to_empty(device="cpu")
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    overlay = dict(file=str(tmp_path / "other.safetensors"))
    with pytest.raises(RuntimeError, match=r"size mismatch|Unexpected key"):
        timm.create_model("hcast_small", pretrained=True, pretrained_cfg_overlay=overlay)


def test_overlays_and_configs_of_the_user_apply():
    model = timm.create_model("hcast_tiny", pretrained_cfg_overlay=dict(mean=(0.5,) * 3, std=(0.5,) * 3), **TINY)
    assert model.config.mean == model.config.std == (0.5,) * 3  # SEEDS sees the transform's pixels
    cfg = PretrainedCfg(num_classes=7, input_size=(3, 64, 64), crop_pct=1.0)
    model = timm.create_model("hcast_tiny", pretrained_cfg=cfg)
    assert model.config.image_size == 64 and model.config.level_classes == (7,) and model.config.crop_pct == 1.0


@pytest.mark.parametrize("tag", ["cub", "inat21_mini"])
def test_unpublished_weights_are_explained(tag):
    with pytest.raises(RuntimeError, match=rf"hcast-zoo convert checkpoint.pth {tag}.safetensors.*checkpoint_path="):
        timm.create_model(f"hcast_small.{tag}", pretrained=True)


def tiny(taxonomy, **kwargs):
    torch.manual_seed(0)
    return timm.create_model("hcast_tiny", taxonomy=taxonomy.to_dict(), **{**TINY, **kwargs}).eval()


def test_a_saved_folder_loads_the_same_model(taxonomy, tmp_path):
    model = tiny(taxonomy)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert loaded.config == model.config and loaded.taxonomy == taxonomy
    assert timm.data.resolve_model_data_config(loaded)["input_size"] == (3, 32, 32)

    larger = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=64, num_classes=3)
    assert larger.config.num_superpixels == 64 and larger.config.level_classes == (3,)
    assert torch.equal(larger.cls_token, model.cls_token)


def test_a_changed_model_is_saved_as_it_is(taxonomy, tmp_path):
    model = tiny(taxonomy, in_chans=1)
    model.reset_classifier((3, 5), "avg")
    model.set_input_size(64)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert loaded.global_pool == "avg" and loaded.taxonomy is None
    # timm's export averages the normalisation over the channels, as SEEDS does for a grey picture.
    assert loaded.config == model.config.replace(mean=loaded.config.mean, std=loaded.config.std)
    assert loaded.config.mean == pytest.approx([sum(model.config.mean) / 3])


def test_a_model_that_is_not_square_keeps_its_size(taxonomy, tmp_path):
    model = tiny(taxonomy, img_size=(32, 96), num_superpixels=30)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert loaded.config == model.config and loaded.config.num_superpixels == 30
    assert timm.models.get_model_input_config(loaded)["input_size"] == (3, 32, 96)
    assert timm.create_model(f"local-dir:{tmp_path}", img_size=(64, 96)).config.num_superpixels == 60


@pytest.mark.slow
@pytest.mark.hub
def test_a_pushed_model_is_loaded_from_the_hub(server):
    create = (
        "import json, torch, timm, hcast_zoo; torch.manual_seed(0); "
        f"m = timm.create_model('hcast_tiny', level_classes=(2, 3), **{TINY!r}).eval(); "
    )
    answers = "x = torch.ones(1, 3, 32, 32); print(json.dumps([v.tolist() for v in m.forward_levels(x)]))"
    pushed = server.python(create + "timm.models.push_to_hf_hub(m, 'test/tiny', safe_serialization=True); " + answers)
    load = "import json, torch, timm, hcast_zoo; m = timm.create_model('hf-hub:test/tiny', pretrained=True).eval(); "
    assert server.python(load + answers) == pushed


@pytest.mark.slow
@pytest.mark.hub
def test_a_published_tag_loads(server):
    """A tag works once somebody publishes weights under its name."""
    result = server.python(
        "import json, timm, torch, hcast_zoo; from huggingface_hub import HfApi; from safetensors.torch import save; "
        "m = timm.create_model('hcast_small.cub'); api = HfApi(); api.create_repo('hcast-zoo/hcast_small.cub'); "
        "api.upload_file(path_or_fileobj=save(m.state_dict()), path_in_repo='model.safetensors', "
        "repo_id='hcast-zoo/hcast_small.cub'); n = timm.create_model('hcast_small.cub', pretrained=True); "
        "print(json.dumps(all(torch.equal(a, b) for a, b in zip(m.parameters(), n.parameters()))))"
    )
    assert result is True


@pytest.mark.parametrize("name", PACKAGED)
def test_the_transform_gives_predicts_pixels(name, request):
    pictures = sorted((request.config.rootpath / "tests" / "pictures").glob("*.png"))
    model = timm.create_model(name, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    predictor = Predictor(name)
    x = torch.stack([transform(read_picture(p)) for p in pictures])
    assert torch.equal(x, torch.stack([predictor.transform(read_picture(p)) for p in pictures]))
    with torch.no_grad():
        answers = predictor.decode(model.forward_levels(x))
    for mine, expected in zip(answers, predictor.predict(pictures), strict=True):
        assert mine.path == expected.path
        assert mine.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


def test_the_transform_takes_every_value_of_a_weights_file(tiny_model, tmp_path):
    changes = dict(image_size=48, crop_pct=0.7, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
    config = dataclasses.replace(tiny_model.config, **changes)
    cfg = PretrainedCfg(**describe_source(Source(config)))
    model = timm.create_model("hcast_tiny", pretrained_cfg=cfg, device="meta")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    picture = Image.effect_noise((90, 70), 50).convert("RGB")
    assert torch.equal(transform(picture), eval_transform(config)(picture))
    assert dataclasses.replace(model.config, **{f: getattr(config, f) for f in ("embed_dim", "depths")}).crop_pct == 0.7


def test_model_args_are_plain_data(taxonomy):
    model = tiny(taxonomy)
    args = json.loads(json.dumps(timm.models.get_model_args(model)))
    assert args["taxonomy"] == json.loads(json.dumps(taxonomy.to_dict()))
    assert set(get_arch_pretrained_cfgs("hcast_tiny")) == {"hcast_tiny.emoji_art", "hcast_tiny.fashion_mnist"}
