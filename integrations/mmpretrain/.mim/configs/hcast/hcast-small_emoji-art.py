"""hcast_small on EmojiArt: 826 emoji < 47 subgroups < 5 groups; the model of the packaged weights.

Data: `python recipes/emoji_art.py --output data/emoji_art`. Image size,
superpixels and taxonomy are those of the weights.

    hcast-zoo mm-train hcast_zoo::hcast/hcast-small_emoji-art.py

Expected: the packaged weights' numbers on the unseen artist are in model_cards/hcast_small.emoji_art.md; they were
trained by `hcast-zoo train`. This recipe was run on slices of the data for two or three epochs, never to its end: cost
not measured.
"""

_base_ = [
    "../_base_/models/hcast-small.py",
    "../_base_/datasets/hierarchical_bs256_224.py",
    "../_base_/schedules/hcast_bs256_adamw_100e.py",
    "mmpretrain::_base_/default_runtime.py",
]

weights = "hcast_small.emoji_art"

model = dict(backbone=dict(arch=weights), head=dict(taxonomy=weights, calibration=weights))

train_pipeline = [
    dict(type="LoadPicture", ignore_broken=True, background="random"),
    dict(type="RandomResizedCropToModel", arch=weights, crop_ratio_range=(0.5, 1.0)),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(
        type="RandAugment",
        policies="timm_increasing",
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation="bicubic"),
    ),
    dict(type="PackHierarchicalInputs", segments=False),
]
test_pipeline = [
    dict(type="LoadPicture"),
    dict(type="ResizeToModel", arch=weights),
    dict(type="GenerateSuperpixels", arch=weights),
    dict(type="PackHierarchicalInputs"),
]

source = "data/emoji_art/emoji_art.parquet"
train_dataloader = dict(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="train", taxonomy=weights, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="val", taxonomy=weights, pipeline=test_pipeline)
)
test_dataloader = dict(
    batch_size=64, num_workers=2, dataset=dict(source=source, split="test", taxonomy=weights, pipeline=test_pipeline)
)

optim_wrapper = dict(optimizer=dict(lr=5e-4))
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2, save_best="hierarchical/fpa", rule="greater")
)
