"""The same file gives the same answer through every interface, including the frameworks' own entry points."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import hcast_zoo  # noqa: F401  registers
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.weights.file import load_weights

from .pictures import write_formats

pytestmark = pytest.mark.slow
NAME = "hcast_tiny.emoji_art"
KINDS = ("transparent", "grey", "grey_transparent", "16_bit", "cmyk", "exif_rotated", "palette")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_formats(tmp_path_factory.mktemp("formats"))


@pytest.fixture(scope="module")
def expected(files):
    """The core's logits and the finest label's calibrated probability, by kind."""
    predictor = Predictor(NAME)
    answers = {}
    for kind, file in files.items():
        _, output = predictor.answer(file)
        level_logits = [x[0].detach() for x in output.level_logits]
        finest = predictor.calibration.logits([x[None] for x in level_logits])[-1].softmax(-1)[0]
        label = predictor.taxonomy.names[-1][int(finest.argmax())]
        answers[kind] = (level_logits, label, finest.max().item(), next(predictor.predict(file)))
    return answers


@pytest.fixture(scope="module")
def transformers_parts():
    pytest.importorskip("transformers")
    from hcast_zoo.integrations.transformers import HCastImageProcessor, HCastImageProcessorPil, from_core

    weights = load_weights(NAME)
    processors = [kind.from_core(weights.config) for kind in (HCastImageProcessor, HCastImageProcessorPil)]
    return from_core(weights), processors


@pytest.fixture(scope="module")
def mm_model():
    mmpretrain = pytest.importorskip("mmpretrain")
    return mmpretrain.get_model("hcast-tiny_emoji-art", pretrained=True)


def check(answer: dict, expected: tuple) -> None:
    assert (answer["label"], answer["score"]) == (expected[1], pytest.approx(expected[2], abs=TOLERANCE))


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_stock_pipeline_agrees(kind, files, expected, transformers_parts):
    """By name, as an opened picture, and as bytes in base64."""
    import base64

    from transformers import pipeline

    model, (processor, _) = transformers_parts
    classify = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    check(classify(str(files[kind]))[0], expected[kind])
    check(classify(Image.open(files[kind]))[0], expected[kind])
    check(classify(base64.b64encode(files[kind].read_bytes()).decode())[0], expected[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_hierarchical_pipeline_agrees(kind, files, expected, transformers_parts):
    from transformers import pipeline

    model, (processor, _) = transformers_parts
    classify = pipeline("hierarchical-image-classification", model=model, image_processor=processor, device="cpu")
    sources = (str(files[kind]), files[kind], Image.open(files[kind]), files[kind].read_bytes())
    for source in (*sources, io.BytesIO(files[kind].read_bytes())):
        answer = classify(source)
        assert tuple(answer["path"]) == expected[kind][3].path
        assert answer["score"] == pytest.approx(expected[kind][3].path_probability, abs=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_transformers_image_processors_agree(kind, files, expected, transformers_parts):
    model, processors = transformers_parts
    for processor in processors:
        for source in (str(files[kind]), files[kind], Image.open(files[kind])):
            logits = model(**processor(source, return_tensors="pt")).level_logits
            for ours, core in zip(logits, expected[kind][0], strict=True):
                torch.testing.assert_close(ours[0], core, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_timm_agrees(kind, files, expected, tmp_path):
    """timm's transform on our picture, and its data set and loader as ``hcast-zoo timm`` runs its scripts."""
    import timm
    from timm.data import create_loader, create_transform, resolve_model_data_config

    from hcast_zoo.data.pictures import read_picture
    from hcast_zoo.integrations.timm.scripts import create_upright_reader

    model = timm.create_model(NAME, pretrained=True).eval()
    config = resolve_model_data_config(model)
    images = [create_transform(**config)(read_picture(files[kind]))[None]]

    (tmp_path / "class").mkdir()
    shutil.copy(files[kind], tmp_path / "class")
    dataset = timm.data.ImageDataset(str(tmp_path), reader=create_upright_reader("", root=str(tmp_path)))
    # Pillow's resize, as timm's scripts use without its prefetcher.
    options = {key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
    loader = create_loader(dataset, batch_size=1, num_workers=0, use_prefetcher=False, device="cpu", **options)
    images += [batch for batch, _ in loader]
    for image in images:
        for ours, core in zip(model.forward_levels(image), expected[kind][0], strict=True):
            torch.testing.assert_close(ours[0], core, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["transparent", "16_bit", "grey"])
def test_arrays_agree_in_transformers(kind, files, expected, transformers_parts):
    """The arrays that Pillow gives: RGBA, uint16, and (H, W)."""
    from transformers import pipeline

    model, (processor, _) = transformers_parts
    pixels = np.array(Image.open(files[kind]))
    if kind == "16_bit":
        pixels = pixels.astype(np.uint16)
    for task in ("image-classification", "hierarchical-image-classification"):
        classify = pipeline(task, model=model, image_processor=processor, device="cpu")
        for source in (pixels, torch.from_numpy(pixels)):
            answer = classify(source)
            finest = answer[0] if isinstance(answer, list) else answer["levels"][-1]
            assert finest["label"] == expected[kind][1]
            if isinstance(answer, list):
                check(finest, expected[kind])
            else:
                assert answer["score"] == pytest.approx(expected[kind][3].path_probability, abs=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_mmpretrains_stock_inferencer_agrees(kind, files, expected, mm_model):
    from mmpretrain.apis import FeatureExtractor, ImageClassificationInferencer

    result = ImageClassificationInferencer(mm_model)(str(files[kind]))[0]
    check({"label": result["pred_class"], "score": result["pred_score"]}, expected[kind])

    features = FeatureExtractor(mm_model)(str(files[kind]), stage="neck")[0]
    logits = mm_model.head([x[None] for x in features])
    torch.testing.assert_close(logits[-1][0], expected[kind][0][-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hierarchical_inferencer_agrees(kind, files, expected, mm_model):
    from hcast_zoo.integrations.mmpretrain.inferencer import HierarchicalInferencer

    result = HierarchicalInferencer(mm_model)(str(files[kind]))[0]
    assert result["path"] == expected[kind][3].path
    assert result["path_score"] == pytest.approx(expected[kind][3].path_probability, abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["transparent", "16_bit", "grey"])
def test_arrays_agree_in_mmpretrain(kind, files, expected, mm_model):
    """The arrays that OpenCV gives: B, G, R, A; uint16; and (H, W)."""
    from mmpretrain.apis import ImageClassificationInferencer

    pixels = np.array(Image.open(files[kind]))
    pixels = pixels.astype(np.uint16) if kind == "16_bit" else pixels
    pixels = pixels[..., (2, 1, 0, 3)] if pixels.ndim == 3 else pixels
    result = ImageClassificationInferencer(mm_model)(pixels)[0]
    check({"label": result["pred_class"], "score": result["pred_score"]}, expected[kind])


def test_other_models_read_pictures_as_before(files):
    """In transformers' pipeline."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    model = transformers.ViTForImageClassification(config).eval()
    classify = transformers.pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    dropped = Image.open(files["transparent"]).convert("RGB")
    assert classify(str(files["transparent"])) == classify(dropped)
