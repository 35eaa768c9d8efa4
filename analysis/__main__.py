"""The commands of the analysis.

    python -m analysis report sweep=NAME [runs=DIR] [out=DIR] [baseline=transformer]
                              [resamples=1000] [seed=0]
    python -m analysis fit points.csv [--model free] [--loss huber] [--delta 1e-3] [--format table]
    python -m analysis savings points.csv [--baseline transformer] [--at N=1e9,D=2e10]
                              [--resamples 1000] [--seed 0] [--format table]

JSON holds no Infinity or NaN: an infinite number is the string "inf", an undefined one null.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.records import SettingError, one_of, project_root

if TYPE_CHECKING:
    import pandas as pd

REPORT_KEYS = ("sweep", "runs", "out", "baseline", "resamples", "seed")


def main(arguments: list[str]) -> int:
    """Run one command; 0, or 2 with one sentence on stderr for what the user can mend."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        output = options.run(options)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis", description="What the runs say: fits, token savings, reports."
    )
    commands = parser.add_subparsers(required=True, metavar="report | fit | savings")
    report = commands.add_parser("report", help="figures, tables and report.md of a sweep")
    report.add_argument("settings", nargs="*", metavar="key=value", help=", ".join(REPORT_KEYS))
    report.set_defaults(run=_report)
    fit = commands.add_parser("fit", help="fit a scaling law to each mix of a CSV")
    fit.add_argument("--law", default="chinchilla", choices=["chinchilla"])
    fit.set_defaults(run=_fit)
    savings = commands.add_parser("savings", help="token savings with intervals, from a CSV")
    savings.add_argument("--baseline", default="transformer")
    savings.add_argument("--at", action="append", default=[], metavar="N=1e9,D=2e10")
    savings.add_argument("--resamples", type=int, default=1000)
    savings.add_argument("--seed", type=int, default=0)
    savings.add_argument("--method", default="parametric")
    savings.add_argument(
        "--paired", action="store_true", help="mixes of one size and seed together"
    )
    savings.set_defaults(run=_savings)
    for command, loss, model in ((fit, "huber", "free"), (savings, "squares", "auto")):
        command.add_argument("points", type=Path, help="CSV with columns mix, N, D, loss")
        command.add_argument("--loss", default=loss, help="huber or squares, of log residuals")
        command.add_argument("--delta", type=float, default=1e-3, help="Huber's threshold")
        command.add_argument("--model", default=model, help="joint model over the mixes")
        command.add_argument("--format", default="table", choices=["table", "csv", "json"])
    return parser


def _report(options: argparse.Namespace) -> str:
    from analysis.load import load_sweep
    from analysis.report import write_report

    given = {}
    for setting in options.settings:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise SettingError(f"{setting} is not a setting; give key=value, e.g. sweep=NAME.")
        if key not in REPORT_KEYS:
            raise one_of("key", key, REPORT_KEYS)
        given[key] = value
    if "sweep" not in given:
        raise SettingError("sweep= is missing; give the name of a sweep, sweep=NAME.")
    root = project_root()
    sweep = load_sweep(root / given.get("runs", "runs") / given["sweep"])
    out = Path(given.get("out", root / "reports" / given["sweep"]))
    answers, written = write_report(
        sweep,
        out,
        baseline=given.get("baseline", "transformer"),
        resamples=_whole("resamples", given.get("resamples", "1000"), 20),
        seed=_whole("seed", given.get("seed", "0"), 0),
        command=" ".join(["python -m analysis report", *options.settings]),
    )
    told = [answer.replace("**", "") for answer in answers]
    return "\n".join([*told, "", *(str(path) for path in written if path.suffix != ".csv")])


def _fit(options: argparse.Namespace) -> str:
    from analysis.fit import LOSSES, MODELS, fit
    from analysis.load import load_csv

    _known("loss", options.loss, LOSSES)
    _known("model", options.model, MODELS)
    _positive("delta", options.delta)
    fitted = fit(load_csv(options.points), options.model, options.loss, options.delta)
    mixes = {
        mix: one.law.as_dict()
        | {
            "objective": one.objective,
            "n": one.n,
            "runs": one.n_runs,
            "rms": one.rms,
            "gradient_norm": one.gradient_norm,
            "starts": one.starts,
            "starts_agreeing": one.starts_agreeing,
            "condition": one.condition,
            "at_bound": list(one.at_bound),
        }
        for mix, one in fitted.mixes.items()
    }
    head = {
        "law": options.law,
        "model": fitted.model,
        "loss": fitted.loss,
        "delta": fitted.delta if fitted.loss == "huber" else None,
        "objective": fitted.objective,
    }
    rows = [{"mix": mix} | one for mix, one in mixes.items()]
    return _shown(options.format, head | {"mixes": mixes}, rows)


def _savings(options: argparse.Namespace) -> str:
    from analysis.fit import LOSSES, MODELS
    from analysis.load import load_csv
    from analysis.study import savings_at
    from analysis.uncertainty import METHODS

    _known("loss", options.loss, LOSSES)
    _known("model", options.model, ("auto", *MODELS))
    _known("method", options.method, METHODS)
    found = savings_at(
        load_csv(options.points),
        options.baseline,
        [_place(text) for text in options.at],
        model=None if options.model == "auto" else options.model,
        loss=options.loss,
        method=options.method,
        paired=options.paired,
        resamples=_whole("resamples", str(options.resamples), 20),
        seed=_whole("seed", str(options.seed), 0),
    )
    rows = [vars(one) | {"in_range": one.in_range} for one in found]
    return _shown(options.format, {"savings": rows}, rows)


def _place(text: str) -> tuple[float, float]:
    parts = dict(part.partition("=")[::2] for part in text.split(","))
    if set(parts) != {"N", "D"}:
        raise SettingError(f"at={text} is not a place; give N=1e9,D=2e10.")
    return _number(f"at N={parts['N']}", parts["N"]), _number(f"at D={parts['D']}", parts["D"])


def _number(name: str, text: str) -> float:
    try:
        return _positive(name, float(text))
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{name} is not a number; give one like 1e9.") from None


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise SettingError(f"{name}={value:g} must be a positive finite number.")
    return value


def _whole(name: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise SettingError(f"{name}={text} must be a whole number of at least {least}.")
    return value


def _known(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise one_of(name, value, valid)


def _shown(form: str, document: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    if form == "json":
        return json.dumps(_plain(document), indent=1, allow_nan=False)
    import pandas as pd

    table = pd.DataFrame(rows)
    if form == "csv":
        return table.to_csv(index=False, float_format="%.10g").rstrip()
    return _aligned(table)


def _aligned(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format=lambda value: f"{value:.6g}")


def _plain(value: Any) -> Any:
    """The same with infinities as the string "inf" and NaN as null, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
