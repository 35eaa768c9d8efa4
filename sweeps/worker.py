"""Floor 2's only door to torch: `python -m sweeps.worker RUN_DIR` trains one run directory.

TERM or INT asks it to save and stop; the same command then goes on where it was. One process a
run directory: a second finds the lock and leaves. Exit code 0 done, 2 a setting that cannot be
used, 75 stopped and to be resumed, 76 trained by another process, 1 failed.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

RESUMABLE = 75  # EX_TEMPFAIL
ELSEWHERE = 76


def main(run_dir: str) -> int:
    """Train the run at `run_dir`; what it says goes to standard output, which the driver logs."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: asked.append(received))
    # Only now what is slow to import: a stop in the first second is a stop like any other.
    from ablations.records import RunDirectory
    from models.errors import SettingError

    run = RunDirectory(Path(run_dir))
    from ablations.distributed import environment

    first = environment().first
    with run.lock() if first else contextlib.nullcontext(True) as held:
        if not held:
            _say("another process trains this run; leaving it alone")
            return ELSEWHERE
        try:
            from ablations.spec import load
            from ablations.train import TrainingFailed, train

            spec = load(run.read_spec())
            if first:
                _say(
                    f"{run.name}: {spec.recipe.steps} steps of {spec.recipe.batch_tokens:,} tokens"
                )
            state = train(run, spec, stop=lambda: bool(asked), say=_say)
            if first:
                _say(state)
            return 0 if state == "done" else RESUMABLE
        except SettingError as error:
            _failed(run, str(error))
            return 2
        except OSError as error:
            where = error.filename or run.path
            _failed(run, f"{error.strerror or error}: {where}; the last whole checkpoint is kept")
            return 1
        except TrainingFailed as error:
            _failed(run, str(error))
            return 1
        except Exception as error:
            traceback.print_exc()
            _failed(run, f"{type(error).__name__}: {error}")
            return 1


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _failed(run: Any, error: str) -> None:
    _say(f"error: {error}")
    status = {**run.read_status(), "error": error}
    status.pop("state", None)
    try:
        run.write_status("failed", **status)
    except OSError:
        _say(f"error: could not write {run.path / 'status.json'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
