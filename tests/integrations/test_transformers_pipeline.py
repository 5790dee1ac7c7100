"""Both pipelines: the finest label, and the path with the segments that each level was read from."""

import math

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers")

from transformers import pipeline

from hcast_zoo import Predictor, Taxonomy
from hcast_zoo.integrations.transformers import HCastImageProcessor, from_core
from hcast_zoo.weights import file as weights

TASK = "hierarchical-image-classification"


@pytest.fixture
def files(picture_folder):
    return [str(path) for path in sorted((picture_folder / "val").rglob("*.png"))]


@pytest.fixture
def folder(tiny_weights, tmp_path):
    content = weights.load(tiny_weights)
    from_core(content).save_pretrained(tmp_path / "repo")
    HCastImageProcessor.from_core(content.config).save_pretrained(tmp_path / "repo")
    return str(tmp_path / "repo")


def test_image_classification_gives_the_finest_label(folder, files, tiny_weights, caplog):
    classifier = pipeline("image-classification", model=folder, device="cpu")
    assert "not supported" not in caplog.text
    expected = list(Predictor(tiny_weights, decoder="independent").predict(files))
    for answer, prediction in zip(classifier(files), expected, strict=True):
        assert answer[0]["label"] == prediction.path[-1]
        assert answer[0]["score"] == pytest.approx(prediction.probabilities[-1], abs=1e-6)
        assert len(answer) == 5


def test_image_classification_in_batches(folder, files):
    """transformers splits a batch by indexing every output, so tuples of levels must be left out."""
    one_by_one = pipeline("image-classification", model=folder, device="cpu")(files)
    batched = pipeline("image-classification", model=folder, device="cpu", model_kwargs={"output_levels": False})
    for a, b in zip(one_by_one, batched(files, batch_size=8), strict=True):
        assert [x["label"] for x in a] == [x["label"] for x in b]


@pytest.mark.parametrize("decoder", ["best_path", "top_down", "independent"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_paths_are_the_predictors(folder, files, tiny_weights, decoder, batch_size):
    classifier = pipeline(TASK, model=folder, device="cpu", decoder=decoder)
    expected = Predictor(tiny_weights, decoder=decoder).predict(files)
    for answer, prediction in zip(classifier(files, batch_size=batch_size), expected, strict=True):
        assert tuple(answer["path"]) == prediction.path and tuple(answer["runner_up"]) == prediction.runner_up
        assert answer["score"] == pytest.approx(prediction.path_probability, abs=1e-6)
        assert answer["runner_up_score"] == pytest.approx(prediction.runner_up_probability, abs=1e-6)
        assert [x["label"] for x in answer["levels"]] == answer["path"]
        assert [x["level"] for x in answer["levels"]] == ["class", "family", "species"]
        assert [x["score"] for x in answer["levels"]] == pytest.approx(prediction.probabilities, abs=1e-6)


def test_segments_on_request(folder, files):
    classifier = pipeline(TASK, model=folder, device="cpu")
    assert "segments" not in classifier(files[0])["levels"][0]
    levels = classifier(files[0], return_segments=True)["levels"]
    maps = [level["segments"] for level in levels]
    assert all(x.shape == (32, 32) and x.dtype == np.int64 for x in maps)
    assert maps[0].max() < maps[1].max() + 1 <= 4 and maps[2].max() < 8  # stages 4, 3 and 2 have 2, 4 and 8 tokens
    more = classifier(files[0], return_segments=True, num_clusters=(12, 10, 6, 2))["levels"]
    assert more[2]["segments"].max() < 12 and len(np.unique(more[2]["segments"])) > len(np.unique(maps[2]))


def test_pictures_keep_their_transparency(folder, tmp_path):
    """A file and an open picture give one answer: transparent parts are white."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "transparent.png")
    classifier = pipeline(TASK, model=folder, device="cpu")
    by_file, opened = classifier(str(tmp_path / "transparent.png")), classifier(Image.fromarray(pixels))
    assert by_file == opened
    on_white = Image.new("RGBA", (40, 40), "white")
    on_white.alpha_composite(Image.fromarray(pixels))
    assert classifier(on_white.convert("RGB")) == classifier(np.array(on_white.convert("RGB"))) == opened


def test_shallow_leaves_end_the_path(tiny_model):
    tree = Taxonomy.from_paths([("bird", "owl", "barn owl"), ("fish",)])
    config = tiny_model.config.replace(level_classes=tree.level_classes)
    model = from_core(weights.Weights(config, tree, type(tiny_model)(config).state_dict()))
    for head in model.heads:
        head.weight.data.zero_()
    model.heads[0].bias.data = model.heads[0].bias.new_tensor([-9.0, 9.0])
    classifier = pipeline(TASK, model=model, image_processor=HCastImageProcessor.from_core(config), device="cpu")
    answer = classifier(Image.new("RGB", (32, 32)))
    assert answer["path"] == ["fish"] and len(answer["levels"]) == 1
    assert not math.isnan(answer["levels"][0]["score"])


def test_a_model_without_names_is_an_error(tiny_model):
    model = from_core(weights.Weights(tiny_model.config, None, tiny_model.state_dict()))
    processor = HCastImageProcessor.from_core(tiny_model.config)
    with pytest.raises(ValueError, match="no taxonomy"):
        pipeline(TASK, model=model, image_processor=processor, device="cpu")(Image.new("RGB", (32, 32)))
