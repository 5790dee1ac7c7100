"""Examples from a model's own card: written by `evaluate`, published, and found again by the demo page."""

import json

import pytest
from PIL import Image

from hcast_zoo import Predictor
from hcast_zoo.cli import main
from hcast_zoo.demo.view import example_pictures, offered_examples
from hcast_zoo.sharing.examples import card_examples
from hcast_zoo.sharing.model_card import EVALUATIONS, Evaluation, packaged_evaluations, write_evaluations
from hcast_zoo.weights.file import packaged_weights

CREDIT = "A. Owl, CC0"


def make_evaluation(**more) -> Evaluation:
    results = {"best_path": {"fpa": 50.0}}
    return Evaluation(
        "00", "Animals", "test", 2, results, "hcast-zoo evaluate", "commit a", "2026-01-01", "2.14", **more
    )


@pytest.fixture
def card(picture_folder, tiny_weights, tmp_path):
    """A card of tiny weights, with pictures of answers beside it."""
    command = ["evaluate", "--data", str(picture_folder), "--model", str(tiny_weights), "--split", "val"]
    assert main([*command, "--card", str(tmp_path / "tiny.md"), "--card-pictures", CREDIT]) == 0
    return tmp_path / "tiny.md"


def publish(card, tiny_weights, output, *options):
    command = ["publish", str(tiny_weights), "--repo", "org/tiny", "--evaluations", str(card.with_suffix(".json"))]
    return main([*command, "--dry-run", "--output", str(output), *options])


def test_the_folder_of_a_repository_has_the_examples_of_its_card(card, tiny_weights, tmp_path):
    pytest.importorskip("transformers")
    assert publish(card, tiny_weights, tmp_path / "repository") == 0
    (stored,) = json.loads((tmp_path / "repository" / EVALUATIONS).read_text())
    assert stored == json.loads(card.with_suffix(".json").read_text())[0]

    for source in (tmp_path / "repository", tmp_path / "repository/model.safetensors"):
        files, credit = card_examples(source)
        assert [file.name for file in files] == stored["examples"] and credit == CREDIT
    assert 1 <= len(files) <= 6 and stored["examples"][0] == "tiny.val.1.jpg"
    with Image.open(files[0]) as picture:
        assert picture.size == (40, 40) and not picture.getexif()

    offered, heading = offered_examples(Predictor(tmp_path / "repository"))
    assert offered == files and CREDIT in heading


def test_weights_without_a_card_have_no_examples(tiny_weights):
    assert offered_examples(Predictor(tiny_weights)) == ([], "")  # the lion of the package is not theirs


@pytest.mark.parametrize("name", packaged_weights())
def test_packaged_weights_have_examples_of_their_card_or_that_fit(name):
    predictor = Predictor(name)
    files, heading = offered_examples(predictor)
    listed = [example for evaluation in packaged_evaluations(name) for example in evaluation.examples]
    expected = listed or [path.name for path in example_pictures(predictor.taxonomy)]
    assert [path.name for path in files] == expected and bool(heading) == bool(expected)


@pytest.mark.parametrize(
    "examples, written",
    [
        (["gone.jpg"], {}),
        (["a.jpg"], {"a.jpg": b"<script>"}),
        (["a.html"], {"a.html": b"<script>"}),
        (["../a.jpg"], {"../a.jpg": b""}),
        ("a.jpg", {"a.jpg": b""}),
        ([7], {}),
    ],
)
def test_a_damaged_or_hostile_card_gives_no_examples(tmp_path, examples, written):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, content in written.items():
        (folder / name).write_bytes(content)
    write_evaluations(folder / EVALUATIONS, [make_evaluation()])
    entries = json.loads((folder / EVALUATIONS).read_text())
    entries[0]["examples"] = examples
    (folder / EVALUATIONS).write_text(json.dumps(entries))
    assert card_examples(folder) == ([], "")


@pytest.mark.hub
@pytest.mark.slow
def test_a_published_model_has_the_examples_of_its_card(server, card, tiny_weights):
    pytest.importorskip("transformers")
    examples = """
import json
from hcast_zoo import Predictor
from hcast_zoo.demo.view import offered_examples
files, heading = offered_examples(Predictor({source!r}))
print(json.dumps([[file.name for file in files], heading]))"""
    command = ["-m", "hcast_zoo", "publish", str(tiny_weights), "--repo"]
    done = server.run(*command, "org/tiny", "--evaluations", str(card.with_suffix(".json")), "--tag", "v1.0")
    assert done.returncode == 0, done.stderr
    assert server.run(*command, "org/plain").returncode == 0

    listed = json.loads(card.with_suffix(".json").read_text())[0]["examples"]
    heading = f"Examples: right and wrong answers of the card ({CREDIT})"
    for source in ("org/tiny", "org/tiny@v1.0"):
        assert server.python(examples.format(source=source)) == [listed, heading]
    assert server.python(examples.format(source="org/plain")) == [[], ""]
    assert server.python(examples.format(source="org/tiny"), HF_HUB_OFFLINE="1") == [listed, heading]  # cached
