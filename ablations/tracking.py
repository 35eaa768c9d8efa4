"""wandb beside the run's own records: off unless asked for; `auto` is online where logged in.

The run directory stays the source of truth. One deterministic id a run, so a resumed run goes on
in the same one, and sends no row twice. Runs of a sweep are one group, whose job types are the
mixes, and every chart is against tokens: a group's page shows its mixes with nothing set by hand.

The key is read by wandb from its own environment and is written nowhere here. What wandb would
collect by itself, the command line and the address of git's remote, may hold secrets: it is off,
and the run's manifest has the revision and the redacted command.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ablations.records import SettingError
from models.environment import expand


class Tracker(Protocol):
    """What the loop tells: rows of metrics and points, and what the runs table shows of points."""

    def log(self, row: dict[str, Any]) -> None: ...

    def summarize(self, values: dict[str, float]) -> None: ...

    def finish(self) -> None: ...


class Silent:
    """wandb=off."""

    def log(self, row: dict[str, Any]) -> None:
        del row

    def summarize(self, values: dict[str, float]) -> None:
        del values

    def finish(self) -> None:
        pass


class Wandb:
    """One wandb run, its files inside the run directory."""

    def __init__(self, mode: str, run_dir: Path, sweep: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise SettingError(
                f"logging.wandb={mode} needs the package wandb, which is not installed; "
                "valid without it: off."
            ) from error
        if mode == "auto":
            mode = "online" if _logged_in(wandb) else "offline"
        self._run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=run_dir,
            project="archladder",
            group=sweep,
            job_type=config["mix"]["name"],
            name=run_dir.name,
            id=run_dir.name.rsplit("-", 1)[-1] + "-" + sweep,
            resume="allow",
            config=config,
            settings=wandb.Settings(
                silent=True, console="off", save_code=False, disable_git=True, x_disable_meta=True
            ),
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")

    def log(self, row: dict[str, Any]) -> None:
        """A row with `step` and `tokens`."""
        self._run.log(row, step=row["step"])

    def summarize(self, values: dict[str, float]) -> None:
        self._run.summary.update(values)

    def finish(self) -> None:
        self._run.finish()


def _logged_in(wandb: ModuleType) -> bool:
    """Whether there is a key that the server takes; a node without a network has none."""
    try:
        return bool(wandb.login(prompt=False))
    except wandb.errors.Error:
        return False


def start(mode: str, run_dir: Path, sweep: str, config: dict[str, Any]) -> Tracker:
    """A tracker by `logging.wandb`."""
    mode = expand(mode, "logging.wandb")
    return Silent() if mode in ("off", "false") else Wandb(mode, run_dir, sweep, config)
