"""Open a checkpoint that is to be converted: a file, ``hf://org/name/path[@revision]``, or an ``https://`` address."""

import contextlib
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ..common.text import clip
from .hub import download_file

_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/(?P<path>[^@]+)(?:@(?P<revision>[\w./-]+))?")
_DRIVE = re.compile(r"https://drive\.google\.com/(?:file/d/|uc\?.*?id=|open\?.*?id=)(?P<id>[\w-]+)")
_TIMEOUT = 60  # seconds without a byte


@contextlib.contextmanager
def open_source(source: str) -> Iterator[Path]:
    """Yield the local file of a source; a download from the web is removed afterwards.

    Args:
        source: A file, ``hf://org/name/path`` with an optional ``@revision``, or an ``https://`` address. Sharing
            links of Google Drive are turned into download links.

    Raises:
        ValueError: if an address is malformed, or leads to a web page instead of a file.
        OSError: if the file cannot be read or downloaded.
    """
    if source.startswith("hf://"):
        match = _HUB.fullmatch(source)
        if match is None:
            raise ValueError(f"{clip(source)}: expected hf://org/name/path or hf://org/name/path@revision")
        yield download_file(match["repo"], match["path"], match["revision"])
    elif source.startswith(("https://", "http://")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("checkpoint.safetensors" if source.endswith(".safetensors") else "checkpoint.pth")
            _download(source, path)
            yield path
    else:
        yield Path(source)


def _download(address: str, path: Path) -> None:
    if address.startswith("http://") and not re.match(r"http://(localhost|127\.0\.0\.1)[:/]", address):
        raise ValueError(f"{clip(address)}: expected an https:// address: over http a file can be changed in transit")
    if match := _DRIVE.match(address):
        address = f"https://drive.usercontent.google.com/download?id={match['id']}&export=download&confirm=t"

    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as response, open(path, "wb") as file:
            if response.headers.get_content_type() == "text/html":
                raise ValueError(
                    f"{clip(address)}: expected a file, got a web page: the file may be gone, private, or over its "
                    "download quota; download it in a browser and give the file"
                )
            shutil.copyfileobj(response, file)
            expected = response.headers.get("Content-Length")
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise OSError(f"cannot download {clip(address)}: {getattr(error, 'reason', error)}; try again") from error

    if expected is not None and path.stat().st_size != int(expected):
        raise OSError(f"cannot download {clip(address)}: got {path.stat().st_size} of {expected} bytes; try again")
