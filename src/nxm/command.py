"""Run a command and turn expected errors into a message and an exit status."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from safetensors import SafetensorError

from nxm.errors import UserError

# transformers imports torchao if it is installed, which then warns about features that nothing here uses.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_CUT_SHORT = re.compile(r"\(os error (28|122|27)\)|PytorchStreamWriter failed|unexpected pos \d+ vs \d+")


def run(main: Callable[[], object]) -> NoReturn:
    """Call `main` and exit: with status 0, or with the message and status of an expected error.

    - `UserError` and a full disk: the message on stderr, status 1.
    - Ctrl-C: one line on stderr, status 130.
    - A closed pipe (`| head`): no message, status 1.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted; finished work is saved, and the same command continues from there", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the output that Python flushes at exit
        sys.exit(1)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full_disk(error):
            raise
        where = f" for {error.filename}" if isinstance(error, OSError) and error.filename else ""
        print(
            f"error: no space left on the disk{where}, or a limit on it is reached; make room and run the same command "
            "again",
            file=sys.stderr,
        )
        sys.exit(1)
    sys.exit(0)


def _is_full_disk(error: Exception) -> bool:
    """Return whether the disk is full, a quota used up or a file too large.

    safetensors and torch report these in the text of their own exceptions alone.
    """
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return _CUT_SHORT.search(str(error)) is not None
