"""Recipes: the paper's settings, recipes by the number of pictures, and options that override them."""

import dataclasses
import json

import pytest

from hcast_zoo.cli import main
from hcast_zoo.cli.parser import make_parser
from hcast_zoo.cli.train import LISTING_DEFAULTS, _change_config, _take_recipe_by_size, _train_options
from hcast_zoo.network.config import HCastConfig
from hcast_zoo.paper.benchmarks import BENCHMARKS
from hcast_zoo.training.settings import TrainConfig


def options(*arguments) -> dict:
    return _train_options(make_parser().parse_args(["train", "--output", "x", *arguments]))


def settings_of(found: dict) -> TrainConfig:
    return TrainConfig(**{f.name: found[f.name] for f in dataclasses.fields(TrainConfig) if f.name in found})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_recipes_have_the_papers_settings(name):
    """Every setting of the paper reaches the config of a run."""
    chosen = options("--recipe", name)
    settings = settings_of(chosen)
    aircraft, breeds = name == "aircraft", BENCHMARKS[name].layout == "breeds"
    later = name not in ("cub", "aircraft", "inat21_mini", "inat18") and not breeds  # FreeGrainLearning's commands
    imagenet = name.startswith("imagenet")

    assert (settings.opt, settings.batch_size, settings.weight_decay) == ("adamw", 256, 0.05)
    assert (settings.lr, settings.warmup_lr) == ((1e-3, 1e-4) if aircraft else (5e-4, 1e-6))
    epochs = 200 if imagenet else 100
    assert (settings.epochs, settings.schedule_epochs) == (epochs, epochs if later else 300)
    assert (settings.warmup_epochs, settings.mix_prob) == (5, 0.0 if later else 1.0)
    assert (settings.mixup, settings.cutmix, settings.smoothing, settings.random_erasing) == (0.8, 1.0, 0.1, 0.25)
    assert (settings.auto_augment, settings.ema_decay, settings.kl_weight) == ("rand-m9-mstd0.5-inc1", 0.99996, 0.5)
    assert (chosen["num_superpixels"], chosen["drop_path_rate"]) == (256 if breeds else 196, 0.1)

    assert (chosen["train_split"], chosen["val_split"], chosen["data"]) == ("train", "val", f"data/{name}")
    # No --finetune for BREEDS and ImageNet.
    assert chosen["model"] == ("hcast_small" if breeds or imagenet else "hcast_small.cast_in1k")
    assert "mean" not in chosen and not settings.paper_exact

    config = HCastConfig.from_variant("hcast_small", num_superpixels=chosen["num_superpixels"])
    exact = options("--recipe", name, "--paper-exact")
    assert (exact["train_split"], exact["val_split"], exact["paper_exact"]) == ("train+val", "test", True)
    official = config.replace(**{k: exact[k] for k in ("mean", "std", "num_superpixels") if k in exact})
    assert official == config.replace(**BENCHMARKS[name].official)  # as repro evaluates official files
    changed = {"train_split", "val_split", "paper_exact", *(("mean", "std") if name.startswith("inat") else ())}
    assert {k for k in exact if exact[k] != chosen.get(k)} == changed


def test_options_override_the_recipe(capsys):
    chosen = options("--lr", "0.1", "--recipe", "cub", "--data", "here", "--num-clusters", "8", "4", "2", "2")
    assert (chosen["lr"], chosen["data"], chosen["num_clusters"], chosen["epochs"]) == (0.1, "here", [8, 4, 2, 2], 100)
    assert "quirks are corrected" in capsys.readouterr().err

    options("--recipe", "cub", "--paper-exact")
    assert "as in the official code: trained on all training pictures" in capsys.readouterr().err

    plain = options("--data", "here")
    assert plain == {
        "data": "here",
        "train_split": "train",
        "val_split": "val",
        "taxonomy": None,
        "model": "hcast_small",
        "calibrate": True,
        **LISTING_DEFAULTS,
    }
    assert not capsys.readouterr().err


def test_a_recipe_file_is_read_and_checked(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"settings": {"data": "here", "epochs": 3}}))
    assert options("--recipe", str(file))["epochs"] == 3
    for text, message in (
        ('{"settings": {"epoch": 3}}', "recipe mine: unknown settings epoch"),
        ("{", "expected a JSON object with settings"),
        ('{"setting": {}}', "expected a JSON object with settings"),
        ("{}", "expected a JSON object with settings"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            options("--recipe", str(file))


def test_recipes_and_data_info_list_the_benchmarks(capsys, tmp_path):
    assert main(["recipes"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        "small",
        "medium",
        "paper",
        *sorted(BENCHMARKS),
    ]
    assert main(["recipes", "cub"]) == 0

    assert json.loads(capsys.readouterr().out)["settings"]["lr"] == 5e-4
    assert main(["data", "info", "cub"]) == 0

    text = capsys.readouterr().out
    assert text.startswith("cub\tCUB-200-2011\t13 order, 38 family, 200 species\n")
    assert "family nodes with one child: 12 of 38" in text and "84.9 (second-hand: " in text and "kingfishers" in text
    assert main(["data", "info", "--json"]) == 0

    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list(BENCHMARKS)
    assert len(rows[1]["one_child"]["family"]) == 54


def test_a_recipe_without_its_weights_is_refused(tmp_path, picture_folder, capsys, monkeypatch):
    """A recipe starts from random values only if it is asked to."""
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    command = ["train", "--recipe", "cub", "--data", str(picture_folder), "--output", "run"]
    assert main(command) == 2
    assert "hcast-zoo convert FILE cast_small.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("pictures, name", [(10, "small"), (1999, "small"), (2000, "medium"), (20_000, "paper")])
def test_the_number_of_pictures_chooses_a_recipe(pictures, name, capsys):
    chosen = by_size(pictures, "--epochs", "3")
    assert f"recipe {name}, for {pictures} training pictures" in capsys.readouterr().err
    assert chosen["epochs"] == 3  # an explicit value takes precedence
    assert chosen["model"] == ("hcast_small" if name == "paper" else "hcast_lite.in1k")
    settings = settings_of(chosen)
    assert settings.freeze == {"paper": "none", "medium": "stem", "small": "encoder"}[name]
    assert by_size(7, "--epochs", "3", "--recipe", name).keys() >= chosen.keys()
    assert by_size(7, "--recipe", name)["model"] == chosen["model"]


def test_the_recipe_follows_the_start(capsys):
    """Without a pretrained stem all layers are trained, and views are left out where they are impossible."""
    for model in ("hcast_small.emoji_art", "hcast_small"):
        chosen = by_size(200, "--model", model)
        assert "freeze" not in chosen and "augment_views" not in chosen and chosen["lr"] == 4e-3
    assert by_size(200, "--model", "hcast_lite")["freeze"] == "encoder"
    assert [by_size(count)["augment_views"] for count in (50, 600, 1999)] == [4, 2, 2]
    assert [by_size(count)["batch_size"] for count in (5, 20, 50)] == [4, 20, 32]  # at least one step per epoch

    for given in (["--freeze", "none"], ["--teacher", "t"], ["--on-device"], ["--mix-prob", "0.5"]):
        chosen = by_size(200, *given)
        assert chosen["augment_views"] == settings_of(chosen).augment_views == 0


def by_size(pictures: int, *arguments) -> dict:
    args = make_parser().parse_args(["train", "--output", "x", "--data", "d", *arguments])
    return _take_recipe_by_size(args, _train_options(args), pictures)


def test_superpixels_and_clusters_follow_the_image_size():
    config = HCastConfig.from_variant("hcast_tiny")
    small = _change_config(config, {"image_size": 96}, (2, 5))
    assert (small.image_size, small.num_superpixels, small.num_clusters) == (96, 36, (12, 6, 4, 4))
    given = _change_config(config, {"image_size": 96, "num_clusters": [16, 8, 4, 2]}, (2, 5))
    assert (given.num_superpixels, given.num_clusters) == (36, (16, 8, 4, 2))
    assert _change_config(config, {}, (2, 5)) == config.replace(level_classes=(2, 5))

    for size in range(8, 640, 8):
        fitting = HCastConfig(**{**config.to_dict(), "image_size": size, **config.tokens_at(size)})
        assert fitting.num_superpixels >= fitting.num_clusters[0] >= fitting.num_clusters[3] >= 1
