import json

import pytest

pytest.importorskip("accelerate")

from hcast_zoo.training.estimate import as_time
from tests.training.test_trainer import make_run


@pytest.mark.slow
def test_the_time_is_told_of_long_runs_alone(picture_folder, taxonomy, tiny_config, tmp_path, capsys):
    """And telling it changes nothing: the run's numbers are those of one that did not tell."""
    logs = []
    for name, told in (("told", True), ("not", False)):
        run = make_run(picture_folder, taxonomy, tiny_config, tmp_path / name, epochs=40, eval_epochs=40)
        run._print_time = run._print_time if told else lambda: None
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
        assert (" on this machine, for 120 steps" in capsys.readouterr().err) == told
    assert logs[0] == logs[1] and len(logs[0]) == 2

    make_run(picture_folder, taxonomy, tiny_config, tmp_path / "short", epochs=1).train()
    assert "on this machine" not in capsys.readouterr().err


def test_times_in_words():
    assert [as_time(seconds) for seconds in (3, 119, 5000, 7200)] == ["1 min", "2 min", "83 min", "2.0 h"]
