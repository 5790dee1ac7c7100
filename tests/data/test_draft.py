"""JPEG files that are decoded at a reduced size."""

import json

import numpy as np
import pytest
from PIL import Image

from hcast_zoo.cli import main
from hcast_zoo.data.pictures import PictureError, open_picture, read_picture


@pytest.fixture
def jpeg(tmp_path):
    """A smooth picture of 500 x 300 pixels whose EXIF data turns it by 90 degrees."""
    y, x = np.mgrid[:300, :500]
    pixels = np.stack([x / 2, y / 2, 255 - x / 4 - y / 4], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "1.jpg", quality=95, exif=exif)
    return tmp_path / "1.jpg"


def test_no_side_is_shorter_than_asked_for(jpeg):
    whole = open_picture(jpeg)
    assert whole.size == (300, 500)

    sizes = [open_picture(jpeg, at_least=least).size for least in (300, 151, 150, 75, 1)]
    assert sizes == [(300, 500), (300, 500), (150, 250), (75, 125), (38, 63)]

    small = np.asarray(read_picture(jpeg, at_least=100), float)
    assert abs(small - np.asarray(whole.resize((150, 250), Image.Resampling.BOX), float)).mean() < 1


def test_other_formats_are_decoded_whole(jpeg, tmp_path):
    whole = open_picture(jpeg)
    whole.save(tmp_path / "1.png")
    assert open_picture(tmp_path / "1.png", at_least=10).size == open_picture(whole, at_least=10).size == (300, 500)
    jpeg.write_bytes(jpeg.read_bytes()[:1000])
    with pytest.raises(PictureError, match="damaged or incomplete"):
        open_picture(jpeg, at_least=10)


def test_predict_with_draft_answers_alike(jpeg, tiny_weights, tmp_path, capsys):
    command = ["predict", str(jpeg), "--model", str(tiny_weights), "--json"]
    answers = []
    for option in ([], ["--draft"]):
        assert main([*command, *option]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    whole, drafted = answers
    assert whole["path"] == drafted["path"]
    assert 0 < abs(whole["path_probability"] - drafted["path_probability"]) < 0.05

    folder = ["--output", str(tmp_path / "out")]
    assert main([*command[:-1], *folder, "--draft"]) == 0
    assert main([*command[:-1], *folder]) == 2  # answers from whole pictures may not be added to the folder
