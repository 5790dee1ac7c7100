"""CUB-200-2011: 200 species < 38 families < 13 orders.

Data: the archive, unpacked to data/CUB_200_2011. It has no validation split: the test split is evaluated during
training, but nothing is selected on it.

Start from an ImageNet CAST checkpoint of the authors, converted by `hcast-zoo convert cast_small.pth cast.safetensors`:

    hcast-zoo mm-train hcast_zoo::hcast/hcast-small_cub.py --cfg-options load_from=cast.safetensors

The command reads the text config of the same name. A pure Python config inherits this file under `read_base()`:

    from hcast_zoo.integrations.mmpretrain.configs.hcast.hcast_small_cub import *

Expected: 84.9 or 83.28 full-path accuracy (both second-hand: from papers that cite H-CAST). Not run here:
cost not measured.
"""

from mmengine.config import read_base
from mmpretrain.datasets import CUB

with read_base():
    from .._base_.default_runtime import *
    from .._base_.hcast_bs256_adamw_100e import *
    from .._base_.hcast_small import *
    from .._base_.hierarchical_bs256_224 import *

taxonomy = "cub"

model.update(head=dict(taxonomy=taxonomy))

train_source = dict(type=CUB, data_root="data/CUB_200_2011", split="train")
test_source = dict(type=CUB, data_root="data/CUB_200_2011", split="test")
train_dataloader.update(dataset=dict(source=train_source, taxonomy=taxonomy))
val_dataloader.update(dataset=dict(source=test_source, taxonomy=taxonomy))
test_dataloader.update(dataset=dict(source=test_source, taxonomy=taxonomy))
