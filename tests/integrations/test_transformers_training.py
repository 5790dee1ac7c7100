"""Trainer: the metrics of the core's evaluation, and a loss that falls."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import EvalPrediction, Trainer, TrainingArguments

from hcast_zoo import HierarchicalDataset, HierarchicalLoss
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
    splits, transform = ("train", "val"), eval_transform(tiny_config)
    return {s: HierarchicalDataset.load(picture_folder, taxonomy, s, transform=transform) for s in splits}


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
    """The last batch is smaller; every picture counts once."""
    ours = trainer.evaluate()
    theirs = evaluate(tiny_model, data["val"], ("best_path", "independent"), progress=False)
    for name, value in theirs["best_path"].items():
        assert ours[f"eval_{name}"] == pytest.approx(value), name
    for name, value in theirs["independent"].items():
        assert ours[f"eval_{name}/independent"] == pytest.approx(value), name
    assert ours["eval_tice"] == 0


def test_metrics_of_known_answers_are_exact(taxonomy):
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
def test_the_loss_falls_in_training(trainer, data):
    """It has the scale of one batch although gradients are accumulated over two."""
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert losses[0] == pytest.approx(before, rel=0.1)
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture
def images32():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class TestLora:
    """Saving and loading a peft adapter does not change the answers."""

    @pytest.mark.parametrize("kept", [None, ["heads"], ["stem.0.norm"]], ids=["alone", "heads", "norm"])
    def test_a_saved_adapter_gives_the_same_logits(self, tiny_model, taxonomy, images32, tmp_path, kept):
        peft = pytest.importorskip("peft")
        from hcast_zoo.integrations.transformers import HCastForImageClassification

        weights = Weights(tiny_model.config, taxonomy, tiny_model.state_dict())
        from_core(weights).save_pretrained(tmp_path / "base")
        config = peft.LoraConfig(target_modules=["qkv"], modules_to_save=kept, init_lora_weights=False)
        model = peft.get_peft_model(HCastForImageClassification.from_pretrained(tmp_path / "base"), config).train()
        statistics = model.base_model.model.stem[1].norm.running_mean.clone()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        for _ in range(2):
            model(images32, labels=torch.zeros(len(images32), 3, dtype=torch.int64)).loss.backward()
            optimizer.step()

        assert torch.equal(model.base_model.model.stem[1].norm.running_mean, statistics)
        model.eval().save_pretrained(tmp_path / "adapter")
        base = HCastForImageClassification.from_pretrained(tmp_path / "base")
        again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        with torch.inference_mode():
            trained, plain = model(images32).level_logits, from_core(weights)(images32).level_logits
            for ours, loaded, before in zip(trained, again(images32).level_logits, plain):
                torch.testing.assert_close(loaded, ours, atol=1e-6, rtol=0)
                assert (ours - before).abs().max() > 1e-3


def test_label_smoothing_applies_to_every_level(tiny_model, taxonomy, images32, tmp_path):
    """The model's own loss smooths, and the saved config records it."""
    model = from_core(Weights(tiny_model.config, taxonomy, tiny_model.state_dict()))
    labels = torch.tensor([[0, 0, 0], [1, 2, 4]])
    batch = {"pixel_values": images32[:2], "labels": labels}
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.2, use_cpu=True, report_to=[])
    loss = Trainer(model, arguments).compute_loss(model, dict(batch))
    expected = HierarchicalLoss(model.config.kl_weight, smoothing=0.2)(model(images32[:2]).level_logits, labels)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert model.config.label_smoothing == 0.2


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_may_have_any_integer_type(tiny_model, taxonomy, images32, dtype):
    model = from_core(Weights(tiny_model.config, taxonomy, tiny_model.state_dict()))
    labels = torch.tensor([[0, 0, 1]])
    expected = model(images32[:1], labels=labels).loss
    assert torch.equal(model(images32[:1], labels=labels.to(dtype)).loss, expected)


def test_empty_batches_give_empty_logits(tiny_model, taxonomy):
    model = from_core(Weights(tiny_model.config, taxonomy, tiny_model.state_dict()))
    images, maps = torch.zeros(0, 3, 32, 32), torch.zeros(0, 32, 32, dtype=torch.int64)
    assert [tuple(x.shape) for x in model(images).level_logits] == [(0, 2), (0, 4), (0, 6)]
    assert [tuple(x.shape) for x in tiny_model(images, maps).level_logits] == [(0, 2), (0, 4), (0, 6)]
