"""hcast_small on EmojiArt: 826 emoji < 47 subgroups < 5 groups; the model of the packaged weights.

Data: `python recipes/emoji_art.py --output data/emoji_art`. Image size,
superpixels and taxonomy are those of the weights.

    hcast-zoo mm-train hcast_zoo::hcast/hcast-small_emoji-art.py

The command reads the text config of the same name. A pure Python config inherits this file under `read_base()`:

    from hcast_zoo.integrations.mmpretrain.configs.hcast.hcast_small_emoji_art import *

Expected: the packaged weights' numbers on the unseen artist are in model_cards/hcast_small.emoji_art.md; they were
trained by `hcast-zoo train`. This recipe was run on slices of the data for two or three epochs, never to its end: cost
not measured.
"""

from mmengine.config import read_base
from mmpretrain.datasets import RandAugment, RandomFlip

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

weights = "hcast_small.emoji_art"

model.update(backbone=dict(arch=weights), head=dict(taxonomy=weights, calibration=weights))

train_pipeline = [
    dict(type=LoadPicture, ignore_broken=True, background="random"),
    dict(type=RandomResizedCropToModel, arch=weights, crop_ratio_range=(0.5, 1.0)),
    dict(type=RandomFlip, prob=0.5, direction="horizontal"),
    dict(
        type=RandAugment,
        policies="timm_increasing",
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation="bicubic"),
    ),
    dict(type=PackHierarchicalInputs, segments=False),
]
test_pipeline = [
    dict(type=LoadPicture),
    dict(type=ResizeToModel, arch=weights),
    dict(type=GenerateSuperpixels, arch=weights),
    dict(type=PackHierarchicalInputs),
]

source = "data/emoji_art/emoji_art.parquet"
train_dataloader.update(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="train", taxonomy=weights, pipeline=train_pipeline)
)
val_dataloader.update(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="val", taxonomy=weights, pipeline=test_pipeline)
)
test_dataloader.update(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="test", taxonomy=weights, pipeline=test_pipeline)
)

optim_wrapper.update(optimizer=dict(lr=5e-4))
default_hooks.update(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2, save_best="hierarchical/fpa", rule="greater")
)
