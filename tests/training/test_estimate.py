"""The estimate of a run's time and memory."""

import itertools
import json
from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("accelerate")

from hcast_zoo.network.memory import VARIABLE, MemoryBudgetError
from hcast_zoo.network.model import HCast
from hcast_zoo.training import estimate
from hcast_zoo.training.estimate import as_time
from tests.training.runs import make_run


@pytest.mark.slow
def test_the_time_is_estimated_only_for_long_runs(picture_folder, taxonomy, tiny_config, tmp_path, capsys):
    """Estimating changes nothing: the run gives the same numbers as one without an estimate."""
    logs = []
    for name, printed in (("with", True), ("without", False)):
        run = make_run(picture_folder, taxonomy, tiny_config, tmp_path / name, epochs=40, eval_epochs=40)
        run._print_time = run._print_time if printed else lambda: None

        train_epoch, epochs = run._train_epoch, []

        def stop(loader, epoch, done, train_epoch=train_epoch, epochs=epochs):
            if len(epochs) == 2:
                raise KeyboardInterrupt
            epochs.append(train_epoch(loader, epoch, done))
            return epochs[-1]

        run._train_epoch = stop
        with pytest.raises(KeyboardInterrupt):
            run.train()

        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line)["loss"] for line in lines])
        assert (" on this machine, for 120 steps" in capsys.readouterr().err) == printed
    assert logs[0] == logs[1] and len(logs[0]) == 2

    make_run(picture_folder, taxonomy, tiny_config, tmp_path / "short", epochs=1).train()
    assert "on this machine" not in capsys.readouterr().err


def test_time_to_load_libraries_is_not_counted_for_each_picture(
    picture_folder, taxonomy, tiny_config, tmp_path, monkeypatch
):
    """By a clock that only reading moves: a minute for the first picture, and a second for each later one."""
    run = make_run(picture_folder, taxonomy, tiny_config, tmp_path)
    times_read = itertools.count()
    clock = [0.0]

    class Slow:
        def __len__(self):
            return len(run.train_set)

        def __getitem__(self, index):
            clock[0] += 1 if next(times_read) else 60
            return run.train_set[index]

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    seconds = estimate.estimate_seconds(run.model, run.loss, Slow(), [], pictures=1000, validated=0, workers=0)
    assert seconds == 1000


def test_times_are_rounded_to_words():
    assert [as_time(seconds) for seconds in (3, 119, 5000, 7200)] == ["1 min", "2 min", "83 min", "2.0 h"]


def test_a_batch_that_cannot_fit_is_refused(picture_folder, taxonomy, tiny_config, tmp_path, monkeypatch):
    """It is refused before the first step; in two parts it fits."""
    some = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "some")
    each = estimate.saved_bytes(some.model, torch.device("cpu"), nullcontext())
    parameters = estimate.OPTIMIZER * 4 * sum(p.numel() for p in HCast(tiny_config).parameters())
    monkeypatch.setenv(VARIABLE, str((parameters + 3.5 * each) / 2**30))

    whole = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "whole", epochs=1, batch_size=4)
    with pytest.raises(
        MemoryBudgetError, match=r"batch_size: training on 4 pictures .* enough for about 3: .*accumulate"
    ):
        whole.train()
    assert whole.step == 0

    parts = make_run(picture_folder, taxonomy, tiny_config, tmp_path / "parts", epochs=1, batch_size=4, accumulate=2)
    parts.train()
    assert parts.step == 3
