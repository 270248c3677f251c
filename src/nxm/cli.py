"""How a command ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from nxm.errors import UserError


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command; a `UserError` becomes its message on stderr and exit status 1, and so does a full disk.

    Ctrl-C ends it with a line and status 130, a reader that has gone (`| head`) with status 1 and no message. Anything
    else is a bug and shows its traceback.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at exit
        sys.exit(1)
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
