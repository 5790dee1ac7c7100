"""Both pipelines: the finest label, and the path with the segments that each level reads."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from transformers import pipeline

from hcast_zoo import Calibration, Predictor, Taxonomy
from hcast_zoo.integrations.transformers import HCastImageProcessor, from_core
from hcast_zoo.weights.file import Weights, load_weights

TASK = "hierarchical-image-classification"


@pytest.fixture
def folder(tiny_weights, tmp_path):
    weights = load_weights(tiny_weights)
    from_core(weights).save_pretrained(tmp_path / "repo")
    HCastImageProcessor.from_core(weights.config).save_pretrained(tmp_path / "repo")
    return str(tmp_path / "repo")


def test_image_classification_gives_the_finest_label(folder, val_files, tiny_weights, caplog):
    classifier = pipeline("image-classification", model=folder, device="cpu")
    assert "not supported" not in caplog.text
    expected = list(Predictor(tiny_weights, decoder="independent").predict(val_files))
    for answer, prediction in zip(classifier(val_files), expected, strict=True):
        assert answer[0]["label"] == prediction.path[-1]
        assert answer[0]["score"] == pytest.approx(prediction.probabilities[-1], abs=1e-6)
        assert len(answer) == 5


def test_image_classification_is_the_same_in_batches(folder, val_files):
    """transformers splits a batch by indexing every output, which would break a plain tuple of levels."""
    one_by_one = pipeline("image-classification", model=folder, device="cpu")(val_files)
    batched = pipeline("image-classification", model=folder, device="cpu")
    for a, b in zip(one_by_one, batched(val_files, batch_size=8), strict=True):
        assert [x["label"] for x in a] == [x["label"] for x in b]


def test_image_features_are_the_same_in_batches(folder, val_files):
    extract = pipeline("image-feature-extraction", model=folder, device="cpu", return_tensors=True)
    one_by_one, batched = extract(val_files), extract(val_files, batch_size=8)
    assert one_by_one[0].shape[0] == 1
    for a, b in zip(one_by_one, batched, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("decoder", ["best_path", "top_down", "independent"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_paths_are_the_predictors(folder, val_files, tiny_weights, decoder, batch_size):
    classifier = pipeline(TASK, model=folder, device="cpu", decoder=decoder)
    expected = Predictor(tiny_weights, decoder=decoder).predict(val_files)
    for answer, prediction in zip(classifier(val_files, batch_size=batch_size), expected, strict=True):
        assert tuple(answer["path"]) == prediction.path and tuple(answer["runner_up"]) == prediction.runner_up
        assert answer["score"] == pytest.approx(prediction.path_probability, abs=1e-6)
        assert answer["runner_up_score"] == pytest.approx(prediction.runner_up_probability, abs=1e-6)
        assert [x["label"] for x in answer["levels"]] == answer["path"]
        assert [x["level"] for x in answer["levels"]] == ["class", "family", "species"]
        assert [x["score"] for x in answer["levels"]] == pytest.approx(prediction.probabilities, abs=1e-6)


def test_segments_are_returned_on_request(folder, val_files):

    classifier = pipeline(TASK, model=folder, device="cpu")
    assert "segments" not in classifier(val_files[0])["levels"][0]
    levels = classifier(val_files[0], return_segments=True)["levels"]
    maps = [level["segments"] for level in levels]
    assert all(x.shape == (32, 32) and x.dtype == np.int64 for x in maps)
    assert maps[0].max() < maps[1].max() + 1 <= 4 and maps[2].max() < 8  # stages 4, 3 and 2 have 2, 4 and 8 tokens

    more = classifier(val_files[0], return_segments=True, num_clusters=(12, 10, 6, 2))["levels"]
    assert more[2]["segments"].max() < 12 and len(np.unique(more[2]["segments"])) > len(np.unique(maps[2]))


def test_pictures_keep_their_transparency(folder, tmp_path):
    """Transparent parts are white, in a file and in an opened picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "transparent.png")
    classifier = pipeline(TASK, model=folder, device="cpu")
    by_file, opened = classifier(str(tmp_path / "transparent.png")), classifier(Image.fromarray(pixels))
    assert by_file == opened

    on_white = Image.new("RGBA", (40, 40), "white")
    on_white.alpha_composite(Image.fromarray(pixels))
    assert classifier(on_white.convert("RGB")) == classifier(np.array(on_white.convert("RGB"))) == opened


def test_a_shallow_leaf_ends_the_path(tiny_model):
    tree = Taxonomy.from_paths([("bird", "owl", "barn owl"), ("fish",)])
    config = tiny_model.config.replace(level_classes=tree.level_classes)
    model = from_core(Weights(config, tree, type(tiny_model)(config).state_dict()))
    for head in model.heads:
        head.weight.data.zero_()
    model.heads[0].bias.data = model.heads[0].bias.new_tensor([-9.0, 9.0])
    classifier = pipeline(TASK, model=model, image_processor=HCastImageProcessor.from_core(config), device="cpu")
    answer = classifier(Image.new("RGB", (32, 32)))
    assert answer["path"] == ["fish"] and len(answer["levels"]) == 1
    assert not math.isnan(answer["levels"][0]["score"])


def test_a_model_without_names_is_refused(tiny_model):
    model = from_core(Weights(tiny_model.config, None, tiny_model.state_dict()))
    processor = HCastImageProcessor.from_core(tiny_model.config)
    with pytest.raises(ValueError, match="no taxonomy"):
        pipeline(TASK, model=model, image_processor=processor, device="cpu")(Image.new("RGB", (32, 32)))


class TestInputs:
    """What a caller may pass."""

    @pytest.fixture
    def classifier(self, folder):
        return pipeline(TASK, model=folder, device="cpu")

    @pytest.fixture
    def arrays(self, val_files):
        return np.stack([np.array(Image.open(file).convert("RGB").resize((40, 40))) for file in val_files[:3]])

    def test_several_pictures_in_one_array(self, classifier, arrays):
        expected = classifier([Image.fromarray(pixels) for pixels in arrays])
        assert classifier(arrays) == expected and len(expected) == 3
        assert classifier(torch.from_numpy(arrays).permute(0, 3, 1, 2)) == expected
        assert classifier([arrays[:2], arrays[2]]) == expected
        assert classifier([[Image.fromarray(arrays[0])], [Image.fromarray(arrays[1])]]) == expected[:2]
        assert classifier(tuple(arrays)) == expected
        assert list(classifier(x for x in arrays)) == expected

    def test_no_picture_gives_no_answer(self, classifier):
        assert classifier([]) == [] and classifier(np.zeros((0, 9, 9, 3), np.uint8)) == []

    def test_stock_pipeline_refuses_several_in_one(self, folder, arrays):
        with pytest.raises(ValueError, match="give a list of pictures"):
            pipeline("image-classification", model=folder, device="cpu")(arrays)

    def test_grey_and_16_bit_arrays(self, classifier, arrays):
        grey = np.array(Image.fromarray(arrays[0]).convert("L"))
        expected = classifier(Image.fromarray(grey))
        for pixels in (grey, grey[..., None], grey.astype(np.uint16) * 257, grey.astype(np.int64)):
            assert classifier(pixels) == expected

    def test_wide_integers_are_refused(self, classifier, arrays):
        with pytest.raises(ValueError, match="16-bit pictures must be uint16"):
            classifier(arrays[0].astype(np.int32) * 257)

    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_an_unreadable_picture_does_not_stop_the_others(self, classifier, val_files, tmp_path, batch_size):
        (tmp_path / "broken.png").write_bytes(b"no picture")
        mixed = [val_files[0], str(tmp_path / "broken.png"), str(tmp_path / "missing.png"), val_files[1]]
        answers = classifier(mixed, batch_size=batch_size)
        assert answers[1] == {"error": f"{tmp_path}/broken.png: not a picture, or of an unknown format"}
        assert answers[2] == {"error": f"{tmp_path}/missing.png: no such file"}
        for answer, expected in zip((answers[0], answers[3]), classifier(val_files[:2])):
            assert answer["path"] == expected["path"] and answer["score"] == pytest.approx(expected["score"], abs=1e-6)


class TestOptions:
    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_within_and_back_off_are_the_predictors(self, folder, val_files, tiny_weights, batch_size):
        classifier = pipeline(TASK, model=folder, device="cpu")
        for settings in ({"within": ["mammal"]}, {"threshold": 0.3}, {"within": ["owl", "cat"], "threshold": 0.6}):
            options = {"back_off" if key == "threshold" else key: value for key, value in settings.items()}
            expected = list(Predictor(tiny_weights, **settings).predict(val_files))
            for answer, prediction in zip(
                classifier(val_files, batch_size=batch_size, **options), expected, strict=True
            ):
                assert tuple(answer["path"]) == prediction.path and answer.get("reason") == prediction.reason
                assert answer["score"] == pytest.approx(prediction.path_probability, abs=1e-6)

    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_top_k_ranks_each_level(self, folder, val_files, batch_size):
        classifier = pipeline(TASK, model=folder, device="cpu", decoder="independent")
        for answer in classifier(val_files, top_k=3, batch_size=batch_size):
            assert [len(level["top_k"]) for level in answer["levels"]] == [2, 3, 3]
            for level in answer["levels"]:
                first = level["top_k"][0]
                assert (first["label"], first["score"]) == (level["label"], pytest.approx(level["score"], abs=1e-6))
                scores = [node["score"] for node in level["top_k"]]
                assert scores == sorted(scores, reverse=True)

        (answer,) = classifier(val_files[:1], top_k=6, within="bird")
        assert [x["label"] for x in answer["levels"][0]["top_k"]] == ["bird"]
        assert len(answer["levels"][2]["top_k"]) == 3

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"decoder": "no"}, "unknown decoding 'no'"),
            ({"back_off": 2.0}, "from 0 to 1, got 2.0"),
            ({"top_k": 0}, "top_k"),
            ({"within": "fish"}, "fish"),
        ],
    )
    def test_wrong_options_are_explained(self, folder, val_files, options, message):
        with pytest.raises(ValueError, match=message):
            pipeline(TASK, model=folder, device="cpu")(val_files[0], **options)


def test_scores_are_calibrated_in_every_pipeline(tiny_model, taxonomy, val_files):
    calibration = Calibration((1.0, 2.0, 3.0), 1.5, "test")
    model = from_core(Weights(tiny_model.config, taxonomy, tiny_model.state_dict(), {}, calibration))
    parts = {"model": model, "image_processor": HCastImageProcessor.from_core(tiny_model.config), "device": "cpu"}
    stock = pipeline("image-classification", **parts)(val_files[0])[0]
    ours = pipeline(TASK, **parts, decoder="independent")(val_files[0])["levels"][-1]
    assert (stock["label"], stock["score"]) == (ours["label"], pytest.approx(ours["score"], abs=1e-6))
