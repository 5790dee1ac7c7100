"""Signals that end a job, SIGTERM and SIGHUP, as Ctrl-C does: by an exception, so that what is half done is cleared."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

# SIGHUP comes when a terminal is closed; Windows has none.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
AGAIN_S = 2.0  # a second signal that comes so soon is the same: `timeout` sends to the process, and to its group


class Ended(KeyboardInterrupt):
    """The process was told to end by a signal other than SIGINT."""


@contextlib.contextmanager
def ending_as_interrupts() -> Iterator[list[int]]:
    """Raise :class:`Ended` on SIGTERM and SIGHUP while a block runs; give the block the list of those that came.

    A signal that the process ignores, as SIGHUP under ``nohup``, stays ignored. Outside the main thread, which alone
    can hear signals, nothing changes.
    """
    heard: list[int] = []
    last = [-AGAIN_S]

    def end(number: int, _) -> None:
        now, before = time.monotonic(), last[0]
        last[0] = now
        heard.append(number)
        if now - before >= AGAIN_S:
            raise Ended(number)

    with replaced(ENDING, end):
        yield heard


@contextlib.contextmanager
def replaced(numbers: tuple[int, ...], handler) -> Iterator[None]:
    """Set a handler for signals that are not ignored while a block runs; in the main thread alone."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
