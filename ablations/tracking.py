"""wandb beside the run's own records: off unless asked for; `auto` is online where logged in.

The run directory stays the source of truth. One deterministic id a run, so a resumed run goes on
in the same one, and sends no row twice. The key is read by wandb from its own environment and is
written nowhere here.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ablations.records import SettingError
from models.environment import expand


class Tracker(Protocol):
    """What the loop tells: rows of metrics and points."""

    def log(self, row: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class Silent:
    """wandb=off."""

    def log(self, row: dict[str, Any]) -> None:
        del row

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
            name=run_dir.name,
            id=run_dir.name.rsplit("-", 1)[-1] + "-" + sweep,
            resume="allow",
            config=config,
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(row, step=row["step"])

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
