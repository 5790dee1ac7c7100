"""The parser of the command line; the modules beside this one add the commands and run them."""

import argparse
from collections.abc import Callable

from ..common.choices import SHELLS
from . import doctor
from .answer_parsers import add_answers
from .data_parsers import add_data, add_paper
from .mistakes import Parser
from .overview import Help, Overview, example, overview
from .weight_parsers import add_sharing, add_training


class Version(argparse.Action):
    """Print the versions of the packages that matter, looked up only on request."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(doctor.version_text())
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="hcast-zoo",
        description="Classify pictures along a taxonomy with H-CAST.",
        usage="hcast-zoo [-h] [--version] COMMAND ...",
        formatter_class=Overview,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the versions of hcast-zoo and its packages")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, prog="hcast-zoo")
    texts = {}

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        texts[name] = text
        sub = subparsers.add_parser(name, description=text, epilog=example(name), formatter_class=Help)
        sub.add_argument("-q", "--quiet", action="store_true", help="show no progress and no warnings")
        sub.add_argument("-v", "--verbose", action="store_true", help="print more, and the traceback of an error")
        sub.set_defaults(run=run)
        return sub

    add_answers(command)
    add_training(command)
    add_data(command)
    add_paper(command)
    add_sharing(command)
    _add_doctor(command)
    _add_completion(command, parser)

    parser.epilog = overview(texts)
    return parser


def _add_doctor(command: Callable) -> None:
    p = command("doctor", doctor.doctor, "report what this machine and environment offer, and what is missing")
    p.add_argument("--json", action="store_true", help="one JSON object")


def _add_completion(command: Callable, parser: argparse.ArgumentParser) -> None:
    p = command("completion", doctor.completion, "print a script that completes commands and options in a shell")
    p.set_defaults(parser=parser)
    p.add_argument("shell", choices=SHELLS, help="which shell")
