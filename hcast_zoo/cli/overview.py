"""What `hcast-zoo --help` shows: commands by the job they do, and an example of each."""

import argparse
import itertools

GROUPS = {
    "label pictures": ("predict", "segment", "adapt", "demo"),
    "train on your own": ("data", "train", "evaluate", "calibrate", "drift", "recipes"),
    "pass a model on": ("info", "export", "publish"),
    "the paper, and other tools": ("convert", "repro", "timm", "mm-train"),
    "this program": ("doctor", "completion"),
}
EXAMPLES = {
    "predict": "hcast-zoo predict photos --output results.csv",
    "segment": "hcast-zoo segment owl.jpg --output out",
    "adapt": "hcast-zoo adapt dog.jpg --target dog --output out",
    "demo": "hcast-zoo demo --model runs/birds",
    "data": "hcast-zoo data check birds --output check",
    "train": "hcast-zoo train --data birds --output runs/birds --val-fraction 0.15",
    "evaluate": "hcast-zoo evaluate --model runs/birds",
    "calibrate": "hcast-zoo calibrate runs/birds --output birds.safetensors",
    "drift": "hcast-zoo drift birds.safetensors --data photos-of-this-year",
    "recipes": "hcast-zoo recipes cub",
    "info": "hcast-zoo info --list",
    "export": "hcast-zoo export runs/birds --output birds.onnx",
    "publish": "hcast-zoo publish runs/birds --repo me/hcast-birds --dry-run --output repository",
    "convert": "hcast-zoo convert checkpoint.pth cub.safetensors --dataset cub",
    "repro": "hcast-zoo repro cub --checkpoint cub.safetensors",
    "timm": "hcast-zoo timm validate.py --model hcast_small --pretrained",
    "mm-train": "hcast-zoo mm-train hcast_zoo::hcast/hcast-small_cub.py",
    "doctor": "hcast-zoo doctor",
    "completion": 'eval "$(hcast-zoo completion bash)"',
}


class Overview(argparse.RawDescriptionHelpFormatter):
    """Help whose text is printed as it is written, and which lists commands in the text alone."""

    def _format_action(self, action: argparse.Action) -> str:
        return "" if isinstance(action, argparse._SubParsersAction) else super()._format_action(action)


class Help(argparse.RawDescriptionHelpFormatter):
    """A command's help, which ends with an example on a separate line."""


def example(command: str) -> str | None:
    """Return the lines that end a command's help, or None if there is no example."""
    return f"example:\n  {EXAMPLES[command]}" if command in EXAMPLES else None


def overview(texts: dict[str, str]) -> str:
    """Return the commands, by group, as the text that ends the help of the whole program.

    Args:
        texts: What each command does; one that is in no group comes last.
    """
    grouped = set(itertools.chain.from_iterable(GROUPS.values()))
    groups = GROUPS | {"more": tuple(name for name in texts if name not in grouped)}
    width = max(map(len, texts))
    lines = []
    for group, names in groups.items():
        existing = [name for name in names if name in texts]
        if existing:
            lines += [f"{group}:", *(f"  {name:{width}}  {texts[name]}" for name in existing), ""]

    lines.append("hcast-zoo COMMAND --help lists a command's options, and shows an example.")
    return "\n".join(lines)
