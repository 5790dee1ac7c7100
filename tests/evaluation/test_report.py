"""The command ``evaluate`` with ``--report`` and ``--beside``."""

import csv
import json

import pytest
import torch

from hcast_zoo.cli import main
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.evaluation.beside import compare_beside
from hcast_zoo.evaluation.hierarchical import hierarchical_metrics
from hcast_zoo.inference.predictor import Predictor
from tests.pages import Page


def leaf_table(taxonomy, rows, file, named=True):
    """Write probabilities of leaves, columns in the reverse of the tree's order; with names, rows reversed too."""
    leaves = [taxonomy.path_names(path)[-1] for path in taxonomy.paths]
    with open(file, "w", newline="") as sink:
        writer = csv.writer(sink)
        writer.writerow([*(["file"] if named else []), *reversed(leaves)])
        for name, probabilities in rows[::-1] if named else rows:
            writer.writerow([*([name] if named else []), *reversed(probabilities)])
    return str(file)


@pytest.fixture
def command(picture_folder, tiny_weights):
    next((picture_folder / "val/bird/gull").rglob("1.png")).write_bytes(b"")  # 11 of 12 pictures are measured
    options = ["--split", "val", "--allow-missing", "--decode", "best_path"]
    return ["evaluate", "--data", str(picture_folder), "--model", str(tiny_weights), *options]


def test_the_report_agrees_with_what_is_printed(command, picture_folder, taxonomy, tiny_weights, tmp_path, capsys):
    abundance = tmp_path / "abundance.csv"
    abundance.write_text("species,count\nlion,3\nwolf,1\n")
    folder = tmp_path / "report"
    assert main([*command, "--report", str(folder), "--abundance", str(abundance), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "metrics.csv", "metrics.json", "nodes.csv"]

    stored = json.loads((folder / "metrics.json").read_text())
    assert stored["results"] == printed["results"] and stored["pictures"] == 11
    assert stored["reports"][0]["metrics"] == printed["hierarchical"]["best_path"]

    with open(folder / "metrics.csv") as source:
        rows = {row["metric"]: row for row in csv.DictReader(source)}
    assert float(rows["fpa"]["value"]) == pytest.approx(printed["results"]["best_path"]["fpa"], abs=1e-4)
    assert float(rows["hops"]["low"]) <= float(rows["hops"]["value"]) <= float(rows["hops"]["high"])

    data = HierarchicalDataset.load(picture_folder, taxonomy, "val")
    answers = list(Predictor(tiny_weights).predict(data.pictures))
    readable = [answer.error is None for answer in answers]
    paths = torch.tensor([taxonomy.labels(answer.path) for answer in answers if answer.error is None])
    labels = data.labels[torch.tensor(readable)]
    expected = hierarchical_metrics(paths, labels, taxonomy, samples=0)["hops"].value
    assert printed["hierarchical"]["best_path"]["hops"]["value"] == pytest.approx(expected)

    with open(folder / "nodes.csv") as source:
        assert sum(int(row["pictures"]) for row in csv.DictReader(source) if row["level"] == "species") == 11

    page = Page((folder / "index.html").read_text())
    assert page.tags.count("img") >= 1 and page.tags.count("svg") == 5 and "script" not in page.tags


def test_beside_compares_with_a_table_of_probabilities(command, picture_folder, taxonomy, tmp_path, capsys):
    data = HierarchicalDataset.load(picture_folder, taxonomy, "val")
    truth = [taxonomy.paths.index(tuple(row)) for row in data.labels.tolist()]
    rows = []
    for number, leaf in enumerate(truth):
        probabilities = [0.1] * 6
        probabilities[leaf if number else leaf - 1] = 2.0  # one wrong, and not normalised
        rows.append((data.name(number), probabilities))

    named = leaf_table(taxonomy, rows, tmp_path / "theirs.csv")
    assert main([*command, "--beside", named, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)["beside"]
    assert compared["results"]["theirs"]["fpa"] == pytest.approx(100 * 10 / 11)
    assert compared["results"]["ours"]["fpa"] < compared["results"]["product"]["fpa"]
    assert len(compared["queue"]) == round(11 * (1 - compared["agree"] / 100))
    assert all(row["ours"] != row["theirs"] for row in compared["queue"])

    ordered = leaf_table(taxonomy, rows, tmp_path / "ordered.csv", named=False)
    assert main([*command, "--beside", ordered, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["beside"] == compared

    assert main([*command, "--beside", named]) == 0
    captured = capsys.readouterr()
    assert "\nproduct\t" in captured.out and "they agree on" in captured.err

    for broken, message in (
        (rows[1:], "got none for 1, such as"),
        ([(name, ["x"] * 6) for name, _ in rows], "expected a number"),
    ):
        assert main([*command, "--beside", leaf_table(taxonomy, broken, tmp_path / "broken.csv")]) == 2
        assert message in capsys.readouterr().err


def test_models_disagree_where_they_err(taxonomy):
    """Of two models that err independently, most errors are where they disagree."""
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(6, (2000,), generator=rng)
    labels = torch.tensor(taxonomy.paths)[truth]

    def model():
        answer = truth.where(torch.rand(2000, generator=rng) > 0.2, torch.randint(6, (2000,), generator=rng))
        certainty = torch.where(answer == truth, 3.0, 1.5)  # less certain when wrong
        return torch.nn.functional.one_hot(answer, 6) * certainty[:, None] + torch.rand(2000, 6, generator=rng)

    ours, theirs = (model().double().softmax(-1) for _ in range(2))
    compared = compare_beside(ours, theirs, labels, torch.tensor(taxonomy.paths)[ours.argmax(-1)], taxonomy)
    assert compared.right_where_both_agree > 98 and compared.errors_in_queue > 90
    assert compared.results["product"]["fpa"] > max(compared.results[name]["fpa"] for name in ("ours", "theirs"))
    assert compared.levels["class"] > compared.levels["species"]
