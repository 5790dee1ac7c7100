"""Tar files for tests."""

import io
import tarfile
from pathlib import Path


def write_tar(path: Path, files: dict[str, bytes | str], links: dict[str, str] | None = None) -> Path:
    """Write a tar file, packed as its name says, from names and contents, and from names and targets of links."""
    mode = {".tgz": "w:gz", ".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path
