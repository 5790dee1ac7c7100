"""Requests to the demo page's API that ask for files it must not read."""

import itertools
from collections.abc import Sequence
from pathlib import Path


def make(secret: str, uploaded: str, link: str, settings: Sequence) -> list[dict]:
    """Return requests, each with the ``name`` of an endpoint and its ``data``.

    Args:
        secret: A picture outside the page's folder.
        uploaded: A picture that was uploaded.
        link: A link in the page's folder that leads to the secret.
        settings: Values of the page's controls.
    """
    folder = str(Path(uploaded).parent)
    up = "/..".join([folder, *[""] * 12])
    paths = [
        *(secret, link, "/etc/passwd", "/etc/hostname", "/etc/shadow", "/nonexistent", "/home", "/root/.ssh/id_rsa"),
        *("/proc/self/environ", "/proc/self/root/etc/passwd", "/dev/zero", "/dev/stdin", "/dev/fd/0", "/", ".", ""),
        *(
            f"{up}{secret}",
            f"{uploaded}/../../../../../../../..{secret}",
            f"{folder}/./..//../..{secret}",
            f"{folder}/",
        ),
        *(f"{uploaded}\0.png", f"{folder}\\..\\..{secret}", f"{folder}/%2e%2e/%2e%2e{secret}", f"{folder}/none"),
        *(f"file://{secret}", f"FILE://{secret}", f"//{secret}", "http://127.0.0.1:9/x.png", "https://[::1]:9/x.png"),
        *("ftp://127.0.0.1/x.png", "gopher://127.0.0.1:9/x", "data:image/png;base64,AAAA", "~/.bashrc", "~root/x"),
        *("pyproject.toml", "tests/pictures/lion.png", "x" * 5000, "\x1b[2J", "../" * 40 + "etc/passwd"),
    ]
    meta = {"meta": {"_type": "gradio.FileData"}}
    forms = (
        lambda path: {"path": path},
        lambda path: {"path": path, **meta},
        lambda path: {"path": path, "url": path, "orig_name": "x.png", **meta},
        lambda path: {"path": path, "is_stream": True, **meta},
        lambda path: {"path": path, "size": 1, "mime_type": "image/png", "meta": {"_type": "other"}},
        lambda path: [{"path": path}],
        lambda path: path or "x",
    )
    requests = [
        {"name": "classify", "data": [form(path), 0, *settings]} for form, path in itertools.product(forms, paths)
    ]
    requests += [
        {"name": "adapt", "data": [form(path), "lion", 1, *settings]}
        for form, path in itertools.product(forms[:2], paths[:12])
    ]
    requests += [{"name": "example", "data": [value]} for value in (secret, {"path": secret}, [secret])]
    return requests
