"""Trainer: the same metrics as the core's evaluation, and a loss that goes down."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import EvalPrediction, Trainer, TrainingArguments

from hcast_zoo import HierarchicalDataset
from hcast_zoo.data.loading import SuperpixelCollate
from hcast_zoo.data.transforms import eval_transform
from hcast_zoo.evaluation.evaluate import evaluate
from hcast_zoo.integrations.transformers import compute_metrics, from_core
from hcast_zoo.weights.file import Weights


class Collate(SuperpixelCollate):
    def __call__(self, samples):
        batch = super().__call__(samples)
        return {"pixel_values": batch["images"], "segments": batch["segments"], "labels": batch["labels"]}


@pytest.fixture
def data(picture_folder, tiny_config, taxonomy):
    return {
        split: HierarchicalDataset.load(picture_folder, taxonomy, split, transform=eval_transform(tiny_config))
        for split in ("train", "val")
    }


@pytest.fixture
def trainer(data, tiny_model, taxonomy, tmp_path):
    torch.manual_seed(0)
    model = from_core(Weights(tiny_model.config, taxonomy, tiny_model.state_dict()))
    arguments = TrainingArguments(
        tmp_path / "run",
        per_device_train_batch_size=6,
        per_device_eval_batch_size=5,
        max_steps=8,
        learning_rate=1e-3,
        gradient_accumulation_steps=2,
        logging_steps=1,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        seed=0,
        save_strategy="no",
        disable_tqdm=True,
    )
    return Trainer(
        model,
        arguments,
        Collate(tiny_model.config),
        data["train"],
        data["val"],
        compute_metrics=compute_metrics(taxonomy, ("best_path", "independent")),
    )


def test_metrics_are_the_cores(trainer, tiny_model, data):
    """The last batch is a smaller one; every picture counts once."""
    ours = trainer.evaluate()
    theirs = evaluate(tiny_model, data["val"], ("best_path", "independent"), progress=False)
    for name, value in theirs["best_path"].items():
        assert ours[f"eval_{name}"] == pytest.approx(value), name
    for name, value in theirs["independent"].items():
        assert ours[f"eval_{name}/independent"] == pytest.approx(value), name
    assert ours["eval_tice"] == 0


def test_metrics_of_known_answers(taxonomy):
    labels = torch.tensor([[0, 0, 1], [1, 2, 3], [1, 3, -1]])
    logits = [torch.full((3, classes), -5.0) for classes in taxonomy.level_classes]
    for level, x in enumerate(logits):
        x[torch.arange(3), labels[:, level].clamp(min=0)] = 5.0
    logits[2][2] = torch.tensor([0.0, 0, 0, 0, 0, 5])
    prediction = EvalPrediction((logits[-1].numpy(), tuple(x.numpy() for x in logits)), labels.numpy())
    results = compute_metrics(taxonomy, ("independent",))(prediction)
    assert results["fpa"] == 100 and results["tice"] == 0
    prediction.predictions[1][0][0] = [0.0, 9.0]  # a mammal above an owl
    results = compute_metrics(taxonomy, ("independent",))(prediction)
    assert results["fpa"] == pytest.approx(200 / 3) and results["tice"] == pytest.approx(100 / 3)


@pytest.mark.slow
def test_training(trainer, data):
    """The loss falls, at the size of one batch's though gradients are accumulated over two."""
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert losses[0] == pytest.approx(before, rel=0.1)
    assert losses[-1] < 0.8 * losses[0]
