"""The exceptions that users are meant to read."""

import signal


class UserError(Exception):
    """Bad input: names the key or file, the value, what is allowed and the fix.

    The command line prints its message without a traceback and exits with 2.
    """


class ProcessLostError(Exception):
    """Another process that does the same work has ended, and this one cannot go on without it."""


class Interrupted(SystemExit):
    """A stage was asked to end, and has left things so that it can go on. Exits with 128 + N.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
