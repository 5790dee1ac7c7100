"""hcast_lite over ImageNet's classes: 1000 objects < 117 groups < 18 kinds; the model of the packaged weights.

Data: folders of photographs, nested as split/kind/group/object; not every object needs one.
Image size, superpixels and taxonomy are those of the weights.

    hcast-zoo mm-train hcast_zoo::hcast/hcast-lite_in1k.py

The command reads the text config of the same name. A pure Python config inherits this file under `read_base()`:

    from hcast_zoo.integrations.mmpretrain.configs.hcast.hcast_lite_in1k import *

Expected: the packaged weights' numbers are in model_cards/hcast_lite.in1k.md; they were distilled by
`recipes/in1k`. This recipe was not run to its end: cost not measured.
"""

from mmengine.config import read_base
from mmpretrain.datasets import RandomFlip

from hcast_zoo.integrations.mmpretrain.transforms import (
    GenerateSuperpixels,
    LoadPicture,
    PackHierarchicalInputs,
    RandomResizedCropToModel,
    ResizeToModel,
)

with read_base():
    from .._base_.default_runtime import *
    from .._base_.hcast_bs256_adamw_100e import *
    from .._base_.hcast_small import *
    from .._base_.hierarchical_bs256_224 import *

weights = "hcast_lite.in1k"

data_preprocessor.update(mean=[127 / 255] * 3, std=[128 / 255] * 3)
model.update(backbone=dict(arch=weights), head=dict(in_channels=480, taxonomy=weights, calibration=weights))

train_pipeline = [
    dict(type=LoadPicture, ignore_broken=True),
    dict(type=RandomResizedCropToModel, arch=weights, crop_ratio_range=(0.8, 1.0)),
    dict(type=RandomFlip, prob=0.5, direction="horizontal"),
    dict(type=PackHierarchicalInputs, segments=False),
]
test_pipeline = [
    dict(type=LoadPicture),
    dict(type=ResizeToModel, arch=weights),
    dict(type=GenerateSuperpixels, arch=weights),
    dict(type=PackHierarchicalInputs),
]

source = "data/photographs"
train_dataloader.update(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="train", taxonomy=weights, pipeline=train_pipeline)
)
val_dataloader.update(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="val", taxonomy=weights, pipeline=test_pipeline)
)
test_dataloader.update(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="test", taxonomy=weights, pipeline=test_pipeline)
)

optim_wrapper.update(optimizer=dict(lr=1e-4))
default_hooks.update(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2, save_best="hierarchical/fpa", rule="greater")
)
