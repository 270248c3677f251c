"""How a command ends."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import NoReturn

from nxm.errors import UserError


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command; a `UserError` becomes its message on stderr and exit status 1, and so does a full disk.

    Anything else is a bug and shows its traceback.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(f"error: no space left on the disk{where}; make room and run the same command again", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
