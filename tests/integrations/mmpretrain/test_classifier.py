"""Classifier and preprocessor: maps travel with the samples, batches are mixed over all levels."""

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from hcast_zoo.data.transforms import to_tensor
from hcast_zoo.integrations.mmpretrain.preprocessor import HierarchicalDataPreprocessor
from hcast_zoo.training.losses import soft_targets

LABELS = [[0, 0, 1], [1, 3, 5], [0, 1, -1], [1, -1, -1]]


def make_samples(maps: bool = True) -> list[DataSample]:
    samples = []
    for row, label in enumerate(LABELS):
        sample = DataSample()
        sample.set_field(torch.tensor(label), "gt_path")
        if maps:
            sample.set_field((torch.arange(32).expand(32, 32) // (2 + row)).to(torch.int16), "segments")
        samples.append(sample)
    return samples


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8))


def test_maps_of_the_samples_reach_the_backbone(classifier, tiny_model):
    x, samples = torch.randn(4, 3, 32, 32), make_samples()
    maps = torch.stack([s.segments for s in samples])
    expected = tiny_model(x, maps).level_logits
    assert all(torch.equal(a, b) for a, b in zip(classifier(x, samples), expected))
    predicted = classifier.predict(x, samples)
    assert torch.equal(torch.stack([s.level_logits[2] for s in predicted]), expected[2])
    loss = classifier(x, samples, mode="loss")["loss"]
    assert torch.equal(loss, classifier.head.loss(classifier.backbone(x, maps), samples)["loss"])


def test_without_maps_the_backbone_makes_them(classifier, tiny_model):
    x = torch.randn(4, 3, 32, 32)
    expected = tiny_model(x).level_logits
    assert all(torch.equal(a, b) for a, b in zip(classifier(x), expected))
    assert all(torch.equal(a, b) for a, b in zip(classifier(x, make_samples(maps=False)), expected))


def test_a_missing_map_is_explained(classifier):
    samples = make_samples()
    samples[1].pop("segments")
    with pytest.raises(ValueError, match="a superpixel map of one size in each of 4 data samples, got 3"):
        classifier(torch.randn(4, 3, 32, 32), samples)


def test_each_level_gets_its_segments(classifier, tiny_model):
    x, samples = torch.randn(4, 3, 32, 32), make_samples()
    output = tiny_model(x, torch.stack([s.segments for s in samples]))
    for row, sample in enumerate(classifier.predict(x, samples, return_segments=True)):
        for level, stage in enumerate(tiny_model.config.head_stages):
            assert torch.equal(sample.pred_segments[level], output.segment_map(stage)[row])


def test_extract_feat_returns_stages_or_levels(classifier):
    x = torch.randn(1, 3, 32, 32)
    assert len(classifier.extract_feat(x, "backbone")) == 4
    assert len(classifier.extract_feat(x, "pre_logits")) == 3
    with pytest.raises(ValueError, match="stage: expected"):
        classifier.extract_feat(x, "logits")


@pytest.mark.parametrize(
    "part, change, message",
    [
        ("head", dict(in_channels=64), "expected the backbone's width 48, got 64"),
        (
            "backbone",
            dict(out_indices=(2, 3)),
            r"the head reads outputs \(3, 2, 1\).*give it out_indices=\(0, 1, 2, 3\)",
        ),
        (
            "data_preprocessor",
            dict(mean=[123.675, 116.28, 103.53], std=[58.4, 57.1, 57.4]),
            "mean: the data preprocessor",
        ),
        ("data_preprocessor", dict(mean=[0.5], std=[0.0]), "a positive std"),
        ("data_preprocessor", dict(level_classes=(2, 4)), r"the data preprocessor has \(2, 4\), the head \(2, 4, 6\)"),
    ],
)
def test_wrong_configs_fail_when_built(model_config, part, change, message):
    model_config[part] = {**model_config.get(part, {}), **change}
    with pytest.raises(ValueError, match=message):
        MODELS.build(model_config)


def test_normalisation_is_the_cores_to_the_last_bit(pictures, tiny_config):
    from PIL import Image
    from torchvision.transforms import Compose

    expected = [Compose(to_tensor(tiny_config))(Image.fromarray(p.flip(0).permute(1, 2, 0).numpy())) for p in pictures]
    preprocessor = HierarchicalDataPreprocessor()
    for inputs in (pictures, list(pictures)):
        assert torch.equal(preprocessor({"inputs": inputs})["inputs"], torch.stack(expected))


class TestMixing:
    @pytest.fixture
    def build(self):
        def build(augment="Mixup", **kwargs):
            return HierarchicalDataPreprocessor(
                level_classes=(2, 4, 6), batch_augments=dict(augments=[dict(type=augment, alpha=1.0)]), **kwargs
            )

        return build

    @pytest.mark.parametrize("augment", ["Mixup", "CutMix"])
    def test_one_lambda_for_all_levels(self, build, pictures, augment):
        np.random.seed(3)
        torch.manual_seed(3)
        mixed = build(augment)({"inputs": pictures.clone(), "data_samples": make_samples()}, training=True)
        order = self.order()
        score = torch.stack([s.gt_score for s in mixed["data_samples"]])
        target = torch.cat(soft_targets(torch.tensor(LABELS), (2, 4, 6)), -1)
        # lambda is read off the first level, where every label is known
        row = next(r for r in range(4) if LABELS[r][0] != LABELS[order[r]][0])
        lam = score[row, LABELS[row][0]]
        assert 0 < lam < 1
        assert torch.allclose(score, lam * target + (1 - lam) * target[order], atol=1e-6)

    def order(self):
        torch.manual_seed(3)
        return torch.randperm(4)

    def test_maps_of_mixed_pictures_are_dropped(self, build, pictures):
        data = {"inputs": pictures, "data_samples": make_samples()}
        assert not any("segments" in s for s in build()(data, training=True)["data_samples"])
        data["data_samples"] = make_samples()
        assert all("segments" in s for s in build(keep_segments=True)(data, training=True)["data_samples"])
        data["data_samples"] = make_samples()
        samples = build()(data, training=False)["data_samples"]
        assert all("segments" in s and "gt_score" not in s for s in samples)

    def test_a_training_step_reaches_every_parameter(self, model_config, pictures):
        model_config["train_cfg"] = dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)])
        model = MODELS.build(model_config)
        batch = model.data_preprocessor({"inputs": pictures, "data_samples": make_samples()}, training=True)
        loss = model(**batch, mode="loss")["loss"]
        loss.backward()
        assert loss.isfinite() and all(p.grad is not None for p in model.parameters())

    def test_mixing_needs_the_levels(self, pictures):
        preprocessor = HierarchicalDataPreprocessor(batch_augments=dict(augments=[dict(type="Mixup", alpha=1.0)]))
        with pytest.raises(ValueError, match="level_classes: batch augmentations need"):
            preprocessor({"inputs": pictures, "data_samples": make_samples()}, training=True)


def test_frozen_classifier_trains_the_heads(model_config, pictures):
    model_config["backbone"]["frozen_stages"] = 4
    model = MODELS.build(model_config).train()
    batch = model.data_preprocessor({"inputs": pictures, "data_samples": make_samples()}, training=True)
    model(**batch, mode="loss")["loss"].backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"head"}
