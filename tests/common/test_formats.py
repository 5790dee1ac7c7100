import pytest
from PIL import Image, features

from hcast_zoo.common.formats import HEIF_HINT, is_picture_name, picture_suffixes
from hcast_zoo.common.walk import Skipped
from hcast_zoo.data.find import find_pictures
from hcast_zoo.data.pictures import PictureError, open_picture

FORMATS = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "apng": "PNG", "webp": "WEBP", "tif": "TIFF"}
if features.check("jpg_2000"):
    FORMATS["jp2"] = "JPEG2000"
if features.check("avif"):
    FORMATS["avif"] = "AVIF"


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_readable_suffix_is_found_in_a_folder(tmp_path, suffix):
    Image.new("RGB", (9, 9)).save(tmp_path / f"1.{suffix}", FORMATS[suffix])
    assert find_pictures([str(tmp_path)]) == [str(tmp_path / f"1.{suffix}")]
    assert open_picture(tmp_path / f"1.{suffix}").size == (9, 9)


def test_files_that_are_not_pictures_are_counted(tmp_path):
    for name in ("a.txt", "b.TXT", "README", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"skipped \.txt files \(2\), files without a suffix \(1\)"):
        assert find_pictures([str(tmp_path)]) == [str(tmp_path / "c.jpg")]


def test_heic_files_are_found_and_read(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    assert ".heic" in picture_suffixes()
    heif.from_pillow(Image.new("RGB", (16, 16), "red")).save(tmp_path / "1.heic")
    assert find_pictures([str(tmp_path)]) == [str(tmp_path / "1.heic")]
    assert open_picture(tmp_path / "1.heic").size == (16, 16)


def test_heic_without_its_reader_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("hcast_zoo.common.formats.picture_suffixes", lambda: frozenset({".jpg"}))
    (tmp_path / "1.heic").write_bytes(b"x")
    skipped = Skipped()
    assert not is_picture_name("1.heic", skipped) and HEIF_HINT in str(skipped)

    with pytest.raises(PictureError, match="hcast-zoo\\[heic\\]"):
        open_picture(tmp_path / "1.heic")
