"""How a command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from nxm.errors import UserError


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command; a `UserError` becomes its message on stderr and exit status 1, anything else is a bug and shows."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
