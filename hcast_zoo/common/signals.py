"""SIGTERM and SIGHUP end a job by an exception, as Ctrl-C does, so that unfinished work is cleaned up."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

# SIGHUP comes when a terminal is closed; Windows has none.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
AGAIN_S = 2.0  # a second signal this soon is the same one: `timeout` sends it to the process and to its group


class Ended(KeyboardInterrupt):
    """The process was told to end by a signal other than SIGINT."""


@contextlib.contextmanager
def ending_as_interrupts() -> Iterator[list[int]]:
    """Raise :class:`Ended` on SIGTERM and SIGHUP while a block runs; yield the list of the signals received so far.

    A signal that the process ignores, as SIGHUP under ``nohup``, stays ignored. Outside the main thread, the only one
    that can handle signals, nothing changes.
    """
    received: list[int] = []
    last = [-AGAIN_S]

    def end(number: int, _) -> None:
        now, before = time.monotonic(), last[0]
        last[0] = now
        received.append(number)
        if now - before >= AGAIN_S:
            raise Ended(number)

    with replaced(ENDING, end):
        yield received


@contextlib.contextmanager
def replaced(numbers: tuple[int, ...], handler) -> Iterator[None]:
    """Set a handler for signals while a block runs, in the main thread only; ignored signals stay ignored."""
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
