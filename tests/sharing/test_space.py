"""Spaces: their files, and one that is published to a Hub server on loopback and run."""

import json
import subprocess
import sys
from importlib import metadata

import pytest
import yaml

from hcast_zoo import __version__
from hcast_zoo.cli import main
from hcast_zoo.sharing.space import assemble_space, publish_space
from hcast_zoo.weights.file import WeightsError, packaged_weights
from hcast_zoo.weights.hub import HubError
from tests.hub import upload

PACKAGED = next(iter(packaged_weights()), None)
PUBLISH = """
import json
from hcast_zoo.sharing import space
from hcast_zoo.weights import hub
try:
    print(json.dumps(space.publish_space({source!r}, {repo!r}, **{options!r}).commit))
except (hub.HubError, ValueError) as error:
    print(json.dumps("error: " + str(error)))
"""


@pytest.fixture
def with_gradio(monkeypatch):
    """Pretend that this version of Gradio is installed."""
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "6.24.0" if name == "gradio" else version(name))


def front_matter(text):
    _, data, body = text.split("---\n", 2)
    return yaml.safe_load(data), body


@pytest.mark.skipif(PACKAGED is None, reason="no packaged weights")
def test_a_space_has_its_page_and_requirements(with_gradio, tmp_path, capsys):
    output = tmp_path / "space"
    command = ["publish", PACKAGED, "--space", "--repo", "org/page", "--dry-run", "--output", str(output), "--json"]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["commit"] is None
    assert [f["name"] for f in answer["files"]] == ["README.md", "app.py", "requirements.txt"]

    data, body = front_matter((output / "README.md").read_text())
    assert (data["sdk"], data["sdk_version"], data["app_file"]) == ("gradio", "6.24.0", "app.py")
    assert data["title"] == PACKAGED and data["license"] == "cc-by-sa-4.0" and body.startswith(f"# {PACKAGED}")
    assert (output / "requirements.txt").read_text() == f"hcast-zoo[demo]>={__version__}\n"
    compile((output / "app.py").read_text(), "app.py", "exec")

    assert assemble_space(PACKAGED, tmp_path / "again") == assemble_space(PACKAGED, tmp_path / "third")
    assert main(command) == 2 and "expected an empty folder" in capsys.readouterr().err

    assert main([*command[:-2], str(tmp_path / "own"), "--requirement", "hcast-zoo[demo] @ https://x/y.whl"]) == 0
    assert (tmp_path / "own/requirements.txt").read_text() == "hcast-zoo[demo] @ https://x/y.whl\n"


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("{file}", {}, "expected weights that a Space can load"),
        ("nothing", {}, "expected weights that a Space can load"),
        ("org/'); import os", {}, "expected weights that a Space can load"),
        (PACKAGED, {"requirement": "a\nb"}, "expected a requirement in one line"),
    ],
)
def test_wrong_sources_and_requirements_are_explained(with_gradio, tiny_weights, tmp_path, source, options, message):
    source = (source or "").format(file=tiny_weights)
    with pytest.raises(ValueError, match=message):
        publish_space(source, "org/page", dry_run=True, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_wrong_usage_of_spaces_is_explained(with_gradio, tmp_path, capsys):
    with pytest.raises(HubError, match="expected a repository org/name"):
        publish_space("org/tiny", "page", dry_run=True)
    with pytest.raises((HubError, WeightsError), match="org/tiny"):  # not in the cache
        publish_space("org/tiny", "org/page", dry_run=True)
    for options, message in (
        (["--space", "--preview", "x.png"], "--preview does not go with --space"),
        (["--space", "--evaluations", "x.json"], "--evaluations does not go with --space"),
        (["--requirement", "x"], "--requirement does not go without --space"),
    ):
        assert main(["publish", "org/tiny", "--repo", "org/page", "--dry-run", *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(PACKAGED is None, reason="no packaged weights")
def test_a_space_needs_gradios_version(monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ImportError, match=r"pip install 'hcast-zoo\[demo\]'"):
        assemble_space(PACKAGED, tmp_path / "out")


@pytest.mark.hub
@pytest.mark.slow
def test_a_published_space_serves_the_page(server, tiny_weights, tmp_path):
    """A failed upload leaves no partial Space."""
    pytest.importorskip("gradio")
    upload(server, tiny_weights)

    def run(source="org/tiny", repo="org/page", **options):
        return server.python(PUBLISH.format(source=source, repo=repo, options=options))

    files = """
import json
from huggingface_hub import HfApi
info = HfApi().space_info("org/page", files_metadata=True)
print(json.dumps([info.private, info.sha, sorted(s.rfilename for s in info.siblings)]))"""
    assert "no repository 'org/none'" in run("org/none")

    server.fault("POST .*/commit/", times=9)
    assert run(private=True).startswith("error: publishing to org/page failed")
    assert server.python(files)[0] is True and server.python(files)[2] == [
        ".gitattributes"
    ]  # nothing, rather than a part
    server.faults_over()

    commit = run(tag="v1.0")
    private, sha, names = server.python(files)
    assert private and commit.endswith(sha) and names == [".gitattributes", "README.md", "app.py", "requirements.txt"]
    assert run().endswith(sha)  # publishing again makes no commit
    assert not run(requirement="hcast-zoo[demo] @ https://x/y.whl", revision="next").endswith(sha)

    folder = server.python("""
import json
from huggingface_hub import snapshot_download
print(json.dumps(snapshot_download("org/page", repo_type="space", revision="v1.0")))""")
    data, _ = front_matter((tmp_path / folder / "README.md").read_text())
    assert data["models"] == ["org/tiny"] and data["sdk_version"] == metadata.version("gradio")
    environment = {**server.environment, "GRADIO_SERVER_NAME": "127.0.0.1"}  # in a Space it is 0.0.0.0
    with subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            address = process.stdout.readline().strip()
            assert address, process.stderr.read()
            page = server.python(f"""
import json, urllib.request
with urllib.request.urlopen({address!r}) as answer:
    print(json.dumps(answer.read().decode()))""")
            assert "tiny: hcast-zoo" in page and "barn owl" not in page and "class:bird" in page
        finally:
            process.terminate()
