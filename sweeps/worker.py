"""Floor 2's only door to torch: `python -m sweeps.worker RUN_DIR` trains one run directory.

TERM or INT asks it to save and stop; the same command then goes on where it was. One process a
run directory: a second finds the lock and leaves. Exit code 0 done, 2 a setting that cannot be
used, 75 stopped and to be resumed, 1 failed.
"""

from __future__ import annotations

import fcntl
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from ablations.records import RunDirectory
from ablations.spec import load
from models.errors import SettingError

RESUMABLE = 75  # EX_TEMPFAIL


def main(run_dir: str) -> int:
    """Train the run at `run_dir`; what it says goes to standard output, which the driver logs."""
    run = RunDirectory(Path(run_dir))
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: asked.append(received))

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    with (run.path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process trains this run; leaving it alone")
            return RESUMABLE
        try:
            from ablations.train import train

            spec = load(run.read_spec())
            say(f"{run.name}: {spec.recipe.steps} steps of {spec.recipe.batch_tokens:,} tokens")
            state = train(run, spec, stop=lambda: bool(asked), say=say)
            say(state)
            return 0 if state == "done" else RESUMABLE
        except SettingError as error:
            _failed(run, str(error))
            say(f"error: {error}")
            return 2
        except OSError as error:
            _failed(run, f"{error.strerror or error}: {error.filename or run.path}")
            say(f"error: {error}; the last whole checkpoint is kept")
            return 1
        except Exception as error:
            traceback.print_exc()
            _failed(run, f"{type(error).__name__}: {error}")
            return 1


def _failed(run: RunDirectory, error: str) -> None:
    status: dict[str, Any] = run.read_status()
    status.pop("state", None)
    try:
        run.write_status("failed", **{**status, "error": error})
    except OSError:
        print(f"error: could not write {run.path / 'status.json'}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
