"""Errors of the command line: what is wrong, what was perhaps meant, and what to type next."""

import argparse
import errno
import os
from typing import Any, NoReturn

from ..common.text import clip, did_you_mean, printable
from .overview import EXAMPLES

STEPS = {
    errno.ENOENT: "check the name, which counts from the current folder, {here}",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "a file of that name is where a folder is needed: give another name",
    errno.EEXIST: "a file of that name is where a folder is needed: give another name",
    errno.EACCES: "give a folder that is yours, or change its permissions",
    errno.EROFS: "give a folder on another disk",
    errno.ENOSPC: "free some space, then give the same command again",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are short and printable, guess what was meant, and end with what to type next."""

    def parse_known_args(self, args=None, namespace=None):
        """Parse as argparse does, but report unknown options here, where the options of the command are known."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            hint = did_you_mean(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}; options go after the command")

        return namespace, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if not isinstance(action, argparse._SubParsersAction) or value in action.choices:
            super()._check_value(action, value)
            return

        hint = did_you_mean(value, action.choices)
        if not hint and os.path.exists(value) and "predict" in action.choices:
            hint = f": pictures are labelled by `{self.prog} predict {value}`"
        raise argparse.ArgumentError(None, f"no command {value!r}{hint}")

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, an example, and where the options are listed; exit with 2."""
        _, _, command = self.prog.partition(" ")
        example = EXAMPLES.get(command.partition(" ")[0] or "predict")
        lines = [f"{self.prog}: error: {printable(clip(message))}"]
        if example:
            lines.append(f"example: {example}")
        lines.append(f"all options: {self.prog} --help")
        self.exit(2, "\n".join(lines) + "\n")


def error_text(error: Exception) -> str:
    """Return the text of an error; if the system refuses a file, what to do about it, too."""
    if not isinstance(error, OSError) or error.errno not in STEPS or not isinstance(error.filename, (str, bytes)):
        return str(error)
    if error.strerror != os.strerror(error.errno):  # an error of ours, which says more
        return str(error)
    step = STEPS[error.errno].format(here=os.getcwd())
    return f"{os.fsdecode(error.filename)}: {error.strerror}: {step}"
