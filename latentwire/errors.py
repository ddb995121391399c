"""The one exception that users are meant to read."""


class UserError(Exception):
    """Bad input: names the key or file, the value, what is allowed and the fix.

    The command line prints its message without a traceback and exits with 2.
    """
