"""Train H-CAST on EmojiArt with transformers' Trainer.

    pip install 'hcast-zoo[train,transformers]'
    python recipes/emoji_art.py --output data/emoji_art                     # builds the data set
    python recipes/transformers_emoji_art.py --data data/emoji_art --output runs/emoji_art_trainer

Writes a folder that ``AutoModelForImageClassification.from_pretrained`` and both pipelines load, and prints the metrics
on the artist that was never seen in training. ``--init hcast_small.emoji_art`` starts from the weights in the package,
and ``--max-steps 4`` is enough to see it work on a laptop. Training from scratch takes a GPU and hundreds of epochs.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as tv
from transformers import Trainer, TrainingArguments, set_seed

from hcast_zoo import HCastConfig as CoreConfig
from hcast_zoo import HierarchicalDataset, Taxonomy
from hcast_zoo.integrations.transformers import (
    HCastConfig,
    HCastForImageClassification,
    HCastImageProcessor,
    compute_metrics,
    from_core,
)
from hcast_zoo.weights.file import load_weights

SCRATCH = CoreConfig.from_variant(
    "hcast_small", image_size=96, num_superpixels=36, num_clusters=(16, 8, 4, 4), crop_pct=1.0, drop_path_rate=0.1
)


class Collate:
    """Turns samples into what the model takes, superpixels included, in the loader's worker."""

    def __init__(self, processor: HCastImageProcessor):
        self.processor = processor

    def __call__(self, samples: list[tuple[Image.Image, Tensor] | None]) -> dict[str, Tensor]:
        pictures, labels = zip(*(sample for sample in samples if sample is not None))
        inputs = self.processor(list(pictures), return_segments=True, return_tensors="pt")
        return {**inputs, "labels": torch.stack(labels)}


def main() -> None:
    args = parse_arguments()
    set_seed(args.seed)
    taxonomy = Taxonomy.load(args.data / "taxonomy.json")
    if args.init:
        model = from_core(load_weights(args.init))
    else:
        model = HCastForImageClassification(
            HCastConfig.from_core(SCRATCH.replace(level_classes=taxonomy.level_classes), taxonomy)
        )

    processor = HCastImageProcessor.from_core(model.config)

    def pictures(split: str, **kwargs) -> HierarchicalDataset:
        return HierarchicalDataset.load(args.data / "emoji_art.parquet", taxonomy, split, **kwargs)

    side = model.config.image_size
    augmentation = tv.Compose(
        [
            tv.RandomResizedCrop(side, (0.5, 1.0), interpolation=tv.InterpolationMode.BICUBIC),
            tv.RandomHorizontalFlip(),
            tv.ColorJitter(0.3, 0.3, 0.3, 0.05),
        ]
    )

    trainer = Trainer(
        model=model,
        args=training_arguments(args),
        data_collator=Collate(processor),
        train_dataset=pictures("train", transform=augmentation, random_background=True),
        eval_dataset=pictures("val"),
        compute_metrics=compute_metrics(taxonomy, ("best_path", "independent")),
    )
    trainer.train()
    trainer.save_model()
    processor.save_pretrained(args.output)
    print(json.dumps(trainer.evaluate(pictures("test"), metric_key_prefix="test"), indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that recipes/emoji_art.py has written")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--init", help="weights of the core to start from: a name, a file or a folder")
    parser.add_argument("--epochs", type=float, default=300, help="(%(default)s)")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop after so many steps (when the epochs are over)")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures per step (%(default)s)")
    parser.add_argument("--lr", type=float, default=5e-4, help="highest learning rate (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    return parser.parse_args()


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    """Return the settings of the training; the epoch with the best full-path accuracy is kept."""
    return TrainingArguments(
        str(args.output),
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        learning_rate=args.lr,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        max_grad_norm=5.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="fpa",
        greater_is_better=True,
        logging_steps=max(1, min(50, args.max_steps)),
        dataloader_num_workers=args.workers,
        remove_unused_columns=False,
        report_to="none",
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
