"""Training on a frozen pretrained stem: views that are computed once, fitted heads, and settings that are refused."""

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("accelerate")

from hcast_zoo.network.config import HCastConfig
from hcast_zoo.network.model import HCast
from hcast_zoo.training.views import ViewFolder, ViewSet
from hcast_zoo.weights.file import Weights, save_weights
from tests.tiny import HYBRID, make_config
from tests.training.runs import make_run, read_log

FROZEN = dict(freeze="stem", augment_views=2, fit_heads=True, mix_prob=0.0, stem_weights="none", lr=0.02)
FROZEN |= dict(auto_augment="", color_jitter=0.0, random_erasing=0.0, crop_scale=0.9)


@pytest.fixture
def hybrid_config() -> HCastConfig:
    return make_config(**HYBRID)


def test_cached_means_replace_images(hybrid_config):
    torch.manual_seed(0)
    model = HCast(hybrid_config).eval()
    images = torch.randn(2, 3, 64, 64)
    segments = model.prepare_segments(images, None, 16)
    means = model.superpixel_means(images, segments, 16)
    for given, expected in zip(model(means, segments).level_logits, model(images, segments).level_logits):
        assert torch.equal(given, expected)
    with pytest.raises(ValueError, match="segments: expected those"):
        model(means)


@pytest.mark.slow
def test_a_run_on_views_resumes_to_the_bit(picture_folder, taxonomy, hybrid_config, tmp_path):
    """Stopped while views are computed, and in the first epoch. The stem stays, and fitted heads know the data."""
    whole = make_run(picture_folder, taxonomy, hybrid_config, tmp_path / "whole", **FROZEN)
    stem = {key: value.clone() for key, value in whole.model.stem.body.state_dict().items()}
    whole.train()
    assert all(torch.equal(value, stem[key]) for key, value in whole.model.stem.body.state_dict().items())
    assert not (tmp_path / "whole/views").exists()
    log = read_log(tmp_path / "whole")
    assert log[0]["step"] == 0 and log[0]["val/fpa"] >= 50  # chance is 17; heads are fitted before the first step

    class Stop(Exception):
        pass

    for method, after in (("_write", 5), ("_train_step", 1)):
        run = make_run(picture_folder, taxonomy, hybrid_config, tmp_path / method, **FROZEN)
        owner = run.views if method == "_write" else run
        done, original = [], getattr(owner, method)

        def stop(*args, done=done, after=after, original=original):
            if len(done) == after:
                raise Stop
            done.append(original(*args))
            return done[-1]

        setattr(owner, method, stop)
        with pytest.raises(Stop):
            run.train()
        make_run(picture_folder, taxonomy, hybrid_config, tmp_path / method, **FROZEN).train()
        a, b = (load_file(tmp_path / d / "last.safetensors") for d in ("whole", method))
        assert all(torch.equal(a[key], b[key]) for key in a), method


def read_all_views(run):
    for index in range(len(run.views)):
        run.views[index, 0], run.views[index, 1]
    for index in range(len(run.val_set)):
        run.val_set[index]


@pytest.mark.slow
def test_cached_views_are_for_one_stem_and_augmentation(picture_folder, taxonomy, hybrid_config, tmp_path):
    cache = str(tmp_path / "views")
    run = make_run(picture_folder, taxonomy, hybrid_config, tmp_path / "a", **FROZEN, view_cache=cache)
    run._prepare()
    again = make_run(picture_folder, taxonomy, hybrid_config, tmp_path / "b", **{**FROZEN, "lr": 1.0}, view_cache=cache)
    assert not again.views.missing() and not again.val_set.missing()

    for changes, named in (
        ({"seed": 1}, "stem_sha256"),  # the stem is random here
        ({"hflip": 0.0}, "hflip 0.5 -> 0.0"),
    ):
        with pytest.raises(ValueError, match=rf"views of another stem or augmentation .*({named})"):
            other = tmp_path / next(iter(changes))
            make_run(picture_folder, taxonomy, hybrid_config, other, **{**FROZEN, **changes}, view_cache=cache)

    next((tmp_path / "views").rglob("*.safetensors")).write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"is damaged .*: delete it"):
        read_all_views(again)


@pytest.mark.slow
def test_a_linear_probe_changes_only_the_heads(picture_folder, taxonomy, hybrid_config, tmp_path):
    run = make_run(
        picture_folder, taxonomy, hybrid_config, tmp_path / "run", **{**FROZEN, "freeze": "encoder", "fit_heads": False}
    )
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.train()
    changed = {key for key, value in run.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("heads.")}


def test_a_stem_is_loaded_from_weights(picture_folder, taxonomy, hybrid_config, tiny_weights, tmp_path):
    torch.manual_seed(3)
    other = HCast(hybrid_config.replace(level_classes=(5,), embed_dim=96))
    file = tmp_path / "other.safetensors"
    save_weights(Weights(other.config, None, other.state_dict()), file)
    torch.save(other.stem.body.state_dict(), tmp_path / "body.pth")
    for source in (str(file), str(tmp_path / "body.pth")):
        run = make_run(picture_folder, taxonomy, hybrid_config, tmp_path / "run", **{**FROZEN, "stem_weights": source})
        for key, value in other.stem.body.state_dict().items():
            assert torch.equal(run.model.stem.body.state_dict()[key], value)
        (tmp_path / "run/run.json").unlink()

    with pytest.raises(ValueError, match="expected weights with the stem timm:test_efficientnet, got conv"):
        changes = {**FROZEN, "stem_weights": str(tiny_weights)}
        make_run(picture_folder, taxonomy, hybrid_config, tmp_path / "x", **changes)

    torch.save({"a": torch.zeros(3)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match="expected weights of EfficientNet, but"):
        changes = {**FROZEN, "stem_weights": str(tmp_path / "wrong.pth")}
        make_run(picture_folder, taxonomy, hybrid_config, tmp_path / "y", **changes)


def test_a_frozen_stem_refuses_other_settings(picture_folder, taxonomy, tiny_config, hybrid_config, tmp_path):
    for config, changes, message in (
        (tiny_config, {}, "expected a model with a pretrained stem"),
        (hybrid_config, {"freeze": "none"}, "augment_views: expected freeze stem"),
        (hybrid_config, {"mix_prob": 0.5}, "views are not mixed"),
        (hybrid_config, {"freeze": "heads"}, "freeze: expected one of none, stem, encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            make_run(picture_folder, taxonomy, config, tmp_path / "run", **{**FROZEN, **changes})


def test_copies_share_a_view(picture_folder, taxonomy, hybrid_config, tmp_path):
    run = make_run(picture_folder, taxonomy, hybrid_config, tmp_path / "run", **FROZEN)
    run.train_set.pictures[1] = run.train_set.pictures[0]
    views = ViewSet(run.train_set, run.views.folder, 2)
    assert len(views.missing()) == 2 * (len(run.train_set) - 1)
    assert isinstance(views.folder, ViewFolder)
