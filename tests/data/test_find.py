"""Finding pictures in folders, by patterns and by names."""

from hcast_zoo.data.find import find_pictures


def test_folders_and_patterns_give_pictures_only(picture_folder):
    (picture_folder / "notes.txt").write_text("no picture")
    (picture_folder / "empty").mkdir()
    assert len(find_pictures([str(picture_folder)])) == 24
    assert len(find_pictures([str(picture_folder / "val" / "**" / "0.png")])) == 6


def test_names_are_kept_for_a_later_message(picture_folder):
    (picture_folder / "notes.txt").write_text("no picture")
    (picture_folder / "empty").mkdir()
    names = ["missing.png", str(picture_folder / "empty"), str(picture_folder / "notes.txt")]
    assert find_pictures(names) == names
