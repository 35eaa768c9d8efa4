"""The commands of the analysis.

    python -m analysis report sweep=NAME[,NAME…] | points=FILE.csv [runs=DIR] [out=DIR]
                              [baseline=transformer] [resamples=1000] [seed=0] [wandb=RUN]
    python -m analysis figures sweep=NAME [only=savings,loss] [width=double|single] [note=true]
    python -m analysis tables sweep=NAME [only=savings,fits] [format=files|latex|markdown|csv]
    python -m analysis compare sweep=NAME | points=FILE.csv [format=markdown|latex|json]
    python -m analysis pull entity/project | FOLDER [out=points.csv] [loss=NAME] [N=CONFIG.KEY] …
    python -m analysis fit points.csv [--model free] [--loss huber] [--delta 1e-3] [--format table]
    python -m analysis savings points.csv [--baseline transformer] [--at N=1e9,D=2e10]
                              [--kind tokens|parameters|flops|time] [--target-loss 2.474]
                              [--compute-optimal C=1e21] [--isoflop C=1e21] [--projected]
                              [--resamples 1000] [--seed 0] [--format table]
    python -m analysis predict points.csv | sweep=NAME --at N=1e9,D=2e10 [--at C=1e21]
                              [--level 0.95] [--resamples 1000] [--seed 0] [--format table]
    python -m analysis design sizes=60m,100m,190m,370m [target_width=0.2] [saving=1.3] [check=50]
                              [figure=FILE]

JSON holds no Infinity or NaN: an infinite number is the string "inf", an undefined one null.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from ablations.records import SettingError, readable, visible

COMMANDS = (
    "report", "figures", "tables", "compare", "pull", "fit", "savings", "predict", "design",
)  # fmt: skip
"""Each a file of analysis/commands with HELP, add_arguments(parser) and run(options) → text."""


OPTIONS = (
    "where", "columns", "fix", "law", "loss", "delta", "model", "ratio", "format", "baseline", "at",
    "kind", "target_loss", "compute_optimal", "isoflop", "resamples", "seed", "method",
    "sweep", "points", "runs", "level", "treatments",
)  # fmt: skip
"""Options of `fit`, `savings` and `predict` that may be written key=value, as elsewhere."""


def main(arguments: list[str]) -> int:
    """Run one command; 0, or 2 with one sentence on stderr for what the user can mend."""
    readable()
    options = _parser().parse_args(_as_options(arguments))
    try:
        output = options.run(options)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        print(visible(output, keep="\n"), flush=True)
    except BrokenPipeError:  # a reader like head has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _as_options(arguments: list[str]) -> list[str]:
    """`where=VALUE` of a command whose settings are options as `--where=VALUE`, the same thing."""
    if arguments[:1] not in (["fit"], ["savings"], ["predict"]):
        return arguments
    return [
        f"--{key.replace('_', '-')}={value}" if equals and key in OPTIONS else one
        for one in arguments
        for key, equals, value in [one.partition("=")]
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis", description="What the runs say: fits, token savings, reports."
    )
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))
    for name in COMMANDS:
        module = importlib.import_module(f"analysis.commands.{name}")
        own = commands.add_parser(name, help=module.HELP)
        module.add_arguments(own)
        own.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
