"""What is known besides the picture: expected abundances, a list of names, and which pictures belong together."""

import csv
import json

import pytest
import torch

from hcast_zoo.cli import main
from hcast_zoo.inference.predictor import Predictor
from hcast_zoo.taxonomy.decode import path_probabilities
from hcast_zoo.taxonomy.prior import KEY, make_prior, read_amounts, trained_shares
from hcast_zoo.weights.file import load_weights, save_weights


def leaves_of(taxonomy):
    return [taxonomy.path_names(path)[-1] for path in taxonomy.paths]


def test_priors_follow_bayes_rule(taxonomy):
    """Posterior is proportional to likelihood x prior, with likelihood = answer / training share."""
    answered = torch.rand(4, len(taxonomy.paths), generator=torch.Generator().manual_seed(0)) + 0.05
    answered /= answered.sum(-1, keepdim=True)
    trained = torch.tensor([1.0, 2, 3, 4, 5, 6])[: len(taxonomy.paths)]
    expected = {name: float(7 * number + 1) for number, name in enumerate(leaves_of(taxonomy))}
    prior = make_prior(expected, taxonomy, trained.tolist())
    posterior = answered / trained * torch.tensor(list(expected.values()))
    assert torch.allclose(prior.apply(answered), posterior / posterior.sum(-1, keepdim=True), atol=1e-6)

    uniform = make_prior(dict.fromkeys(expected, 3.0), taxonomy)
    assert torch.allclose(uniform.apply(answered), answered, atol=1e-6)
    assert not uniform.trained and uniform.left_out == 0


def test_a_node_above_is_shared_by_its_leaves(taxonomy):
    name = taxonomy.names[0][0]
    below = [path for path in taxonomy.paths if path[0] == 0]
    prior = make_prior({name: 10.0, "no such thing": 5.0}, taxonomy)
    assert prior.unknown == ("no such thing",) and prior.left_out == len(taxonomy.paths) - len(below)
    probabilities = prior.apply(torch.full((1, len(taxonomy.paths)), 1 / len(taxonomy.paths)))
    assert torch.allclose(probabilities[0, : len(below)], torch.tensor(1 / len(below)))

    with pytest.raises(ValueError, match="at least one node of the tree; not in the tree: "):
        make_prior({"no such thing": 5.0}, taxonomy)
    with pytest.raises(ValueError, match="expected an amount of 0 or more"):
        make_prior({name: -1.0}, taxonomy)


def test_predict_applies_a_prior(val_files, tiny_weights, taxonomy, tmp_path, capsys):
    """Relative to the shares in training; nodes above are sums of their leaves; unknown names are reported."""
    weights = load_weights(tiny_weights)
    shares = [1.0 + number for number in range(len(taxonomy.paths))]
    weights.metadata[KEY] = json.dumps([share / sum(shares) for share in shares])
    save_weights(weights, tiny_weights)

    table = tmp_path / "counts.csv"
    counts = [100.0, 1.0, 5.0, 20.0, 0.0, 3.0]
    rows = [f"{name},{count}" for name, count in zip(leaves_of(taxonomy), counts)]
    table.write_text("\n".join(["name,count", *rows, "Nessie,4"]))

    command = ["predict", *val_files, "--model", str(tiny_weights), "--prior", str(table), "--json", "--top-k", "2"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "not in the tree, and not used: Nessie" in captured.err
    assert "against what the model was trained on; 1 leaves that it does not name are never" in captured.err

    predictor = Predictor(tiny_weights)
    for file, line in zip(val_files, captured.out.splitlines()):
        _, output = predictor.answer(file)
        answered = path_probabilities([x.float() for x in output.level_logits], taxonomy)
        posterior = answered[0] / torch.tensor(shares) * torch.tensor(counts)
        posterior /= posterior.sum()
        best = int(posterior.argmax())
        row = json.loads(line)
        assert row["path"] == list(taxonomy.path_names(taxonomy.paths[best]))
        assert row["path_probability"] == pytest.approx(posterior[best].item(), abs=1e-5)
        above = sum(p for p, path in zip(posterior.tolist(), taxonomy.paths) if path[0] == taxonomy.paths[best][0])
        assert row["probabilities"][0] == pytest.approx(above, abs=1e-5)
        assert row["top"][1]["probability"] == pytest.approx(posterior.sort().values[-2].item(), abs=1e-5)

    assert main([*command, "--decode", "independent"]) == 2
    assert main([*command, "--within", taxonomy.names[0][1]]) == 0
    assert {json.loads(line)["path"][0] for line in capsys.readouterr().out.splitlines()} == {taxonomy.names[0][1]}

    table.write_text("a name\nwithout a number\n")
    assert main(command) == 2
    assert "line 1: expected a name and a number" in capsys.readouterr().err


def test_training_stores_the_shares_of_its_classes(taxonomy):
    labels = torch.tensor(taxonomy.paths).repeat(10, 1)[: 10 * len(taxonomy.paths) - 5]
    labels = torch.cat([labels, labels[:20], torch.full((3, labels.shape[1]), -1)])
    shares = trained_shares(labels, taxonomy)
    counts = torch.tensor([(labels == torch.tensor(path)).all(1).sum() for path in taxonomy.paths])
    assert torch.allclose(torch.tensor(shares), counts / counts.sum(), atol=1e-3)
    assert trained_shares(labels, taxonomy, evened=1.0) == pytest.approx([1 / 6] * 6)


def test_amounts_of_a_name_are_added(tmp_path):
    file = tmp_path / "counts.tsv"
    file.write_text("owl\t3\ngull\t4\nowl\t1.5\n")
    assert read_amounts(file) == {"owl": 4.5, "gull": 4.0}


def test_within_reads_a_file_of_names(val_files, tiny_weights, taxonomy, tmp_path, capsys):
    names = leaves_of(taxonomy)[:2]
    listed = tmp_path / "place.csv"
    listed.write_text("\n".join(["species,remark", *(f"{name},seen" for name in names), "Nessie,?"]))
    command = ["predict", *val_files, "--model", str(tiny_weights), "--json", "--within"]
    assert main([*command, str(listed)]) == 0
    captured = capsys.readouterr()
    assert "not in the tree, and not used: Nessie" in captured.err

    assert main([*command, names[0], "--within", names[1]]) == 0
    assert capsys.readouterr().out == captured.out

    listed.write_text("Nessie\n")
    assert main([*command, str(listed)]) == 2


def test_pictures_of_a_group_are_answered_together(val_files, tiny_weights, taxonomy, tmp_path, capsys):
    """By the product of their probabilities at each level; a broken picture does not affect the others."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    groups = {
        "one": val_files[0:3],
        "two": [val_files[3], str(broken), val_files[4]],
        "lost": [str(tmp_path / "gone.png")],
    }
    rows = [(file, group) for group, members in groups.items() for file in members]
    rows = [*rows[::2], *rows[1::2], (val_files[5], ""), (val_files[6], "")]
    table = tmp_path / "list.csv"
    with open(table, "w", newline="") as sink:
        csv.writer(sink).writerows([("file", "sequence"), *rows])

    command = ["predict", "--files-from", str(table), "--model", str(tiny_weights), "--group-by", "sequence"]
    assert main([*command, "--json", "--batch-size", "2"]) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == len(rows)

    predictor = Predictor(tiny_weights)
    for group, readable in (("one", groups["one"]), ("two", [val_files[3], val_files[4]])):
        logits = [predictor.answer(file)[1].level_logits for file in readable]
        product = [sum(x.float().log_softmax(-1) for x in level) for level in zip(*logits)]
        probabilities = path_probabilities(product, taxonomy)[0]
        best = int(probabilities.argmax())
        grouped = [row for row in answers if row.get("group") == group and "path" in row]
        assert [row["file"] for row in grouped] == sorted(readable, key=[row["file"] for row in answers].index)
        for row in grouped:
            assert row["path"] == list(taxonomy.path_names(taxonomy.paths[best]))
            assert row["path_probability"] == pytest.approx(probabilities[best].item(), abs=1e-4)
            assert row["group_size"] == len(readable)

    singles = [row for row in answers if row["file"] in val_files[5:7]]
    (expected,) = predictor.predict([val_files[5]])
    assert singles[0]["path_probability"] == pytest.approx(expected.path_probability, abs=1e-5)
    assert [row["file"] for row in answers if "error" in row] == [str(broken), str(tmp_path / "gone.png")]

    output = tmp_path / "out.csv"
    assert main([*command, "--output", str(output)]) == 1
    with open(output, newline="") as source:
        written = list(csv.DictReader(source))

    assert [(row["file"], row["group"]) for row in written][:3] == [
        (file, "one") for file in groups["one"][::2] + groups["one"][1::2]
    ]

    capsys.readouterr()
    assert main(["predict", *val_files, "--model", str(tiny_weights), "--group-by", "folder", "--json"]) == 0
    sizes = [json.loads(line)["group_size"] for line in capsys.readouterr().out.splitlines()]
    assert set(sizes) == {2}

    assert main([*command, "--output", str(tmp_path / "job")]) == 2
    assert main(["predict", *val_files, "--model", str(tiny_weights), "--group-by", "sequence"]) == 2
