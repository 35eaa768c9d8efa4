"""The run directory: the only thing that passes from training to analysis.

    runs/<sweep>/<mix>-<size>-s<seed>-<hash8>/
      spec.yaml        the frozen spec: settings and what the rules made of them
      manifest.json    revision and diff, versions, device, parameter counts, data fingerprint
      status.json      queued | running | preempted | failed | done, step, tokens, heartbeat, error
      metrics.jsonl    a row a logged step; the only place where measured time is written
      points.jsonl     a row an evaluated checkpoint; the same bits from the same command
      probes.jsonl     where asked for, a row an evaluated checkpoint, probe and length
      samples.jsonl    where asked for, a row an evaluated checkpoint and prompt
      checkpoints/     written beside, synced, then renamed into place
      log.txt          what the run said
      trace.json.gz    where asked for (resources.profile), some steps by torch.profiler

Files are append-only (`*.jsonl`) or atomically replaced (the rest): a reader never sees half of
one, and a cut last line is skipped. What can go wrong with them all the same is found here
(`problem`, `faults`) and said of the one run. No torch here: the analysis reads through this module
alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ablations import formats
from ablations.formats import STATES, DamagedRecord
from ablations.spec import RunSpec, completed, current_name
from ablations.versions import check_defaults
from models.errors import SettingError, nearest, one_of
from models.safe_yaml import parse_yaml
from models.terminal import readable
from models.text import HIDDEN, visible

__all__ = [
    "HIDDEN",
    "STATES",
    "DamagedRecord",
    "RunDirectory",
    "SettingError",
    "directory_of",
    "home",
    "move_aside",
    "nearest",
    "one_of",
    "project_root",
    "read_sweep",
    "readable",
    "record_for",
    "visible",
    "write_atomic",
]

RUN_NAME = re.compile(r".+-.+-s\d+-[0-9a-f]{8}")
SAYING_A_RUN = ("spec.yaml", "status.json", "points.jsonl")
"""A folder of a sweep that holds one of these is a run, whole or not."""


def project_root() -> Path:
    """The checkout that holds conf/ and, unless set otherwise, runs/."""
    return Path(__file__).resolve().parent.parent


def home() -> Path:
    """Where runs/, reports/ and results/ lie: the checkout, or the current folder without one."""
    checkout = project_root()
    return checkout if (checkout / "conf").is_dir() else Path.cwd()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, synced to disk first, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def move_aside(path: Path) -> None:
    """Rename what stands in the place of something else to `.aside`, and keep it: with a number
    behind where there is one of that name."""
    tries = (path.with_name(f"{path.name}.aside{number or ''}") for number in range(1000))
    path.rename(next(free for free in tries if not free.exists()))


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
        self.make_way(".lock")
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def write_spec(self, spec: dict[str, Any]) -> None:
        self.write("spec.yaml", yaml.safe_dump(spec, sort_keys=False))

    def read_spec(self) -> dict[str, Any]:
        """What the spec says in today's terms, whatever version of the code wrote it.

        Raises FileNotFoundError without one, DamagedRecord where it is not what was written.
        """
        return completed(self.spec_as_written())

    def spec_as_written(self) -> dict[str, Any]:
        """The spec as its file holds it, by which the folder is named; raises as `read_spec`."""
        return formats.read_object(self.path / "spec.yaml", parse_yaml, formats.SPEC)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        self.write("manifest.json", json.dumps(manifest, indent=1) + "\n")

    def read_manifest(self) -> dict[str, Any]:
        """Raises FileNotFoundError without one, DamagedRecord where it is not what was written."""
        return self._read("manifest.json", formats.MANIFEST)

    def write_status(self, state: str, **fields: Any) -> None:
        assert state in STATES, state
        self.write("status.json", json.dumps({"state": state, **fields}) + "\n")

    def read_status(self) -> dict[str, Any]:
        """The last status, or `{}` where the run has not begun or `problem` says what is wrong."""
        try:
            return self._read("status.json", formats.STATUS, "state")
        except (FileNotFoundError, NotADirectoryError, DamagedRecord):
            return {}

    @property
    def state(self) -> str:
        """What the run says of itself, `new` before it begins; `damaged` for one that says done, or
        nothing, and whose records do not bear it out."""
        said = self.read_status().get("state", "new")
        return "damaged" if said in ("new", "done") and self.problem() else said

    def problem(self) -> str:
        """Why what the records say of the run cannot be relied on, a clause; empty where it can.

        They are whole, of the run that the folder is named for, and a run that is done has one
        point at each milestone.
        """
        try:
            status = self._read("status.json", formats.STATUS, "state")
        except (FileNotFoundError, NotADirectoryError):
            status = {}
        except DamagedRecord as fault:
            return self.spec_problem() or str(fault)
        files = ("spec.yaml", "manifest.json", "points.jsonl")
        return _problem(self.path, status.get("state") == "done", *map(self._signature, files))

    def spec_problem(self) -> str:
        """Why the folder's spec is none of its own, a clause; empty where it is."""
        return _spec_told(self.path, self._signature("spec.yaml"))[1]

    @property
    def is_of_another(self) -> bool:
        """Whether the spec is of another run than the folder is named for, as in a copy."""
        return _spec_told(self.path, self._signature("spec.yaml"))[0] not in ("", self.name)

    def points(self) -> dict[int, dict[str, Any]]:
        """The run's points by step, in order. Raises DamagedRecord where a row is none."""
        rows, faults = formats.read_rows(self.path / "points.jsonl")
        points, others = formats.sound_points(rows, self.read_spec())
        for fault in (*faults, *others):
            raise DamagedRecord(fault)
        return points

    def faults(self, file: str) -> list[str]:
        """A clause about each row of a `.jsonl` file that `rows` leaves out, but for a cut one."""
        return formats.read_rows(self.path / file)[1]

    def append(self, file: str, row: dict[str, Any]) -> None:
        """Append one row to a `.jsonl` file, synced before it returns."""
        path = self.path / file
        self.path.mkdir(parents=True, exist_ok=True)
        self.make_way(file)
        with path.open("a+b") as handle:
            # A writer killed inside a line leaves a cut one: end it, so that it spoils only itself.
            if handle.seek(0, os.SEEK_END) and _last_byte(handle) != b"\n":
                handle.write(b"\n")
            handle.write(_dumps(row).encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())

    def rows(self, file: str) -> Iterator[dict[str, Any]]:
        """Rows of a `.jsonl` file in order; what is no row, like a line cut by a kill, is left
        out, and `faults` says of it."""
        yield from formats.read_rows(self.path / file)[0]

    def write_rows(self, file: str, rows: Iterable[dict[str, Any]]) -> None:
        """Replace the rows of a `.jsonl` file."""
        self.write(file, "".join(_dumps(row) + "\n" for row in rows))

    def write(self, file: str, text: str) -> None:
        """Replace a file of the run."""
        self.make_way(file)
        write_atomic(self.path / file, text)

    def make_way(self, file: str) -> None:
        """Move a folder that stands in a file's place aside, and keep it."""
        path = self.path / file
        if path.is_dir():
            move_aside(path)

    def _read(self, file: str, kinds: formats.Kinds, *needed: str) -> dict[str, Any]:
        return formats.read_object(self.path / file, formats.parse_json, kinds, needed)

    def _signature(self, file: str) -> tuple[int, ...]:
        """Changes with the file: what it says need not be read again as long as it is the same."""
        try:
            told = (self.path / file).stat()
        except OSError:
            return ()
        return told.st_ino, told.st_size, told.st_mtime_ns


@functools.lru_cache(maxsize=8192)
def _spec_told(path: Path, signature: tuple[int, ...]) -> tuple[str, str]:
    """(the run that a folder's spec is of, empty where it does not say; what is wrong with it)."""
    if not signature:
        return "", "spec.yaml is missing" if path.is_dir() else ""
    try:
        spec = RunDirectory(path).spec_as_written()
        # What no sweep named may lack what a sweep writes; it counts nowhere in the analysis.
        check_defaults(spec)
        whole = RUN_NAME.fullmatch(path.name) or formats.SPEC.keys() <= spec.keys()
        name = formats.run_name(spec) if whole else path.name
    except SettingError as fault:
        return "", str(fault)
    # A run that was begun by an earlier version keeps its folder.
    if path.name in (name, spec.get("folder")):
        return path.name, ""
    if (path.parent / name).exists():
        return name, f"a copy of run {name}, which is read from the folder of that name"
    return name, f"spec.yaml is of run {name}, and a run's folder has its name"


@functools.lru_cache(maxsize=8192)
def _problem(path: Path, done: bool, spec: tuple[int, ...], *_others: tuple[int, ...]) -> str:
    if (problem := _spec_told(path, spec)[1]) or not spec:
        return problem
    run = RunDirectory(path)
    try:
        manifest = run.read_manifest()
    except (FileNotFoundError, NotADirectoryError):
        manifest = {}
    except DamagedRecord as fault:
        return str(fault)
    if manifest.get("run", path.name) != path.name:
        return f"manifest.json is of run {manifest['run']}"
    try:
        points = run.points()
    except DamagedRecord as fault:
        return str(fault)
    for point in points.values():
        if unlike := formats.miscounted(point, manifest.get("counts", {})):
            return f"points.jsonl has at step {point['step']} {unlike}"
    return formats.lacking(run.read_spec(), points) if done else ""


def read_sweep(sweep_dir: Path) -> list[RunDirectory]:
    """Run directories of a sweep, sorted by name, those that `problem` finds damaged among them.

    Raises SettingError where there is no such sweep, naming those that there are.
    """
    if not sweep_dir.is_dir():
        there = _names(sweep_dir.parent)
        hint = f"sweeps there: {', '.join(there)}" if there else "no sweep has been run there"
        raise SettingError(
            f"sweep={sweep_dir.name} is not in {sweep_dir.parent} ({hint}); "
            "start one with python sweeps/run.py."
        )
    return [RunDirectory(sweep_dir / name) for name in _names(sweep_dir, SAYING_A_RUN)]


def directory_of(runs: Path, spec: RunSpec) -> RunDirectory:
    """The run directory of a spec under `runs`, which an earlier version of the code may have
    named by a rule of its own; the folder need not exist."""
    sweep, name = runs / spec.sweep, spec.run_name
    stem = name.rpartition("-")[0]
    earlier: list[RunDirectory] = []
    if not (sweep / name).exists() and sweep.is_dir():
        for folder in sorted(sweep.glob(f"{glob.escape(stem)}-*")):
            run = RunDirectory(folder)
            if RUN_NAME.fullmatch(folder.name) and _name_today(run) == name:
                earlier.append(run)
    # Of several that are one today, one that is done.
    earlier.sort(key=lambda run: run.state != "done")
    return earlier[0] if earlier else RunDirectory(sweep / name)


def _name_today(run: RunDirectory) -> str:
    """The name that a run would be given today; empty where its spec is none of its own."""
    try:
        return "" if run.spec_problem() else current_name(run.spec_as_written())
    except (OSError, DamagedRecord):
        return ""


def record_for(run: RunDirectory, spec: RunSpec) -> dict[str, Any]:
    """What a run's spec.yaml is to hold; a folder that is not named by it is named in it."""
    named = {} if run.name == spec.run_name else {"folder": run.name}
    return spec.record() | named


def _names(folder: Path, holding: Sequence[str] = ("",)) -> list[str]:
    if not folder.is_dir():
        return []
    entries: Iterable[Path] = folder.iterdir()
    return sorted(p.name for p in entries if p.is_dir() and _holds(p, holding))


def _holds(folder: Path, files: Sequence[str]) -> bool:
    try:
        return any((folder / file).exists() for file in files)
    except PermissionError:  # a run that cannot be looked into is one all the same
        return True


def _last_byte(handle: Any) -> bytes:
    handle.seek(-1, os.SEEK_END)
    return handle.read(1)
