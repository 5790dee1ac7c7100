"""BREEDS Entity-13: 130 subclasses < 13 superclasses.

Data: ImageNet, as data/imagenet/{train,val}/n01440764/... .

Start from an ImageNet CAST checkpoint of the authors, converted by `hcast-zoo convert cast_small.pth cast.safetensors`:

    hcast-zoo mm-train hcast_zoo::hcast/hcast-small_entity13.py --cfg-options load_from=cast.safetensors

The command reads the text config of the same name. A pure Python config inherits this file under `read_base()`:

    from hcast_zoo.integrations.mmpretrain.configs.hcast.hcast_small_entity13 import *

Expected: 85.61 full-path accuracy (the authors' README). Not run here: cost not measured.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.breeds_bs256_224 import *
    from .._base_.default_runtime import *
    from .._base_.hcast_bs256_adamw_100e import *
    from .._base_.hcast_small import *

taxonomy = "entity13"

model.update(backbone=dict(num_superpixels=256), head=dict(taxonomy=taxonomy))
train_dataloader.update(dataset=dict(taxonomy=taxonomy))
val_dataloader.update(dataset=dict(taxonomy=taxonomy))
test_dataloader.update(dataset=dict(taxonomy=taxonomy))
