"""The config of transformers: the core's fields, labels that follow the taxonomy, and what changes them."""

import dataclasses
import json
import os
import threading

import pytest

pytest.importorskip("transformers")

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from hcast_zoo import HCastConfig as CoreConfig
from hcast_zoo import Taxonomy
from hcast_zoo.integrations.transformers import HCastConfig, HCastImageProcessor, HCastImageProcessorPil
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.weights.file import load_weights, packaged_weights

TINY = dict(
    image_size=32, embed_dim=48, depths=(1, 1, 1, 1), num_heads=3, num_superpixels=16, num_clusters=(8, 4, 2, 2)
)


@pytest.fixture
def config(tiny_config, taxonomy):
    return HCastConfig.from_core(tiny_config, taxonomy)


@pytest.fixture
def folder(config, tmp_path):
    config.save_pretrained(tmp_path)
    return tmp_path


def test_fields_and_defaults_are_the_cores():
    ours = HCastConfig()
    for field in dataclasses.fields(CoreConfig):
        assert getattr(ours, field.name) == getattr(CoreConfig(), field.name), field.name


def test_a_core_config_survives(config, tiny_config, taxonomy):
    assert config.to_core() == tiny_config
    assert config.get_taxonomy() == taxonomy


@pytest.mark.parametrize("name", list(packaged_weights()))
def test_packaged_configs_survive(name):
    weights = load_weights(name)
    config = HCastConfig.from_core(weights.config, weights.taxonomy)
    assert config.to_core() == weights.config and config.get_taxonomy() == weights.taxonomy
    assert config.num_labels == weights.config.level_classes[-1]


def test_a_saved_config_is_loaded_unchanged(config, folder):
    loaded = AutoConfig.from_pretrained(folder)
    assert loaded.to_json_string() == config.to_json_string()
    assert loaded.to_core() == config.to_core()
    assert "_follow_changes" not in json.loads((folder / "config.json").read_text())


def test_every_level_has_its_labels(config, taxonomy):
    assert config.level_names == ("class", "family", "species")
    assert config.level_id2label[0] == {0: "bird", 1: "mammal"}
    assert config.level_id2label[-1] == config.id2label == dict(enumerate(taxonomy.names[-1]))
    assert config.label2id["tiger"] == taxonomy.names[-1].index("tiger")


def test_labels_without_a_taxonomy_are_numbered():
    config = HCastConfig(level_classes=(2, 3))
    assert config.level_names == ("level_1", "level_2") and config.get_taxonomy() is None
    assert config.level_id2label == ({0: "LABEL_0", 1: "LABEL_1"}, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"})


@pytest.mark.parametrize("labels", [{"num_labels": 2}, {"id2label": {0: "no", 1: "yes"}}])
def test_labels_make_a_flat_config(labels):
    config = HCastConfig(**TINY, **labels)
    assert config.level_classes == (2,) and config.head_stages == (4,) and config.num_labels == 2
    assert config.label2id == {name: index for index, name in config.id2label.items()}


def test_transformers_own_names_are_understood():
    config = HCastConfig(hidden_size=96, num_attention_heads=6, num_channels=1, mean=(0.5,), std=(0.5,))
    assert (config.embed_dim, config.num_heads, config.in_chans) == (96, 6, 1)
    assert config.num_hidden_layers == 11
    with pytest.raises(NotImplementedError, match="set depths"):
        config.num_hidden_layers = 3


@pytest.mark.parametrize("change", [{"num_labels": 10}, {"id2label": {i: f"n{i}" for i in range(10)}}])
def test_loading_with_new_labels_makes_a_flat_model(folder, change):
    config = HCastConfig.from_pretrained(folder, **change)
    assert config.level_classes == (10,) and config.taxonomy is None and config.head_stages == (4,)
    assert len(config.id2label) == len(config.label2id) == 10
    assert config.embed_dim == 48


def test_loading_with_a_new_taxonomy_changes_the_levels(folder):
    tree = Taxonomy.from_paths([("a", "b"), ("a", "c"), ("d", "e")], ("upper", "lower"))
    config = HCastConfig.from_pretrained(folder, taxonomy=tree.to_dict())
    assert config.level_classes == (2, 3) and config.head_stages == (4, 3)
    assert config.id2label == {0: "b", 1: "c", 2: "e"} and config.label2id["e"] == 2


def test_renaming_labels_keeps_the_taxonomy(config, taxonomy):
    config.id2label = {i: name.upper() for i, name in enumerate(taxonomy.names[-1])}
    assert config.get_taxonomy() == taxonomy and config.id2label[3] == "LION"


def test_new_level_classes_drop_another_taxonomy(config):
    config.level_classes = [3, 5]
    assert config.taxonomy is None and config.num_labels == 5 and config.head_stages == (4, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_clusters": (8, 16, 2, 2)}, "cannot choose 16 clusters from 8 tokens"),
        ({"embed_dim": 50}, "embed_dim"),
        ({"superpixels": "watershed"}, "superpixels"),
        ({"kl_weight": -1.0}, "kl_weight"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"embed_dim": "48"}, "embed_dim"),
        ({"depths": (1, 1, 1)}, "depths"),
        ({"taxonomy": {"levels": []}}, "taxonomy lacks"),
    ],
)
def test_errors_name_the_field(fields, message):
    with pytest.raises((StrictDataclassError, TaxonomyError), match=message):
        HCastConfig(**{**TINY, **fields})


def test_taxonomy_and_classes_must_agree(taxonomy):
    with pytest.raises(ValueError, match=r"expected those of the taxonomy, \(2, 4, 6\)"):
        HCastConfig(taxonomy=taxonomy.to_dict(), level_classes=(2, 6))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_pipe_as_config_is_refused_without_waiting(tmp_path, name):
    pipe = tmp_path / name
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_text, args=("{}",), daemon=True).start()  # so that a failing test does not wait
    for kind in (HCastConfig,) if name == "config.json" else (HCastImageProcessor, HCastImageProcessorPil):
        with pytest.raises(ValueError, match=f"{name}: expected a file, got a pipe"):
            kind.from_pretrained(tmp_path)
