"""FGVC-Aircraft: 100 variants < 70 families < 30 manufacturers.

Data: the archive, unpacked to data/fgvc-aircraft-2013b. Learning rate 1e-3 * 256 / 512, warmed up from 1e-4. The test
split is evaluated during training, but nothing is selected on it.

Start from an ImageNet CAST checkpoint of the authors, converted by `hcast-zoo convert cast_small.pth cast.safetensors`:

    hcast-zoo mm-train hcast_zoo::hcast/hcast-small_aircraft.py --cfg-options load_from=cast.safetensors

The command reads the text config of the same name. A pure Python config inherits this file under `read_base()`:

    from hcast_zoo.integrations.mmpretrain.configs.hcast.hcast_small_aircraft import *

Expected: 83.72 full-path accuracy (second-hand: from a paper that cites H-CAST). Not run here: cost not measured.
"""

from mmengine.config import read_base
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmpretrain.datasets import FGVCAircraft

with read_base():
    from .._base_.default_runtime import *
    from .._base_.hcast_bs256_adamw_100e import *
    from .._base_.hcast_small import *
    from .._base_.hierarchical_bs256_224 import *

taxonomy = "aircraft"

model.update(head=dict(taxonomy=taxonomy))

train_source = dict(type=FGVCAircraft, data_root="data/fgvc-aircraft-2013b", split="trainval")
test_source = dict(type=FGVCAircraft, data_root="data/fgvc-aircraft-2013b", split="test")
train_dataloader.update(dataset=dict(source=train_source, taxonomy=taxonomy))
val_dataloader.update(dataset=dict(source=test_source, taxonomy=taxonomy))
test_dataloader.update(dataset=dict(source=test_source, taxonomy=taxonomy))

optim_wrapper.update(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type=LinearLR, start_factor=0.2, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type=CosineAnnealingLR, T_max=295, eta_min=1e-5, by_epoch=True, begin=5, end=300, convert_to_iter_based=True),
]
