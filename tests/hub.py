"""A Hub server on loopback (hub_server.py), and processes that talk to it."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

TESTS = Path(__file__).parent

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


def upload(server, file: Path, repo: str = "org/tiny", private: bool = False) -> None:
    server.python(f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo({repo!r}, private={private}, exist_ok=True)
api.upload_file(path_or_fileobj={str(file)!r}, path_in_repo="model.safetensors", repo_id={repo!r})
print(1)""")
