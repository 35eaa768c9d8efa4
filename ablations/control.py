"""Control: what may differ between the runs of a sweep, checked before anything runs.

Runs of one size may differ in their seed, in a declared treatment (the mix, by default) and in what
follows from it by rule: the model's layers and widths, and what the match moved. Runs of different
sizes differ in the size, in the recipe it decides, and in the corpus where the sizes are named for
different ones. Where every run takes settings from a tuning sweep (protocol.tuning), these follow
the mix and the size by rule. Anything else stops the sweep, by field, values and runs. What a rule
brings along is allowed, and listed: ablations/confounds.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ablations.versions import READ
from models.errors import SettingError
from models.settings import flatten

BY_MIX = ("model", "matched")
"""What a mix decides by rule."""
BY_SIZE = ("size", "recipe", "corpus", "data.name")
"""What a size decides by rule; all are one inside a size."""
BY_TUNING = {
    "lr": ("protocol.lr_multiplier", "recipe.peak_lr"),
    "weight_decay": ("train.weight_decay", "recipe.weight_decay"),
    "batch": (
        "protocol.batch_tokens",
        *(f"recipe.{name}" for name in ("batch_instances", "batch_tokens", "tokens", "steps")),
        *("recipe.warmup_steps", "recipe.beta2", "recipe.milestones"),
    ),
}
"""What follows from a run's mix and size where it takes a setting from a tuning sweep."""
BY_CORPUS = ("corpus", "data.name")
"""One for all sizes that are named for the same corpus (`size.corpus`)."""
FREE = ("sweep", "evaluation", "resources", "logging", "data.path", "corpus.name")
"""No part of what a run computes."""
SET = ("data", "mix", "protocol", "seed", "size", "train")
"""What a user sets of what a run computes."""

Runs = Mapping[str, Mapping[str, Any]]


def check(specs: Mapping[str, Mapping[str, Any]], treatments: Sequence[str]) -> None:
    """Raise SettingError where runs differ in what was not declared.

    specs: {run name: spec as plain nested dict}; treatments: dotted names, like `mix` or
    `protocol.lr_multiplier`. Other treatments than the mix may change the recipe by its rules.
    """
    flat = {name: _flat(name, spec) for name, spec in specs.items()}
    _check_treatments(flat, treatments)
    varied = [t for t in treatments if t != "mix"]
    tuned = _by_tuning(flat)
    declared = (*treatments, "seed", *FREE, *tuned)
    follows = (*BY_MIX, *(("recipe",) if varied else ()))
    _compare(flat, (*declared, *BY_MIX, *BY_SIZE), treatments, "the sweep")
    for (corpus,), runs in _grouped(flat, ("size.corpus",)):
        _compare(runs, declared, treatments, f"the sizes of corpus={corpus}", BY_CORPUS)
    for (size,), runs in _grouped(flat, ("size.name",)):
        _compare(runs, (*declared, *follows), treatments, f"size={size}")
    # A name stands for one mix, unless a part of the mix is what was declared.
    parts = [t for t in varied if t.startswith("mix.")]
    for (mix,), runs in _grouped(flat, ("mix.name",)):
        _one(runs, ("mix",), parts, f"runs named mix={mix}", "give each its own mix.name=NAME")
    # What follows by rule is the same wherever the rule was given the same.
    cause = "as the tuning sweep has grown since, or" if tuned else "as"
    drift = f"{cause} by another version of the code; take another sweep=NAME"
    for _, runs in _grouped(flat, ("size", *varied, *(("mix",) if tuned else ()))):
        _one(runs, ("recipe",), (), "runs of the same settings", drift)
    for _, runs in _grouped(flat, ("size", "mix", *varied)):
        _one(runs, BY_MIX, (), "runs of the same settings", drift)


def _by_tuning(flat: Runs) -> tuple[str, ...]:
    """Fields that every run takes from tuning sweeps, and what the ladder's rules make of them."""
    taken = [set(spec.get("protocol.over") or ()) for spec in flat.values()]
    if not all(spec.get("protocol.tuning") for spec in flat.values()):
        return ()
    fields = [field for name in set.intersection(*taken) for field in BY_TUNING.get(name, ())]
    return ("protocol.tuned", "recipe.by_hand", *fields) if fields else ()


def check_same(name: str, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise SettingError where a run that is there was made with other values than it is asked for.

    Both have the same identity, so that what differs was at its default in both: the default has
    become another since.
    """
    before, now = (flatten({group: spec.get(group) for group in READ}) for spec in (there, asked))
    for field in sorted(before.keys() & now.keys()):
        if before[field] != now[field] and not _under(field, (*FREE, *BY_CORPUS)):
            raise SettingError(
                f"{field} of run {name} is {_cut(str(before[field]))}, and {_cut(str(now[field]))} "
                "would be used now, as by another version of the code; take another sweep=NAME, or "
                f"set {field} to what it was."
            )


def _flat(name: str, spec: Any) -> dict[str, Any]:
    flat = flatten(spec) if isinstance(spec, Mapping) else {}
    if not {"mix.name", "size.name"} <= flat.keys():
        raise SettingError(
            f"the spec.yaml of run {name}, which lies in the sweep's folder, names no mix and no "
            "size; move that run away, or take another sweep=NAME."
        )
    return flat


def _check_treatments(flat: Runs, treatments: Sequence[Any]) -> None:
    fields = {field for spec in flat.values() for field in spec}
    for treatment in treatments:
        if not isinstance(treatment, str) or not any(_under(f, (treatment,)) for f in fields):
            groups = sorted({field.partition(".")[0] for field in fields} & set(SET))
            raise SettingError(
                f"treatments has {treatment}, which is no setting of a run; give names like mix or "
                f"protocol.lr_multiplier, from the groups {', '.join(groups)}."
            )


def _grouped(flat: Runs, by: Sequence[str]) -> list[tuple[tuple[Any, ...], Runs]]:
    """Runs by the values of fields, or of all fields of a group, in the order of their names."""
    groups: dict[str, tuple[tuple[Any, ...], dict[str, Mapping[str, Any]]]] = {}
    for name, spec in flat.items():
        values = tuple(
            spec[field] if field in spec else {f: v for f, v in spec.items() if _under(f, (field,))}
            for field in by
        )
        groups.setdefault(repr(values), (values, {}))[1][name] = spec
    return list(groups.values())


def _compare(
    runs: Runs,
    allowed: Sequence[str],
    treatments: Sequence[str],
    where: str,
    only: Sequence[str] = (),
) -> None:
    differing = _differing(runs, allowed, only)
    if not differing:
        return
    # What was set comes before what followed from it.
    set_by_hand = [f for f in differing if not _under(f, (*BY_MIX, "recipe"))]
    field, *others = set_by_hand or differing
    declared = ",".join(dict.fromkeys([*treatments, field, *others[:3]]))
    more = f", as do {', '.join(others[:3])}" if others else ""
    more += f" and {len(others) - 3} more" if len(others) > 3 else ""
    raise SettingError(
        f"{field} differs inside {where} ({differing[field]}){more}, and is no declared treatment; "
        f"give it one value, take another sweep=NAME, or declare treatments=[{declared}]."
    )


def _one(runs: Runs, only: Sequence[str], allowed: Sequence[str], among: str, ways: str) -> None:
    for field, told in _differing(runs, allowed, only).items():
        raise SettingError(f"{field} differs between {among} ({told}), {ways}.")


def _differing(runs: Runs, allowed: Sequence[str], only: Sequence[str] = ()) -> dict[str, str]:
    """Fields that hold several values, each with two of them and their runs in words."""
    found = {}
    for field in sorted({field for spec in runs.values() for field in spec}):
        if _under(field, allowed) or (only and not _under(field, only)):
            continue
        holders: dict[str, str] = {}
        for name, spec in runs.items():
            if field not in spec and field.startswith(("mix.", "model.", "protocol.")):
                continue  # of a mixer that this run does not have
            holders.setdefault(str(spec.get(field, "absent")), name)
        if len(holders) > 1:
            (a, run_a), (b, run_b) = list(holders.items())[:2]
            found[field] = f"{_cut(a)} in {run_a}, {_cut(b)} in {run_b}"
    return found


def _under(field: str, groups: Sequence[str]) -> bool:
    return any(field == group or field.startswith(f"{group}.") for group in groups)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}…"
