"""CUB-200-2011: 200 species < 38 families < 13 orders.

Data: the archive, unpacked to data/CUB_200_2011. It has no validation split: the test split is evaluated during
training, but nothing is selected on it.

Start from an ImageNet CAST checkpoint of the authors, converted by `hcast-zoo convert cast_small.pth cast.safetensors`:

    hcast-zoo mm-train hcast_zoo::hcast/hcast-small_cub.py --cfg-options load_from=cast.safetensors

Expected: 84.9 or 83.28 full-path accuracy (both second-hand: from papers that cite H-CAST). Not run here:
cost not measured.
"""

_base_ = [
    "../_base_/models/hcast-small.py",
    "../_base_/datasets/hierarchical_bs256_224.py",
    "../_base_/schedules/hcast_bs256_adamw_100e.py",
    "mmpretrain::_base_/default_runtime.py",
]

taxonomy = "cub"

model = dict(head=dict(taxonomy=taxonomy))

train_source = dict(type="CUB", data_root="data/CUB_200_2011", split="train")
test_source = dict(type="CUB", data_root="data/CUB_200_2011", split="test")
train_dataloader = dict(dataset=dict(source=train_source, taxonomy=taxonomy))
val_dataloader = dict(dataset=dict(source=test_source, taxonomy=taxonomy))
test_dataloader = dict(dataset=dict(source=test_source, taxonomy=taxonomy))
