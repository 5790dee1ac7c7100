"""The benchmarks' functions against simple references, and their commands once each on a tiny model."""

import csv
import dataclasses
import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hcast_zoo.data.dataset import HierarchicalDataset
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.metrics import full_path_accuracy
from hcast_zoo.network.config import VARIANTS
from hcast_zoo.network.model import HCast
from hcast_zoo.segments.explain import agreement
from hcast_zoo.taxonomy.calibration import Calibration
from hcast_zoo.taxonomy.decode import decode
from hcast_zoo.training.settings import TrainConfig
from hcast_zoo.weights.file import load_weights, save_weights
from tests.tiny import make_config

ROOT = Path(__file__).parents[2]
SETTINGS = TrainConfig(epochs=1, batch_size=4, warmup_epochs=0, workers=0, checkpoint_steps=1, ema_decay=0, lr=0.01)


@pytest.fixture
def benchmark(monkeypatch):
    """Return a function that imports a benchmark by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name):
        if not hasattr(sys.modules.get(name), "main"):  # under pytest --cov, the name coverage is another package
            monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


@pytest.fixture
def run(benchmark, monkeypatch, picture_folder, tiny_weights, tmp_path):
    """Return a function that runs a benchmark's command on the validation pictures and returns its report."""

    def call(name, *arguments, page=None):
        command = ["--data", str(picture_folder), "--split", "val", "--model", str(tiny_weights)]
        command += ["--docs", str(tmp_path / "docs"), *arguments]
        monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *command])
        benchmark(name).main()
        text = (tmp_path / "docs" / f"{page or name}.md").read_text()
        assert str(tmp_path) not in text and "12 pictures" in text
        return text

    return call


def pieces(mask):
    """Return the sizes of the 4-connected pieces of a mask, by flood fill."""
    left, sizes = set(map(tuple, np.argwhere(mask))), []
    while left:
        stack, size = [left.pop()], 0
        while stack:
            y, x = stack.pop()
            size += 1
            for neighbour in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    stack.append(neighbour)
        sizes.append(size)
    return sizes


def test_fragmentation_of_known_maps_is_exact(benchmark):
    fragmentation = benchmark("fragmentation").fragmentation
    assert fragmentation(np.zeros((8, 8), int)) == pytest.approx((0, np.pi / 4, 0))  # one square
    halves = np.repeat([[0, 0, 0, 0, 7, 7, 7, 7]], 8, 0)
    assert fragmentation(halves) == pytest.approx((100 * 8 / 112, 4 * np.pi * 32 / 24**2, 0))
    board = np.indices((4, 4)).sum(0) % 2
    assert fragmentation(board) == pytest.approx((100, 4 * np.pi * 8 / 32**2, 100 * 14 / 16))


def test_fragmentation_of_a_random_map_matches_loops(benchmark):
    labels = np.random.default_rng(0).integers(0, 3, (9, 7))
    boundary, compactness, scatter = benchmark("fragmentation").fragmentation(labels)
    padded = np.pad(labels, 1, constant_values=-1)
    total, crossings, pairs = 0.0, 0, 0
    for label in range(3):
        sides = sum((np.roll(padded, s, a)[padded == label] != label).sum() for s in (1, -1) for a in (0, 1))
        total += 4 * np.pi * (labels == label).sum() ** 2 / sides**2

    for y, x in np.ndindex(9, 7):
        for other in ((y + 1, x), (y, x + 1)):
            if other[0] < 9 and other[1] < 7:
                pairs += 1
                crossings += labels[y, x] != labels[other]
    assert boundary == pytest.approx(100 * crossings / pairs) and compactness == pytest.approx(total / 63)

    largest = sum(max(pieces(labels == label)) for label in range(3))
    assert scatter == pytest.approx(100 * (1 - largest / 63))


def test_two_groups_are_compared_with_intervals(benchmark):
    module, rng = benchmark("fragmentation"), np.random.default_rng(0)
    assert module.exceeds(np.array([1, 2]), np.array([3, 4])) == 1
    assert module.exceeds(np.array([1, 2, 3]), np.array([2])) == 0.5
    low, high = module.bootstrap(rng.normal(0, 1, 400), rng.normal(1, 1, 400), rng)
    assert 0.7 < low < 1 < high < 1.3  # the standard error of the difference is 0.07
    intervals = {
        (0, "scatter"): (0.1, 1.0),
        (1, "scatter"): (0.1, 1.0),
        (2, "scatter"): (-1.0, -0.1),
        (3, "scatter"): (-1.0, 1.0),
    }

    text = module.verdict(intervals, 4).replace("\n", " ")
    assert "more fragmented by 1, less by 1" in text and "More: scatter of stage 2." in text
    assert "Less: scatter of stage 3." in text and "Even the superpixels" in text


def test_the_fragmentation_report_splits_right_and_wrong(run, benchmark, tmp_path, monkeypatch):
    module = benchmark("fragmentation")
    measure, measurements = module.measure, []

    def half_right(*arguments):
        measured = measure(*arguments)
        measurements.append(measured)
        return np.arange(12) % 2 == 0, *measured[1:]

    monkeypatch.setattr(module, "measure", half_right)
    text = run("fragmentation")
    right, values, paths = measurements[0]
    assert values.shape == (12, 4, 3) and paths.shape == (12, 3) and right.shape == (12,)
    assert f"| 2 | boundary | {values[::2, 1, 0].mean():.2f} | {values[1::2, 1, 0].mean():.2f} |" in text
    with Image.open(tmp_path / "docs/images/fragmentation.png") as picture:
        assert picture.width > 1000


def test_the_clusters_report_has_the_models_accuracy(run, benchmark, tiny_model, picture_folder, taxonomy, tmp_path):
    pytest.importorskip("matplotlib")
    text = run("clusters", "--rounds", "2", "--time-batch", "4")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "/" in line]
    counts = [row[0].strip("| ") for row in rows]
    assert counts[:4] == ["2/1/1/1", "4/2/1/1", "6/3/2/2", "**8/4/2/2**"]
    assert counts[4:] == ["10/5/2/2", "12/6/3/3", "16/8/4/4", "16/12/6/6"]
    assert rows[3][-2] == "1.00" and all(float(row[-2]) > 0 for row in rows)
    assert (tmp_path / "docs/images/clusters.png").stat().st_size > 5000

    report = benchmark("report")
    dataset = HierarchicalDataset.load(picture_folder, taxonomy, "val", transform=eval_transform(tiny_model.config))
    batch = report.load_batches(dataset, tiny_model.config, 12)[0]
    with torch.no_grad():
        logits = tiny_model(batch["images"], batch["segments"], num_clusters=(16, 8, 4, 4)).level_logits
    fpa = full_path_accuracy(decode(logits, taxonomy).paths, batch["labels"])
    assert float(rows[6][1]) == pytest.approx(fpa, abs=0.01)


def test_standard_error_matches_random_draws(benchmark):
    draws = np.random.default_rng(0).binomial(826, 0.137, 20_000) * 100 / 826
    assert benchmark("clusters").standard_error(13.7, 826) == pytest.approx(draws.std(), rel=0.03)


def test_focus_is_compared_and_hidden(benchmark):
    focus = benchmark("focus")
    pixels = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1, 0, 0], [0.5, 0.25, 0.25]]])
    assert focus.between_pictures(pixels).tolist() == pytest.approx([(0.5 + 0) / 2, (0 + 0.5) / 2])

    images = torch.arange(16.0).view(1, 1, 4, 4)
    rank = torch.zeros(1, 4, 4)
    rank[0, 0] = 1
    hidden = focus.hide(images, rank, 0.25)
    assert (hidden[0, 0, 0] == 7.5).all() and torch.equal(hidden[0, 0, 1:], images[0, 0, 1:])


@pytest.mark.slow
def test_the_flat_vit_trains_resumes_and_is_compared(
    run, benchmark, monkeypatch, tiny_config, picture_folder, taxonomy, tmp_path
):
    flat_vit = benchmark("flat_vit")
    taxonomy.save(tmp_path / "taxonomy.json")
    plan = {"config": tiny_config.to_dict(), "settings": dataclasses.asdict(SETTINGS)}
    (tmp_path / "run.json").write_text(json.dumps(plan))
    command = ["benchmarks/flat_vit.py", "--like", str(tmp_path / "run.json"), "--data", str(picture_folder)]
    command += ["--taxonomy", str(tmp_path / "taxonomy.json"), "--depth", "4", "--output"]
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "flat")])
    step, count = flat_vit.FlatTrainer._train_step, []

    def killed(self, batch):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(self.step)
        return step(self, batch)

    monkeypatch.setattr(flat_vit.FlatTrainer, "_train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        flat_vit.main()

    monkeypatch.setattr(flat_vit.FlatTrainer, "_train_step", step)
    flat_vit.main()
    lines = [json.loads(line) for line in (tmp_path / "flat/log.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 3 and "val/fpa" in lines[1]

    resumed = load_weights(tmp_path / "flat/last.safetensors").state_dict
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "whole")])
    flat_vit.main()
    whole = load_weights(tmp_path / "whole/last.safetensors").state_dict
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())

    text = run("focus", "--flat", str(tmp_path / "flat/best.safetensors"))
    assert text.count("| flat ViT |") == 4 and "4 blocks of 48" in text and "flat_vit.py --like" not in text


def test_the_flat_vit_is_as_large_and_explains_itself(benchmark, tiny_config):
    flat_vit = benchmark("flat_vit")
    config = flat_vit.flat_config(tiny_config.replace(depths=(3, 3, 3, 2)))
    sizes = [flat_vit.parameters(flat_vit.FlatViT(flat_vit.flat_config(tiny_config, depth))) for depth in range(4, 20)]
    wanted = flat_vit.parameters(flat_vit.HCast(tiny_config.replace(depths=(3, 3, 3, 2))))
    assert sum(config.depths) == 4 + int(np.abs(np.array(sizes) - wanted).argmin())

    torch.manual_seed(0)
    model, images = flat_vit.FlatViT(config).eval(), torch.randn(2, 3, 32, 32)
    output, explanation = model.explain(images)
    torch.testing.assert_close(output.level_logits, model(images).level_logits)
    assert explanation.focus.shape == (2, 3, 16) and [s.shape for s in explanation.shares] == [(2, 16)] * 3
    assert len(output.attentions) == sum(config.depths) and (agreement(explanation.focus) < 1).all()
    assert len(output.segments[0].unique()) == 16
    with pytest.raises(ValueError, match=r"n \* n with n dividing image_size=32, got 15"):
        flat_vit.FlatViT(tiny_config.replace(num_superpixels=15))


def test_a_flat_classifier_of_the_stem_reads_the_leaves_once(benchmark, taxonomy):
    """Its coarse levels are sums of its leaves."""
    flat_stem = benchmark("flat_stem")
    torch.manual_seed(0)
    hybrid = make_config(stem="timm:test_efficientnet", stem_strides=(8, 16), stem_final=True)
    model = HCast(hybrid).eval()
    flat = flat_stem.FlatStem(model, taxonomy)
    images = torch.randn(2, 3, 32, 32)
    segments = model.prepare_segments(images, None, model.config.num_superpixels)

    output, explanation = flat.explain(images, segments)
    torch.testing.assert_close(output.level_logits, flat(images, segments).level_logits)
    *_, leaves = output.level_logits
    groups = torch.zeros(2, taxonomy.level_classes[0])
    for path in taxonomy.paths:
        groups[:, path[0]] += leaves[:, path[-1]].exp()
    torch.testing.assert_close(output.level_logits[0].exp(), groups)
    torch.testing.assert_close(explanation.focus.sum(-1), torch.ones(2, len(taxonomy.levels)))
    with pytest.raises(ValueError, match="a model with a pretrained stem"):
        flat_stem.FlatStem(HCast(make_config()), taxonomy)


def test_focus_without_a_flat_vit_says_how_to_train_one(run):
    text = run("focus")
    assert text.count("| H-CAST |") == 4 and "benchmarks/flat_vit.py --like" in text and "flat ViT |" not in text


def test_sign_test_matches_all_outcomes(benchmark):
    adaptation = benchmark("adaptation")
    for mended, broken in ((0, 0), (3, 0), (4, 2), (5, 5), (1, 7)):
        total, few = mended + broken, min(mended, broken)
        outcomes = [bin(i).count("1") for i in range(2**total)]
        extreme = sum(min(o, total - o) <= few for o in outcomes) / 2**total
        assert adaptation.sign_test(mended, broken) == pytest.approx(extreme)


def test_coverage_counts_answers_and_right_ones(benchmark):
    labels = torch.tensor([[0, 1], [0, 1], [1, 2], [1, 3]])
    paths = torch.tensor([[0, 1], [1, 1], [1, -1], [-1, -1]])  # right; wrong at the top; right but cut short; no answer
    answered, right = benchmark("decoding").coverage(paths, labels)
    assert answered == [75, 50] and right == pytest.approx([200 / 3, 50])


@pytest.mark.slow
def test_the_decoding_page_has_every_threshold(run, tmp_path):
    text = run("decoding")
    assert text.count("| yes |") == text.count("| no |") == 7 and "split val" in text
    assert "| class |" in text and "| nothing |" in text
    assert (tmp_path / "docs/images/coverage.png").exists()


@pytest.fixture
def masked_files(picture_folder):
    """The validation pictures, made transparent around an object."""
    files = sorted((picture_folder / "val").rglob("*.png"))
    for file in files:
        picture = Image.open(file).convert("RGBA")
        picture.putalpha(Image.new("L", picture.size, 0))
        picture.paste((200, 80, 40, 255), (8, 8, 30, 30))
        picture.save(file)
    return files


@pytest.mark.slow
def test_the_superpixels_page_compares_methods(run, masked_files):
    text = run("superpixels", "--runs", "2")
    rows = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            rows[line.split("`")[1]] = [cell.strip() for cell in line.split("|")[3:5]]
    assert list(rows) == ["seeds", "slic", "grid"]
    tokens = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| alone |")]
    for _, method, whole, *seen in tokens:
        assert all(float(cell.split(",")[0]) <= float(whole) for cell in seen), method
    assert len(tokens) == 3
    assert float(rows["slic"][0]) > float(rows["grid"][0])  # boundary recall: the grid's lines miss the object


@pytest.mark.slow
def test_the_precision_page_has_speed_size_and_error(run):
    pytest.importorskip("torchao")
    text = run("precision", "--runs", "1", "--only", "float32", "folded", "int8 weights", "int8", "bfloat16")
    rows = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines() if line.count(" | ") == 5}
    assert rows["| float32"][2:4] == ["100.0 %", "0.0e+00"] and rows["| float32"][5] == "1.00 |"
    assert float(rows["| int8"][5].split()[0]) < 1 and rows["| bfloat16"][5] == "0.50 |"
    assert 0 < float(rows["| int8"][3]) < 0.2 and float(rows["| folded"][3]) < 1e-5


@pytest.mark.slow
def test_the_adaptation_page_has_targets_and_an_example(run, masked_files, tiny_weights, tmp_path):
    weights = load_weights(tiny_weights)
    weights.calibration = Calibration((0.2, 0.4, 1.0), fitted_on="nothing")  # a fit to random weights would give 50
    save_weights(weights, tiny_weights)
    text = run("adaptation", "--example", str(masked_files[0]), "--example-target", "wolf", "--steps", "2")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| true species | `tokens`")]
    assert len(rows) == 1 and float(rows[0][3]) > float(rows[0][2])
    assert "Adapting to the predicted path" in text and "calibrated on: nothing" in text
    assert (tmp_path / "docs/images/adaptation.png").exists()


@pytest.fixture
def ablation(benchmark, monkeypatch, picture_folder, taxonomy, tiny_weights, tmp_path):
    """Return a function that runs the ablation with a tiny variant on a few pictures, and returns its report."""
    module = benchmark("ablation")
    shutil.copytree(picture_folder / "val", picture_folder / "test")
    taxonomy.save(tmp_path / "taxonomy.json")
    monkeypatch.setitem(VARIANTS, "hcast_test", dict(embed_dim=48, num_heads=3, depths=(1, 1, 1, 1)))
    # Matching the parameter count would take dozens of narrow blocks.
    flat = dataclasses.replace(module.ARMS["flat_vit"], config=lambda c: module.flat_vit.flat_config(c, 4))
    monkeypatch.setitem(module.ARMS, "flat_vit", flat)

    def call(*arguments):
        options = "--model hcast_test --image-size 32 --num-superpixels 16 --num-clusters 8 4 2 2 --epochs 1"
        command = ["benchmarks/ablation.py", *options.split(), *"--batch-size 4 --warmup-epochs 0 --workers 0".split()]
        command += ["--data", str(picture_folder), "--taxonomy", str(tmp_path / "taxonomy.json")]
        command += ["--teacher", str(tiny_weights), "--output", str(tmp_path / "runs")]
        command += ["--docs", str(tmp_path / "docs"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        module.main()
        return (tmp_path / "docs/ablation.md").read_text()

    call.module, call.runs, call.docs = module, tmp_path / "runs", tmp_path / "docs"
    return call


@pytest.mark.slow
def test_the_ablation_trains_each_arm_once(ablation, monkeypatch, taxonomy):
    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ablation.module.Trainer, "train", stopped)
        ablation()

    text = (ablation.docs / "ablation.md").read_text()
    assert "No arm is trained yet." in text and "| base |" not in text

    text = ablation("--arms", "base", "free_grain")
    unfinished = ", ".join(f"`{name}`" for name in ablation.module.ARMS if name not in ("base", "free_grain"))
    assert "`grid`, `slic`, `area`, `descriptor`, `mixup`, `teacher`" in unfinished
    assert f"Not trained to the end yet: {unfinished}." in " ".join(text.split())
    assert "one seed here" in text

    text = ablation()
    results = {}
    for name in ablation.module.ARMS:
        results[name] = json.loads((ablation.runs / name / "seed-0/result.json").read_text())
    assert "Not trained" not in text and all(text.count(f"| {name} |") == 3 - (name == "base") for name in results)
    assert results["base"]["training_labels"] == [12, 12, 12]
    assert results["free_grain"]["training_labels"] == [12, 8, 4]
    assert results["no_kl"]["settings"]["kl_weight"] == 0 and results["base"]["settings"]["kl_weight"] == 0.5
    assert results["coarse_to_fine"]["config"]["head_stages"] == [2, 3, 4]
    assert results["grid"]["config"]["superpixels"] == "grid" and results["slic"]["config"]["superpixels"] == "slic"
    assert results["area"]["config"]["token_pooling"] == "area" and results["area"]["config"]["grouping"] == "tokens"
    assert results["descriptor"]["config"]["grouping"] == "descriptor"
    assert results["teacher"]["settings"]["teacher"].endswith("tiny.safetensors")
    assert results["mixup"]["settings"]["mixup"] == 0.8 and results["base"]["settings"]["mixup"] == 0

    for result in results.values():
        assert result["results"]["best_path"]["fpa"] == pytest.approx(100 * np.mean(result["right"]["path"]))
        assert np.mean(result["right"]["path"]) <= min(np.mean(result["right"][level]) for level in taxonomy.levels)

    def trained_again(self):
        raise AssertionError("a finished arm is kept")

    monkeypatch.setattr(ablation.module.Trainer, "train", trained_again)
    assert ablation() == text

    with pytest.raises(SystemExit, match="finished run with other settings"):
        ablation("--lr", "1")


@pytest.mark.slow
def test_the_ablation_runs_on_the_device(ablation):
    text = ablation("--arms", "base", "grid", "--on-device", "--opt", "muon")
    words = " ".join(text.split())
    assert "tokens (slic)" in words and "4 per step, with muon" in words
    base, squares = (json.loads((ablation.runs / name / "seed-0/result.json").read_text()) for name in ("base", "grid"))
    assert base["settings"]["on_device"] and base["config"]["superpixels"] == "slic"
    assert squares["config"]["superpixels"] == "grid"


def test_differences_of_arms_are_paired(benchmark):
    difference = benchmark("ablation").difference
    base, better = ([{"right": {"path": right}}] for right in ([0, 0, 1, 0], [1, 0, 1, 0]))
    value, error = difference(better, base, "path")
    assert value == 25 and error == pytest.approx(100 * np.std([1, 0, 0, 0], ddof=1) / 2)
    assert difference(base, base, "path") == (0, 0)
    assert difference([*base, *better], base, "path")[0] == 12.5


def test_timms_page_has_every_tag(benchmark):
    """The table in docs/timm.md matches the registry."""
    table = benchmark("timm_models").tag_table()
    assert table in (Path(__file__).parents[2] / "docs/timm.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_speed_of_a_device_is_measured(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark("accelerator"), "RIVAL", "vit_tiny_patch16_224")
    options = "--device cpu --batch-size 2 --runs 1 --modes eager graph --variant hcast_tiny --precision fp32"
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", *options.split(), "--results", str(tmp_path)])
    benchmark("speed").main()
    printed = capsys.readouterr().out
    assert "8 of 8 fixtures give the authors' centres" in printed
    assert "graph, batch 2: not timed: CUDA graphs need a CUDA device" in printed

    with open(next(tmp_path.glob("speed-*.csv")), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    timed = [row for row in rows if row["pictures_per_second"]]
    assert len(timed) == 6 and all(float(row["p99_ms"]) >= float(row["median_ms"]) for row in timed)
    assert {row["mode"] for row in rows if row["share"]} == {"farthest point sampling", "SLIC"}


def test_growth_is_measured_with_its_exponent(benchmark, monkeypatch, tmp_path):
    options = "--variant hcast_tiny --leaves 10 50 --levels 2 --pixels 96 --pictures 2 6 --runs 1"
    monkeypatch.setattr(sys, "argv", ["benchmarks/growth.py", *options.split(), "--results", str(tmp_path)])
    module = benchmark("growth")
    module.main()
    with open(tmp_path / "growth.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    axes = [("leaves", "10"), ("leaves", "50"), ("levels", "2"), ("pixels of a side", "96")]
    assert [(row["axis"], row["size"]) for row in rows] == axes
    assert all(float(row["tensors_mib"]) > 0 for row in rows) and rows[1]["exponent"] and not rows[0]["exponent"]
    assert module.exponent((10, 20), (2, 8)) == 2

    with open(tmp_path / "growth_pictures.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["pictures"] for row in rows] == ["2", "6"] and rows[1]["exponent"] and not rows[0]["exponent"]
    assert all(float(row["cpu_s"]) > 0 and float(row["peak_mib"]) > 100 for row in rows)

    tree = module.tree(1000, 3)
    assert [len(names) for names in tree.names] == [10, 100, 1000]
