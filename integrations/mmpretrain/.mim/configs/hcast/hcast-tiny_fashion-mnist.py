"""hcast_tiny on Fashion-MNIST: 10 articles < 6 categories < 2 kinds; the model of the packaged weights.

Data: `python recipes/fashion_mnist.py --output data/fashion_mnist`. Image size,
superpixels and taxonomy are those of the weights.

    hcast-zoo mm-train hcast_zoo::hcast/hcast-tiny_fashion-mnist.py

Expected: the packaged weights' numbers are in model_cards/hcast_tiny.fashion_mnist.md; they were trained by
`hcast-zoo train`. This recipe was not run to its end: cost not measured.
"""

_base_ = [
    "../_base_/models/hcast-small.py",
    "../_base_/datasets/hierarchical_bs256_224.py",
    "../_base_/schedules/hcast_bs256_adamw_100e.py",
    "mmpretrain::_base_/default_runtime.py",
]

weights = "hcast_tiny.fashion_mnist"

model = dict(backbone=dict(arch=weights), head=dict(in_channels=192, taxonomy=weights, calibration=weights))

train_pipeline = [
    dict(type="LoadPicture", ignore_broken=True),
    dict(type="RandomResizedCropToModel", arch=weights, crop_ratio_range=(0.8, 1.0)),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackHierarchicalInputs", segments=False),
]
test_pipeline = [
    dict(type="LoadPicture"),
    dict(type="ResizeToModel", arch=weights),
    dict(type="GenerateSuperpixels", arch=weights),
    dict(type="PackHierarchicalInputs"),
]

source = "data/fashion_mnist/fashion_mnist.parquet"
train_dataloader = dict(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="train", taxonomy=weights, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="val", taxonomy=weights, pipeline=test_pipeline)
)
test_dataloader = dict(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="test", taxonomy=weights, pipeline=test_pipeline)
)

optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2, save_best="hierarchical/fpa", rule="greater")
)
