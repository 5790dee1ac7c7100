"""The same weights and picture files give the core's logits, through mmpretrain's own pipeline and preprocessor."""

from pathlib import Path

import mmpretrain
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample

from hcast_zoo.data.pictures import read_picture
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.integrations.mmpretrain.checkpoint import classifier_key
from hcast_zoo.weights.file import load_model

PICTURES = sorted((Path(__file__).parents[2] / "pictures").glob("*.png"))


@torch.inference_mode()
def test_packaged_weights_give_the_cores_logits():
    core = load_model("hcast_small.emoji_art")
    images = torch.stack([eval_transform(core.config)(read_picture(p)) for p in PICTURES])
    expected = core(images)

    model = mmpretrain.get_model("hcast-small_emoji-art", pretrained=True)
    pipeline = Compose([TRANSFORMS.build(t) for t in model._config.test_dataloader.dataset.pipeline])
    batch = model.data_preprocessor(pseudo_collate([pipeline({"img_path": str(p)}) for p in PICTURES]))
    assert torch.equal(batch["inputs"], images)
    assert torch.equal(torch.stack([s.segments for s in batch["data_samples"]]).long(), expected.segments)
    for ours, theirs in zip(model(**batch), expected.level_logits):
        assert (ours - theirs).abs().max() <= 1e-5


@torch.inference_mode()
def test_tiny_weights_give_the_cores_logits(classifier, tiny_model, test_pipeline):
    images = torch.stack([eval_transform(tiny_model.config)(read_picture(p)) for p in PICTURES])
    pipeline = Compose([TRANSFORMS.build(t) for t in test_pipeline])
    batch = classifier.data_preprocessor(pseudo_collate([pipeline({"img_path": str(p)}) for p in PICTURES]))
    for ours, theirs in zip(classifier(**batch), tiny_model(images).level_logits):
        assert (ours - theirs).abs().max() <= 1e-5


@torch.inference_mode()
def test_golden_logits_match_the_authors(golden, images, segments):
    """Through the classifier."""
    core, tensors, _ = golden
    config = core.config
    head = dict(type="HierarchicalClsHead", in_channels=config.embed_dim, decoder="independent")
    model = MODELS.build(
        dict(
            type="HierarchicalClassifier",
            backbone=dict(type="HCast", arch=config.to_dict()),
            head=dict(head, level_classes=config.level_classes),
        )
    ).eval()
    model.load_state_dict({classifier_key(k): v for k, v in core.state_dict().items()})
    samples = [DataSample() for _ in segments]
    for sample, labels in zip(samples, segments):
        sample.set_field(labels, "segments")
    levels = len(core.config.level_classes)
    for index, logits in enumerate(model(images, samples)):
        official = torch.from_numpy(tensors[f"logits_{levels - 1 - index}"])  # theirs are fine to coarse
        assert (logits - official).abs().max() <= 1e-5
