"""Reading from and publishing to a Hub server on loopback (hub_server.py)."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from hcast_zoo.weights.hub import parse_repository

pytestmark = pytest.mark.hub
TESTS = Path(__file__).parents[1]


class Server:
    """A running Hub server, and processes that talk to it (huggingface_hub reads its settings at import)."""

    def __init__(self, url: str, home: Path):
        self.url = url
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_test",
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def run(self, *arguments: str, cwd: Path = TESTS.parent, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**self.environment, **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
        )

    def python(self, code: str, **environment: str):
        """Run code in a new process; return its last line, parsed as JSON."""
        result = self.run("-c", code, **environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    def fault(self, match: str, status: int = 503, times: int = 1, **more: str) -> None:
        body = json.dumps({"match": match, "status": status, "times": times, **more}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/_test/fault", body, method="POST")).close()

    def faults_over(self) -> None:
        with urllib.request.urlopen(f"{self.url}/_test/forget") as response:
            assert response.status == 200

    def requests(self) -> list[list]:
        with urllib.request.urlopen(f"{self.url}/_test/log") as response:
            return json.load(response)


@pytest.fixture
def server(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "hub_server.py"), "--root", str(tmp_path / "hub")],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield Server(process.stdout.readline().strip(), tmp_path / "home")
    process.terminate()
    process.wait()


@pytest.mark.parametrize(
    "source, expected",
    [
        ("org/name", ("org/name", None)),
        ("hf-hub:org/na.me", ("org/na.me", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("name", None),
        ("a/b/c", None),
        ("../x", None),
        ("/x/y", None),
        ("org/", None),
        ("org/name@", None),
        ("runs/best.safetensors", None),
    ],
)
def test_repository_names_are_parsed(source, expected):
    assert parse_repository(source) == expected


LOAD = """
import json, sys
from hcast_zoo.weights import hub
from hcast_zoo.weights.file import WeightsError, load_weights
answers = []
for source in sys.argv[1:] or {sources!r}:
    try:
        answers.append(load_weights(source).metadata["name"])
    except (hub.HubError, WeightsError) as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def upload(server, file: Path, repo: str = "org/tiny", private: bool = False) -> None:
    server.python(f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo({repo!r}, private={private}, exist_ok=True)
api.upload_file(path_or_fileobj={str(file)!r}, path_in_repo="model.safetensors", repo_id={repo!r})
print(1)""")


def test_weights_are_loaded_from_the_hub_or_the_reason_is_given(server, tiny_weights, tmp_path):
    upload(server, tiny_weights, private=True)
    sources = ["org/tiny", "hf-hub:org/tiny", "org/tiny@main", "org/tiny@v9", "org/nothing"]
    *loaded, revision, repository = server.python(LOAD.format(sources=sources))
    assert loaded == ["tiny"] * 3
    assert "has no revision 'v9'" in revision and "no repository 'org/nothing'" in repository

    offline = server.python(LOAD.format(sources=["org/tiny", "org/other"]), HF_HUB_OFFLINE="1")
    assert offline[0] == "tiny" and "HF_HUB_OFFLINE" in offline[1]

    unreachable = server.python(LOAD.format(sources=["org/other"]), HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot reach http://127.0.0.1:9" in unreachable[0]

    no_token = server.python(LOAD.format(sources=["org/tiny"]), HF_TOKEN="", HF_HOME=f"{tmp_path}/empty")
    assert "no repository 'org/tiny'" in no_token[0] and "private" in no_token[0]


def test_a_failed_download_leaves_nothing_that_loads(server, tiny_weights):
    upload(server, tiny_weights)
    server.fault("GET .*resolve.*model.safetensors")
    first, second = server.python(LOAD.format(sources=["org/tiny", "org/tiny"]))
    assert "download of model.safetensors from org/tiny failed" in first and second == "tiny"


def test_a_repository_without_weights_is_explained(server, tmp_path):
    file = tmp_path / "README.md"
    file.write_text("nothing")
    server.python(f"""
from huggingface_hub import HfApi
HfApi().create_repo("org/other")
HfApi().upload_file(path_or_fileobj={str(file)!r}, path_in_repo="model.safetensors", repo_id="org/other")
HfApi().create_repo("org/empty")
print(1)""")
    other, empty = server.python(LOAD.format(sources=["org/other", "org/empty"]))
    assert "expected a complete safetensors file" in other and "org/empty has no model.safetensors" in empty
