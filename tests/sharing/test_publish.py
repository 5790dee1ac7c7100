"""Publishing to a Hub server on loopback; tests/test_parity.py loads what is published through every interface."""

import json

import pytest

from hcast_zoo.cli import main
from hcast_zoo.data.pictures import PictureError
from hcast_zoo.sharing.model_card import record_evaluation
from hcast_zoo.sharing.publish import assemble, publish
from hcast_zoo.weights.file import load_weights
from hcast_zoo.weights.hub import HubError

pytest.importorskip("transformers")

PUBLISH = """
import json
from hcast_zoo.sharing import publish
from hcast_zoo.weights import hub
try:
    print(json.dumps(publish.publish({source!r}, {repo!r}, **{options!r}).commit))
except hub.HubError as error:
    print(json.dumps("error: " + str(error)))
"""


@pytest.fixture
def repository(tiny_weights, tmp_path, evaluation, picture_folder):
    picture = next((picture_folder / "val").rglob("*.png"))
    assemble(tiny_weights, tmp_path / "repo", "org/tiny", [evaluation], picture)
    return tmp_path / "repo"


def test_a_repository_has_every_file(repository, tiny_weights, taxonomy):
    names = {path.name for path in repository.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "taxonomy.json",
        "README.md",
        "preview.png",
        "modeling_hcast.py",
        "configuration_hcast.py",
    } <= names
    config = json.loads((repository / "config.json").read_text())
    assert config["model_type"] == "hcast" and config["architecture"].startswith("hcast_")
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32] and config["id2label"]["0"] == "barn owl"
    assert load_weights(repository).taxonomy == taxonomy
    text = (repository / "README.md").read_text()
    assert "org/tiny" in text and "preview.png" in text and "12.35" in text


def test_assembling_twice_gives_the_same_bytes(tiny_weights, tmp_path):
    first = assemble(tiny_weights, tmp_path / "a", "org/tiny")
    assert first == assemble(tiny_weights, tmp_path / "b", "org/tiny")


def test_wrong_folders_previews_and_names_are_explained(tiny_weights, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(ValueError, match="expected an empty folder"):
        assemble(tiny_weights, tmp_path / "full")
    with pytest.raises(PictureError, match="no such file"):
        assemble(tiny_weights, tmp_path / "out", preview="nowhere.png")
    for repo in ("tiny", "a/b/c", "org/ti ny", "../x"):
        with pytest.raises(HubError, match="expected a repository org/name"):
            publish(tiny_weights, repo, dry_run=True)


def test_a_dry_run_writes_the_files_and_uploads_nothing(tiny_weights, tmp_path, capsys, evaluation):
    record_evaluation(tmp_path / "tiny.md", str(tiny_weights), evaluation)
    command = ["publish", str(tiny_weights), "--repo", "org/tiny", "--dry-run", "--output", str(tmp_path / "out")]
    command += ["--evaluations", str(tmp_path / "tiny.json"), "--json"]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["commit"] is None
    assert {f["name"] for f in answer["files"]} == {path.name for path in (tmp_path / "out").iterdir()}
    assert "12.35" in (tmp_path / "out/README.md").read_text()
    assert main(command) == 2 and "expected an empty folder" in capsys.readouterr().err


@pytest.mark.hub
@pytest.mark.slow
def test_publishing_is_whole_or_not_at_all_and_can_be_repeated(server, tiny_weights):
    def run(source=str(tiny_weights), **options):
        return server.python(PUBLISH.format(source=source, repo="org/tiny", options=options))

    server.fault("POST .*/commit/", times=9)
    assert run(private=True).startswith("error: publishing to org/tiny failed")

    state = "import json; from huggingface_hub import HfApi; i = HfApi().model_info('org/tiny', files_metadata=True); "
    files = state + "print(json.dumps([i.private, i.sha, sorted(s.rfilename for s in i.siblings)]))"
    assert server.python(files)[0] is True and server.python(files)[2] == [
        ".gitattributes"
    ]  # nothing, rather than a part
    server.faults_over()
    commit = run(tag="v1.0")
    private, sha, names = server.python(files)
    assert private and commit.endswith(sha) and "model.safetensors" in names and "modeling_hcast.py" in names

    assert run(tag="v1.0") == commit  # as if the answer to the tag had been lost
    before = len(server.requests())
    assert run() == commit  # publishing again makes no commit and sends no file
    assert not [r for r in server.requests()[before:] if r[0] == "PUT" or "/commit/" in r[1]]

    run(revision="next", message="Second")
    loaded = server.python(
        "import json; from hcast_zoo.weights.file import load_weights; "
        "print(json.dumps([load_weights('org/tiny' + r).metadata['name'] for r in ('', '@v1.0', "
        "'@next')]))"
    )
    assert loaded == ["tiny"] * 3

    assert "tag 'v1.0' points to another commit" in run(source="hcast_tiny.fashion_mnist", tag="v1.0")


@pytest.mark.hub
@pytest.mark.slow
def test_publishing_removes_only_code_of_an_older_version(server, tiny_weights, tmp_path):
    """Modules that are no longer generated are removed; files that the owner added stay."""
    for name in ("old_module.py", "notes.txt"):
        (tmp_path / name).write_text("x = 1\n")
    server.python(f"""
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("org/tiny")
for name in ("old_module.py", "notes.txt"):
    api.upload_file(path_or_fileobj={str(tmp_path)!r} + "/" + name, path_in_repo=name, repo_id="org/tiny")
print(1)""")
    server.python(PUBLISH.format(source=str(tiny_weights), repo="org/tiny", options={}))
    names = server.python(
        "import json; from huggingface_hub import HfApi; print(json.dumps(HfApi().list_repo_files('org/tiny')))"
    )
    assert "modeling_hcast.py" in names and "notes.txt" in names and "old_module.py" not in names
