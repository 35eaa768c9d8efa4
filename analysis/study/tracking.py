"""wandb on either side of the analysis: a report attached to a run, and runs read back as points.

Runs are read from a project on a server, or from a folder of offline runs. What is read is a row of
history that holds a held-out loss, beside values of the run's configuration; `Keys` names both, and
its defaults are what this project's own runs log.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.records import SettingError

# An offline run is a LevelDB log: blocks of this many bytes, each piece behind a header of seven.
BLOCK = 32768
HEADER = 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class Keys:
    """Where a run keeps what a point needs: dotted paths of its config, names in its history."""

    mix: str = "mix.name"
    size: str = "size.name"
    seed: str = "seed"
    N: str = "recipe.N"
    D: str = "tokens"
    loss: str = "eval/loss"
    bpb: str = "eval/bpb"


@dataclass(frozen=True)
class LoggedRun:
    """One run's config and rows of history."""

    name: str
    state: str
    config: dict[str, Any]
    history: list[dict[str, Any]]


def points_of(runs: Iterable[LoggedRun], keys: Keys) -> tuple[pd.DataFrame, list[str]]:
    """Points (columns run, mix, size, seed, N, D, loss, bpb, state), and runs without any.

    D is a history column, or where it is missing from a row the last value before it.
    """
    rows: list[dict[str, Any]] = []
    empty: list[str] = []
    for run in runs:
        before, tokens = len(rows), math.nan
        fixed = {name: _at(run.config, getattr(keys, name)) for name in ("mix", "size", "seed")}
        for logged in run.history:
            tokens = _number(logged.get(keys.D), tokens)
            loss = _number(logged.get(keys.loss))
            if not math.isfinite(loss):
                continue
            N = _number(logged.get(keys.N), _number(_at(run.config, keys.N)))
            rows.append(
                {"run": run.name, **fixed, "N": N, "D": tokens, "loss": loss,
                 "bpb": _number(logged.get(keys.bpb)), "state": run.state}
            )  # fmt: skip
        if len(rows) == before:
            empty.append(run.name)
    columns = ["run", "mix", "size", "seed", "N", "D", "loss", "bpb", "state"]
    table = pd.DataFrame(rows, columns=columns)
    lacking = [name for name in ("mix", "N", "D") if len(table) and table[name].isna().all()]
    if lacking:
        told = ", ".join(f"{name} ({name}={getattr(keys, name)})" for name in lacking)
        raise SettingError(
            f"the runs have no {told}; name where they keep it, e.g. N=model.params."
        )
    return table, empty


def _at(config: dict[str, Any], path: str) -> Any:
    value: Any = config.get(path)
    if value is None:
        value = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _number(value: Any, otherwise: float = math.nan) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise


def server_runs(project: str, api: Any = None) -> Iterator[LoggedRun]:
    """Runs of `entity/project` on the wandb server. Raises SettingError where it cannot be read."""
    try:
        if api is None:
            import wandb

            api = wandb.Api()
        for run in api.runs(project):
            yield LoggedRun(
                run.name,
                "done" if run.state == "finished" else run.state,
                dict(run.config),
                list(run.scan_history()),
            )
    except Exception as error:  # wandb has no one class for what its server refuses
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingError(
            f"project={project} cannot be read from wandb ({told}); log in with `wandb login`, "
            "and give entity/project, or a folder that holds offline runs."
        ) from None


def offline_runs(folder: Path) -> list[LoggedRun]:
    """Runs under a folder that were logged offline and not sent, those of one id joined.

    Raises SettingError where there is none.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    files = sorted(folder.rglob("*.wandb"))
    if not files:
        raise SettingError(
            f"{folder} holds no offline runs (*.wandb); give entity/project instead."
        )
    runs: dict[str, LoggedRun] = {}
    for file in files:
        try:
            own = _offline_run(file)
        except (DecodeError, ValueError, RecursionError):
            raise SettingError(
                f"{file} is no offline run of wandb, or a damaged one; move it away."
            ) from None
        if own.name in runs:  # a run that was stopped and went on
            earlier = runs[own.name]
            own = LoggedRun(own.name, own.state, earlier.config | own.config,
                            earlier.history + own.history)  # fmt: skip
        runs[own.name] = own
    return list(runs.values())


def _offline_run(file: Path) -> LoggedRun:
    from wandb.proto import wandb_internal_pb2 as messages

    name, state = file.stem.removeprefix("run-"), "running"
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for data in _records(file.read_bytes()):
        record = messages.Record.FromString(data)  # type: ignore[attr-defined]
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.display_name or record.run.run_id or name
            config |= _items(record.run.config.update)
        elif kind == "config":
            config |= _items(record.config.update)
        elif kind == "history":
            history.append(_items(record.history.item))
        elif kind == "exit":
            state = "failed" if record.exit.exit_code else "done"
    return LoggedRun(name, state, config, history)


def _items(items: Iterable[Any]) -> dict[str, Any]:
    found = {}
    for item in items:
        key = item.key or "/".join(item.nested_key)
        value = json.loads(item.value_json)
        found[key] = value
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log behind wandb's own header; a cut last one is left out."""
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # no header begins in so small a rest of a block
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + HEADER])
        piece = data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if len(piece) < length or kind not in (WHOLE, FIRST, MIDDLE, LAST):
            return
        parts = piece if kind in (WHOLE, FIRST) else parts + piece
        if kind in (WHOLE, LAST):
            yield parts


def parse_run(target: str) -> tuple[str | None, str, str]:
    """entity, project and id of `entity/project/run` or `project/run`."""
    parts = target.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise SettingError(f"wandb={target} is not a run; give entity/project/run or project/run.")
    return (parts[0] if len(parts) == 3 else None, parts[-2], parts[-1])


def attach(target: tuple[str | None, str, str], out: Path) -> str:
    """Log report.html and the figures under `out` to a wandb run, and all files as an artifact.

    Without a login, or with WANDB_MODE=offline, they are kept in a folder wandb/ under `out`.
    """
    import wandb

    entity, project, run_id = target
    # wandb's own setting is asked first: logging in is refused where it says offline.
    offline = wandb.setup().settings.mode == "offline" or not wandb.login(prompt=False)
    settings = wandb.Settings(silent=True, console="off", save_code=False)
    try:
        run = wandb.init(
            entity=entity, project=project, id=run_id, resume="allow", job_type="report",
            dir=out, mode="offline" if offline else "online", settings=settings,
        )  # fmt: skip
        page = (out / "report.html").read_text(encoding="utf-8")
        pictures = sorted((out / "figures").glob("*.png"))
        told: dict[str, Any] = {"report": wandb.Html(page, inject=False)}
        told |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in pictures}
        run.log(told)
        artifact = wandb.Artifact(f"report-{run_id}", type="report")
        for path in sorted(out.rglob("*")):
            if path.is_file() and "wandb" not in path.relative_to(out).parts:
                artifact.add_file(str(path), name=str(path.relative_to(out)))
        run.log_artifact(artifact)
        folder = Path(run.dir).parent
        run.finish()
    except wandb.Error as error:
        raise SettingError(
            f"wandb={'/'.join(part for part in target if part)} was refused ({error}); "
            "the report itself is written."
        ) from None
    where = f"kept for `wandb sync {folder}`" if offline else "sent"
    return f"attached to wandb run {project}/{run_id} ({where})"
