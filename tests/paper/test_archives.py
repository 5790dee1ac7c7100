import io
import tarfile
import zipfile

import pytest
from torchvision.datasets.utils import calculate_md5

from hcast_zoo.paper.archives import ArchiveError, first_names, is_archive, unpack

FILES = {"data/a.txt": b"a", "data/deep/b.txt": b"bb" * 5000}


def write_tar(path, files, mode="w:gz", links=()):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, goal in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, goal
            archive.addfile(info)
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def found(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


@pytest.mark.parametrize("name, mode", [("a.tgz", "w:gz"), ("a.tar", "w"), ("a.tar.xz", "w:xz"), ("a.zip", None)])
def test_unpack(tmp_path, name, mode):
    archive = write_tar(tmp_path / name, FILES, mode) if mode else write_zip(tmp_path / name, FILES)
    assert is_archive(archive) and set(first_names(archive)) == set(FILES)
    assert unpack(archive, tmp_path / "out", progress=False)
    assert found(tmp_path / "out") == FILES
    assert not unpack(archive, tmp_path / "out", progress=False)  # all of it is there


def test_a_choice(tmp_path):
    archive = write_tar(tmp_path / "a.tgz", FILES)
    only = {"data/a.txt": "here/a.txt"}
    assert unpack(archive, tmp_path / "out", only.get, "a", progress=False)
    assert found(tmp_path / "out") == {"here/a.txt": b"a"}
    assert not unpack(archive, tmp_path / "out", only.get, "a", progress=False)
    assert unpack(archive, tmp_path / "out", lambda name: name, "all", progress=False)
    assert found(tmp_path / "out") == {"here/a.txt": b"a", **FILES}


def test_tar_in_tar(tmp_path):
    inner = write_tar(tmp_path / "n01.tar", {"n01_1.JPEG": b"1"}, "w").read_bytes()
    outer = write_tar(tmp_path / "train.tar", {"n01.tar": inner, "n02.tar": b"not opened"}, "w")
    unpack(
        outer,
        tmp_path / "out",
        lambda name: name.replace(".tar/", "/") if name.startswith("n01") else None,
        progress=False,
    )
    assert found(tmp_path / "out") == {"n01/n01_1.JPEG": b"1"}


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "data/../../out.txt"])
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_outside_the_folder(tmp_path, name, write):
    archive = write(tmp_path / "a", {name: b"bad"})
    with pytest.raises(ArchiveError, match="do not trust this archive"):
        unpack(archive, tmp_path / "in/out", progress=False)
    assert not list(tmp_path.rglob("out.txt"))


def test_a_link_leads_nowhere(tmp_path):
    (tmp_path / "secret").mkdir()
    archive = write_tar(tmp_path / "a.tgz", {"data/a.txt": b"a"}, links=[("data/link", str(tmp_path / "secret"))])
    unpack(archive, tmp_path / "out", progress=False)
    assert found(tmp_path / "out") == {"data/a.txt": b"a"} and not (tmp_path / "out/data/link").is_symlink()
    (tmp_path / "out2/data").mkdir(parents=True)
    (tmp_path / "out2/data/deep").symlink_to(tmp_path / "secret")
    with pytest.raises(ArchiveError, match="outside the destination"):
        unpack(write_tar(tmp_path / "b.tgz", FILES), tmp_path / "out2", progress=False)


@pytest.mark.parametrize("name, mode", [("a.tgz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tar", "w")])
def test_cut_off(tmp_path, name, mode):
    archive = write_tar(tmp_path / name, {str(i): bytes(range(256)) * 999 for i in range(3)}, mode)
    archive.write_bytes(archive.read_bytes()[: -len(archive.read_bytes()) // 2])
    with pytest.raises(ArchiveError, match=r"damaged or incomplete archive.*download it again"):
        unpack(archive, tmp_path / "out", progress=False)
    assert not (tmp_path / "out/.unpacked.json").exists()


def test_not_an_archive(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert not is_archive(tmp_path / "a.txt") and not is_archive(tmp_path)
    assert calculate_md5(tmp_path / "a.txt") == "1cb251ec0d568de6a929b520c4aed8d1"
