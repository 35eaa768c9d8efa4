"""Hand the runs of a sweep to a driver on this machine or to Slurm: all of them, or none.

What is done is skipped, what is alive is left alone, what died is resumed. Looking and submitting
happen under the sweep's lock, so that two drivers submit nothing twice.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablations import provenance
from ablations.records import RunDirectory
from models.environment import expand
from models.errors import SettingError
from sweeps import cluster as clusters
from sweeps import slurm, state
from sweeps.arrays import arrays, time_of
from sweeps.cluster import Shape, Slurm
from sweeps.freeze import freeze, packages_of


@dataclass(frozen=True)
class Request:
    """A run to be trained: its directory, its frozen spec, and for how many of what machine."""

    run: RunDirectory
    spec: dict[str, Any]

    @property
    def size(self) -> str:
        return str(self.spec["size"]["name"])

    @property
    def sweep(self) -> Path:
        return self.run.path.parent


class LeftBehind(SettingError):
    """A submission that failed and could not be taken back."""


@dataclass(frozen=True)
class Claim:
    """What became of requests: runs handed on just now, and runs that were alive before."""

    begun: list[RunDirectory]
    alive: list[RunDirectory]
    code: Path | None = None


def to_slurm(
    requests: Sequence[Request],
    cluster: Slurm,
    at_once: int | None,
    command: str,
    code: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Claim:
    """Submit every run that is not done or alive, an array a shape, in the order given.

    at_once: runs at a time; code: of an earlier submission, None for the checkout's as it is now;
    stopped: whether somebody wants none of it meanwhile. Raises SettingError where one is refused,
    KeyboardInterrupt where it was stopped, with nothing submitted or left behind.
    """
    with _claiming(requests) as (todo, alive):
        if not todo:
            return Claim([], alive)
        submitted: dict[str, str] = {}
        with _all_or_nothing(todo) as made:
            frozen = {sweep: code or _freeze(sweep, todo, made) for sweep in _sweeps(todo)}
            runs = [_as_planned(request, cluster) for request in todo]
            planned = arrays(runs, at_once, slurm.elements(), cluster.max_gpus)
            members = [[todo[number] for number in array.members] for array in planned]
            # Every run is recorded as handed on before the first of them is.
            how = {"cluster": clusters.to_dict(cluster), "at_once": at_once}
            names = [_record(array, how, frozen, command, made) for array in members]
            try:
                for array, own, name in zip(planned, members, names, strict=True):
                    submitted[name] = ""
                    submitted[name] = slurm.submit(
                        cluster,
                        array.shape,
                        name,
                        state.job_folder(own[0].sweep, name),
                        [request.run.path for request in own],
                        frozen[own[0].sweep],
                        {"ARCHLADDER_COMMAND": provenance.redact(command)},
                        array.at_once,
                        None if array.after is None else submitted[names[array.after]],
                    )
                    if stopped():
                        raise KeyboardInterrupt
            except BaseException as error:
                if problem := slurm.cancel_named(submitted):
                    why, left = str(error) or "Stopped.", " ".join(submitted)
                    raise LeftBehind(
                        f"{why} What was submitted before could not be taken back ({problem}); "
                        f"cancel it with scancel --name=NAME: {left}."
                    ) from error
                raise
        return Claim([request.run for request in todo], alive)


@contextlib.contextmanager
def to_this_machine(
    requests: Sequence[Request], how: Mapping[str, Any], command: str, code: Path | None = None
) -> Iterator[Claim]:
    """Claim every run that is not done or alive for this process, as long as the block lasts.

    how: what submission.json is to say of the driver, to retry by.
    """
    with contextlib.ExitStack() as locks:
        with _claiming(requests) as (todo, alive):
            frozen = code
            with _all_or_nothing(todo) as made:
                for sweep in _sweeps(todo):
                    job = _job(sweep, made)
                    frozen = code or _freeze(sweep, todo, made)
                    locks.enter_context(state.held(state.driver_lock(sweep, job)))
                    for request in todo:
                        if request.sweep == sweep:
                            _write(request, made, job=job, launcher="local", host=state.here(),
                                   how=dict(how), code=str(frozen), command=command)  # fmt: skip
        yield Claim([request.run for request in todo], alive, frozen)


@contextlib.contextmanager
def _claiming(
    requests: Sequence[Request],
) -> Iterator[tuple[list[Request], list[RunDirectory]]]:
    """The requests that need a trainer, and the runs that have one, under the sweeps' locks."""
    # What was made is taken back before the locks are let go, which it may remove.
    with contextlib.ExitStack() as locks, _undone_on_error(requests) as made:
        for sweep in sorted(_sweeps(requests)):
            made.folder(state.machinery(sweep))
            locks.enter_context(state.held(state.lock(sweep)))
        looks = state.look([request.run for request in requests])
        for look in looks:
            if look.alive is None:
                raise SettingError(
                    f"run {look.run.name} was handed to Slurm, which does not answer here; nothing "
                    "is submitted until it does (squeue)."
                )
        found = list(zip(requests, looks, strict=True))
        yield (
            [r for r, look in found if not look.alive and look.state != "done"],
            [r.run for r, look in found if look.alive],
        )


def _sweeps(requests: Sequence[Request]) -> set[Path]:
    return {request.sweep for request in requests}


@dataclass
class _Made:
    """What a submission has made so far, to be taken back if it fails."""

    folders: list[Path] = field(default_factory=list)
    """Of this process alone."""
    shells: list[Path] = field(default_factory=list)
    """Where others may put things too: removed only while empty."""

    def folder(self, path: Path) -> None:
        """Create `path` with its parents."""
        self.shells += [p for p in (path, *path.parents) if not p.exists()][::-1]
        path.mkdir(parents=True, exist_ok=True)

    def undo(self) -> None:
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)
        for shell in reversed(self.shells):
            with contextlib.suppress(OSError):
                (shell / "lock").unlink(missing_ok=True)
                shell.rmdir()


@contextlib.contextmanager
def _undone_on_error(requests: Sequence[Request]) -> Iterator[_Made]:
    made = _Made()
    try:
        yield made
    except BaseException as error:
        made.undo()
        if isinstance(error, OSError):
            raise SettingError(
                f"runs={requests[0].sweep.parent} cannot be written ({error.strerror}); give a "
                "folder that can."
            ) from error
        raise


@contextlib.contextmanager
def _all_or_nothing(requests: Sequence[Request]) -> Iterator[_Made]:
    """On an error everything made inside goes, and the records of older runs come back.

    They are kept beside, by another link, so that a disk that is full has room for their return.
    """
    records = [
        request.run.path / name
        for request in requests
        for name in ("spec.yaml", "status.json", "submission.json")
    ]
    older = {file: file.with_name(f".{file.name}.before") for file in records if file.is_file()}
    new = [file for file in records if not file.exists()]
    with _undone_on_error(requests) as made:
        try:
            for file, beside in older.items():
                beside.unlink(missing_ok=True)  # of a driver that was killed
                _link(file, beside)
            yield made
        except BaseException:
            for file, beside in older.items():
                with contextlib.suppress(FileNotFoundError):
                    beside.replace(file)
            for file in new:
                file.unlink(missing_ok=True)
            raise
        finally:
            # Renaming a link to a file that is still the same one does nothing.
            for beside in older.values():
                beside.unlink(missing_ok=True)


def _link(file: Path, beside: Path) -> None:
    try:
        os.link(file, beside)
    except OSError:  # a file system without links
        shutil.copyfile(file, beside)


def _freeze(sweep: Path, requests: Sequence[Request], made: _Made) -> Path:
    folder = state.machinery(sweep) / "code"
    made.folder(folder)
    there = set(folder.iterdir())
    specs = [request.spec for request in requests if request.sweep == sweep]
    frozen = freeze(folder, packages_of(specs))
    if frozen not in there:
        made.folders.append(frozen)
    return frozen


def _job(sweep: Path, made: _Made) -> str:
    job = state.new_job(sweep)
    made.folder(state.job_folder(sweep, job).parent)
    made.folders.append(state.job_folder(sweep, job))
    return job


def _as_planned(request: Request, cluster: Slurm) -> tuple[Path, Shape, float]:
    recipe, shape = request.spec["recipe"], cluster.shape(request.size)
    return request.sweep, shape, time_of(recipe["N"], recipe["tokens"], shape)


def _record(
    array: Sequence[Request],
    how: Mapping[str, Any],
    frozen: Mapping[Path, Path],
    command: str,
    made: _Made,
) -> str:
    job = _job(array[0].sweep, made)
    for index, request in enumerate(array):
        _write(request, made, job=job, index=index, launcher="slurm",
               how=dict(how), code=str(frozen[request.sweep]),
               command=command)  # fmt: skip
    return job


def _from_anywhere(spec: dict[str, Any]) -> dict[str, Any]:
    """`spec` with its corpus named so that it is found whatever folder a worker begins in."""
    data = spec["data"]
    if data.get("path") is None:
        return spec
    path = Path(data["path"]).expanduser()
    if not Path(expand(data["path"], "data.path")).expanduser().is_absolute():
        path = path.absolute()
    return {**spec, "data": {**data, "path": str(path)}}


def _write(request: Request, made: _Made, **submission: Any) -> None:
    """Freeze a run's spec and say to whom it was handed."""
    run = request.run
    if not run.path.exists():
        run.path.mkdir()
        made.folders.append(run.path)
    run.make_way("log.txt")
    # Again for a run that stopped: resources and paths may have changed, identity has not.
    run.write_spec(_from_anywhere(request.spec))
    submission["command"] = provenance.redact(submission["command"])
    state.write_submission(run, {**submission, "time": time.time()})
    status = {k: v for k, v in run.read_status().items() if k not in ("state", "error")}
    run.write_status("queued", **status)
