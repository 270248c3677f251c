"""What is said to a person who gave us something that cannot be right."""


class UserError(ValueError):
    """Bad input: the message names the thing, the value and what would be right. Commands print it without a traceback.

    A ValueError, so that users of the library may catch it as one.
    """


class Diverged(UserError):
    """A training whose loss is no longer a finite number."""
