"""iNat21-Mini: 10000 species < 1103 families < 273 orders.

Data: the archives, unpacked to data/inat21/{train_mini,val}/00000_Animalia_.../, whose sorted folders are the
taxonomy's species in order. The tree has no names. Pictures are normalised with ImageNet's mean, in training and in
evaluation (the official code uses a different one for evaluation).

Start from an ImageNet CAST checkpoint of the authors, converted by `hcast-zoo convert cast_small.pth cast.safetensors`:

    hcast-zoo mm-train hcast_zoo::hcast/hcast-small_inat21-mini.py --cfg-options load_from=cast.safetensors

The command reads the text config of the same name. A pure Python config inherits this file under `read_base()`:

    from hcast_zoo.integrations.mmpretrain.configs.hcast.hcast_small_inat21_mini import *

Expected: 65.00 full-path accuracy (the authors' README). Not run here: cost not measured.
"""

from mmengine.config import read_base
from mmpretrain.datasets import CustomDataset

with read_base():
    from .._base_.default_runtime import *
    from .._base_.hcast_bs256_adamw_100e import *
    from .._base_.hcast_small import *
    from .._base_.hierarchical_bs256_224 import *

taxonomy = "inat21_mini"

model.update(head=dict(taxonomy=taxonomy))

train_source = dict(type=CustomDataset, data_root="data/inat21", data_prefix="train_mini")
val_source = dict(type=CustomDataset, data_root="data/inat21", data_prefix="val")
train_dataloader.update(dataset=dict(source=train_source, taxonomy=taxonomy, match="order"))
val_dataloader.update(dataset=dict(source=val_source, taxonomy=taxonomy, match="order"))
test_dataloader.update(dataset=dict(source=val_source, taxonomy=taxonomy, match="order"))
