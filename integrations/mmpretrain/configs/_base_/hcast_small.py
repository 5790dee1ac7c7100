"""hcast_small. A data set's config gives the head its taxonomy."""

from mmpretrain.models import CutMix, Mixup

from hcast_zoo.integrations.mmpretrain.backbone import HCast
from hcast_zoo.integrations.mmpretrain.classifier import HierarchicalClassifier
from hcast_zoo.integrations.mmpretrain.head import HierarchicalClsHead
from hcast_zoo.integrations.mmpretrain.loss import HierarchicalLoss

model = dict(
    type=HierarchicalClassifier,
    backbone=dict(type=HCast, arch="small", drop_path_rate=0.1),
    head=dict(
        type=HierarchicalClsHead, in_channels=384, loss=dict(type=HierarchicalLoss, kl_weight=0.5, smoothing=0.1)
    ),
    train_cfg=dict(augments=[dict(type=Mixup, alpha=0.8), dict(type=CutMix, alpha=1.0)]),
)
