"""Runner: training above chance, exact resuming, testing, and wrong configs that stop before the first step."""

import json
import subprocess
import sys
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from hcast_zoo.cli import main

CHANCE = 100 / 6


def scalars(config) -> list[dict]:
    """Return what the Runner logged, in order, over all of a folder's runs."""
    files = sorted(Path(config.work_dir).glob("*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture
def more_pictures(picture_folder, taxonomy):
    """Twenty plain pictures per leaf: two epochs are enough to learn them."""
    rng = np.random.default_rng(0)
    for leaf, path in enumerate(taxonomy.paths):
        folder = picture_folder / "train" / Path(*taxonomy.path_names(path))
        colour = np.array([leaf * 45, 230 - leaf * 45, 40 + 170 * (leaf % 2)])
        for number in range(20):
            pixels = np.clip(colour + rng.integers(-20, 20, (40, 40, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"plain{number}.png")


@pytest.mark.slow
def test_two_epochs_reach_above_chance(run_config, more_pictures):
    run_config.val_dataloader.dataset.split = "train"
    run_config.train_cfg.val_interval = 2
    runner = Runner.from_cfg(run_config)
    runner.train()
    fpa = scalars(run_config)[-1]["hierarchical/fpa"]
    assert fpa > 2 * CHANCE
    tested = runner.test()
    assert set(tested) >= {"hierarchical/best_path/fpa", "hierarchical/independent/tice"}


@pytest.mark.slow
def test_a_resumed_run_equals_a_straight_one(run_config, test_pipeline):
    """Two epochs without random augmentation, against one epoch, a stop, and another epoch."""
    run_config.train_dataloader.dataset.pipeline = test_pipeline
    run_config.model.train_cfg = None
    run_config.model.backbone.arch.pool_drop_rate = 0.0
    run_config.param_scheduler = [dict(type="LinearLR", start_factor=0.1, end=4, by_epoch=False)]
    folder = Path(run_config.work_dir)
    Runner.from_cfg(run_config).train()
    straight = torch.load(folder / "epoch_2.pth", weights_only=False)

    (folder / "epoch_2.pth").unlink()
    (folder / "last_checkpoint").write_text(str(folder / "epoch_1.pth"))
    run_config.resume, run_config.experiment_name = True, run_config.experiment_name + "_resumed"
    Runner.from_cfg(run_config).train()
    resumed = torch.load(folder / "epoch_2.pth", weights_only=False)
    assert resumed["meta"]["iter"] == straight["meta"]["iter"] == 4
    for part in ("state_dict", "ema_state_dict"):
        for name, value in straight[part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(resumed[part][name])), name
    logs = [c["message_hub"]["log_scalars"]["train/loss"].data[0] for c in (straight, resumed)]
    assert len(logs[0]) == 4 and np.array_equal(*logs)
    assert [s["step"] for s in scalars(run_config) if "loss" in s] == [1, 2, 3, 4, 3, 4]


OWN_CONFIG = """
_base_ = "hcast_zoo::hcast/hcast-tiny_emoji-art.py"
data = dict(source={data!r}, taxonomy={data!r})
train_dataloader = dict(dataset=data, batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = test_dataloader = dict(dataset=data, batch_size=2, num_workers=0, persistent_workers=False)
model = dict(head=dict(taxonomy={data!r}, calibration=None))
train_cfg = dict(max_epochs=1)
"""
RUN_SCRIPTS = """
import hcast_zoo, json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_mmpretrains_own_scripts_train_and_test(picture_folder, tmp_path):
    """tools/train.py and tools/test.py of mmpretrain's wheel, unchanged, run after hcast-zoo is imported."""
    tools = Path(mmpretrain.__file__).parent / ".mim" / "tools"
    picture_folder.joinpath("test").symlink_to(picture_folder / "val")
    (tmp_path / "mine.py").write_text(OWN_CONFIG.format(data=str(picture_folder)))
    train = [str(tools / "train.py"), "mine.py", "--work-dir", "run"]
    test = [str(tools / "test.py"), "mine.py", "run/epoch_1.pth", "--out", "scores.pkl"]
    result = subprocess.run(
        [sys.executable, "-c", RUN_SCRIPTS, json.dumps([train, test])], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "hierarchical/best_path/fpa" in result.stdout + result.stderr and (tmp_path / "scores.pkl").exists()


@pytest.mark.slow
def test_a_checkpoint_holds_only_tensors_logs_and_plain_data(run_config):
    run_config.train_cfg.max_epochs = 1
    Runner.from_cfg(run_config).train()
    names = set(torch.serialization.get_unsafe_globals_in_checkpoint(Path(run_config.work_dir) / "epoch_1.pth"))
    assert {n for n in names if not n.startswith("numpy.")} == {"mmengine.logging.history_buffer.HistoryBuffer"}


def test_testing_needs_no_training_settings(run_config, tiny_weights):
    """The Runner only tests, with the core's weights."""
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "val_dataloader", "val_cfg", "val_evaluator"):
        run_config.pop(key)
    run_config.load_from = str(tiny_weights)
    run_config.custom_hooks = run_config.custom_hooks[:1]
    metrics = Runner.from_cfg(run_config).test()
    assert 0 <= metrics["hierarchical/best_path/fpa"] <= 100 and metrics["hierarchical/best_path/tice"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(
                names=[["bird", "mammal"], ["owl", "gull", "cat", "dog"], ["lion", "tiger"]],
                parents=[[0, 0, 1, 1], [2, 2]],
            ),
            r"the training set's taxonomy 'other' has levels of \(2, 4, 6\) classes",
        ),
        (
            dict(parents=[[0, 0, 1, 1], [0, 0, 1, 2, 3, 2]]),
            "has as many classes as the head's, but other names or parents",
        ),
    ],
)
def test_levels_that_disagree_with_the_data_stop_the_run(run_config, taxonomy, change, message):
    run_config.model.head.taxonomy = {**taxonomy.to_dict(), **change}
    run_config.train_dataloader.dataset.taxonomy = {**taxonomy.to_dict(), "name": "other"}
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(run_config).train()


@pytest.mark.slow
class TestCommand:
    def test_the_command_trains_and_resumes(self, run_config, tmp_path, capsys):
        run_config.dump(tmp_path / "config.py")
        folder = tmp_path / "other"
        arguments = ["mm-train", str(tmp_path / "config.py"), "--work-dir", str(folder), "--cfg-options"]
        assert main([*arguments, "train_cfg.max_epochs=1", "experiment_name=command_1"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(folder)
        assert (folder / "epoch_1.pth").exists()
        assert main([*arguments, "experiment_name=command_2", "--resume"]) == 0
        assert (folder / "epoch_2.pth").exists() and "Auto resumed" in capsys.readouterr().out

    def test_wrong_commands_are_explained(self, tmp_path, capsys):
        assert main(["mm-train", "hcast_zoo::hcast/hcast-small_dogs.py"]) == 2
        assert "hcast-small_dogs.py" in capsys.readouterr().err
        assert main(["mm-train", "hcast_zoo::hcast/hcast-small_cub.py", "--cfg-options", "no_value"]) == 2
        assert "expected KEY=VALUE, got no_value" in capsys.readouterr().err
