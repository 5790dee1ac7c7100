"""Segmentations and what is drawn of them: labels, colours, boundaries, focus and sheets."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hcast_zoo.data.pictures import PictureError
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.segments.drawing import (
    Segmentation,
    average_colours,
    draw_boundaries,
    draw_focus,
    label_picture,
    segment_strip,
)
from hcast_zoo.segments.metrics import boundaries
from hcast_zoo.segments.sheet import (
    DARK,
    GAP,
    PANEL,
    changed_pixels,
    compose_sheet,
    hue_panel,
    match_segments,
    segment_hues,
    whole_panel,
)


def picture(width, height):
    """Return a picture of noise."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def segmentation(model, image):
    with torch.no_grad():
        output = model(eval_transform(model.config)(image)[None])
    return output, Segmentation.from_output(image, output, model.config)


@pytest.mark.parametrize("size", [(32, 32), (75, 50), (41, 200), (8, 8), (3, 90)])
def test_stages_are_nested_at_the_pictures_size(tiny_model, size):
    output, segmented = segmentation(tiny_model, picture(*size))
    stages = [segmented.labels(stage) for stage in (1, 2, 3, 4)]
    assert all(labels.shape == size[::-1] and labels.dtype == np.int32 for labels in stages)
    for fine, coarse in pairwise(stages):
        for label in np.unique(fine):
            assert len(np.unique(coarse[fine == label])) == 1
    assert np.array_equal(stages[0] == -1, stages[3] == -1)
    for stage, tokens in enumerate((16, 8, 4, 2), 1):
        assert (
            np.array_equal(segmented.maps[stage - 1], output.segment_map(stage)[0]) and stages[stage - 1].max() < tokens
        )


def test_labels_are_placed_where_the_model_saw_them(tiny_model):
    """The map of the transformed picture, on the picture's own pixels."""
    model = tiny_model
    model.config = model.config.replace(crop_pct=0.8)
    image = Image.new("RGB", (120, 60))
    image.paste((255, 0, 0), (60, 0, 120, 60))
    image.paste((0, 255, 0), (0, 30, 60, 60))

    red, green = (eval_transform(model.config)(image)[c] > 0 for c in (0, 1))
    output = SimpleNamespace(assignments=(), segment_map=lambda stage: (red.long() + 2 * green.long())[None])
    labels = Segmentation.from_output(image, output, model.config).labels(1)
    seen = labels >= 0
    assert seen[6:54, 36:84].all() and seen.sum() == 48 * 48  # the middle 0.8 of the short side, square
    pixels = np.asarray(image)
    expected = (pixels[..., 0] > 0) * 1 + (pixels[..., 1] > 0) * 2
    assert np.mean(labels[seen] == expected[seen]) > 0.97  # all but a blurred line


def test_segments_are_filled_with_their_average_colour():
    image, labels = picture(7, 5), np.random.default_rng(0).integers(-1, 4, (5, 7))
    average, pixels = np.asarray(average_colours(image, labels)), np.asarray(image)
    for label in range(4):
        mean = pixels[labels == label].mean(0)
        assert np.abs(average[labels == label] - mean).max() <= 0.5
    assert np.array_equal(average[labels == -1], pixels[labels == -1])


def test_boundaries_lie_between_different_labels():
    labels = np.random.default_rng(0).integers(0, 2, (6, 5))
    edge = boundaries(labels)
    for y in range(6):
        for x in range(5):
            right = x < 4 and labels[y, x] != labels[y, x + 1]
            below = y < 5 and labels[y, x] != labels[y + 1, x]
            assert edge[y, x] == (right or below)

    halves = np.repeat([[0, 0, 0, 1, 1, 1]], 4, 0)
    assert boundaries(halves, 2)[0].tolist() == [False, True, True, False, False, False]

    drawn = np.asarray(draw_boundaries(Image.new("RGB", (6, 4)), halves, (1, 2, 3)))
    assert drawn[0].tolist() == [[0, 0, 0]] * 2 + [[1, 2, 3]] + [[0, 0, 0]] * 3


@pytest.mark.parametrize("count", [3, 255, 400])
def test_label_pictures_hold_the_labels(count, tmp_path):
    labels = np.random.default_rng(0).integers(-1, count, (30, 40))
    labels[0, 0] = count - 1
    label_picture(labels).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as file:
        assert np.array_equal(np.asarray(file).astype(int) - 1, labels)
        assert file.mode == ("P" if count <= 255 else "I;16")
        if count == 255:
            assert len({tuple(c) for c in np.asarray(file.convert("RGB")).reshape(-1, 3)}) > 200


def test_focus_colours_only_where_a_level_looks():
    focus = np.zeros((4, 6), np.float32)
    focus[:, 3:] = 0.01
    drawn = np.asarray(draw_focus(Image.new("RGB", (6, 4), (90, 90, 90)), focus))

    assert (drawn[:, :3] == 90).all() and (drawn[:, 3:, 0] > drawn[:, 3:, 2] + 50).all()
    assert (np.asarray(draw_focus(Image.new("RGB", (6, 4), (90, 90, 90)), focus * 0)) == 90).all()


def test_pictures_of_another_size_are_refused():
    for draw in (average_colours, draw_boundaries, draw_focus):
        with pytest.raises(ValueError, match=r"label map's size, 6x4 pixels, got RGB 5x4"):
            draw(picture(5, 4), np.zeros((4, 6), int))
        with pytest.raises(ValueError, match="got L 6x4"):
            draw(picture(6, 4).convert("L"), np.zeros((4, 6), int))


def test_a_strip_shows_the_view_and_every_stage(tiny_model, tmp_path):
    image = picture(60, 40)
    image.save(tmp_path / "a.png")
    strip = segment_strip(tiny_model, tmp_path / "a.png", 100)
    assert strip.size == (5 * 100 + 4 * 5, 100) and strip.mode == "RGB"
    assert strip.tobytes() == segment_strip(tiny_model, image.convert("RGBA"), 100).tobytes()

    seen = image.resize((100, 100), Image.Resampling.BICUBIC, (10, 0, 50, 40))
    assert np.array_equal(np.asarray(strip)[:, :100], np.asarray(seen))
    colours = [len(np.unique(np.asarray(strip)[:, i * 105 : i * 105 + 100].reshape(-1, 3), axis=0)) for i in range(5)]
    assert colours[0] > 100 and colours[1] <= 17 and colours[4] <= 3  # one colour per segment, and that of the lines

    with pytest.raises(PictureError, match="no such file"):
        segment_strip(tiny_model, tmp_path / "b.png")


def test_a_sheet_holds_its_panels_and_cuts_long_lines():
    panel = Image.new("RGB", (PANEL, PANEL), (200, 0, 0))
    sheet = compose_sheet([[(panel, ["a"])], [(panel, ["x" * 500, "\x1b[31m"]), (panel, [])]])
    assert sheet.width == 2 * (PANEL + GAP) + GAP and sheet.height > 2 * PANEL
    pixels = np.asarray(sheet)
    assert (pixels[:, -GAP:] == 255).all()  # the long line is cut
    assert (pixels == (200, 0, 0)).all(-1).sum() == 3 * PANEL**2


def test_a_dark_sheet_with_a_title_has_light_letters():
    panel = Image.new("RGB", (PANEL, PANEL), (200, 0, 0))
    plain, titled = (compose_sheet([[(panel, ["a"])]], title, DARK) for title in ([], ["mammal > caf\u00e9", "50 %"]))
    assert titled.height > plain.height and titled.getpixel((0, 0)) == DARK.ground
    assert np.asarray(titled).max(-1)[: GAP + 50].max() > 200  # light letters


def test_segments_are_matched_by_what_they_share():
    before = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2]])
    renamed = np.array([2, 0, 1])[before]
    assert match_segments(before, renamed).tolist() == [1, 2, 0] and not changed_pixels(before, renamed).any()
    split = np.array([[0, 0, 1, 3], [0, 0, 1, 3], [2, 2, 2, 2]])
    assert match_segments(before, split).tolist() == [0, 1, 2, -1]
    assert changed_pixels(before, split).sum() == 2  # those of the new segment

    merged = np.where(before == 1, 0, before)
    assert changed_pixels(before, merged).sum() == 4


def test_a_segment_keeps_its_hue_and_the_picture_its_crop(tiny_model):
    _, segmented = segmentation(tiny_model, picture(60, 40))
    hues = segment_hues(segmented.maps[-1])
    assert len(set(hues)) == len(hues) == segmented.maps[-1].max() + 1
    for stage in (1, 4):
        panel = np.asarray(hue_panel(segmented, stage, hues, 96)).reshape(-1, 3)
        colours = len(np.unique(panel, axis=0))
        assert colours <= segmented.maps[stage - 1].max() + 2  # one per segment, and that of the lines

    grey = np.asarray(hue_panel(segmented, 4, np.full(len(hues), -1.0), 96))
    assert (grey.max(-1) == grey.min(-1)).mean() > 0.5  # all but the lines

    whole = np.asarray(whole_panel(segmented, 90))
    assert (whole[0] == 255).all() and ((whole == (255, 196, 0)).all(-1).sum(0) > 0).sum() == 60  # the crop of 40 of 60
