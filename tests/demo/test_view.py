"""What the demo page shows, without the page."""

import dataclasses
import html.parser

import numpy as np
import pytest
import torch

from hcast_zoo import Predictor
from hcast_zoo.adaptation.adapt import node_log_probability
from hcast_zoo.adaptation.config import AdaptConfig
from hcast_zoo.data.pictures import PictureError, read_picture
from hcast_zoo.demo.view import (
    PANEL,
    _chance,
    adapt_to,
    answer_html,
    caption_html,
    error_text,
    example_pictures,
    grow_tree,
    heading_html,
    look_at,
    message_html,
    model_name,
    subtrees,
)
from hcast_zoo.taxonomy.tree import Taxonomy
from hcast_zoo.weights.file import Weights, save_weights

HOSTILE = (
    '<img src=x onerror="window.hit=1">',
    "</button><script>window.hit=1</script>",
    "{{7*7}} ${window.hit=1}",
    "a'b\"c & d\x1b[31m\x00",
    "\N{RIGHT-TO-LEFT OVERRIDE}abc",
)


@pytest.fixture
def predictor(tiny_weights):
    return Predictor(tiny_weights)


@pytest.fixture
def picture(picture_folder):
    return str(next((picture_folder / "val").rglob("*.png")))


@pytest.fixture
def hostile(tiny_config, tiny_model, tmp_path):
    """A predictor whose model has markup in every text."""
    img, script, template, quotes, override = HOSTILE
    taxonomy = Taxonomy.from_paths(
        [
            (img, script, quotes),
            (img, script, template),
            (img, override, script),
            (quotes, img, img),
            (quotes, quotes, "x"),
            (quotes, quotes, override),
        ],
        (script, img, template),
        img,
    )
    weights = Weights(tiny_config, taxonomy, tiny_model.state_dict(), {"name": script, "limits": img})
    save_weights(weights, tmp_path / "hostile.safetensors")
    return Predictor(tmp_path / "hostile.safetensors")


class Parsed(html.parser.HTMLParser):
    """Tags, attributes and text of HTML."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.nodes, self.names, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.nodes += [value for key, value in attributes if key == "data-node"]
        self.names += [value for key, value in attributes if key == "aria-label" and tag == "summary"]
        assert {key for key, _ in attributes} <= {
            "class",
            "type",
            "data-node",
            "title",
            "style",
            "aria-current",
            "aria-label",
            "role",
            "src",
            "alt",
            "tabindex",
        }
        assert all(value.startswith("data:image/jpeg;base64,") for key, value in attributes if key == "src")

    def handle_data(self, data):
        self.text += data


def tensors(*levels):
    return [torch.tensor(level) for level in levels]


def test_tree_along_a_path(taxonomy):
    values = tensors([0.9, 0.1], [0.7, 0.2, 0.1, 0.0], [0.3, 0.4, 0.1, 0.1, 0.05, 0.05])
    top, middle, fine = grow_tree(values, values, taxonomy, ("bird", "owl", "barn owl"), siblings=2)
    assert [(n.name, n.chosen) for n in top.nodes] == [("bird", True), ("mammal", False)] and top.others == 0
    assert [n.name for n in middle.nodes] == ["owl", "gull"]  # only the children of bird
    assert [(n.name, n.index) for n in fine.nodes] == [("barn owl", 0), ("snowy owl", 1)]  # the chosen one first
    assert fine.level_choice == ("snowy owl", pytest.approx(0.4)) and top.below and middle.below and fine.below
    (branch,) = grow_tree(
        tensors([0.4, 0.3, 0.2, 0.1]), values, Taxonomy.from_paths([*map(tuple, "abcd")]), "c", siblings=2
    )
    assert [n.name for n in branch.nodes] == ["c", "a"]
    assert branch.others == 2 and branch.others_probability == pytest.approx(0.4)


def test_tree_of_a_path_that_stops_early(taxonomy):
    values = tensors([0.9, 0.1], [0.7, 0.2, 0.1, 0.0], [0.3, 0.4, 0.1, 0.1, 0.05, 0.05])
    _, middle = grow_tree(values, values, taxonomy, ("bird",))
    assert [(n.name, n.chosen) for n in middle.nodes] == [("owl", False), ("gull", False)]
    (top,) = grow_tree(values, values, taxonomy, ())
    assert not any(n.chosen for n in top.nodes)
    shallow = Taxonomy.from_paths([("a", "b"), ("c",)])
    assert len(grow_tree(tensors([0.5, 0.5], [1.0]), values, shallow, ("c",))) == 1  # nothing is below a leaf


def test_tree_stops_where_the_labels_are_not_a_path(taxonomy):
    values = tensors([0.9, 0.1], [0.1, 0.2, 0.7, 0.0], [0.3, 0.4, 0.1, 0.1, 0.05, 0.05])
    _, middle, fine = grow_tree(values, values, taxonomy, ("bird", "cat", "snowy owl"))
    assert [n.name for n in middle.nodes] == ["cat", "gull", "owl"] and not middle.below and not fine.below


def test_look_is_the_predictors_answer(predictor, picture, tiny_config):
    look = look_at(predictor, picture)
    (expected,) = predictor.predict([picture])
    assert look.prediction == expected
    assert [b.nodes[0].name for b in look.tree] == list(expected.path)
    assert [b.nodes[0].probability for b in look.tree][-1] == pytest.approx(expected.path_probability, abs=1e-5)
    assert len(look.panels) == len(look.captions) == 5 and {p.size for p in look.panels} == {(PANEL, PANEL)}
    colours = [len(np.unique(np.asarray(p).reshape(-1, 3), axis=0)) for p in look.panels]
    assert colours[0] > colours[1] > colours[4]  # a colour per segment, and that of the lines
    for level, stage in zip(predictor.taxonomy.levels, tiny_config.head_stages):
        assert f"reads {level} from this" in look.captions[stage]


def test_look_takes_settings(predictor, picture):
    look = look_at(predictor.with_settings(num_clusters=(3, 1, 1, 1), within=["owl"], threshold=1.0), picture)
    assert look.captions[3].startswith("Stage 3: 1 segment.")
    assert look.prediction.path == ("bird", "owl")  # certain here; which owl it is, is not
    assert [n.name for n in look.tree[0].nodes] == ["bird"]  # nothing outside of owl has a probability
    assert sorted(n.name for n in look.tree[2].nodes) == ["barn owl", "snowy owl"]
    look = look_at(predictor.with_settings(threshold=1.0), picture)
    text = Parsed(answer_html(look, predictor.taxonomy, predictor.model.config.head_stages)).text
    assert text.startswith("no answer") and f"{look.prediction.reason[1:]}." in text and len(look.tree) == 1
    with pytest.raises(PictureError):
        look_at(predictor, "nowhere.png")


def test_adapt(predictor, picture):
    before = {name: x.clone() for name, x in predictor.model.state_dict().items()}
    text, sheet = adapt_to(predictor, picture, "species:wolf", AdaptConfig(steps=2))
    with torch.no_grad():
        logits = predictor.model(predictor.transform(read_picture(picture))[None]).level_logits
    probability = node_log_probability(logits, predictor.taxonomy, (2, 5)).exp().item()
    assert Parsed(text).text.startswith(f"wolf: {probability:.1%} \N{RIGHTWARDS ARROW} ") and sheet.width > 1000
    assert all(torch.equal(x, before[name]) for name, x in predictor.model.state_dict().items())


def test_every_percentage_is_explained(predictor, picture):
    look = look_at(predictor, picture)
    answer = answer_html(
        dataclasses.replace(look, tree=tuple(dataclasses.replace(branch, others=3) for branch in look.tree)),
        predictor.taxonomy,
        predictor.model.config.head_stages,
    )
    names = Parsed(answer).names
    of_levels = [
        f"{what}"
        for level in predictor.taxonomy.levels
        for what in (f"percentages, {level}", f"{level} alone", f"others, {level}")
    ]
    expected = {f"What the number means: {name}" for name in ("this path", "next best path", *of_levels)}
    assert len(names) == len(set(names)) and set(names) == expected
    outcome, _ = adapt_to(predictor, picture, "species:wolf", AdaptConfig(steps=1))
    assert len(Parsed(outcome).names) == 2


def test_every_text_is_escaped(hostile, picture):
    look = look_at(hostile, picture)
    taxonomy = hostile.taxonomy
    answer = Parsed(answer_html(look, taxonomy, hostile.model.config.head_stages))
    strip, why = {"figure", "img", "figcaption"}, {"details", "summary"}
    assert set(answer.tags) == {"div", "span", "ul", "li", "button"} | strip | why
    for branch in look.tree:
        for node in branch.nodes:
            key = f"{taxonomy.levels[branch.level]}:{node.name}"
            assert key in answer.nodes and taxonomy.find(key) == (branch.level, node.index)
    assert "\x1b" not in answer.text and "\x00" not in answer.text and "\N{RIGHT-TO-LEFT OVERRIDE}" not in answer.text
    text, _ = adapt_to(hostile, picture, answer.nodes[0], AdaptConfig(steps=1))
    heading, message, caption = (
        Parsed(x) for x in (heading_html(hostile), message_html(HOSTILE[0]), caption_html(HOSTILE[1]))
    )
    assert set(Parsed(text).tags) <= {"div"} | why and set(heading.tags) == {"div", "h1", "p", "b"} | why
    assert message.text == HOSTILE[0] and message.tags == ["div"] and caption.text == HOSTILE[1]
    assert HOSTILE[1] in heading.text and HOSTILE[0] in heading.text


def test_words(predictor):
    assert error_text(PictureError("no such file", "/tmp/x.png")) == "No such file"
    assert error_text(ValueError("")) == "" and message_html("") == ""
    assert model_name(predictor) == "tiny" and "not calibrated" in heading_html(predictor)
    assert [_chance(p) for p in (0, 0.0004, 0.0007, 0.5)] == ["0.0%", "&lt;0.1%", "0.1%", "50.0%"]


def test_choices(taxonomy, monkeypatch):
    assert subtrees(taxonomy) == [
        ("bird (class)", "class:bird"),
        ("mammal (class)", "class:mammal"),
        *((f"{name} (family)", f"family:{name}") for name in ("owl", "gull", "cat", "dog")),
    ]
    monkeypatch.setattr("hcast_zoo.demo.view.MAX_CHOICES", 5)
    assert len(subtrees(taxonomy)) == 2


def test_examples_are_what_the_model_knows(taxonomy):
    assert [path.name for path in example_pictures(taxonomy)] == ["lion.png"]
    assert example_pictures(Taxonomy.from_paths([("a",)])) == []
    (insect,) = example_pictures(Taxonomy.from_paths([("lady beetle",)]))
    assert read_picture(insect).size == (96, 96)
