"""A tiny architecture, its classifier, and configs of mmengine's Runner for it."""

import itertools
import sys

import pytest

pytest.importorskip("mmpretrain")

import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

import hcast_zoo  # noqa: F401  registers

_numbers = itertools.count()


@pytest.fixture
def arch(tiny_config) -> dict:
    """The tiny config as an ``arch`` of the backbone."""
    return tiny_config.to_dict()


@pytest.fixture
def model_config(arch, taxonomy, tiny_config) -> dict:
    return dict(
        type="HierarchicalClassifier",
        backbone=dict(type="HCast", arch=arch),
        head=dict(type="HierarchicalClsHead", in_channels=tiny_config.embed_dim, taxonomy=taxonomy.to_dict()),
    )


@pytest.fixture
def classifier(model_config, tiny_model):
    """The core's tiny model as a classifier with the same weights."""
    from hcast_zoo.integrations.mmpretrain.checkpoint import classifier_key

    model = MODELS.build(model_config)
    model.load_state_dict({classifier_key(k): v for k, v in tiny_model.state_dict().items()})
    return model.eval()


@pytest.fixture
def test_pipeline(arch) -> list[dict]:
    return [
        dict(type="LoadPicture"),
        dict(type="ResizeToModel", arch=arch),
        dict(type="GenerateSuperpixels", arch=arch),
        dict(type="PackHierarchicalInputs"),
    ]


@pytest.fixture
def run_config(model_config, test_pipeline, picture_folder, taxonomy, arch, tmp_path) -> Config:
    """Train the tiny model on 12 pictures, with mixing and an average of the weights, and validate on 12."""
    train_pipeline = [
        dict(type="LoadPicture"),
        dict(type="RandomResizedCropToModel", arch=arch),
        dict(type="PackHierarchicalInputs", segments=False),
    ]

    def loader(split, pipeline, shuffle, **kwargs):
        return dict(
            batch_size=6,
            num_workers=0,
            sampler=dict(type="DefaultSampler", shuffle=shuffle),
            dataset=dict(
                type="HierarchicalDataset",
                source=str(picture_folder),
                split=split,
                taxonomy=taxonomy.to_dict(),
                pipeline=pipeline,
                **kwargs,
            ),
        )

    return Config(
        dict(
            default_scope="mmpretrain",
            experiment_name=f"test_{next(_numbers)}",
            work_dir=str(tmp_path / "run"),
            model={**model_config, "train_cfg": dict(augments=[dict(type="Mixup", alpha=0.8)], probs=[0.5])},
            train_dataloader=loader("train", train_pipeline, True),
            val_dataloader=loader("val", test_pipeline, False, test_mode=True),
            test_dataloader=loader("val", test_pipeline, False, test_mode=True),
            val_evaluator=dict(type="HierarchicalMetric"),
            test_evaluator=dict(type="HierarchicalMetric", decoders=["best_path", "independent"]),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=3e-3)),
            train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
            val_cfg=dict(),
            test_cfg=dict(),
            default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
            custom_hooks=[dict(type="TaxonomyCheckHook"), dict(type="EMAHook", momentum=0.5)],
            randomness=dict(seed=0),
        )
    )


@pytest.fixture(autouse=True)
def quiet(caplog):
    """mmengine logs how every parameter is initialised; keep it out of failures' reports."""
    caplog.set_level("ERROR", "mmengine")
    torch.manual_seed(0)
    yield
    sys.stdout.flush()
