"""Where a sweep runs: conf/cluster, validated onto dataclasses. No part of a run's identity."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ablations.records import project_root
from ablations.spec import RunSpec
from models.devices import GPUS
from models.environment import expand
from models.errors import SettingError, one_of
from models.settings import from_dict


@dataclass(frozen=True)
class Local:
    """This machine."""

    launcher: str
    runs_per_gpu: int = 1
    """Runs that may share a GPU."""


@dataclass(frozen=True)
class Shape:
    """What one run asks of Slurm. Runs of one shape are one job array."""

    nodes: int = 1
    gpus: int = 1
    """A node, and as many ranks; 0 for one rank on the node's CPU."""
    cpus: int = 8
    """Processors a rank."""
    memory_gb: float | None = None
    """A node; None as the partition gives."""
    minutes: int = 240
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()
    """Shell lines before the run."""
    extra: tuple[str, ...] = ()
    """Further options of sbatch: `name=value`, or `name`."""

    @property
    def ranks_per_node(self) -> int:
        return max(1, self.gpus)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def all_gpus(self) -> int:
        """Of all nodes."""
        return self.nodes * self.gpus

    def expanded(self) -> Shape:
        """As sbatch is asked for it: with what the environment variables that it names hold."""
        named: dict[str, Any] = {
            name: expand(value, f"cluster.{name}")
            for name in ("partition", "account", "qos", "constraint")
            if (value := getattr(self, name)) is not None
        }
        extra = tuple(expand(option, "cluster.extra") for option in self.extra)
        return dataclasses.replace(self, extra=extra, **named)

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'s' * (self.nodes > 1)}"
        devices = f"{self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else f"{self.cpus} CPUs"
        where = f", partition {self.partition}" if self.partition else ""
        return f"{nodes} × {devices}, {self.minutes} min{where}"


@dataclass(frozen=True)
class Slurm:
    """A Slurm cluster, as seen from where it takes submissions."""

    launcher: str
    default: Shape
    sizes: Mapping[str, Shape] = field(default_factory=dict)
    warn_seconds: int = 120
    """Between the warning that the time is nearly up and its end."""
    poll_seconds: float = 5.0
    gpu_kind: str | None = None
    """Of models.devices.GPUS, for the plan's hours; None for what the plan quotes."""
    max_gpus: int | None = None
    """That all runs of a submission have at a time, from the driver's setting; None for any."""

    def shape(self, size: str) -> Shape:
        """What a run of this size asks for."""
        return self.sizes.get(size, self.default)


FROM_SITE = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_ACCOUNT": "account",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
}
"""Variables by which a site or a user says what is null in conf/cluster; SBATCH_RESERVATION beside
them. They are read when a sweep is planned and recorded with it, so that a check, a submission and
a later retry from any shell ask for the same."""
DRIVERS_OWN = (
    *("array", "clusters", "error", "job-name", "open-mode", "output", "parsable", "signal"),
    *("test-only", "wait", "wrap"),
)
"""Options of sbatch by which a driver finds its jobs again; not for `extra`."""
OWN = ("launcher", "sizes", "warn_seconds", "poll_seconds", "gpu_kind", "max_gpus")


def parse(settings: Mapping[str, Any]) -> Local | Slurm:
    """conf/cluster as composed -> where to run, what it leaves open filled in from the environment
    (FROM_SITE). Raises SettingError on what cannot be used."""
    cluster = restore(settings)
    if isinstance(cluster, Slurm):
        shapes = {size: _completed(shape) for size, shape in cluster.sizes.items()}
        cluster = dataclasses.replace(cluster, default=_completed(cluster.default), sizes=shapes)
    known = [path.stem for path in (project_root() / "conf" / "size").glob("*.yaml")]
    for size in cluster.sizes if isinstance(cluster, Slurm) else ():
        if size not in known:
            raise one_of("cluster.sizes", size, known)
    return cluster


def _completed(shape: Shape) -> Shape:
    """`shape` with what the environment says of sbatch's options that it leaves open."""
    given = {_option(line) for line in shape.extra}
    found: dict[str, Any] = {
        name: os.environ[variable]
        for variable, name in FROM_SITE.items()
        if os.environ.get(variable) and getattr(shape, name) is None and name not in given
    }
    extra = shape.extra
    if (reservation := os.environ.get("SBATCH_RESERVATION")) and "reservation" not in given:
        extra = (*extra, f"reservation={reservation}")
    return dataclasses.replace(shape, extra=extra, **found)


def _option(line: str) -> str:
    """The name of an option as `extra` has it."""
    return line.removeprefix("--").partition("=")[0]


def restore(settings: Mapping[str, Any]) -> Local | Slurm:
    """`parse` for what `to_dict` recorded: its sizes may have been removed since."""
    launcher = settings.get("launcher")
    if launcher == "local":
        local = from_dict(Local, settings, "cluster")
        if local.runs_per_gpu < 1:
            raise SettingError(f"cluster.runs_per_gpu={local.runs_per_gpu} must be at least 1.")
        return local
    if launcher != "slurm":
        raise one_of("cluster.launcher", launcher, ("local", "slurm"))
    base = {key: value for key, value in settings.items() if key not in OWN}
    sizes = settings.get("sizes") or {}
    if not isinstance(sizes, Mapping) or not all(isinstance(s, Mapping) for s in sizes.values()):
        raise SettingError(f"cluster.sizes={sizes!r} must be groups, like {{1b: {{gpus: 8}}}}.")
    default = _shape(base, "cluster")
    own = {name: settings[name] for name in ("warn_seconds", "poll_seconds") if name in settings}
    for name, value in own.items():
        if isinstance(value, str | bool) or value is None or value <= 0:
            raise SettingError(f"cluster.{name}={value} must be a number of seconds above 0.")
    shapes = {
        str(size): _shape({**base, **changed}, f"cluster.sizes.{size}")
        for size, changed in sizes.items()
    }
    kind = settings.get("gpu_kind")
    if kind is not None and kind not in GPUS:
        raise one_of("cluster.gpu_kind", kind, tuple(GPUS))
    return Slurm("slurm", default, shapes, gpu_kind=kind, max_gpus=settings.get("max_gpus"), **own)


def _shape(settings: Mapping[str, Any], path: str) -> Shape:
    shape = from_dict(Shape, settings, path)
    for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1), ("minutes", 1)):
        if getattr(shape, name) < least:
            raise SettingError(f"{path}.{name}={getattr(shape, name)} must be at least {least}.")
    if shape.memory_gb is not None and shape.memory_gb <= 0:
        raise SettingError(f"{path}.memory_gb={shape.memory_gb:g} must be above 0, or null.")
    for line in shape.extra:
        # sbatch takes any beginning of a name that is that of one option only.
        if any(own.startswith(_option(line)) for own in DRIVERS_OWN if len(_option(line)) > 1):
            raise SettingError(
                f"{path}.extra={line} is not for extra: by it a sweep finds its jobs again."
            )
    return shape


def check_ranks(cluster: Slurm, specs: list[RunSpec]) -> None:
    """Raise SettingError where a run's batch is smaller than the ranks its size is given."""
    for spec in specs:
        shape, rows = cluster.shape(spec.size.name), spec.recipe.batch_instances
        if spec.resources.devices is not None:
            raise SettingError(
                f"resources.devices={spec.resources.devices} is for cluster=local; under Slurm "
                "cluster.nodes and cluster.gpus decide."
            )
        if cluster.max_gpus is not None and shape.all_gpus > cluster.max_gpus:
            raise SettingError(
                f"max_gpus={cluster.max_gpus} is fewer than the {shape.all_gpus} GPUs of a run of "
                f"size={spec.size.name} ({shape}); give at least {shape.all_gpus}, or set "
                "cluster.gpus and cluster.nodes to less."
            )
        if shape.ranks > rows:
            raise SettingError(
                f"size={spec.size.name} is given {shape.ranks} ranks ({shape}) and has a batch of "
                f"{rows} sequences; set cluster.nodes and cluster.gpus to {rows} ranks or fewer."
            )


def to_dict(cluster: Local | Slurm) -> dict[str, Any]:
    """What `restore` takes back."""
    if isinstance(cluster, Local):
        return dataclasses.asdict(cluster)
    return {
        "launcher": cluster.launcher,
        "warn_seconds": cluster.warn_seconds,
        "poll_seconds": cluster.poll_seconds,
        "max_gpus": cluster.max_gpus,
        **dataclasses.asdict(cluster.default),
        "sizes": {name: dataclasses.asdict(shape) for name, shape in cluster.sizes.items()},
    }
