"""The predictor: one answer for one picture, however it is asked for."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hcast_zoo import Predictor
from hcast_zoo.data.pictures import PictureError
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.taxonomy.backoff import back_off
from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.decode import decode, node_probabilities
from hcast_zoo.taxonomy.subtree import Subtree
from hcast_zoo.weights.file import Weights, load_weights, save_weights


@pytest.fixture
def files(picture_folder):
    files = sorted(str(p) for p in (picture_folder / "val").rglob("*.png"))
    broken = picture_folder / "broken.png"
    broken.write_bytes(b"no picture")
    return [*files[:5], str(broken), *files[5:], str(picture_folder / "missing.png")]


@pytest.mark.parametrize("decoder", ["best_path", "top_down", "independent"])
def test_predictions_are_decoded_from_the_models_logits(files, tiny_weights, tiny_model, taxonomy, decoder):
    predictions = list(Predictor(tiny_weights, decoder).predict(files, batch_size=4))
    assert [p.file for p in predictions] == files
    for prediction in predictions:
        if prediction.file.endswith(("broken.png", "missing.png")):
            assert prediction.error and prediction.path == ()
            continue
        with torch.no_grad():
            logits = tiny_model(eval_transform(tiny_model.config)(Image.open(prediction.file))[None]).level_logits
        expected = decode(logits, taxonomy, decoder)
        assert prediction.path == taxonomy.path_names(expected.paths[0].tolist())
        assert prediction.probabilities == pytest.approx(expected.level_probabilities[0].tolist(), abs=1e-5)
        assert prediction.path_probability == pytest.approx(expected.path_probabilities.item(), abs=1e-5)
        assert prediction.runner_up == taxonomy.path_names(expected.runner_up[0].tolist())


def test_batch_size_and_workers_do_not_matter(files, tiny_weights):
    predictor = Predictor(tiny_weights)
    first, second = (list(predictor.predict(files, n, workers)) for n, workers in ((1, 0), (16, 2)))
    for a, b in zip(first, second, strict=True):
        assert (a.file, a.path, a.error) == (b.file, b.path, b.error)
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


TOLERANCE = 1e-5  # of a probability, whatever else is predicted with a picture


def test_an_answer_does_not_depend_on_how_it_is_asked_for(files, tiny_weights):
    """Batch size, workers, order, threads and other pictures do not matter."""

    def ask(pictures, *options):
        return {p.file: p for p in predictor.predict(pictures, *options)}

    predictor, threads = Predictor(tiny_weights), torch.get_num_threads()
    expected = ask(files, 1)
    others = {
        "batch of 3": ask(files, 3),
        "batch of 64": ask(files, 64),
        "workers": ask(files, 4, 2),
        "order": ask(files[::-1], 4),
        "again": ask(files, 1),
    }
    for count in (1, 2):
        torch.set_num_threads(count)
        others[f"{count} threads"] = ask(files, 4)
    torch.set_num_threads(threads)
    for case, again in others.items():
        assert again.keys() == expected.keys(), case
        for file, answer in again.items():
            assert (answer.path, answer.error) == (expected[file].path, expected[file].error), (case, file)
            assert answer.probabilities == pytest.approx(expected[file].probabilities, abs=TOLERANCE), (case, file)
            assert answer.path_probability == pytest.approx(expected[file].path_probability, abs=TOLERANCE), case


def test_records_of_an_answer_and_of_an_error(files, tiny_weights):
    good, bad = (p.to_dict() for p in Predictor(tiny_weights).predict([files[0], files[5]]))
    assert list(good) == ["file", "path", "probabilities", "path_probability", "runner_up", "runner_up_probability"]
    assert bad == {"file": files[5], "error": "not a picture, or of an unknown format"}


def test_an_answer_that_is_not_finite_is_an_error(files, tiny_weights, monkeypatch):
    predictor = Predictor(tiny_weights)
    transform = predictor.transform
    predictor.transform = lambda p: transform(p) * (torch.nan if p.getpixel((0, 0))[2] % 2 else 1.0)
    predictions = list(predictor.predict(files[:5]))
    errors = [Image.open(f).getpixel((0, 0))[2] % 2 == 1 for f in files[:5]]
    assert [p.error == "the model's answer is not finite" for p in predictions] == errors
    assert any(errors) and not all(errors)


def test_wrong_decoders_and_weights_are_explained(tiny_model, tiny_weights, tmp_path):
    with pytest.raises(ValueError, match="unknown decoding"):
        Predictor(tiny_weights, "beam")

    save_weights(Weights(tiny_model.config, None, tiny_model.state_dict()), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="no taxonomy"):
        Predictor(tmp_path / "bare.safetensors")


def test_restriction_back_off_and_calibration_work_together(files, tiny_weights, tiny_model, taxonomy, tmp_path):
    with torch.no_grad():  # every level favours the lion, whatever the random weights are
        for head, node in zip(tiny_model.heads, (1, 2, 3)):
            head.bias[node] += 0.5
    weights = load_weights(tiny_weights)
    weights.state_dict = tiny_model.state_dict()
    temperatures, within = (0.2, 0.4, 1.0), ["mammal", "gull"]  # below 1, because the tiny model's logits hardly differ

    weights.calibration = Calibration(temperatures, 1.3)
    save_weights(weights, tmp_path / "calibrated.safetensors")

    picture = eval_transform(tiny_model.config)(Image.open(files[0]))
    with torch.no_grad():
        logits = tiny_model(picture[None]).level_logits
    expected = decode([x / t for x, t in zip(logits, temperatures)], taxonomy, within=within, path_temperature=1.3)

    depths = set()
    for threshold in (0.0, 0.4, 0.6, 0.8, 1.0):
        predictor = Predictor(tmp_path / "calibrated.safetensors", within=within, threshold=threshold)
        (prediction,) = predictor.predict(files[:1])
        short = back_off(expected, taxonomy, threshold)
        assert prediction.path == taxonomy.path_names(short.paths[0].tolist())
        assert prediction.path_probability == pytest.approx(short.path_probabilities.item(), abs=1e-4)
        assert len(prediction.probabilities) == len(prediction.path) and prediction.to_dict()["reason"]
        assert prediction.runner_up == taxonomy.path_names(expected.runner_up[0].tolist())
        depths.add(len(prediction.path))
    assert {0, 3} <= depths


def test_wrong_restrictions_and_thresholds_are_explained(tiny_weights):
    with pytest.raises(ValueError, match="no node 'gul' in the taxonomy: did you mean 'gull'"):
        Predictor(tiny_weights, within=["gul"])
    with pytest.raises(ValueError, match="at least one node"):
        Predictor(tiny_weights, within=[])
    with pytest.raises(ValueError, match="threshold from 0 to 1, got 50"):
        Predictor(tiny_weights, threshold=50)


def test_other_settings_share_the_model(files, tiny_weights, taxonomy):
    first = Predictor(tiny_weights, "top_down", threshold=0.9)
    other = first.with_settings("independent", num_clusters=(4, 2, 1, 1), within=["bird"])
    assert other.model is first.model
    assert (first.decoder, first.num_clusters, first.threshold) == ("top_down", None, 0.9)
    expected = Predictor(tiny_weights, "independent", num_clusters=(4, 2, 1, 1), within=["bird"])
    assert list(other.predict(files)) == list(expected.predict(files))

    with pytest.raises(ValueError, match="cannot choose 20 clusters from 16 tokens"):
        first.with_settings(num_clusters=(20, 4, 2, 2))
    with pytest.raises(ValueError, match="no node 'brid'"):
        first.with_settings(within=["brid"])
    with pytest.raises(ValueError, match="unknown decoding"):
        first.with_settings("greedy")


def test_probabilities_of_nodes_are_calibrated(tiny_model, taxonomy, tiny_weights, tmp_path):
    weights = load_weights(tiny_weights)
    weights.calibration = Calibration((2.0, 3.0, 0.5), 1.5)
    save_weights(weights, tmp_path / "calibrated.safetensors")
    predictor = Predictor(tmp_path / "calibrated.safetensors")
    logits = [torch.randn(2, n) for n in taxonomy.level_classes]
    scaled = [x / t for x, t in zip(logits, (2.0, 3.0, 0.5))]

    for mode in (None, "independent"):
        expected = node_probabilities(scaled, taxonomy, mode or "best_path", path_temperature=1.5)
        for x, y in zip(predictor.node_probabilities(logits, mode), expected):
            assert torch.allclose(x, y)


def kinds_of_picture(file):
    """Return the same picture in every form that is accepted, each with the name in its prediction."""
    image, data = Image.open(file), Path(file).read_bytes()
    rgb = np.asarray(image.convert("RGB"))
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    return {
        "name": (file, file),
        "opened": (image, file),
        "image": (Image.fromarray(rgb), "picture"),
        "array": (rgb, "picture"),
        "with alpha": (alpha, "picture"),
        "16 bits": (rgb.astype(np.uint16) * 257, "picture"),
        "bytes": (data, "picture"),
        "buffer": (io.BytesIO(data), "picture"),
        "open file": (open(file, "rb"), file),
        "not contiguous": (np.asfortranarray(rgb), "picture"),
    }


def test_every_kind_of_picture_gives_the_same_answer(files, tiny_weights):
    predictor = Predictor(tiny_weights)
    expected, output = predictor.answer(files[0])
    assert expected.file == files[0] and expected.error is None
    for kind, (picture, name) in kinds_of_picture(files[0]).items():
        prediction, output_again = predictor.answer(picture)
        assert prediction == dataclasses.replace(expected, file=name), kind
        assert torch.equal(output.level_logits[2], output_again.level_logits[2]), kind

    pictures = [picture for picture, _ in kinds_of_picture(files[0]).values()]
    for prediction in predictor.predict(pictures, batch_size=4):
        assert prediction.path == expected.path and prediction.error is None
        assert prediction.probabilities == pytest.approx(expected.probabilities, abs=TOLERANCE)


def test_grey_pixels_of_every_shape_are_read_alike(tiny_weights):
    predictor = Predictor(tiny_weights)
    grey = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
    expected = predictor.answer(np.dstack([grey] * 3))[0]
    for picture in (grey, grey[..., None], grey.astype(np.uint16) * 257, Image.fromarray(grey)):
        assert predictor.answer(picture)[0] == expected


def test_exif_rotation_is_applied_to_opened_pictures(tiny_weights, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)

    predictor = Predictor(tiny_weights)
    expected = predictor.answer(np.rot90(pixels, -1))[1].level_logits[0]
    with Image.open(tmp_path / "turned.png") as opened:
        assert torch.equal(predictor.answer(opened)[1].level_logits[0], expected)
        assert opened.size == (60, 40)  # the caller's picture is left alone
    assert torch.equal(predictor.answer(tmp_path / "turned.png")[1].level_logits[0], expected)


def test_a_single_picture_needs_no_list(files, tiny_weights):
    predictor = Predictor(tiny_weights)
    for picture, name in kinds_of_picture(files[0]).values():
        (prediction,) = predictor.predict(picture)
        assert prediction.file == name and prediction.error is None

    (missing,) = predictor.predict("missing.png")
    assert missing.file == "missing.png" and missing.error == "no such file"
    stack = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    assert len(list(predictor.predict(stack))) == 3


@pytest.mark.parametrize(
    "picture, message",
    [
        (np.zeros((3, 40, 40), np.uint8), r"got \(3, 40, 40\): channels come last"),
        (np.zeros((40, 40, 3), np.float32), r"expected pixels of uint8 .* got float32: scale them"),
        (np.zeros((0, 40, 3), np.uint8), r"expected an array of pixels"),
        (np.zeros((40, 40, 2), np.uint8), r"expected an array of pixels .* got \(40, 40, 2\)"),
        (Image.new("RGB", (0, 4)), r"0x4 pixels: expected at least one"),
        (b"no picture", r"not a picture"),
        (io.StringIO("text"), r"open it with mode 'rb'"),
        (5, r"expected a picture \(a name, .* got 5"),
    ],
    ids=["channels first", "float", "empty", "two channels", "no pixels", "bytes", "text", "number"],
)
def test_an_invalid_picture_is_explained(files, tiny_weights, picture, message):
    predictor = Predictor(tiny_weights)
    with pytest.raises(PictureError, match=message) as caught:
        predictor.answer(picture)
    assert caught.value.file == "picture" and not caught.value.reason.startswith("picture")
    good, bad, also_good = predictor.predict([files[0], picture, files[1]])
    assert good.error is None and also_good.error is None and bad.error


def test_an_answer_that_is_not_finite_is_refused(files, tiny_weights):
    predictor = Predictor(tiny_weights)
    predictor.transform = lambda picture: torch.full((3, 32, 32), torch.nan)
    with pytest.raises(PictureError, match="the model's answer is not finite") as caught:
        predictor.answer(files[0])
    assert caught.value.file == files[0] and caught.value.reason == "the model's answer is not finite"


def test_the_subtree_is_built_once(files, tiny_weights, monkeypatch):
    predictor = Predictor(tiny_weights, within=["mammal"])
    monkeypatch.setattr(Subtree, "below", None)
    predictions = list(predictor.predict(files, batch_size=2))
    assert {p.path[0] for p in predictions if p.error is None} == {"mammal"}


def test_keys_of_plain_data_are_those_documented(tiny_weights, files):
    """Other programs read them; docs/other_tools.md lists them in the same order."""
    plain = ["file", "path", "probabilities", "path_probability", "runner_up", "runner_up_probability"]
    answer, error = (p.to_dict() for p in Predictor(tiny_weights).predict([files[0], files[5]]))
    assert list(answer) == plain and list(error) == ["file", "error"]
    more = next(Predictor(tiny_weights, threshold=0.5, top_k=2).predict(files[0])).to_dict()
    assert list(more) == [*plain, "reason", "top"] and list(more["top"][0]) == ["path", "probability"]
    assert [type(answer[key]) for key in plain] == [str, list, list, float, list, float]

    page = (Path(__file__).parents[2] / "docs/other_tools.md").read_text()
    keys = [key for line in page.splitlines() if line.startswith("| `") for key in line.split("|")[1].split(",")]
    assert [key.strip(" `") for key in keys] == [*plain, "reason", "top", "error"]


@pytest.mark.slow
def test_predict_maps_over_a_hugging_face_data_set(tiny_weights, files):
    """As in the snippet of docs/other_tools.md: a column of pictures in, a column of answers out."""
    datasets = pytest.importorskip("datasets")
    predictor = Predictor(tiny_weights)
    rows = datasets.Dataset.from_dict({"image": files[:3]}).cast_column("image", datasets.Image())
    rows = rows.map(lambda batch: {"answer": [a.to_dict() for a in predictor.predict(batch["image"])]}, batched=True)
    expected = list(predictor.predict(files[:3]))
    assert [tuple(answer["path"]) for answer in rows["answer"]] == [p.path for p in expected]
    answers = datasets.Dataset.from_list([p.to_dict() for p in expected])
    assert answers["path_probability"] == [p.path_probability for p in expected]
