"""What the demo page refuses: other files and URLs, requests from other pages, and uploads beyond its disk quota.

Gradio checks paths only where a request declares them as files, trusts ``X-Forwarded-Host``, and accepts uploads from
any page; these checks do not depend on the form of the request.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse

REFUSED = "Refused: this page reads pictures that were uploaded to it, and nothing else."
MALFORMED = "This page does not understand the request."
FAILED = "Something went wrong here; whoever runs this page finds the details in its log."
FULL = "This page's folder is full: try again in an hour, when old pictures have been deleted."
MAX_STORED = 2**30  # bytes of all uploads and of the pictures drawn from them
# Gradio builds its page with inline scripts and eval, and shows blobs; nothing is loaded from another address.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors {ancestors}"
)


def check_upload(path: Any, folder: str | Path) -> str:
    """Return the path of an upload, with links resolved.

    Raises:
        gradio.Error: if it leads out of the folder, or to no file; with the same message, so that it does not reveal
            which files exist.
    """
    try:
        real = Path(path).resolve()
        if real.is_relative_to(Path(folder).resolve()) and real.is_file():
            return str(real)
    except (OSError, ValueError, TypeError, RuntimeError):  # NUL bytes, names that are too long, circular links
        pass
    raise gr.Error(REFUSED, print_exception=False)


def check_paths(value: Any, folder: str | Path) -> None:
    """Check every file that a value from a request names, at any depth; see :func:`check_upload`."""
    if isinstance(value, Mapping):
        if value.get("path") is not None:
            check_upload(value["path"], folder)
        if not isinstance(value.get("url", ""), (str, type(None))):
            raise gr.Error(REFUSED, print_exception=False)
        for inner in value.values():
            check_paths(inner, folder)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for inner in value:
            check_paths(inner, folder)


def refuse_other_files(app: gr.Blocks, folder: str | Path) -> None:
    """Make an app accept only files from its folder, and refuse all others with one message.

    Gradio's own messages reveal which paths exist. Messages of controls about invalid values are kept.
    """
    preprocess = app.preprocess_data

    async def checked(block_fn, inputs, *arguments, **options):
        try:
            check_paths(inputs, folder)
            return await preprocess(block_fn, inputs, *arguments, **options)
        except Exception as error:
            if type(error) is gr.Error:
                raise
            raise gr.Error(REFUSED, print_exception=False) from error

    app.preprocess_data = checked


def explain_errors(app: gr.Blocks) -> None:
    """Give the visitor a message for every error of an app; Gradio sends none for an unexpected one."""
    process = app.process_api

    async def process_or_explain(block_fn, *arguments, **options):
        if block_fn.fn is None:  # a step that runs in the browser alone
            raise gr.Error(MALFORMED, print_exception=False)
        try:
            return await process(block_fn, *arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(FAILED) from error

    app.process_api = process_or_explain
    push = app._queue.push

    async def push_text(body, **options):
        try:  # Gradio counts all visitors' sessions in one table, of text
            str(body.session_hash).encode()
        except UnicodeEncodeError:
            return False, MALFORMED, "error"
        return await push(body=body, **options)

    app._queue.push = push_text


class Guard:
    """ASGI middleware: refuse requests from other pages and beyond the disk quota, and send a content security policy.

    Args:
        app: The application inside.
        folder: Folder of uploads and answers.
        largest: Size of the largest request body, in bytes.
        space: Whether this is a Space, which Hugging Face's page shows in a frame.
        quota: Bytes that the folder may hold.
    """

    def __init__(self, app, folder: str, largest: int, space: bool = False, quota: int = MAX_STORED):
        self.app, self.folder, self.largest, self.quota = app, folder, largest, quota
        self.host = os.environ.get("SPACE_HOST") if space else None
        self.headers = {
            "Content-Security-Policy": POLICY.format(ancestors="https://huggingface.co" if space else "'none'"),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            **({} if space else {"X-Frame-Options": "DENY"}),
        }
        self._underway = 0  # bytes of uploads that are not in the folder yet

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        headers = MutableHeaders(scope=scope)
        for name in ("x-forwarded-host", "x-gradio-server"):  # Gradio would take them for its own address
            if name in headers and headers[name] != self.host:
                del headers[name]

        begun = False

        async def send_with_headers(message):
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        refusal, reserved = self._check(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return

        self._underway += reserved
        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:  # raised by Gradio for a request that its types do not cover
            if begun:
                raise
            await PlainTextResponse(MALFORMED, 400)(scope, receive, send_with_headers)
        finally:
            self._underway -= reserved

    def _check(self, scope, headers) -> tuple[PlainTextResponse | None, int]:
        """Return the refusal to send instead of an answer, if any, and the bytes that the request may store."""
        if re.search("/(file|proxy)[=/][a-z]{2,}:", scope["path"], re.IGNORECASE):
            return PlainTextResponse("This page serves no files but its own.", 403), 0
        if not _is_text(scope["query_string"]):  # an answer could not name it
            return PlainTextResponse(MALFORMED, 400), 0
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None, 0

        origin = headers.get("origin")
        if origin is not None and (not (host := urlsplit(origin).netloc) or host not in (headers["host"], self.host)):
            return PlainTextResponse("This page answers no requests from other pages.", 403), 0

        length = headers.get("content-length", "")
        size = min(int(length), self.largest) if length.isdecimal() else self.largest
        if _stored(self.folder) + self._underway + size > self.quota:
            return PlainTextResponse(FULL, 507), 0
        return None, size


def _is_text(query: bytes) -> bool:
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True


def _stored(folder: str) -> int:
    """Return the bytes of all files in a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:  # deleted in the meantime
                continue

    return total
