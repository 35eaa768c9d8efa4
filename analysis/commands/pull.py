"""`python -m analysis pull entity/project`: runs logged to wandb, as a CSV of points."""

from dataclasses import dataclass
from pathlib import Path

from ablations.records import SettingError, write_atomic
from models.command import setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Write runs logged to wandb, or offline, as a CSV of points."""

    EXAMPLES = ("entity/project", "lab/ladder loss=val/loss D=tokens_seen N=model.n_params")
    source: str = setting(
        help="entity/project, or a folder that holds offline runs", position=True,
        shape="ENTITY/PROJECT|FOLDER",
    )  # fmt: skip
    out: Path = setting(Path("points.csv"), "file to write")
    mix: str = setting("mix.name", "path in a run's config", shape="KEY")
    size: str = setting("size.name", "path in a run's config", shape="KEY")
    seed: str = setting("seed", "path in a run's config", shape="KEY")
    N: str = setting("recipe.N", "parameters: path in a run's config", shape="KEY")
    D: str = setting("tokens", "training tokens: name in a run's history", shape="KEY")
    loss: str = setting("eval/loss", "held-out loss: name in a run's history", shape="KEY")
    bpb: str = setting("eval/bpb", "bits per byte: name in a run's history", shape="KEY")


def run(asked: Settings) -> str:
    from analysis.report.figures.style import csv_text
    from analysis.study.tracking import Keys, offline_runs, points_of, server_runs

    folder = Path(asked.source)
    if not folder.is_dir() and asked.source.count("/") != 1:
        raise SettingError(
            f"{asked.source} is neither a folder of offline runs nor entity/project of wandb."
        )
    runs = offline_runs(folder) if folder.is_dir() else server_runs(asked.source)
    keys = Keys(asked.mix, asked.size, asked.seed, asked.N, asked.D, asked.loss, asked.bpb)
    points, empty = points_of(runs, keys)
    if points.empty:
        raise SettingError(
            f"{asked.source} has no run with a value of {asked.loss} in its history "
            f"({len(empty)} runs); name the held-out loss that they log, loss=NAME."
        )
    write_atomic(asked.out, csv_text(points))
    told = [f"{len(points)} points of {points['run'].nunique()} runs in {asked.out}"]
    if empty:
        told.append(f"without a point: {', '.join(empty)}")
    told.append(f"next: python -m analysis report points={asked.out}")
    return "\n".join(told)
