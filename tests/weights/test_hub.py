"""Loading weights from a Hub server on loopback."""

import pytest

from hcast_zoo.weights.hub import parse_repository
from tests import conftest
from tests.hub import LOAD, upload

pytestmark = pytest.mark.hub
server = conftest.server  # test_parity.py imports it from here


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
