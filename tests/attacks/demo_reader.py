"""A reader for `fuzz.py` that sends changed bodies, paths, uploads and events to the demo page's API."""

import contextlib
import http.client
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from hcast_zoo.inference.predictor import Predictor
from tests.attacks.mutations import HOSTILE, mutate_bytes, mutate_plain
from tests.attacks.readers import MESSAGE, Reader, expect
from tests.tiny import draw, make_pictures, make_weights

JSON = {"Content-Type": "application/json"}
SETTINGS = ["best_path", [], False, 0.5, 8, 4, 2]
PAGES = ("config", "gradio_api/info", "gradio_api/file=", "gradio_api/file/", "gradio_api/proxy=", "gradio_api/stream/")
SECRET = b"the secret of another folder"
OUTSIDE = ("/etc/passwd", "/etc/hostname", "/proc/self/environ")
UPLOAD = "UPLOAD"  # stands for the path of the uploaded picture, which is unknown when the request is made


class Refused(Exception):
    """The page refused a request, and said why."""


class DemoPage(Reader):
    """Requests to the served page, from a badly behaved client."""

    what, clear, foreign = "the demo's API", (Refused,), True

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.address: str | None = None
        self.secret = folder / "secret.png"
        self.opened: list[str] = []

    def warm(self) -> None:
        """Import the page and predict one picture. The process that reads starts the server."""
        import hcast_zoo.demo.app  # noqa: F401

        model = make_weights(self.folder / "warm.safetensors")
        list(Predictor(model).predict(make_pictures(self.folder / "warm", 1)))

    def start(self) -> None:
        """Serve a page with a tiny model, until the process ends, and upload a picture."""
        from hcast_zoo.demo.app import serving

        tempfile.tempdir = str(self.folder)
        self.secret.write_bytes(SECRET)
        picture = self.folder / "own.png"
        draw(0, 30).save(picture)
        page = contextlib.ExitStack()
        self.address = page.enter_context(serving(Predictor(make_weights(self.folder / "tiny.safetensors"))))
        self.page = page
        status, body = self.ask("POST", "/gradio_api/upload", *form(b"own.png", picture.read_bytes()))
        expect(status == 200, f"an upload ended with {status}")
        self.upload = json.loads(body)[0]

        outside = {os.path.realpath(name) for name in (self.secret, *OUTSIDE)}

        def watch(event: str, arguments: tuple) -> None:
            if event == "open" and os.path.realpath(str(arguments[0])) in outside:
                self.opened.append(str(arguments[0]))

        sys.addaudithook(watch)

    def make(self, rng: random.Random) -> dict[str, Any]:
        kind = rng.randrange(6)
        if kind == 0:
            data = mutate_bytes(b"\x89PNG\r\n\x1a\n" + rng.randbytes(60), rng)
            name = to_bytes(str(rng.choice(HOSTILE)))[:2000]
            body, headers = form(name, data)
            return {
                "path": "/gradio_api/upload",
                "body": mutate_bytes(body, rng) if rng.random() < 0.3 else body,
                **headers,
            }
        if kind == 1:
            text = str(rng.choice((*HOSTILE, str(self.secret), *OUTSIDE, "http://127.0.0.1:9/x")))
            address = "/" + rng.choice(PAGES) + quote(to_bytes(text), safe="/:.")[:5000]
            return {"path": address, "body": None}

        path = rng.choice((UPLOAD, UPLOAD, str(self.secret), "/etc/passwd", UPLOAD + "/../../secret.png"))
        file: Any = {"path": path}
        if rng.random() < 0.5:
            file["meta"] = {"_type": "gradio.FileData"}
        calls = {
            "classify": [file, 0, *SETTINGS],
            "adapt": [file, "bird", 1, *SETTINGS],
            "show_stage": [0],
            "example": [0],
        }
        name = rng.choice(("classify", "classify", "adapt", "show_stage", "example"))
        body = {"data": calls[name]}
        path = f"/gradio_api/call/{name}"
        if kind == 2:
            number = rng.randrange(6)
            data = rng.choice(([file, 1, *SETTINGS], calls[name]))
            body = {"data": data, "fn_index": number, "session_hash": "session", "event_data": {"node": "bird"}}
            path = "/gradio_api/queue/join"
        changed = mutate_plain(body, rng) if rng.random() < 0.9 else body
        text = json.dumps(changed).encode()
        return {"path": path, "body": mutate_bytes(text, rng) if rng.random() < 0.1 else text, **JSON}

    def read(self, source: dict[str, Any]) -> None:
        if self.address is None:
            self.start()
        self.opened.clear()
        headers = {name: value for name, value in source.items() if name == "Content-Type"}
        body = source["body"]
        if body is not None and headers == JSON:
            body = body.replace(UPLOAD.encode(), self.upload.encode())
        status, answer = self.ask("GET" if body is None else "POST", source["path"], body, headers)
        if status == 200 and source["path"].startswith("/gradio_api/call/"):
            event = json.loads(answer)["event_id"]
            status, answer = self.ask("GET", f"{source['path']}/{event}")
        elif status == 200 and source["path"] == "/gradio_api/queue/join":
            session = json.loads(body).get("session_hash")
            expect(isinstance(session, str), f"an event of the session {session!r}")
            status, answer = self.ask("GET", f"/gradio_api/queue/data?session_hash={quote(to_bytes(session))}")

        expect(not self.opened, f"opened {self.opened}")
        expect(SECRET not in answer and b"root:" not in answer, "shows a file from outside")
        expect(b"Traceback" not in answer, f"a traceback: {answer[-500:]!r}")
        expect(status in (200, 307, 400, 403, 404, 405, 413, 422), f"status {status}: {answer[:300]!r}")
        if status != 200:
            raise Refused(f"status {status}: {answer[:200]!r}")
        problem = error_of(answer)
        if problem is not None:
            expect(5 <= len(problem) <= MESSAGE, f"an error in {len(problem)} characters")
            raise Refused(problem)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, bytes]:
        """Send a request; return the status and body of the answer."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def to_bytes(text: str) -> bytes:
    """Return text as UTF-8, with lone surrogates kept as they are."""
    return text.encode("utf-8", "surrogatepass")


def form(name: bytes, data: bytes) -> tuple[bytes, dict[str, str]]:
    """Return body and header of a form with one file."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="' + name + b'"\r\n\r\n'
    return head + data + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def error_of(answer: bytes) -> str | None:
    """Return the error in a stream of events: empty if it has no message, None if nothing went wrong."""
    text = answer.decode("utf-8", "replace")
    if text.startswith("event: error") or "\nevent: error" in text:
        data = json.loads(text.rpartition("data: ")[2].strip() or "null")
        return str((data or {}).get("error") or "") if isinstance(data, dict | None) else str(data)
    for line in text.splitlines():
        if line.startswith("data: {") and '"process_completed"' in line:
            event = json.loads(line[6:])
            if not event["success"]:
                return str(event["output"].get("error") or "")
    return None
