"""What the records of a run may hold: each file parsed and checked, or refused in a clause.

Files come from disks that filled up, from editors, and from copies of other folders; nothing behind
this module has to ask whether a step is a number. Fields that are not listed are let through, so
that records of other versions read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ablations.versions import identity
from models.errors import SettingError
from models.safe_yaml import DEEPEST

STATES = ("queued", "running", "preempted", "failed", "done")
LARGEST = 2**63
"""Whole numbers of records are below this, as tables count them in 64 bits."""

Kinds = Mapping[str, str]
# A kind that ends in ? may also be null.
SPEC: Kinds = {"mix": "group", "size": "group", "seed": "count"}
STATUS: Kinds = {
    "state": "state", "step": "count", "steps": "count", "tokens": "count", "seconds": "number",
    "heartbeat": "number", "tokens_per_second": "number", "eta_point": "number", "eta": "number",
    "mfu": "number", "loss": "number", "lr": "number", "bpb": "number", "error": "text",
}  # fmt: skip
MANIFEST: Kinds = {
    "run": "text", "revision": "text?", "dirty": "flag", "diff_sha256": "text?",
    "versions": "group", "device": "group", "precision": "text", "parallel": "text?",
    "backends": "group", "compiled": "flag", "counts": "numbers", "data": "group",
    "matched": "text", "earlier": "groups", "command": "text", "micro_batch_rows": "count",
}  # fmt: skip
SUBMISSION: Kinds = {
    "launcher": "launcher", "job": "name", "index": "count", "host": "text", "how": "group",
    "processes": "counts", "code": "text", "command": "text", "time": "number",
    "cancelled": "flag",
}  # fmt: skip
HOW: Mapping[str, Kinds] = {
    "local": dict.fromkeys(("runs_per_gpu", "parallel", "threads", "devices"), "count"),
    "slurm": {"cluster": "group", "at_once": "count?"},
}
"""A submission's settings to retry by, of each launcher."""
METRIC: Kinds = {
    "step": "count", "tokens": "count", "loss": "number", "grad_norm": "number", "lr": "number",
    "skipped_steps": "count", "seconds": "number", "tokens_per_second": "number", "mfu": "number",
}  # fmt: skip
POINT: Kinds = {
    "mix": "text", "size": "text", "seed": "count", "step": "count", "chinchilla": "number",
    "N": "number", "N_total": "number", "N_body": "number", "D": "number", "C": "number",
    "epochs": "number", "repeated_tokens": "number", "loss": "number", "bpb": "number",
    "loss_se": "number?", "bpb_se": "number?", "domains": "sums", "data_hash": "text",
    "skipped_steps": "count",
}  # fmt: skip
MEASURES = ("loss", "bpb", "loss_se", "bpb_se")
"""Of a domain's sums, those that may be null."""
PROBE: Kinds = {
    "step": "count", "probe": "text", "version": "count", "length": "count", "digest": "text?",
    **dict.fromkeys(
        ("context", "examples", "predictions", "candidates", "chance", "accuracy", "accuracy_se",
         "nats", "nats_se", "first_accuracy", "first_nats", "gain", "gain_se", "from", "to",
         "loss", "loss_se", "bpb", "bpb_se"),
        "number?",
    ),
}  # fmt: skip
SAMPLE: Kinds = {
    "step": "count", "sample": "count", "version": "count", "domain": "text", "prompt": "text",
    "continuation": "text", "new_tokens": "count",
}  # fmt: skip
ROWS: Mapping[str, tuple[Kinds, tuple[str, ...]]] = {
    "metrics.jsonl": (METRIC, ("step",)),
    "points.jsonl": (POINT, ("step",)),
    "probes.jsonl": (PROBE, ("step", "probe", "length")),
    "samples.jsonl": (SAMPLE, ("step", "sample", "prompt", "continuation")),
}
"""What a row of each file may hold, and what it must."""


class DamagedRecord(SettingError):
    """A record that cannot be used: a clause that begins with the file's name."""


def read_object(
    path: Path, parse: Callable[[str], Any], kinds: Kinds, needed: Sequence[str] = ()
) -> dict[str, Any]:
    """A record that is one object.

    Raises FileNotFoundError (NotADirectoryError) where there is none, DamagedRecord where it is
    not what was written.
    """
    try:
        text = _bytes(path).decode()
        value = parse(text)
    except DamagedRecord:
        raise
    except (ValueError, RecursionError, TypeError, yaml.YAMLError):
        what = "YAML" if path.suffix == ".yaml" else "JSON"
        raise DamagedRecord(f"{path.name} is no {what}") from None
    if not text.strip():
        raise DamagedRecord(f"{path.name} is empty")
    if words := fault_of(value, kinds, needed):
        raise DamagedRecord(f"{path.name} {words}")
    return value


def parse_json(text: str) -> Any:
    """JSON, nothing for a file without text."""
    return json.loads(text) if text.strip() else {}


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows of a .jsonl file that are whole, a clause about each of the others).

    A last line without its end was cut by a kill, and is no fault. Both empty where there is no
    such file.
    """
    try:
        content = _bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except DamagedRecord as damage:
        return [], [str(damage)]
    rows, faults = [], []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            if number < len(lines):
                faults.append(f"{path.name} line {number} is no JSON")
            continue
        if fault := fault_of(row, *ROWS[path.name]):
            faults.append(f"{path.name} line {number} {fault}")
        else:
            rows.append(row)
    return rows, faults


def sound_points(
    rows: Sequence[dict[str, Any]], spec: Mapping[str, Any]
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """(the run's points by step, a clause about each row that is none).

    A point is of the run's mix, size and seed, at one of its milestones, and one of its step;
    rows that repeat a point count once.
    """
    own = {"mix": _name(spec, "mix"), "size": _name(spec, "size"), "seed": spec.get("seed")}
    steps = milestones(spec)
    points: dict[int, dict[str, Any]] = {}
    faults: list[str] = []
    twice: set[int] = set()
    for row in rows:
        step = row["step"]
        lacks = [key for key in ("N", "D", "loss") if key not in row]
        other = [f"{key}={row[key]}" for key, value in own.items() if row.get(key, value) != value]
        if lacks:
            faults.append(f"points.jsonl has a point of step {step} without {', '.join(lacks)}")
        elif other:
            faults.append(f"points.jsonl has a point of another run ({', '.join(other)})")
        elif steps and step not in steps:
            faults.append(f"points.jsonl has a point at step {step}, which is no milestone")
        elif unlike := _inconsistent(row, spec):
            faults.append(f"points.jsonl has at step {step} a {unlike}")
        # As text: a loss that is not a number equals nothing, itself included.
        elif step in points and repr(points[step]) != repr(row):
            twice.add(step)
        else:
            points[step] = row
    if twice:
        faults.append(f"points.jsonl has two points of step {_some(sorted(twice))}, which differ")
    return {step: points[step] for step in sorted(points.keys() - twice)}, faults


def _inconsistent(row: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """A number of a point that its others do not give, in words; empty where all agree."""
    domains = [sums for sums in (row.get("domains") or {}).values() if "nats" in sums]
    for name, unit, nats in (("loss", "tokens", 1.0), ("bpb", "bytes", math.log(2.0))):
        own = [sums for sums in domains if sums.get(name) is not None and sums.get(unit)]
        if any(_differ(sums[name], sums["nats"] / sums[unit] / nats) for sums in own):
            return f"{name} of a domain that its sums do not give"
        if own and name in row and _differ(row[name], sum(s[name] for s in own) / len(own)):
            return f"{name} that its domains do not give"
    for sums in domains:
        for name, partition in (sums.get("classes") or {}).items():
            nats, tokens = (sum(own[i] for own in partition.values()) for i in (0, 1))
            if _differ(nats, sums["nats"]) or tokens != sums.get("tokens", tokens):
                return f"partition {name} of a domain whose classes are not all of its sums"
    recipe = spec.get("recipe")
    batch = recipe.get("batch_tokens") if isinstance(recipe, Mapping) else None
    if isinstance(batch, int) and row["D"] != row["step"] * batch:
        return f"D that is not its steps of {batch:,} tokens"
    return ""


def miscounted(point: Mapping[str, Any], counts: Mapping[str, float]) -> str:
    """A count of a point that is not the manifest's, in words; empty where all are."""
    for name in ("N", "N_total", "N_body"):
        if name in counts and point.get(name, counts[name]) != counts[name]:
            return f"{name}={point[name]}, and manifest.json {counts[name]}"
    if "flops_per_token" in counts and "C" in point:
        C = point["D"] * counts["flops_per_token"]
        if _differ(point["C"], C):
            return f"C={point['C']:g}, and by manifest.json it is {C:g}"
    return ""


def _differ(a: float, b: float) -> bool:
    return math.isfinite(a) != math.isfinite(b) or abs(a - b) > 1e-9 * abs(b)


def milestones(spec: Mapping[str, Any]) -> set[int]:
    """Steps at which a run has a point; none where its spec does not say."""
    recipe = spec.get("recipe")
    listed = recipe.get("milestones") if isinstance(recipe, Mapping) else None
    steps = [m.get("step") for m in listed or () if isinstance(m, Mapping)]
    return {step for step in steps if isinstance(step, int)}


def lacking(spec: Mapping[str, Any], points: Mapping[int, Any]) -> str:
    """Which milestones of a done run have no point, a clause; empty where all have one."""
    missing = sorted(milestones(spec) - points.keys())
    return f"points.jsonl lacks the point of step {_some(missing)}" if missing else ""


def run_name(spec: Mapping[str, Any]) -> str:
    """The name of the folder that a spec, as its file holds it, belongs into.

    Raises DamagedRecord where it is no spec.
    """
    names = [_name(spec, "mix"), _name(spec, "size")]
    if not all(isinstance(name, str) and name for name in names) or "seed" not in spec:
        raise DamagedRecord("spec.yaml names no mix, size and seed")
    try:
        return f"{names[0]}-{names[1]}-s{spec['seed']}-{identity(spec)}"
    except (TypeError, KeyError, AttributeError, ValueError):
        raise DamagedRecord("spec.yaml is no spec of a run") from None


def _name(spec: Mapping[str, Any], group: str) -> Any:
    value = spec.get(group)
    return value.get("name") if isinstance(value, Mapping) else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except IsADirectoryError:
        raise DamagedRecord(f"{path.name} is a folder") from None
    except OSError as error:
        raise DamagedRecord(f"{path.name} cannot be read ({error.strerror})") from None


def fault_of(value: Any, kinds: Kinds, needed: Sequence[str]) -> str:
    """What is wrong with a record, words that follow its name; empty where nothing is.

    needed: fields that it must have.
    """
    if not isinstance(value, dict):
        return "holds no fields"
    if not _is_plain(value):
        return "holds what no record does"
    for name in needed:
        if name not in value:
            return f"has no {name}"
    for name, kind in kinds.items():
        if name in value and not _is(value[name], kind):
            told = repr(value[name])
            told = told if len(told) <= 40 else f"{told[:39]}…"
            return f"has {name}={told}, which is no {WORDS[kind.removesuffix('?')]}"
    return ""


def _is_plain(record: Any) -> bool:
    """Whether it holds no more than JSON's values, nested no deeper than a record is."""
    level, values = 0, [record]
    while values:
        level += 1
        inner: list[Any] = []
        if level > DEEPEST:
            return False
        for value in values:
            if isinstance(value, dict):
                if not all(isinstance(key, str) and _is_text(key) for key in value):
                    return False
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif not _is_plain_leaf(value):
                return False
        values = inner
    return True


def _is_plain_leaf(value: Any) -> bool:
    if isinstance(value, str):
        return _is_text(value)
    if isinstance(value, int):
        return abs(value) < LARGEST
    return value is None or isinstance(value, float)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair, which cannot be printed
        return False
    return True


def _is(value: Any, kind: str) -> bool:
    if kind.endswith("?"):
        return value is None or _is(value, kind[:-1])
    return CHECKS[kind](value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_sums(value: Any) -> bool:
    """Whether it is what was summed over a domain: numbers, but for what it was too small for, and
    sums by class."""
    return isinstance(value, dict) and all(
        _is_classes(part)
        if key == "classes"
        else _is_number(part) or (part is None and key in MEASURES)
        for key, part in value.items()
    )


def _is_classes(value: Any) -> bool:
    """Whether it is {partition: {class: [nats, tokens, bytes]}}; bytes may be null."""
    return isinstance(value, dict) and all(
        isinstance(partition, dict)
        and all(
            isinstance(sums, list)
            and len(sums) == 3
            and _is_number(sums[0])
            and _is_count(sums[1])
            and sums[1] > 0
            and (sums[2] is None or _is_count(sums[2]))
            for sums in partition.values()
        )
        for partition in value.values()
    )


def _holds(kind: str, container: type) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        parts = value.values() if isinstance(value, dict) else value
        return isinstance(value, container) and all(CHECKS[kind](part) for part in parts)

    return check


CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "count": _is_count,
    "number": _is_number,
    "text": lambda value: isinstance(value, str),
    "name": lambda value: isinstance(value, str) and Path(value).name == value != "",
    "flag": lambda value: isinstance(value, bool),
    "state": lambda value: value in STATES,
    "launcher": lambda value: value in ("local", "slurm"),
    "group": lambda value: isinstance(value, dict),
    "groups": _holds("group", list),
    "counts": _holds("count", list),
    "numbers": _holds("number", dict),
    "sums": lambda value: isinstance(value, dict) and all(map(_is_sums, value.values())),
}
WORDS = {
    "count": "whole number of at least 0", "number": "number", "text": "text", "name": "name",
    "flag": "true or false", "state": "state of a run", "launcher": "launcher",
    "group": "group of fields", "groups": "list of groups", "counts": "list of whole numbers",
    "numbers": "group of numbers", "sums": "group of sums by domain",
}  # fmt: skip


def _some(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 6} more" if len(numbers) > 6 else ""
    return ", ".join(map(str, numbers[:6])) + more
