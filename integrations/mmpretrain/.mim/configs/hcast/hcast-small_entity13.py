"""BREEDS Entity-13: 130 subclasses < 13 superclasses.

Data: ImageNet, as data/imagenet/{train,val}/n01440764/... .

Start from an ImageNet CAST checkpoint of the authors, converted by `hcast-zoo convert cast_small.pth cast.safetensors`:

    hcast-zoo mm-train hcast_zoo::hcast/hcast-small_entity13.py --cfg-options load_from=cast.safetensors

Expected: 85.61 full-path accuracy (the authors' README). Not run here: cost not measured.
"""

_base_ = [
    "../_base_/models/hcast-small.py",
    "../_base_/datasets/breeds_bs256_224.py",
    "../_base_/schedules/hcast_bs256_adamw_100e.py",
    "mmpretrain::_base_/default_runtime.py",
]

taxonomy = "entity13"

model = dict(backbone=dict(num_superpixels=256), head=dict(taxonomy=taxonomy))
train_dataloader = dict(dataset=dict(taxonomy=taxonomy))
val_dataloader = dict(dataset=dict(taxonomy=taxonomy))
test_dataloader = dict(dataset=dict(taxonomy=taxonomy))
