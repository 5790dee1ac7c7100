"""Files are written whole or not at all, and errors name them."""

import hashlib
import os

import pytest

from hcast_zoo.common.files import sha256, whole_file, write_whole


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with whole_file(file, ".onnx") as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old" and temporary.parent == tmp_path and temporary.suffix == ".onnx"
    assert file.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt()])
def test_the_old_file_stays_when_the_block_raises(tmp_path, error):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(type(error)), whole_file(file) as temporary:
        temporary.write_text("half")
        raise error
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_the_target_of_a_link_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "there/a.txt")
    write_whole(tmp_path / "link.txt", "new")
    assert (tmp_path / "there/a.txt").read_text() == "new" and (tmp_path / "link.txt").is_symlink()


def test_an_error_names_the_target(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(tmp_path / "nowhere/a.txt", "x")
    assert caught.value.filename == str(tmp_path / "nowhere/a.txt")

    def full(descriptor):
        raise OSError(28, "No space left on device")  # names no file

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "a.txt", b"x")
    assert caught.value.filename == str(tmp_path / "a.txt") and not os.listdir(tmp_path)

    with pytest.raises(FileNotFoundError) as caught, whole_file(tmp_path / "a.txt"):
        open(tmp_path / "another.txt", "rb")  # noqa: SIM115
    assert caught.value.filename == str(tmp_path / "another.txt")  # an error about another file is unchanged


def test_sha256_matches_hashlib_over_several_blocks(tmp_path, monkeypatch):
    data = bytes(range(256)) * 20
    (tmp_path / "a").write_bytes(data)
    monkeypatch.setattr("hcast_zoo.common.files.BLOCK", 1000)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
