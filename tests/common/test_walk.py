import os
from pathlib import Path

import pytest

from hcast_zoo.cli import main
from hcast_zoo.common.walk import MAX_DEPTH, walk
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.find import find_pictures
from hcast_zoo.taxonomy.sources import TaxonomyError
from hcast_zoo.taxonomy.tree import Taxonomy
from tests.rights import drop_rights


@pytest.fixture
def odd_folder(picture_folder, tmp_path):
    """Pictures, and everything else that a folder may hold."""
    root = picture_folder / "val"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picture = next(root.rglob("*.png"))
    (elsewhere / "linked.png").write_bytes(picture.read_bytes())
    (root / "bird/link").symlink_to(elsewhere)
    (root / "bird/again").symlink_to(root / "mammal")
    (root / "bird/loop").symlink_to(root)
    (root / "nowhere").symlink_to(tmp_path / "gone")
    (root / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (root / "self").symlink_to(root / "self")
    os.mkfifo(root / "pipe")
    os.mkfifo(root / "pipe.png")
    (root / ".hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("no picture")
    return root


def test_everything_in_a_folder_is_labelled_or_reported(odd_folder, tiny_weights, capsys):
    assert main(["predict", str(odd_folder), "--model", str(tiny_weights)]) == 1
    captured = capsys.readouterr()
    labelled = {line.split(":")[0].removeprefix(f"{odd_folder}/") for line in captured.out.splitlines()}
    assert len(labelled) == 13 and "bird/link/linked.png" in labelled
    errors = captured.err.replace(f"{odd_folder}/", "").splitlines()

    assert "nowhere.png: no such file" in errors
    assert "pipe.png: expected a file, got a pipe, a socket or a device" in errors
    assert "left out: nowhere: a link that leads nowhere" in errors
    assert "left out: pipe: expected a file, got a pipe, a socket or a device" in errors
    assert any(line.startswith("left out: self: cannot be reached: ") for line in errors)
    assert f"left out: bird/loop: the same folder as {odd_folder}" in errors
    assert any("the same folder as" in line and "bird/again" in line for line in errors)
    assert "left out: 1 hidden files and folders" in errors and "2 of 15 pictures failed" in errors


def test_a_repeated_folder_is_not_counted_as_a_failure(picture_folder, tiny_weights, capsys):
    (picture_folder / "val/bird/again").symlink_to(picture_folder / "val/mammal")
    assert main(["predict", str(picture_folder / "val"), "--model", str(tiny_weights)]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 12 and "again" in captured.err + captured.out


def test_an_unreadable_folder_is_named(picture_folder, tiny_weights, tmp_path):
    """In a fork without root's rights: root may read everything."""
    closed = picture_folder / "val/mammal"
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            closed.chmod(0)
            if os.geteuid() == 0:
                drop_rights()
            left = []
            files = find_pictures([str(picture_folder / "val")], left.append)
            lines = [f"{len(files)} pictures", *map(str, left)]
            for load in (Taxonomy.from_folder, HierarchicalDataset.from_folder):
                try:
                    load(picture_folder / "val")
                except TaxonomyError as error:
                    lines.append(str(error))
            os.write(write, "\n".join(lines).encode())
        finally:
            os._exit(0)

    os.close(write)
    with os.fdopen(read) as pipe:
        lines = pipe.read().splitlines()
    os.waitpid(pid, 0)
    closed.chmod(0o755)
    assert lines[:2] == ["6 pictures", f"{closed}: a folder that cannot be read: Permission denied"]
    assert len(lines) == 4 and all("a folder that cannot be read: Permission denied" in line for line in lines[2:])


def test_data_sets_keep_broken_links_named_as_pictures(odd_folder, tmp_path):
    for name in ("bird/again", "bird/loop"):
        (odd_folder / name).unlink()
    dataset = HierarchicalDataset.from_folder(odd_folder)
    assert len(dataset) == 15
    with pytest.warns(UserWarning, match=r"left out: .*nowhere.png: no such file"):
        index = [Path(picture).name for picture in dataset.pictures].index("nowhere.png")
        assert dataset[index] is None


def test_very_deep_folders_are_refused(tmp_path):
    deep = tmp_path.joinpath(*["d"] * (MAX_DEPTH + 3))
    deep.mkdir(parents=True)
    left = []
    assert len(list(walk(tmp_path, left.append))) == MAX_DEPTH + 1
    assert [item.reason for item in left] == [f"expected at most {MAX_DEPTH} levels of folders"]
