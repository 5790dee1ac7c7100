"""The shipped weights for photographs: answers of the first command, and thresholds that their segments meet."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hcast_zoo.cli import main
from hcast_zoo.common.choices import DEFAULT_MODEL
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.network.encoder import Encoding
from hcast_zoo.network.model import HCast, segment_map
from hcast_zoo.network.stems import SuperpixelMeans
from hcast_zoo.segments.explain import explain_levels
from hcast_zoo.segments.metrics import best_union_iou
from hcast_zoo.weights.file import load_model

PICTURES = Path(__file__).parents[1] / "pictures"
SIDE = 140  # of a cut-out, in pixels
pytestmark = pytest.mark.slow


def test_the_first_command_names_both_pictures(capsys):
    assert main(["predict", str(PICTURES / "tabby.jpg"), str(PICTURES / "espresso.jpg"), "--json"]) == 0
    paths = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    assert paths == [["mammal", "cat", "tabby"], ["food or drink", "drink", "espresso"]]


@pytest.fixture(scope="module")
def model() -> HCast:
    return load_model(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def composites(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawings over photographs: (12, 3, 224, 224) normalised pictures, and the (12, 224, 224) bool drawings."""
    pictures, masks = [], []
    for ground in ("tabby.jpg", "espresso.jpg"):
        for number, drawing in enumerate(sorted(PICTURES.glob("*.png"))):
            with Image.open(PICTURES / ground) as photograph, Image.open(drawing) as file:
                picture = photograph.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
                cut_out = file.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            place = 84 * (number % 2), 42 * (number % 3)
            picture.paste(cut_out, place, cut_out)
            mask = Image.new("L", picture.size)
            mask.paste(cut_out.getchannel("A"), place)
            pictures.append(eval_transform(model.config.replace(crop_pct=1.0))(picture))
            masks.append(torch.from_numpy(np.array(mask)) > 127)
    return torch.stack(pictures), torch.stack(masks)


@pytest.fixture(scope="module")
@torch.no_grad()
def cached(model, composites) -> tuple[SuperpixelMeans, torch.Tensor]:
    count = model.config.num_superpixels
    segments = model.prepare_segments(composites[0], None, count)
    return model.superpixel_means(composites[0], segments, count), segments


@torch.no_grad()
def run(model: HCast, means: SuperpixelMeans, segments: torch.Tensor, clusters=None) -> Encoding:
    start = model.start_from_means(means, segments)
    return model.encode_tokens(*start, segments, clusters or model.config.num_clusters)


@torch.no_grad()
def read(model: HCast, encoding: Encoding) -> tuple[torch.Tensor, ...]:
    return model.forward_heads(encoding.level_features)


def test_swapped_tokens_swap_the_answers(model, cached):
    """With another picture's tokens, every level gives that picture's answer."""
    means, segments = cached
    answers = read(model, run(model, means, segments))
    # The other half of the pictures is on the other photograph.
    other = SuperpixelMeans(*(x.roll(6, 0) for x in (means.features, means.descriptor, means.area)))
    swapped = read(model, run(model, other, segments.roll(6, 0)))

    for logits, theirs in zip(answers, swapped):
        torch.testing.assert_close(logits.roll(6, 0), theirs, atol=1e-3, rtol=1e-3)
        assert (logits.argmax(-1) != theirs.argmax(-1)).all()


def test_hiding_the_focus_costs_more_than_hiding_as_much_elsewhere(model, composites, cached):
    """The focus is the quarter of the superpixels that a level looks at most."""
    means, segments = cached
    _, explanation = explain_levels(model, composites[0], segments)
    answers = read(model, run(model, means, segments))
    for level, logits in enumerate(answers):
        answer = logits.argmax(-1, keepdim=True)
        order = explanation.focus[:, level].argsort(1, descending=True)
        count = order.shape[1] // 4
        costs = []
        for hidden in (order[:, :count], order[:, count : 2 * count]):
            shown = SuperpixelMeans(means.features, means.descriptor, means.area.scatter(1, hidden, 0.0))
            left = read(model, run(model, shown, segments))[level]
            costs.append((logits.log_softmax(-1) - left.log_softmax(-1)).gather(1, answer).mean().item())

        assert costs[0] > costs[1] + 0.1, (level, costs)


def test_segments_follow_the_drawings(model, composites, cached):
    """Mean IoU of the best union of segments. A lion over a tabby is harder than the pairs in the model card."""
    for clusters, stages, bars in (((16, 8, 4, 2), (2, 3, 4), (75, 65, 50)), (model.config.num_clusters, (4,), (75,))):
        encoding = run(model, *cached, clusters)
        for stage, bar in zip(stages, bars):
            maps = segment_map(encoding.segments, encoding.assignments, stage)
            ious = [best_union_iou(labels, mask) for labels, mask in zip(maps, composites[1])]
            assert sum(ious) / len(ious) >= bar, (clusters, stage, ious)
