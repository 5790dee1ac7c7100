"""The paper's fine-tuning: AdamW, batch 256, the first 100 epochs of a 300-epoch cosine schedule.

The learning rate is 5e-4 * 256 / 512. The average of the weights is evaluated; after its warm-up, its decay is
the paper's 0.99996 (the official code keeps such an average, but evaluates the last weights).
"""

optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2.5e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={".cls_token": dict(decay_mult=0.0), ".pos_embed": dict(decay_mult=0.0)},
    ),
)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.004, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR", T_max=295, eta_min=1e-5, by_epoch=True, begin=5, end=300, convert_to_iter_based=True
    ),
]

train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()

custom_hooks = [
    dict(type="TaxonomyCheckHook"),
    dict(type="EMAHook", ema_type="MomentumAnnealingEMA", momentum=4e-5, gamma=100, priority="ABOVE_NORMAL"),
]

# Enable this if you change the number of GPUs or the batch size.
auto_scale_lr = dict(enable=False, base_batch_size=256)
