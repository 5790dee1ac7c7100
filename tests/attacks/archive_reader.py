"""A reader for `fuzz.py` that changes members and bytes of tar and zip archives."""

import contextlib
import io
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

from hcast_zoo.paper.archives import ArchiveError, first_names, is_archive, unpack
from tests.attacks.mutations import HOSTILE, mutate_bytes
from tests.attacks.readers import Reader, expect

NAMES = (
    "a.txt",
    "d/b.txt",
    "../out",
    "/tmp/out",
    "d",
    "a" * 300,
    ".unpacked.json",
    "in.tar",
    "C:/x",
    "..\\out",
    "a\0b",
)
TYPES = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE)
PAX = ("size", "mtime", "path", "linkpath", "GNU.sparse.realsize", "GNU.sparse.name", "uid")


class Archives(Reader):
    """Tar files (plain, compressed and nested), and zip files of every compression method."""

    what, clear = "archives (tar, zip)", (ArchiveError, OSError)
    foreign = True  # the system's own messages, for names that no disk can hold

    def __init__(self, folder: Path):
        super().__init__(folder)
        members = [("a.txt", b"hello"), ("d/b.txt", b"x" * 3000), ("in.tar", tar([("c.txt", b"c")], "w"))]
        self.seeds = [tar(members, mode) for mode in ("w", "w:gz", "w:bz2", "w:xz")]
        kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        self.seeds += [make_zip(members, kind) for kind in kinds]

    def make(self, rng: random.Random) -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            with contextlib.suppress(
                ValueError, OverflowError, TypeError, UnicodeError
            ):  # no such member can be written
                return tar([hostile_member(rng) for _ in range(rng.randint(1, 3))], "w")
        if kind == 1:
            members = [(rng.choice(NAMES), b"x" * rng.randrange(100)) for _ in range(3)]
            return make_zip(members, zipfile.ZIP_DEFLATED)
        return mutate_bytes(rng.choice(self.seeds), rng, self.seeds)

    def read(self, source: bytes) -> None:
        inside = self.folder / "inside"
        shutil.rmtree(inside, ignore_errors=True)
        archive = self.folder / "archive"
        archive.write_bytes(source)
        if is_archive(archive):
            first_names(archive)
        try:
            unpack(archive, inside / "out", progress=False)
        finally:
            strange = [p.name for p in self.folder.iterdir() if p not in (archive, inside)]
            strange += [p.name for p in inside.iterdir() if p.name != "out"] if inside.exists() else []
            strange += [p.name for p in inside.rglob("*") if p.is_symlink() or not (p.is_file() or p.is_dir())]
            expect(not strange, f"outside the folder, or not a file: {strange}")


def tar(members: list, mode: str) -> bytes:
    """Return a tar file of members, each a name or TarInfo, and its bytes."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data.ljust(info.size, b"\0")))
    return sink.getvalue()


def make_zip(members: list[tuple[str, bytes]], compression: int) -> bytes:
    """Return a zip file of members, each a name and its bytes."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return sink.getvalue()


def hostile_member(rng: random.Random) -> tuple[tarfile.TarInfo, bytes]:
    """Return a tar member with a random type, name, time and extended header."""
    info = tarfile.TarInfo(rng.choice(NAMES))
    info.type = rng.choice(TYPES)
    info.linkname = rng.choice(NAMES)
    info.mtime = rng.choice((0, -1, 2**33, 1.5))
    if rng.random() < 0.5:
        info.pax_headers = {rng.choice(PAX): str(rng.choice(HOSTILE))[:1000].replace("\ud800", "x")}
    return info, b"x" * rng.randrange(600)
