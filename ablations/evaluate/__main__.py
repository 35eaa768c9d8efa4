"""python -m ablations.evaluate: probes of runs that are trained, at the checkpoints they kept."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.command import exit_code
from ablations.evaluate import budget
from ablations.evaluate.budget import PROBES, EvaluationSettings
from ablations.records import DamagedRecord, RunDirectory, read_sweep
from ablations.resolve import DEVICES, PRECISIONS
from ablations.spec import RunSpec, load
from models.command import parse, setting
from models.errors import SettingError, one_of
from models.format import percent
from models.text import visible


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Probe trained runs: in-context recall, copying, passkeys and loss by position, by length.

    Rows are appended to each run's probes.jsonl, one a checkpoint, probe and length; what is there
    already is not measured again. Every mix, size and seed of a corpus is put the same examples.
    `python -m analysis figures sweep=NAME only=probes,positions` draws them (docs/probes.md).
    """

    EXAMPLES = (
        "runs/demo",
        "runs/demo/gdn3_attn1-50k-s0-1a2b3c4d probes=recall checkpoint=last",
    )
    folders: tuple[Path, ...] = setting(
        help="run directories, or folders of sweeps", position=True, repeat=True,
        shape="RUN_DIR|SWEEP_DIR",
    )  # fmt: skip
    probes: tuple[str, ...] = setting(PROBES, "what is measured", choices=PROBES)
    lengths: tuple[int, ...] | None = setting(
        None, "tokens of an example, 1/4, 1/2, 1, 2 and 4 of the training context unless given",
        least=1, shape="A,B",
    )  # fmt: skip
    examples: int = setting(32, "of each probe at each length", least=1)
    checkpoint: str = setting(
        "points", "points: those that the run was evaluated at; last; or a step"
    )
    device: str = setting("auto", "what it runs on", choices=DEVICES)
    precision: str | None = setting(None, "the run's own unless given", choices=PRECISIONS)
    threads: int | None = setting(None, "of the CPU, the run's own unless given", least=1)
    format: str = setting(
        "table", "how it is printed; json is an object a row", choices=("table", "json")
    )


def main(arguments: Sequence[str]) -> int:
    """Exit code 0, or 2 where a setting or a run cannot be used."""
    return exit_code(lambda: _probe(parse(Settings, arguments, "python -m ablations.evaluate")))


def _probe(asked: Settings) -> None:
    runs = [run for folder in asked.folders for run in _runs(folder)]
    jobs = [_Job(run, asked) for run in runs]  # all are looked at before any is probed
    for job in jobs:
        job.do()


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


class _Job:
    """One run, its checkpoints and what is to be measured at each."""

    def __init__(self, run: RunDirectory, asked: Settings) -> None:
        self.run, self.as_json = run, asked.format == "json"
        self.evaluation = EvaluationSettings(asked.probes, asked.lengths, asked.examples)
        budget.check_names(self.evaluation.probes)
        budget.check_lengths(self.evaluation.lengths)
        self.spec = _load(run)
        own = self.spec.resources
        resources = dataclasses.replace(
            own,
            device=asked.device,
            precision=asked.precision or own.precision,
            threads=own.threads if asked.threads is None else asked.threads,
            compile="false",
        )
        self.spec = dataclasses.replace(self.spec, resources=resources)
        self.steps = self._steps(asked.checkpoint)

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
            self._measure(self._say)

    def _say(self, text: str) -> None:
        # With JSON on standard output, words go beside it.
        file = sys.stderr if self.as_json else sys.stdout
        print(visible(f"{self.run.name}: {text}"), file=file, flush=True)

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
                        if self.as_json:
                            print(json.dumps({"run": self.run.name, "step": step, **row}))
                        else:
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
