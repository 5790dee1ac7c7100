"""A BREEDS data set, read from ImageNet's folders (data/imagenet/{train,val}/n01440764/...), 256 superpixels.

A data set's config names the taxonomy; only the ImageNet classes in it are used.
"""

from mmengine.config import read_base
from mmpretrain.datasets import CenterCrop, CustomDataset, ResizeEdge

from hcast_zoo.integrations.mmpretrain.transforms import GenerateSuperpixels, LoadPicture, PackHierarchicalInputs

with read_base():
    from .hierarchical_bs256_224 import *

test_pipeline = [
    dict(type=LoadPicture),
    dict(type=ResizeEdge, scale=256, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type=CenterCrop, crop_size=224),
    # The official code always uses 256 here, and ignores its option.
    dict(type=GenerateSuperpixels, num_superpixels=256),
    dict(type=PackHierarchicalInputs),
]

train_source = dict(type=CustomDataset, data_root="data/imagenet", data_prefix="train")
val_source = dict(type=CustomDataset, data_root="data/imagenet", data_prefix="val")

train_dataloader.update(dataset=dict(source=train_source, match="id"))
val_dataloader.update(dataset=dict(source=val_source, match="id", pipeline=test_pipeline))
test_dataloader.update(dataset=dict(source=val_source, match="id", pipeline=test_pipeline))
