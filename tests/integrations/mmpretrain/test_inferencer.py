"""mmpretrain's model hub, and inferencers."""

from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.apis import ImageClassificationInferencer

from hcast_zoo import Predictor
from hcast_zoo.integrations.mmpretrain.hcast import register
from hcast_zoo.integrations.mmpretrain.inferencer import HierarchicalInferencer

PICTURES = sorted(str(p) for p in (Path(__file__).parents[2] / "pictures").glob("*.png"))
ZOO = "hcast-small_emoji-art"


@pytest.fixture(scope="module")
def zoo_model():
    return mmpretrain.get_model(ZOO, pretrained=True)


@pytest.fixture(scope="module")
def answers():
    return list(Predictor("hcast_small.emoji_art").predict(PICTURES[:3]))


def test_models_are_listed_once():
    register(mmpretrain)  # repeating it changes nothing
    names = mmpretrain.list_models("hcast*")
    assert ZOO in names and "hcast-small_cub" in names and len(names) == 11
    assert names == mmpretrain.list_models("hcast*", task="Image Classification")
    assert "resnet50_8xb32_in1k" in mmpretrain.list_models()


@pytest.mark.slow
class TestZooModel:
    def test_answers_are_the_predictors(self, zoo_model, answers):
        results = HierarchicalInferencer(zoo_model)(PICTURES[:3], batch_size=2)
        for result, answer in zip(results, answers):
            assert (result["path"], result["runner_up"]) == (answer.path, answer.runner_up)
            assert result["path_score"] == pytest.approx(answer.path_probability, abs=1e-5)
            assert result["level_scores"] == pytest.approx(answer.probabilities, abs=1e-5)
            size = zoo_model.backbone.config.image_size
            assert result["segments"].shape == (len(answer.path), size, size)

    def test_segments_get_coarser(self, zoo_model):
        segments = HierarchicalInferencer(zoo_model)(PICTURES[0])[0]["segments"]
        counts = [len(np.unique(s)) for s in segments]
        assert counts == sorted(counts) and counts[0] < counts[-1]

    def test_mmpretrains_own_inferencer_names_the_class(self, zoo_model):
        result = ImageClassificationInferencer(zoo_model)(PICTURES[0])[0]
        classes = zoo_model._dataset_meta["classes"]
        assert result["pred_class"] == classes[result["pred_label"]] and 0 < result["pred_score"] < 1
        assert mmpretrain.inference_model(zoo_model, PICTURES[0])["pred_class"] == result["pred_class"]

    def test_a_model_is_found_by_name(self, answers):
        inferencer = HierarchicalInferencer(ZOO)
        assert inferencer(PICTURES[0], return_segments=False)[0]["path"] == answers[0].path

    def test_arrays_give_data_samples(self, zoo_model, answers):
        from mmpretrain.registry import TRANSFORMS

        image = TRANSFORMS.build(dict(type="LoadPicture"))({"img_path": PICTURES[0]})["img"]
        sample = HierarchicalInferencer(zoo_model)(image, return_datasamples=True)[0]
        assert zoo_model.head.taxonomy.path_names(sample.pred_path.tolist()) == answers[0].path


@pytest.fixture
def tiny_inferencer(classifier, test_pipeline):
    classifier._config = Config(dict(test_dataloader=dict(dataset=dict(pipeline=test_pipeline))))
    return HierarchicalInferencer(classifier)


def test_single_pictures_and_batches_agree(tiny_inferencer):
    results = tiny_inferencer(str(Path(PICTURES[0]).parent / "lion.png"))
    assert len(results) == 1 and len(results[0]["path"]) == 3
    single = [tiny_inferencer(p)[0]["path_score"] for p in PICTURES]
    assert single == pytest.approx([r["path_score"] for r in tiny_inferencer(PICTURES, batch_size=4)], abs=1e-6)


def test_pictures_are_drawn_into_a_folder(tiny_inferencer, tmp_path):
    tiny_inferencer.classes = tiny_inferencer.taxonomy.names[-1]
    tiny_inferencer(PICTURES[0], show_dir=str(tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == [Path(PICTURES[0]).name]


def test_other_models_are_refused(test_pipeline):
    model = mmpretrain.get_model("resnet18_8xb32_in1k")
    with pytest.raises(TypeError, match="use mmpretrain's ImageClassificationInferencer"):
        HierarchicalInferencer(model)
    with pytest.raises(ValueError, match="unknown argument"):
        ImageClassificationInferencer(model)(torch.zeros(3, 3, 3).numpy().astype(np.uint8), segments=True)
