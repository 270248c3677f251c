"""How a command ends."""

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

# transformers imports torchao where it is installed, which warns of what nothing here uses.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_CUT_SHORT = re.compile(r"\(os error (28|122|27)\)|PytorchStreamWriter failed|unexpected pos \d+ vs \d+")


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
    """No space left, a quota used up or a file too large; safetensors and torch say so in words alone."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return _CUT_SHORT.search(str(error)) is not None
