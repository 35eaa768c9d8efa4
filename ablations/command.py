"""How the commands of this floor end: exit codes, and a sentence for what the user can mend."""

import errno
import sys
from collections.abc import Callable

from models.command import ended
from models.terminal import readable
from models.text import visible


def exit_code(work: Callable[[], None]) -> int:
    """Do `work`: 0, or 2 where a setting or a file cannot be used, or 130 where it was stopped.

    `work` must be one that the same command goes on with from where it was.
    """
    readable()
    try:
        return ended(work)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        full = error.errno == errno.ENOSPC or "disk is full" in str(error)
        then = "; make room, and the same command goes on from here" if full else ""
        print(visible(f"error: {error.strerror or error}{where}{then}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
