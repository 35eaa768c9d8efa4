"""python -m ablations.evaluate: probes of runs that are trained, at the checkpoints they kept."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablations.command import exit_code
from ablations.evaluate import budget
from ablations.evaluate.budget import PROBES, EvaluationSettings
from ablations.records import DamagedRecord, RunDirectory, read_sweep
from ablations.resolve import DEVICES, PRECISIONS
from ablations.spec import RunSpec, load
from models.errors import SettingError, one_of
from models.format import percent
from models.settings import from_dict
from models.terminal import readable
from models.text import visible

HELP = f"""\
Probe trained runs: in-context recall, copying, passkeys and loss by position, by length.

  python -m ablations.evaluate RUN_DIR_OR_SWEEP_DIR [...] [KEY=VALUE ...]

Rows are appended to each run's probes.jsonl, one a checkpoint, probe and length; what is there
already is not measured again. The same examples are put to every mix, size and seed of a corpus.

  probes       any of {",".join(PROBES)} (all)
  lengths      tokens of an example (1/4, 1/2, 1, 2 and 4 of the training context)
  examples     of each probe at each length (32)
  checkpoint   points: those that the run was evaluated at; last; or a step (points)
  device       auto, cpu or cuda (auto)
  precision    auto, fp32 or bf16 (auto)
  threads      of the CPU (the run's own)

Examples
  python -m ablations.evaluate runs/demo
  python -m ablations.evaluate runs/demo/gdn3_attn1-50k-s0-1a2b3c4d probes=recall checkpoint=last
  python -m analysis figures sweep=demo only=probes,positions
"""
VALID = ("probes", "lengths", "examples", "checkpoint", "device", "precision", "threads")


def main(arguments: Sequence[str]) -> int:
    """Exit code 0, or 2 where a setting or a run cannot be used."""
    readable()
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    return exit_code(lambda: _probe(arguments))


def _probe(arguments: Sequence[str]) -> None:
    folders = [argument for argument in arguments if "=" not in argument]
    settings = _settings([argument for argument in arguments if "=" in argument])
    runs = [run for folder in folders for run in _runs(Path(folder))]
    if not runs:
        raise SettingError("give at least one RUN_DIR, or the folder of a sweep.")
    jobs = [_Job(run, settings) for run in runs]  # all are looked at before any is probed
    for job in jobs:
        job.do()


def _settings(arguments: Sequence[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in VALID:
            raise one_of("setting", key, VALID)
        if key in settings:
            raise SettingError(f"{key} is given twice; give it one value.")
        settings[key] = value
    return settings


def _runs(folder: Path) -> list[RunDirectory]:
    if (folder / "spec.yaml").exists():
        run = RunDirectory(folder)
        if problem := run.spec_problem():
            raise SettingError(f"RUN_DIR={folder} cannot be probed: {problem}.")
        return [run]
    runs = []
    for run in read_sweep(folder) if folder.is_dir() else []:
        if problem := run.spec_problem():
            print(visible(f"left out: {run.name}: {problem}"), file=sys.stderr)
        else:
            runs.append(run)
    if not runs:
        raise SettingError(
            f"RUN_DIR={folder} is neither a run directory, with a spec.yaml, nor a folder of them."
        )
    return runs


def _evaluation(settings: dict[str, str]) -> EvaluationSettings:
    plain: dict[str, Any] = {"probes": list(PROBES)}
    for key in ("probes", "lengths"):
        if key in settings:
            plain[key] = [part for part in settings[key].strip("[]").split(",") if part]
    if "lengths" in settings:
        plain["lengths"] = [_whole("lengths", part) for part in plain["lengths"]]
    if "examples" in settings:
        plain["examples"] = _whole("examples", settings["examples"])
    evaluation = from_dict(EvaluationSettings, plain, "evaluation")
    budget.check_names(evaluation.probes)
    budget.check_lengths(evaluation.lengths)
    return evaluation


def _one(setting: str, value: str, valid: Sequence[str]) -> str:
    if value not in valid:
        raise one_of(setting, value, valid)
    return value


def _whole(setting: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise SettingError(f"{setting}={value} must be a whole number of at least 1.")
    return int(value)


class _Job:
    """One run, its checkpoints and what is to be measured at each."""

    def __init__(self, run: RunDirectory, settings: dict[str, str]) -> None:
        self.run, self.evaluation = run, _evaluation(settings)
        self.spec = _load(run)
        own = self.spec.resources
        resources = dataclasses.replace(
            own,
            device=_one("device", settings.get("device", "auto"), DEVICES),
            precision=_one("precision", settings.get("precision", own.precision), PRECISIONS),
            threads=_whole("threads", settings["threads"])
            if "threads" in settings
            else own.threads,
            compile="false",
        )
        self.spec = dataclasses.replace(self.spec, resources=resources)
        self.steps = self._steps(settings.get("checkpoint", "points"))

    def _steps(self, wanted: str) -> list[int]:
        from models.checkpoint_files import steps

        there = steps(self.run.checkpoints)
        if not there:
            raise SettingError(f"RUN_DIR={self.run.path} holds no checkpoint; train it first.")
        if wanted == "last":
            return there[-1:]
        if wanted == "points":
            evaluated = {row["step"] for row in self.run.rows("points.jsonl")}
            kept = [step for step in there if step in evaluated]
            if not kept:
                raise SettingError(
                    f"RUN_DIR={self.run.path} has no point whose checkpoint is kept yet; "
                    "checkpoint=last takes the newest one."
                )
            return kept
        if wanted not in map(str, there):
            raise one_of("checkpoint", wanted, ["points", "last", *map(str, there)])
        return [int(wanted)]

    def do(self) -> None:
        with self.run.lock() as held:
            if not held:
                raise SettingError(
                    f"RUN_DIR={self.run.path} is being trained now; wait, or set evaluation.probes "
                    "so that it is probed as it trains."
                )
            self._measure(lambda text: print(visible(f"{self.run.name}: {text}"), flush=True))

    def _measure(self, say: Callable[[str], None]) -> None:
        from ablations.data.source import open_corpus, read_parts
        from ablations.data.verify import verify
        from ablations.distributed import World
        from ablations.evaluate.probes import Probes
        from ablations.hardware import arithmetic, choose_hardware, choose_operators
        from ablations.records import project_root
        from models.checkpoint_files import read_model
        from models.language_model import LanguageModel
        from models.ops import backend

        spec, context = self.spec, self.spec.recipe.context
        where = spec.data.name, spec.data.path, project_root() / ".cache" / "corpora"
        corpus = open_corpus(*where)
        if spec.corpus is None or corpus.fingerprint != spec.corpus.fingerprint:
            raise SettingError(
                f"data={spec.data.name} holds another corpus than RUN_DIR={self.run.path} was "
                "trained on."
            )
        verify(read_parts(*where))
        hardware = choose_hardware(spec, World(), say)
        probes = Probes(
            self.evaluation, corpus, context, device=hardware.device, autocast=hardware.autocast,
            separator=corpus.separator if spec.data.document_mask else None,
        )  # fmt: skip
        todo = {step: self._missing(step, probes.wanted) for step in self.steps}
        todo = {step: wanted for step, wanted in todo.items() if wanted}
        if not todo:
            say("all of it is in probes.jsonl already")
            return
        share = budget.share_of_run(
            self.evaluation, spec.model, context, spec.recipe.tokens, len(todo)
        )
        say(f"probes at {len(todo)} checkpoints: {percent(share)} of training's FLOPs")
        with arithmetic(spec.resources.threads):
            operators = choose_operators(spec, hardware)
            with backend.using(operators) if operators else contextlib.nullcontext():
                for step, wanted in todo.items():
                    model = LanguageModel(spec.model)
                    model.load_state_dict(read_model(self.run.checkpoints, step))
                    model.to(hardware.device)
                    for row in probes.measure(model, wanted):
                        self.run.append("probes.jsonl", {"step": step, **row})
                        say(_told(step, row))

    def _missing(self, step: int, wanted: list[tuple[str, int]]) -> list[tuple[str, int]]:
        from ablations.evaluate.tasks import VERSION

        there = {
            (row["probe"], row["length"])
            for row in self.run.rows("probes.jsonl")
            if row["step"] == step
            and (row.get("version"), row.get("examples")) == (VERSION, self.evaluation.examples)
            # Of positions the last bucket is written last.
            and row.get("to", row["length"]) == row["length"]
        }
        return [one for one in wanted if one not in there]


def _load(run: RunDirectory) -> RunSpec:
    try:
        return load(run.spec_as_written())
    except (OSError, DamagedRecord) as error:
        raise SettingError(
            f"RUN_DIR={run.path} has a spec.yaml that cannot be read ({error})."
        ) from None


def _told(step: int, row: dict[str, Any]) -> str:
    where = f"step {step}, {row['probe']}"
    if row["probe"] == "positions":
        return f"{where} {row['from']} to {row['to']}: {row['bpb']:.4f} bits per byte"
    return (
        f"{where} at {row['length']}: accuracy {row['accuracy']:.3f} (chance {row['chance']:.3f}), "
        f"{row['nats']:.3f} nats"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
