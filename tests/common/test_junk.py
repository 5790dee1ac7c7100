import pytest
from PIL import Image

from hcast_zoo.common.walk import Skipped, is_junk, walk
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.find import find_pictures
from hcast_zoo.taxonomy.tree import Taxonomy

JUNK = (
    "owls/snowy/@eaDir/1.JPG/SYNOPHOTO_THUMB_M.jpg",
    "owls/snowy/.ipynb_checkpoints/1-checkpoint.jpg",
    "owls/snowy/._1.JPG",
    "__MACOSX/owls/._1.JPG",
    "$RECYCLE.BIN/x/2.jpg",
    ".Trashes/3.jpg",
    "gulls/herring/Thumbs.db",
)


@pytest.fixture
def messy(tmp_path):
    """Return a folder as copied from a network drive: two pictures of two species, and junk."""
    for name in ("owls/snowy/1.JPG", "gulls/herring/1.JPG", *JUNK):
        file = tmp_path / "birds" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(file, "JPEG")
    (tmp_path / "birds/gulls/empty").mkdir()
    (tmp_path / "birds/gulls/notes.txt").write_text("x")
    return tmp_path / "birds"


def test_junk_is_neither_label_nor_picture(messy):
    with pytest.warns(UserWarning, match=r"folders without a picture \(1\)"):
        taxonomy = Taxonomy.load(messy)

    assert taxonomy.names == (("gulls", "owls"), ("herring", "snowy"))

    with pytest.warns(UserWarning, match=r"(?=.*@eaDir \(1\))(?=.*__MACOSX \(1\)).*\.txt files \(1\)"):
        pictures = [str(p) for p in HierarchicalDataset.load(messy).pictures]
    assert pictures == [str(messy / "gulls/herring/1.JPG"), str(messy / "owls/snowy/1.JPG")]
    with pytest.warns(UserWarning, match=r"\.txt files \(1\)"):
        assert find_pictures([str(messy)]) == pictures


def test_a_tree_of_folders_without_any_picture_is_a_taxonomy(tmp_path):
    for name in ("a/x", "a/y", "b"):
        (tmp_path / name).mkdir(parents=True)
    assert Taxonomy.load(tmp_path).names == (("a", "b"), ("x", "y"))


def test_walk_starts_in_a_hidden_folder_that_was_asked_for(tmp_path):
    (tmp_path / ".cache/a").mkdir(parents=True)
    assert [folder.name for folder, _, _ in walk(tmp_path / ".cache", print)] == [".cache", "a"]


def test_skipped_names_the_most_frequent_kinds():
    skipped = Skipped()
    for number in range(12):
        skipped.add(f".{number} files", "hint")
    skipped.add(".3 files", "hint")
    assert str(skipped).startswith(".3 files (2), ") and str(skipped).endswith("others (4); hint")
    assert not Skipped() and is_junk("Thumbs.DB") and not is_junk("thumbs")
