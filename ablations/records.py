"""The run directory: the only thing that passes from training to analysis.

    runs/<sweep>/<mix>-<size>-s<seed>-<hash8>/
      spec.yaml        the frozen spec: settings and what the rules made of them
      manifest.json    revision and diff, versions, device, parameter counts, data fingerprint
      status.json      queued | running | preempted | failed | done, step, tokens, heartbeat, error
      metrics.jsonl    a row a logged step; the only place where measured time is written
      points.jsonl     a row an evaluated checkpoint; the same bits from the same command
      probes.jsonl     where asked for, a row an evaluated checkpoint, probe and length
      checkpoints/     written beside, synced, then renamed into place
      log.txt          what the run said

Files are append-only (`*.jsonl`) or atomically replaced (the rest): a reader never sees half of
one, and a cut last line is skipped. No torch here: the analysis reads through this module alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.errors import SettingError, one_of
from models.terminal import readable
from models.text import HIDDEN, visible

__all__ = [
    "HIDDEN",
    "STATES",
    "RunDirectory",
    "SettingError",
    "one_of",
    "project_root",
    "read_sweep",
    "readable",
    "visible",
    "write_atomic",
]

STATES = ("queued", "running", "preempted", "failed", "done")


def project_root() -> Path:
    """The checkout that holds conf/ and, unless set otherwise, runs/."""
    return Path(__file__).resolve().parent.parent


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`, synced to disk first, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _dumps(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=True, separators=(", ", ": "))


@dataclass(frozen=True)
class RunDirectory:
    """Read and write one run directory. `path` need not exist before the first write."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the run for as long as the block lasts; False where another process holds it."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def is_locked(self) -> bool:
        """Whether a process trains this run now."""
        if not (self.path / ".lock").exists():
            return False
        with self.lock() as free:
            return not free

    def write_spec(self, spec: dict[str, Any]) -> None:
        write_atomic(self.path / "spec.yaml", yaml.safe_dump(spec, sort_keys=False))

    def read_spec(self) -> dict[str, Any]:
        return self._read("spec.yaml", yaml.safe_load)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_atomic(self.path / "manifest.json", json.dumps(manifest, indent=1) + "\n")

    def read_manifest(self) -> dict[str, Any]:
        return self._read("manifest.json", json.loads)

    def write_status(self, state: str, **fields: Any) -> None:
        assert state in STATES, state
        write_atomic(self.path / "status.json", json.dumps({"state": state, **fields}) + "\n")

    def read_status(self) -> dict[str, Any]:
        """The last status, or `{}` where the run has not begun."""
        try:
            return self._read("status.json", json.loads)
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def append(self, file: str, row: dict[str, Any]) -> None:
        """Append one row to a `.jsonl` file, synced before it returns."""
        path = self.path / file
        self.path.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as handle:
            # A writer killed inside a line leaves a cut one: end it, so that it spoils only itself.
            if handle.seek(0, os.SEEK_END) and _last_byte(handle) != b"\n":
                handle.write(b"\n")
            handle.write(_dumps(row).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())

    def rows(self, file: str) -> Iterator[dict[str, Any]]:
        """Rows of a `.jsonl` file in order; a line cut by a kill is skipped."""
        path = self.path / file
        if not path.exists():
            return
        with path.open(encoding="utf-8") as handle:
            for line in handle:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue

    def truncate(self, file: str, last_step: int) -> None:
        """Drop rows past `last_step`: a resumed run writes them anew."""
        kept = [row for row in self.rows(file) if row["step"] <= last_step]
        write_atomic(self.path / file, "".join(_dumps(row) + "\n" for row in kept))

    def _read(self, file: str, parse: Any) -> Any:
        return parse((self.path / file).read_text(encoding="utf-8"))


def read_sweep(sweep_dir: Path) -> list[RunDirectory]:
    """Run directories of a sweep, sorted by name.

    Raises SettingError where there is no such sweep, naming those that there are.
    """
    if not sweep_dir.is_dir():
        there = _names(sweep_dir.parent)
        hint = f"sweeps there: {', '.join(there)}" if there else "no sweep has been run there"
        raise SettingError(
            f"sweep={sweep_dir.name} is not in {sweep_dir.parent} ({hint}); "
            "start one with python sweeps/run.py."
        )
    return [RunDirectory(sweep_dir / name) for name in _names(sweep_dir, "spec.yaml")]


def _names(folder: Path, holding: str = "") -> list[str]:
    if not folder.is_dir():
        return []
    entries: Iterable[Path] = folder.iterdir()
    return sorted(p.name for p in entries if p.is_dir() and (p / holding).exists())


def _last_byte(handle: Any) -> bytes:
    handle.seek(-1, os.SEEK_END)
    return handle.read(1)
