"""The command line's entry point: run a command, and turn errors and signals into exit codes.

Exit code 0: all went well; 1: a picture or a check failed; 2: wrong usage or input; 128 + n: ended by signal n, so 130
after Ctrl-C, 143 after SIGTERM, and 129 when the terminal was closed.
"""

import argparse
import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator

from ..common.signals import Ended, ending_as_interrupts
from ..common.text import clip, printable
from .mistakes import error_text
from .parser import make_parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    _open_closed_streams()
    args = make_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot display must not end a job
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    with ending_as_interrupts() as received:
        try:
            code = _run(args)
        except BaseException:  # whatever exception a library made of it, the signal was the cause
            if not received:
                raise

    if not received:
        return code
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"ended by {signal.Signals(received[0]).name}", file=sys.stderr)
    return 128 + received[0]


def _run(args: argparse.Namespace) -> int:
    """Run a command; return the exit code."""
    try:
        with warnings.catch_warnings(), _silence() if args.quiet else contextlib.nullcontext():
            warnings.showwarning = _show_warning
            _check_folder()
            return args.run(args)
    except Ended:
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `hcast-zoo predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:  # bad input; anything else is a bug in hcast-zoo
        if args.verbose:
            traceback.print_exc()
        print(f"hcast-zoo {args.command}: {printable(clip(error_text(error), 2000))}", file=sys.stderr)
        return 2


def _check_folder() -> None:
    """Raise FileNotFoundError if the current folder was deleted; libraries under torch would abort the process."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise FileNotFoundError("the current folder has been deleted: change to another one") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hide progress bars and warnings."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    try:
        yield
    finally:
        del os.environ["TQDM_DISABLE"]
        if before is not None:
            os.environ["TQDM_DISABLE"] = before


def _open_closed_streams() -> None:
    """Reopen streams that the caller closed (``2>&-``), so that no file takes their number and no print fails."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115 (stays open until exit)
            setattr(sys, name, stream)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Print a warning as a line of text, without our file and line, which do not help the user of a command."""
    text = str(message) if issubclass(category, UserWarning) else f"{category.__name__}: {message}"
    print(f"note: {printable(clip(text, 2000))}", file=sys.stderr)
