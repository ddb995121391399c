"""Signals that ask a stage to end."""

import atexit
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from latentwire.errors import Interrupted


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Lets TERM and USR1 end a stage as Ctrl-C does, by an exception, so that it cleans up.

    A training takes them itself, and ends at the next step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _raise) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # A program takes a while to end, and what is done must not look as if it had failed.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)


def _raise(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)
