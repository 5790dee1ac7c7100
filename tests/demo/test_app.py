"""The demo page as a server: its functions through Gradio's own client, and what it refuses."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from hcast_zoo import Predictor
from hcast_zoo.sharing.model_card import EVALUATIONS, write_evaluations
from hcast_zoo.weights.file import Weights, save_weights
from tests.sharing.test_examples import make_evaluation

gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

from hcast_zoo.demo import app as demo  # noqa: E402 (needs gradio)
from hcast_zoo.demo import guard  # noqa: E402
from hcast_zoo.demo.view import ARROW, example_pictures  # noqa: E402
from tests.demo import hostile_requests  # noqa: E402
from tests.tiny import make_model, make_taxonomy  # noqa: E402

JSON = {"Content-Type": "application/json"}
SETTINGS = ("best_path", [], False, 0.5, 8, 4, 2)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    """A predictor from a folder as `publish` writes it, whose card has an example."""
    model, taxonomy = make_model(), make_taxonomy()
    folder = tmp_path_factory.mktemp("weights")
    weights = Weights(model.config, taxonomy, model.state_dict(), {"name": "tiny"})
    save_weights(weights, folder / "model.safetensors")
    (lion,) = example_pictures(taxonomy)
    shutil.copy(lion, folder / "blob")
    (folder / lion.name).symlink_to("blob")  # as in the Hub's cache
    write_evaluations(folder / EVALUATIONS, [make_evaluation(examples=[lion.name], credit="A. Lion, CC0")])
    return Predictor(folder)


@pytest.fixture(scope="module")
def calls_elsewhere() -> list:
    """Every address that this process looks up or connects to from here on, except the loopback."""
    addresses, patch = [], pytest.MonkeyPatch()
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def is_near(host):
        return host in (None, "", "localhost") or str(host).startswith(("127.", "::1", "0.0.0.0"))

    def watched_connect(self, address):
        if isinstance(address, tuple) and not is_near(address[0]):
            addresses.append(address)
        return connect(self, address)

    def watched_lookup(host, *arguments, **options):
        if not is_near(host):
            addresses.append(host)
            raise socket.gaierror(f"no look-ups in tests: {host}")
        return lookup(host, *arguments, **options)

    patch.setattr(socket.socket, "connect", watched_connect)
    patch.setattr(socket, "getaddrinfo", watched_lookup)
    yield addresses
    patch.undo()


@pytest.fixture(scope="module")
def address(predictor, calls_elsewhere):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ALLOWED_PATHS", "/etc")  # left by another app
        with demo.serving(predictor) as address:
            yield address


@pytest.fixture(scope="module")
def client(address):
    client = gradio_client.Client(address, verbose=False, analytics_enabled=False)
    yield client
    client.close()


@pytest.fixture
def picture(picture_folder) -> Path:
    return next((picture_folder / "val").rglob("*.png"))


def upload(file):
    return gradio_client.handle_file(str(file))


def request(address, method, path, body=None, **headers):
    """Return status and body, for requests that a well-behaved client would not send."""
    return ask(address, method, path, body, **headers)[:2]


def ask(address, method, path, body=None, **headers):
    """Return status, body and headers."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def call(address, name, data):
    """Send data that Gradio's client would not; return the events of the answer."""
    body = json.dumps({"data": data})
    status, answer = request(address, "POST", f"/gradio_api/call/{name}", body, **{"Content-Type": "application/json"})
    assert status == 200
    return request(address, "GET", f"/gradio_api/call/{name}/{json.loads(answer)['event_id']}")[1].decode()


def text(html):
    return re.sub("<[^>]+>", " ", html)


def test_classify_then_move_the_slider(client, predictor, picture):
    (expected,) = predictor.predict([picture])
    message, answer, panel, caption, outcome, _ = client.predict(upload(picture), 0, *SETTINGS, api_name="/classify")
    assert message == outcome == "" and text(answer).split("this path")[0].strip() == ARROW.join(expected.path)
    assert "as the model sees it" in caption
    with Image.open(panel) as shown:
        plain = np.asarray(shown)
    panel, caption = client.predict(3, api_name="/show_stage")
    assert "Stage 3: " in caption and "The model reads family from this." in caption
    with Image.open(panel) as shown:
        colours = [len(np.unique(x.reshape(-1, 3), axis=0)) for x in (np.asarray(shown), plain)]
    assert colours[0] <= 5 < colours[1]  # four segments and the lines between


def test_settings_reach_the_model(client, predictor, picture):
    chosen = predictor.with_settings("top_down", num_clusters=(4, 2, 2, 2), within=["mammal"], threshold=0.9)
    (expected,) = chosen.predict([picture])
    _, answer, *_ = client.predict(
        upload(picture), 0, "top_down", ["class:mammal"], True, 0.9, 4, 2, 2, api_name="/classify"
    )
    assert ARROW.join(expected.path) in answer and expected.reason[1:].split("'")[0] in answer
    assert "bird" not in answer


def test_an_example_is_classified_as_its_file_is(client, address, predictor):
    (lion,) = example_pictures(predictor.taxonomy)
    file = client.predict(0, api_name="/example")
    (expected,) = predictor.predict([lion])
    _, answer, *_ = client.predict(upload(file), 0, *SETTINGS, api_name="/classify")
    assert f"this path: {expected.path_probability:.1%}" in answer and ARROW.join(expected.path) in answer
    # The session still accepts files only.
    with pytest.raises(gradio_client.exceptions.AppError, match="pictures that were uploaded to it, and nothing else"):
        client.submit(
            {
                "path": "https://example.com/x.png",
                "url": "https://example.com/x.png",
                "orig_name": "x.png",
                "meta": {"_type": "gradio.FileData"},
            },
            0,
            *SETTINGS,
            api_name="/classify",
        ).result()


def test_importing_it_writes_nothing():
    """Gradio writes a .pyi file beside a module that defines a component class."""
    code = "from pathlib import Path; from hcast_zoo.demo import app; print(*Path(app.__file__).parent.glob('*.pyi'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_adapt(client, predictor, picture):
    stored = {name: x.clone() for name, x in predictor.model.state_dict().items()}
    outcome, sheet = client.predict(upload(picture), "species:wolf", 3, *SETTINGS, api_name="/adapt")
    before, after = map(float, re.findall(r"([\d.]+)%", text(outcome))[:2])
    assert "wolf: " in outcome and after > before
    with Image.open(sheet["value"] if isinstance(sheet, dict) else sheet) as shown:
        assert shown.width > 1000
    assert all(torch.equal(x, stored[name]) for name, x in predictor.model.state_dict().items())


@pytest.mark.parametrize(
    "content, settings, message",
    [
        (b"no picture", SETTINGS, "Not a picture, or of an unknown format"),
        (b"\x89PNG\r\n\x1a\n<script>", SETTINGS, "picture"),
        (None, ("best_path", [], False, 0.5, 4, 8, 2), "cannot choose 8 clusters from 4 tokens"),
        (None, ("best_path", ["lyon"], False, 0.5, 8, 4, 2), "did you mean &#x27;lion&#x27;"),
        (None, ("best_path", ["<img src=x>"], False, 0.5, 8, 4, 2), "no node &#x27;&lt;img src=x&gt;&#x27;"),
    ],
)
def test_an_error_of_the_core_is_shown_as_a_message(client, picture, tmp_path, content, settings, message):
    file = picture
    if content is not None:
        file = tmp_path / "<img src=x onerror=hit()>.png"
        file.write_bytes(content)
    shown, answer, *_ = client.predict(upload(file), 0, *settings, api_name="/classify")
    assert message.lower() in shown.lower() and answer == ""
    assert "<img" not in shown and "hcast-zoo-demo" not in shown and "Traceback" not in shown
    outcome, _ = client.predict(upload(file), "species:lion", 1, *settings, api_name="/adapt")
    assert outcome == shown


def test_missing_input_is_shown_as_a_message(client, picture):
    message, answer, *_ = client.predict(None, 0, *SETTINGS, api_name="/classify")
    assert message == "" and "Drop a picture" in answer
    for file, target, expected in (
        (None, "lion", "Drop a picture first"),
        (upload(picture), "", "Click a node"),
        (upload(picture), "lyon", "did you mean"),
        (upload(picture), "<b>", "&lt;b&gt;"),
    ):
        assert expected in client.predict(file, target, 1, *SETTINGS, api_name="/adapt")[0]


def test_predictions_do_not_wait_for_adaptations(predictor):
    """Adaptation does not change the shared model, so predictions need not wait; the limits bound memory."""
    events = {event.api_name: event for event in demo.build_app(predictor).fns.values() if event.fn}
    assert events["classify"].concurrency_id != events["adapt"].concurrency_id
    assert events["adapt"].concurrency_id == events["adapt_to_click"].concurrency_id
    assert 1 < events["classify"].concurrency_limit <= 8 and 1 < events["adapt"].concurrency_limit <= 8


def test_it_listens_only_on_the_loopback_address(address):
    parts = urlsplit(address)
    assert parts.hostname == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):  # this machine too: open if the page listened on all addresses
        socket.create_connection(("127.0.0.2", parts.port), timeout=5)


def test_requests_for_another_host_name_are_refused(address):
    assert request(address, "GET", "/", Host="evil.example")[0] == 400
    status, page = request(address, "GET", "/", Host=f"localhost:{urlsplit(address).port}")
    assert status == 200 and b"tiny: hcast-zoo" in page and b"of the card (A. Lion, CC0)" in page


def test_it_serves_only_its_own_files(client, address, picture):
    client.predict(upload(picture), 0, *SETTINGS, api_name="/classify")
    folder = os.environ["GRADIO_TEMP_DIR"]
    stored = next(path for path in Path(folder).rglob(picture.name))
    assert request(address, "GET", f"/gradio_api/file={stored}") == (200, picture.read_bytes())
    with tempfile.TemporaryDirectory() as other:
        secret = Path(other) / "secret.txt"
        secret.write_text("secret")
        usual = Path(tempfile.gettempdir()) / "gradio"  # where other Gradio apps keep their files
        for file in (
            "/etc/hostname",
            secret,
            demo.__file__,
            "pyproject.toml",
            f"{folder}/../{other}/secret.txt",
            usual,
            f"{stored}/../../../../../etc/hostname",
            "http://127.0.0.1:9/x",
            "https://example.com/x",
            "HTTP://example.com/x",
            "file:///etc/hostname",
            "//example.com/x",
        ):
            for route in ("file=", "file/", "proxy="):
                status, body = request(address, "GET", f"/gradio_api/{route}{file}")
                assert status in (400, 403, 404) and b"secret" not in body.replace(str(secret).encode(), b""), file
        for path in (str(secret), "/etc/hostname", "http://127.0.0.1:9/x.png", "https://example.com/x.png"):
            file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
            assert call(address, "classify", [file, 0, *SETTINGS]).startswith("event: error")
            assert call(address, "adapt", [file, "lion", 1, *SETTINGS]).startswith("event: error")
        file = {"path": None, "url": "data:image/png;base64,AAAA", "meta": {"_type": "gradio.FileData"}}
        assert "Traceback" not in call(address, "classify", [file, 0, *SETTINGS])
        for files in Path(folder).rglob("*"):
            assert not files.is_file() or b"secret" not in files.read_bytes()


def post_file(address, name, content):
    """Upload a file as a form does; return status and body."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return request(
        address,
        "POST",
        "/gradio_api/upload",
        head.encode() + content + b"\r\n--x--\r\n",
        **{"Content-Type": "multipart/form-data; boundary=x"},
    )


def test_an_uploaded_page_is_served_as_a_download(address):
    """Otherwise a visitor could upload a page that runs with the Space's origin for another visitor."""
    for name in ("a.html", "a.svg", "a.xhtml", "a.js"):
        status, files = post_file(address, name, b"<script>alert(1)</script>")
        assert status == 200
        status, _, headers = ask(address, "GET", f"/gradio_api/file={json.loads(files)[0]}")
        assert status == 200 and headers["Content-Disposition"].startswith("attachment"), name
        assert headers["Content-Type"] == "application/octet-stream"


def test_uploads_are_limited(address):
    limit = demo.MAX_UPLOAD
    for size, expected in ((limit // 2, 200), (limit + 2**14, 413), (limit + 2**20, 413)):
        assert post_file(address, "a.png", b"0" * size)[0] == expected, size
    body = json.dumps({"data": ["0" * (limit + 2**20)]}).encode()
    assert request(address, "POST", "/gradio_api/queue/join", body, **{"Content-Type": "application/json"})[0] == 413


@pytest.mark.slow
def test_200_hostile_requests_cannot_read_a_file(address, picture, tmp_path):
    """Every request gets the same refusal, whatever is at the path, and no file outside is opened."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    uploaded = post_file(address, "own.png", picture.read_bytes())[1]
    link = Path(json.loads(uploaded)[0]).with_name("link.png")
    link.symlink_to(secret)
    outside, opened, listening = {os.path.realpath(secret), "/etc/passwd", "/etc/hostname"}, [], [True]

    def watch(event, arguments):
        if listening and event == "open" and os.path.realpath(str(arguments[0])) in outside:
            opened.append(arguments[0])

    requests = hostile_requests.make(str(secret), json.loads(uploaded)[0], str(link), SETTINGS)
    assert len(requests) >= 200
    sys.addaudithook(watch)
    try:
        answers = {json.dumps(r): call(address, r["name"], r["data"]) for r in requests}
    finally:
        listening.clear()  # a hook cannot be removed

    assert opened == []
    refused = {request: answer for request, answer in answers.items() if guard.REFUSED not in answer}
    assert refused == {}
    assert len({re.sub(r"\s+", " ", answer) for answer in answers.values()}) == 1
    assert "event: complete" in call(address, "classify", [{"path": json.loads(uploaded)[0]}, 0, *SETTINGS])


@pytest.mark.parametrize(
    "path, body",
    [
        ("/gradio_api/call/classify", b'{"data": NaN}'),
        ("/gradio_api/call/classify", b'{"data": "\\ud800"}'),
        ("/gradio_api/queue/join", b'{"data": [], "fn_index": -5, "session_hash": "x"}'),
        ("/gradio_api/queue/join", b'{"data": [], "fn_index": 10000, "session_hash": "x"}'),
        ("/gradio_api/queue/join", b'{"data": [0], "fn_index": 1, "session_hash": "\\ud800"}'),
    ],
)
def test_a_malformed_request_is_refused_in_words(address, path, body):
    status, answer = request(address, "POST", path, body, **{"Content-Type": "application/json"})
    assert status in (400, 422) and len(answer) > 5 and b"Traceback" not in answer


@pytest.mark.parametrize(
    "name, data",
    [
        ("example", [None]),
        ("classify", [{"path": "OWN"}, 0, "best_path", [["bird"], {"a": 1}, None], False, 0.5, 8, 4, 2]),
        ("classify", [{"path": "OWN"}, 0, "best_path", None, False, 0.5, 8, 4, 2]),
    ],
)
def test_controls_of_other_types_are_accepted(address, picture, name, data):
    uploaded = json.loads(post_file(address, "own.png", picture.read_bytes())[1])[0]
    answer = call(address, name, json.loads(json.dumps(data).replace("OWN", uploaded)))
    assert "event: complete" in answer


def test_a_query_that_is_not_utf8_is_refused(address):
    status, answer = request(address, "GET", "/gradio_api/queue/data?session_hash=%ED%A0%80")
    assert status == 400 and answer.decode() == guard.MALFORMED


def test_a_step_that_only_the_browser_runs_is_refused(address, predictor):
    alone = [number for number, fn in demo.build_app(predictor).fns.items() if fn.fn is None]
    assert len(alone) == 2
    for number in alone:
        event = {"data": [], "fn_index": number, "session_hash": f"alone{number}"}
        assert request(address, "POST", "/gradio_api/queue/join", json.dumps(event).encode(), **JSON)[0] == 200
        events = request(address, "GET", f"/gradio_api/queue/data?session_hash=alone{number}")[1].decode()
        assert guard.MALFORMED in events


def test_an_unexpected_failure_is_explained(address, monkeypatch, picture):
    uploaded = json.loads(post_file(address, "own.png", picture.read_bytes())[1])[0]
    monkeypatch.setattr(demo, "look_at", lambda *_: {}["key"])
    answer = call(address, "classify", [{"path": uploaded}, 0, *SETTINGS])
    assert answer.startswith("event: error") and guard.FAILED in answer and "key" not in answer


def test_other_pages_are_refused(address):
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx\r\n--x--\r\n'
    for path, text, kind in (
        ("/gradio_api/upload", body, form),
        ("/gradio_api/call/show_stage", b'{"data": [0]}', {"Content-Type": "application/json"}),
    ):
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example", ""):
            assert request(address, "POST", path, text, Origin=origin, **kind)[0] == 403, origin
        assert request(address, "POST", path, text, Origin=address.rstrip("/"), **kind)[0] == 200


def test_response_headers_protect_the_page(address):
    for path in ("/", "/config", "/gradio_api/file=/etc/hostname", "/gradio_api/proxy=https://example.com"):
        _, body, headers = ask(address, "GET", path, None, **{"X-Forwarded-Host": "evil.example"})
        assert headers["X-Frame-Options"] == "DENY" and "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "https:" not in headers["Content-Security-Policy"]
        assert b"evil.example" not in body


def test_a_quota_for_all_uploads_together(address, monkeypatch):
    stored = guard._stored(os.environ["GRADIO_TEMP_DIR"])
    asked = []

    def almost_full(folder):
        asked.append(folder)
        return guard.MAX_STORED - 2**20

    monkeypatch.setattr(guard, "_stored", almost_full)
    assert post_file(address, "a.png", b"0" * 2**19)[0] == 200
    status, body = post_file(address, "a.png", b"1" * (2**20 + 1))
    assert (status, body.decode()) == (507, guard.FULL)
    assert set(asked) == {os.environ["GRADIO_TEMP_DIR"]} and stored < guard.MAX_STORED


def test_the_hub_may_show_a_space_in_a_frame(monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "me-page.hf.space")
    space = guard.Guard(None, "folder", 10, space=True)
    assert "X-Frame-Options" not in space.headers and space.host == "me-page.hf.space"
    assert "frame-ancestors https://huggingface.co" in space.headers["Content-Security-Policy"]


def test_it_connects_to_no_other_machine(client, calls_elsewhere):
    assert calls_elsewhere == []


def test_it_cleans_up(predictor):
    before = os.environ.get("GRADIO_TEMP_DIR")
    with demo.serving(predictor) as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir() and request(address, "GET", "/")[0] == 200
    assert not folder.exists() and os.environ.get("GRADIO_TEMP_DIR") == before
    with pytest.raises(ConnectionRefusedError):
        request(address, "GET", "/")


def test_ports(predictor, address):
    for port in (-1, 0, 70000):
        with pytest.raises(ValueError, match="expected a port from 1 to 65535"), demo.serving(predictor, port=port):
            pass
    taken = urlsplit(address).port
    with pytest.raises(OSError, match=f"port {taken} is not available"), demo.serving(predictor, port=taken):
        pass


@pytest.mark.slow
def test_the_command(tiny_weights):
    command = [sys.executable, "-m", "hcast_zoo", "demo", "--model", str(tiny_weights)]
    # A test run may be a background job, which ignores SIGINT, and its children would inherit that.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        try:
            address = process.stdout.readline().strip()
            status, page = request(address, "GET", "/")
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert status == 200 and b"tiny: hcast-zoo" in page
    assert process.returncode == 130 and out == "" and errors.strip() == "interrupted"
