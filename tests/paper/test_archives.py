"""Archives: what is unpacked, what is refused, and damage that is named."""

import io
import os
import tarfile
import types
import zipfile

import pytest
from torchvision.datasets.utils import calculate_md5

from hcast_zoo.paper.archives import SMALL, ArchiveError, first_names, is_archive, shutil, unpack
from tests.archives import write_tar

FILES = {"data/a.txt": b"a", "data/deep/b.txt": b"bb" * 5000}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpacked(folder):
    """Return the files of a folder, by their names."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.parametrize("name", ["a.tgz", "a.tar", "a.tar.xz", "a.zip"])
def test_archives_of_every_kind_are_unpacked_once(tmp_path, name):
    archive = (write_zip if name.endswith("zip") else write_tar)(tmp_path / name, FILES)
    assert is_archive(archive) and set(first_names(archive)) == set(FILES)
    assert unpack(archive, tmp_path / "out", progress=False)
    assert unpacked(tmp_path / "out") == FILES
    assert not unpack(archive, tmp_path / "out", progress=False)  # nothing is left to do


def test_only_the_chosen_members_are_unpacked(tmp_path):
    archive = write_tar(tmp_path / "a.tgz", FILES)
    only = {"data/a.txt": "here/a.txt"}
    assert unpack(archive, tmp_path / "out", only.get, "a", progress=False)
    assert unpacked(tmp_path / "out") == {"here/a.txt": b"a"}
    assert not unpack(archive, tmp_path / "out", only.get, "a", progress=False)
    assert unpack(archive, tmp_path / "out", lambda name: name, "all", progress=False)
    assert unpacked(tmp_path / "out") == {"here/a.txt": b"a", **FILES}


def test_a_tar_within_a_tar_is_unpacked(tmp_path):
    inner = write_tar(tmp_path / "n01.tar", {"n01_1.JPEG": b"1"}).read_bytes()
    outer = write_tar(tmp_path / "train.tar", {"n01.tar": inner, "n02.tar": b"not opened"})

    def choose(name):
        return name.replace(".tar/", "/") if name.startswith("n01") else None

    unpack(outer, tmp_path / "out", choose, progress=False)
    assert unpacked(tmp_path / "out") == {"n01/n01_1.JPEG": b"1"}


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "data/../../out.txt"])
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_members_outside_the_folder_are_refused(tmp_path, name, write):
    archive = write(tmp_path / "a", {name: b"bad"})
    with pytest.raises(ArchiveError, match="do not trust this archive"):
        unpack(archive, tmp_path / "in/out", progress=False)
    assert not list(tmp_path.rglob("out.txt"))


def test_links_are_neither_unpacked_nor_followed(tmp_path):
    (tmp_path / "secret").mkdir()
    archive = write_tar(tmp_path / "a.tgz", {"data/a.txt": b"a"}, links={"data/link": str(tmp_path / "secret")})
    unpack(archive, tmp_path / "out", progress=False)
    assert unpacked(tmp_path / "out") == {"data/a.txt": b"a"} and not (tmp_path / "out/data/link").is_symlink()

    (tmp_path / "out2/data").mkdir(parents=True)
    (tmp_path / "out2/data/deep").symlink_to(tmp_path / "secret")
    with pytest.raises(ArchiveError, match="outside the destination"):
        unpack(write_tar(tmp_path / "b.tgz", FILES), tmp_path / "out2", progress=False)


@pytest.mark.parametrize("name", ["a.tgz", "a.tar.xz", "a.tar"])
def test_a_truncated_archive_is_damage(tmp_path, name):
    archive = write_tar(tmp_path / name, {str(i): bytes(range(256)) * 999 for i in range(3)})
    archive.write_bytes(archive.read_bytes()[: -len(archive.read_bytes()) // 2])
    with pytest.raises(ArchiveError, match=r"damaged or incomplete archive.*download it again"):
        unpack(archive, tmp_path / "out", progress=False)

    assert not (tmp_path / "out/.unpacked.json").exists()


def test_a_text_file_is_not_an_archive(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert not is_archive(tmp_path / "a.txt") and not is_archive(tmp_path)
    assert calculate_md5(tmp_path / "a.txt") == "1cb251ec0d568de6a929b520c4aed8d1"


# Hostile archives. docs/reliability.md lists what each did before and does now.


def pack_tar(path, *members):
    with tarfile.open(path, "w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def member(name, **headers):
    info = tarfile.TarInfo(name)
    info.pax_headers = headers
    return info


def pack_zip(path, flag=0, method=0):
    """Write a zip whose headers state a flag or a method that its member does not have."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 8] |= flag
    data[6] |= flag
    data[at + 10] = data[8] = method
    path.write_bytes(data)
    return path


def test_encrypted_and_unknown_zips_are_explained(tmp_path):
    with pytest.raises(ArchiveError, match=r"'a\.txt' is encrypted: unpack it yourself"):
        unpack(pack_zip(tmp_path / "e.zip", flag=1), tmp_path / "out", progress=False)
    with pytest.raises(ArchiveError, match=r"cannot unpack it: .*compression"):
        unpack(pack_zip(tmp_path / "m.zip", method=99), tmp_path / "out", progress=False)


def test_zips_with_absurd_headers_are_read_or_refused(tmp_path):
    """An empty name, a name of 40,000 characters beside another one, and a version that does not exist."""
    good = pack_zip(tmp_path / "z.zip").read_bytes()
    start = good.find(b"PK\x01\x02")  # of the zip's directory
    name = good.find(b"a.txt", start)
    empty = bytearray(good)
    empty[start + 28 : start + 30], empty[start + 30 : start + 32] = b"\0\0", b"\5\0"  # its bytes become an extra field
    future = bytearray(good)
    future[start + 6] = 125
    for data in (bytes(empty), bytes(future), good[:name] + b"b" + good[name + 1 :]):
        (tmp_path / "z.zip").write_bytes(data)
        for read in (first_names, lambda file: unpack(file, tmp_path / "out", progress=False)):
            try:
                read(tmp_path / "z.zip")
            except ArchiveError as error:
                assert len(str(error)) < 2000


@pytest.mark.parametrize("time", ["1e400", "-1e400", "nan", str(2**62), "-5"])
def test_impossible_modification_times_become_zero(tmp_path, time):
    file = pack_tar(tmp_path / "t.tar", (member("a", mtime=time), b"x"))
    assert unpack(file, tmp_path / "out", progress=False)
    assert (tmp_path / "out/a").read_bytes() == b"x" and (tmp_path / "out/a").stat().st_mtime == 0


@pytest.mark.parametrize("name", [".unpacked.json", ".unpacked.json/x", "./.unpacked.json", ".UNPACKED.json"])
def test_a_member_named_like_the_record_is_refused(tmp_path, name):
    file = pack_tar(tmp_path / "t.tar", (member(name), b"[1]"))
    with pytest.raises(ArchiveError, match="the name of the file that lists what is unpacked"):
        unpack(file, tmp_path / "out", progress=False)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("record", ["[1]", "5", "[" * 100_000, "{"])
def test_a_damaged_record_is_replaced(tmp_path, record):
    file = pack_tar(tmp_path / "t.tar", (member("a"), b"x"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.unpacked.json").write_text(record)
    assert unpack(file, tmp_path / "out", progress=False)
    assert not unpack(file, tmp_path / "out", progress=False)


def test_bombs_are_not_unpacked(tmp_path):
    sparse = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "hole",
        "GNU.sparse.realsize": str(3 * 2**30),
    }
    file = pack_tar(tmp_path / "t.tar", (member("hole", **sparse), b"1\n0\n1\n".ljust(512, b"\0") + b"x"))
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * (SMALL + 1))

    for bomb in (file, tmp_path / "z.zip"):
        with pytest.raises(ArchiveError, match="over 200 times as many"):
            unpack(bomb, tmp_path / "out", progress=False)

    assert sum(f.stat().st_size for f in (tmp_path / "out").rglob("*")) == 0


def test_a_disk_without_room_is_reported(tmp_path, monkeypatch):
    file = pack_tar(tmp_path / "t.tar", (member("a"), b"x" * 4000), (member("b"), b"y" * 4000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=6000))
    with pytest.raises(ArchiveError, match=r"with member 'b' it needs 9,024 bytes.*6,000 free: make room"):
        unpack(file, tmp_path / "out", progress=False)


def test_damage_within_bzip2_is_reported(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a", "x" * 1000)
    data = bytearray(file.read_bytes())
    data[35] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(file, tmp_path / "out", progress=False)


def test_a_size_that_is_not_a_number_is_damage(tmp_path):
    file = tmp_path / "a.tar"
    member = tarfile.TarInfo("a")
    member.pax_headers = {"GNU.sparse.size": "-inf"}
    with tarfile.open(file, "w") as archive:
        archive.addfile(member)
    assert not is_archive(file)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(file, tmp_path / "out", progress=False)


def test_a_pipe_is_not_an_archive(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(ArchiveError, match="expected a file, got a pipe"):
        unpack(tmp_path / "pipe.tar", tmp_path / "out", progress=False)
