"""Errors caused by bad input; commands print the message without a traceback."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class UserError(ValueError):
    """Bad input. The message names the setting or file, its value and what would be right.

    It is a ValueError, so that users of the library may catch it as one.
    """


class Diverged(UserError):
    """The loss or a prediction of a training is no longer a finite number."""
