"""What is said to a person who gave us something that cannot be right."""


class UserError(Exception):
    """Bad input: the message names the thing, the value and what would be right. Commands print it without a traceback."""
