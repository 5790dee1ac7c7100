"""Adapting a picture by the command: answers before and after, and the sheet that compares them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hcast_zoo import Predictor
from hcast_zoo.adaptation.adapt import adapt
from hcast_zoo.adaptation.report import adapt_picture, write_sheet
from hcast_zoo.data.pictures import PictureError
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.segments.metrics import rand_distance
from hcast_zoo.segments.sheet import (
    GAP,
    PANEL,
    changed_panel,
    changed_pixels,
    hue_panel,
    match_segments,
    segment_hues,
)
from hcast_zoo.taxonomy.decode import decode


@pytest.fixture
def picture(picture_folder):
    return sorted((picture_folder / "val").rglob("*.png"))[0]


def test_answers_match_the_two_outputs(tiny_weights, tiny_model, taxonomy, picture):
    adapted = adapt_picture(Predictor(tiny_weights), picture, "tiger")
    image = eval_transform(tiny_model.config)(Image.open(picture))[None]
    reference = adapt(tiny_model, image, taxonomy, "tiger")
    for answer, output in ((adapted.before, reference.before), (adapted.after, reference.after)):
        decoded = decode(output.level_logits, taxonomy)
        assert answer.path == taxonomy.path_names(decoded.paths[0].tolist())
        assert answer.path_probability == pytest.approx(decoded.path_probabilities.item(), abs=1e-4)
    assert adapted.target == "tiger" and adapted.probability[1] > adapted.probability[0]
    pairs = [(reference.before.segment_map(s)[0], reference.after.segment_map(s)[0]) for s in (2, 3, 4)]
    assert adapted.segment_change == pytest.approx([rand_distance(*pair) for pair in pairs])

    data = json.loads(json.dumps(adapted.to_dict()))
    assert data["target"] == "tiger" and data["before"]["path"] == list(adapted.before.path)
    assert list(data["segment_change"]) == ["stage 2", "stage 3", "stage 4"] and len(data["losses"]) == 6


def test_the_sheet_shows_both_segmentations(tiny_weights, picture, tmp_path):
    adapted = adapt_picture(Predictor(tiny_weights), picture, feedback="path")
    before, after = adapted.segmentations
    for segmentation, output in ((before, adapted.adaptation.before), (after, adapted.adaptation.after)):
        for stage, labels in enumerate(segmentation.maps, 1):
            assert np.array_equal(labels, output.segment_map(stage)[0].numpy())

    path = write_sheet(adapted, tmp_path / "new" / "folder")
    assert path.name == f"{picture.stem}.png"
    sheet = np.asarray(Image.open(path).convert("RGB"))

    hues = segment_hues(before.maps[-1])
    matched = match_segments(before.maps[-1], after.maps[-1])
    panels = [
        np.asarray(hue_panel(before, 4, hues)),
        np.asarray(hue_panel(after, 4, np.where(matched < 0, -1.0, hues[matched]))),
        np.asarray(changed_panel(before.view(PANEL), changed_pixels(before.maps[3], after.maps[3]))),
    ]

    right = sheet[:, -GAP - PANEL : -GAP]  # the last column
    tops = []
    for panel in panels:
        same = [row for row in range(len(right) - PANEL) if np.array_equal(right[row], panel[0])]
        tops += [row for row in same if np.array_equal(right[row : row + PANEL], panel)][:1]

    assert len(tops) == 3 and tops == sorted(tops)
    assert adapted.changed[2] == pytest.approx(100 * changed_pixels(before.maps[3], after.maps[3]).mean())


def test_the_picture_itself_is_not_overwritten(tiny_weights, picture):
    adapted = adapt_picture(Predictor(tiny_weights), picture, "bird")
    stored = picture.read_bytes()
    with pytest.raises(ValueError, match="is the picture itself: choose another folder"):
        write_sheet(adapted, picture.parent)
    assert picture.read_bytes() == stored


def test_adapting_leaves_the_predictor_as_it_was(tiny_weights, picture):
    predictor = Predictor(tiny_weights)
    (before,) = predictor.predict([picture])
    stored = [p.clone() for p in predictor.model.parameters()]

    adapt_picture(predictor, picture, "wolf")
    with pytest.raises(PictureError, match="no such file"):
        adapt_picture(predictor, "nowhere.png", "wolf")

    assert all(torch.equal(a, b) for a, b in zip(stored, predictor.model.parameters()))
    assert next(predictor.predict([picture])) == before
