"""The command `archladder` does what `python -m analysis` does.

archladder report sweep=demo
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command of the analysis on the command line's arguments; its exit status."""
    from analysis.__main__ import main as run

    return run(sys.argv[1:], "archladder")


if __name__ == "__main__":
    sys.exit(main())
