"""Pictures of 224 pixels and 196 superpixels in batches of 256, augmented as in the paper.

A data set's config gives the three dataloaders a source and a taxonomy.
"""

# mean and std are ImageNet's by default, as in the core.
data_preprocessor = dict(type="HierarchicalDataPreprocessor", to_rgb=True)

train_pipeline = [
    dict(type="LoadPicture", ignore_broken=True),
    dict(type="RandomResizedCrop", scale=224, backend="pillow", interpolation="bicubic"),
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
    dict(
        type="RandomErasing",
        erase_prob=0.25,
        mode="rand",
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=[103.53, 116.28, 123.675],
        fill_std=[57.375, 57.12, 58.395],
    ),
    # No superpixels here: batches are mixed first, and the model computes the superpixels of the mixed pictures.
    dict(type="PackHierarchicalInputs", segments=False),
]

test_pipeline = [
    dict(type="LoadPicture"),
    dict(type="ResizeEdge", scale=256, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="CenterCrop", crop_size=224),
    dict(type="GenerateSuperpixels", num_superpixels=196),
    dict(type="PackHierarchicalInputs"),
]

train_dataloader = dict(
    batch_size=256,
    num_workers=8,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="HierarchicalDataset", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=8,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="HierarchicalDataset", pipeline=test_pipeline, test_mode=True),
)
test_dataloader = dict(
    batch_size=256,
    num_workers=8,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="HierarchicalDataset", pipeline=test_pipeline, test_mode=True),
)

val_evaluator = dict(type="HierarchicalMetric")
test_evaluator = dict(type="HierarchicalMetric", decoders=["best_path", "top_down", "independent"])
