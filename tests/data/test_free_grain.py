"""Labels cut short: how many end at each level, what the files keep, and that a data set accepts them."""

import csv
import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from hcast_zoo.cli import main
from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.free_grain import deal_levels, write_free_grain
from hcast_zoo.taxonomy.sources import TaxonomyError

THIRDS = [Fraction(1, 3)] * 3


@pytest.mark.parametrize("fractions", [THIRDS, (0.2, 0.5, 0.3), (0, 0.25, 0.75), (0.0, 0.0, 1.0), (1, 0, 0)])
@pytest.mark.parametrize("seed", range(3))
def test_fractions_hold_in_every_subtree(taxonomy, fractions, seed):
    rng = np.random.default_rng(seed)
    labels = np.array([taxonomy.paths[i] for i in rng.choice(6, 500, p=[0.5, 0.2, 0.1, 0.1, 0.06, 0.04])])
    kept = deal_levels(labels, fractions, seed)

    groups = [np.ones(500, bool)]
    groups += [labels[:, level] == node for level in range(3) for node in range(taxonomy.level_classes[level])]

    for group in groups:
        for level, fraction in enumerate(fractions, 1):
            assert abs((kept[group] == level).sum() - float(fraction) * group.sum()) <= 2
            if fraction == 0:
                assert not (kept == level).any()


def test_the_seed_decides_which_labels_are_cut(taxonomy):
    labels = [taxonomy.paths[i % 6] for i in range(60)]
    first, again, other = (deal_levels(labels, THIRDS, seed) for seed in (4, 4, 5))
    assert (first == again).all() and (first != other).any()
    assert Counter(first.tolist()) == Counter(other.tolist()) == {1: 20, 2: 20, 3: 20}


@pytest.mark.parametrize(
    "fractions, message",
    [
        ((0.5, 0.5), "expected one for each of 3 levels"),
        ((0.5, 0.5, 0.5), "add up to 1.5"),
        ((1.5, -0.5, 0), "expected parts of 1"),
        ((float("nan"), 0.5, 0.5), "expected parts of 1"),
    ],
)
def test_wrong_fractions_are_explained(fractions, message):
    with pytest.raises(ValueError, match=message):
        deal_levels([(0, 0, 0)], fractions)


def write_data(folder, suffix, taxonomy, file="pictures/{}.png"):
    """Write 60 training and 6 test pictures; one training label already ends early."""
    paths = [list(taxonomy.path_names(taxonomy.paths[i % 6])) for i in range(66)]
    paths[0] = paths[0][:2]
    splits, files = ["train"] * 60 + ["test"] * 6, [file.format(i) for i in range(66)]
    source = folder / f"data{suffix}"
    padded = [p + [None] * (3 - len(p)) for p in paths]
    if suffix == ".parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        columns = dict(zip(taxonomy.levels, map(list, zip(*padded))))
        pq.write_table(pa.table({"note": files, "split": splits, **columns, "image": [b"x"] * 66}), source)
    elif suffix == ".csv":
        with open(source, "w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["file", *taxonomy.levels, "split", "note"])
            writer.writerows([f, *p, s, f] for f, p, s in zip(files, padded, splits))
    else:
        rows = [{"file": f, "path": p, "split": s, "note": f} for f, p, s in zip(files, paths, splits)]
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return source


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_labels_are_cut_and_all_else_is_kept(suffix, tmp_path, taxonomy):
    source = write_data(tmp_path, suffix, taxonomy)
    (tmp_path / "made").mkdir()
    output = tmp_path / "made" / f"cut{suffix}"
    made = write_free_grain(source, output, taxonomy, THIRDS, seed=1)

    before, after = (HierarchicalDataset.load(f, taxonomy, "train") for f in (source, output))
    old, new = before.labels.numpy(), after.labels.numpy()
    assert ((new == old) | (new == -1)).all() and (new[:, 0] == old[:, 0]).all()  # cut, but otherwise unchanged
    assert ((new != -1)[:, :-1] >= (new != -1)[:, 1:]).all()  # known levels come first

    ends = Counter((new != -1).sum(1).tolist())
    assert made.pictures == 60 and made.known_down_to == {level: ends[i] for i, level in enumerate(taxonomy.levels, 1)}
    assert abs(ends[3] - 20) <= 1 and made.leaves == made.leaves_left == 6

    for part in (source, output):
        assert (HierarchicalDataset.load(part, taxonomy, "test").labels != -1).all()

    if suffix == ".parquet":
        assert before.pictures == after.pictures
        notes = [pytest.importorskip("pyarrow.parquet").read_table(f)["note"] for f in (source, output)]
        assert notes[0].equals(notes[1])
    else:
        assert [p.resolve() for p in before.pictures] == [p.resolve() for p in after.pictures]
        assert "pictures/3.png" in output.read_text() and "../pictures/3.png" in output.read_text()

    first = output.read_bytes()
    write_free_grain(source, output, taxonomy, THIRDS, seed=1)
    assert output.read_bytes() == first


def test_absolute_names_are_kept_and_all_parts_are_cut(tmp_path, taxonomy):
    source = write_data(tmp_path, ".jsonl", taxonomy, "/somewhere/{}.png")
    made = write_free_grain(source, tmp_path / "cut.jsonl", taxonomy, (1, 0, 0), split=None)
    assert made.known_down_to == {"class": 66, "family": 0, "species": 0} and made.leaves_left == 0
    rows = [json.loads(line) for line in (tmp_path / "cut.jsonl").read_text().splitlines()]
    assert all(len(row["path"]) == 1 and row["file"] == f"/somewhere/{i}.png" for i, row in enumerate(rows))


def test_wrong_sources_and_outputs_are_explained(tmp_path, taxonomy):
    source = write_data(tmp_path, ".csv", taxonomy)
    for output, split, message in [
        ("cut.jsonl", "train", "a file other than data.csv that also ends in .csv"),
        ("data.csv", "train", "a file other than data.csv"),
        ("cut.csv", "valid", "expected pictures of the part 'valid'; its parts are train, test"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_free_grain(source, tmp_path / output, taxonomy, THIRDS, split)
    with pytest.raises(ValueError, match=r"expected a file that ends in .csv, .jsonl, .parquet"):
        write_free_grain(tmp_path, tmp_path / "cut.csv", taxonomy, THIRDS)

    source.write_text(source.read_text().replace("tiger", "liger"))
    with pytest.raises(TaxonomyError, match="'liger'"):
        write_free_grain(source, tmp_path / "cut.csv", taxonomy, THIRDS)

    assert [p.name for p in tmp_path.iterdir()] == ["data.csv"]


def test_the_free_grain_command_reports_counts(tmp_path, taxonomy, capsys):
    source = write_data(tmp_path, ".csv", taxonomy)
    taxonomy.save(tmp_path / "tree.json")
    tree, output = str(tmp_path / "tree.json"), str(tmp_path / "cut.csv")
    command = ["data", "free-grain", str(source), output, "--taxonomy", tree, "--fractions"]

    assert main([*command, "0.5", "1/2", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["class\t30", "family\t30", "species\t0"]
    assert "6 of 6 leaves have no picture that is labelled down to the leaf" in captured.err

    assert main([*command, "1/3", "1/3", "1/3", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["pictures"] == 60 and not captured.err

    assert main([*command, "1/3", "1/3"]) == 2
    assert "hcast-zoo data: fractions: expected one for each of 3 levels" in capsys.readouterr().err

    with pytest.raises(SystemExit):
        main([*command, "1/0"])
    assert "expected a number such as 1/3" in capsys.readouterr().err
