"""Names of packaged weights in transformers' own loaders, without a network."""

import pytest

pytest.importorskip("transformers")

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from hcast_zoo import Predictor
from hcast_zoo.integrations.transformers.packaged import packaged_name
from hcast_zoo.weights.file import load_weights

NAME = "hcast_tiny.fashion_mnist"


@pytest.mark.parametrize("name", [NAME, f"hcast_zoo/{NAME}"])
def test_auto_classes_load_packaged_weights(name):
    model = AutoModelForImageClassification.from_pretrained(name)
    weights = load_weights(NAME)
    assert model.dtype == torch.float32 and model.config.name_or_path == name
    assert AutoConfig.from_pretrained(name).taxonomy == weights.taxonomy.to_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights.state_dict[key].to(value.dtype)), key
    assert AutoImageProcessor.from_pretrained(name).crop_size == {"height": 32, "width": 32}
    assert AutoModel.from_pretrained(name).config.image_size == 32


def test_pipelines_load_packaged_weights(picture_folder):
    picture = str(next((picture_folder / "val").rglob("*.png")))
    expected = next(Predictor(NAME).predict(picture))
    answer = pipeline("hierarchical-image-classification", f"hcast_zoo/{NAME}", device="cpu")(picture)
    assert tuple(answer["path"]) == expected.path
    assert len(pipeline("image-classification", NAME, device="cpu")(picture)) == 5


def test_a_saved_model_loads_without_its_name(tmp_path):
    AutoModelForImageClassification.from_pretrained(NAME).save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").is_symlink()
    assert AutoModelForImageClassification.from_pretrained(tmp_path).config.level_classes == (2, 6, 10)


def test_other_names_are_left_to_transformers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert packaged_name("google/vit") is None and packaged_name(f"other/{NAME}") is None
    assert packaged_name(f"hcast_zoo/{NAME}") == NAME
    (tmp_path / NAME).mkdir()
    assert packaged_name(NAME) is None  # a folder of that name takes precedence
    with pytest.raises(OSError, match="couldn't connect to"):
        AutoConfig.from_pretrained("hcast_zoo/none")
