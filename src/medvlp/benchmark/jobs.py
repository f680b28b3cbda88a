"""Expand a grid into jobs: their configs, their order and their content hashes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from medvlp.benchmark.configs import assemble, meaning
from medvlp.benchmark.grid import Grid, MethodSpec, Seeds
from medvlp.errors import CheckpointError, ConfigError
from medvlp.io.paths import local_file
from medvlp.store import file_sha256, value_sha256
from medvlp.tasks.catalog import TASKS, TaskEntry

ENCODER = "<encoder>"
"""Placeholder in a task's config for the checkpoint of its pre-training job, whose path is known when the job runs."""

_FORMAT = 1
"""Part of every hash: raised when jobs of an older medvlp must not count as done."""


@dataclass(frozen=True)
class Job:
    """One run of ``medvlp fit`` and ``medvlp test``.

    Attributes:
        task: name in the grid; empty for pre-training.
        fraction: of the training part; None if nothing is trained.
        run: name of the combination of ``seeds``.
        trains: whether there is anything to fit.
        needs: hash of the pre-training job whose checkpoint it starts from.
        minutes: the grid's estimate of its duration.
        gigabytes: the grid's estimate of the disk space that it leaves occupied.
        watts: assumed power of one device.
        panels: number of images kept for the page.
        keep: whether to keep checkpoints after the job is done.
        timeout_min: time limit in minutes; None for no limit.
        hash: over everything that its numbers depend on.
    """

    kind: Literal["pretrain", "task"]
    method: str
    title: str
    task: str
    fraction: float | None
    run: str
    seeds: dict[str, int]
    config: dict[str, Any]
    trains: bool = True
    needs: str | None = None
    minutes: float = 1.0
    gigabytes: float = 0.0
    watts: float | None = None
    panels: int = 0
    keep: bool = False
    timeout_min: float | None = None
    hash: str = ""

    @property
    def name(self) -> str:
        """Name of the job's folder: a readable part, and a part of the hash that makes it unique."""
        fraction = "" if self.fraction is None else f"{self.fraction:g}"
        parts = [self.method, self.task or "pretrain", fraction, self.run, self.hash[:12]]
        return ".".join(part for part in parts if part)


def _hashed(job: Job, weights: str | None) -> Job:
    # over settings, seeds and the origin of the encoder, but not over names or paths
    config = meaning(job.config)
    content = {"format": _FORMAT, "kind": job.kind, "config": config, "needs": job.needs, "weights": weights}
    return replace(job, hash=value_sha256(content))


def expand(grid: Grid) -> list[Job]:
    """Return the jobs of a grid: pre-training first, then one combination of seeds after the other.

    A task that trains nothing is run once per encoder, whatever the seeds of subset and head. Two identical jobs are an
    error.
    """
    names = [seeds.label for seeds in grid.runs]
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ConfigError(f"grid {grid.name}: the run {repeated[0]} is given twice; rename or remove one")
    entries = {name: _entry(grid, name) for name in grid.tasks}
    pretrain: dict[tuple[str, int], Job] = {}
    shared: dict[str, Job] = {}
    for seeds in grid.runs:
        for name, method in grid.methods.items():
            if method.pretrain and (name, seeds.pretrain) not in pretrain:
                job = _pretrain_job(grid, name, method, method.pretrain, seeds)
                # two methods with the same pre-training (G2D's encoder with and without its decoder) share the job
                pretrain[name, seeds.pretrain] = shared.setdefault(job.hash, job)
    tasks: dict[str, Job] = {}
    for seeds in grid.runs:
        for task, entry in entries.items():
            for job in _task_jobs(grid, task, entry, seeds, pretrain):
                other = tasks.setdefault(job.hash, job)
                if other is not job and (other.method != job.method or entry.trains):
                    raise ConfigError(
                        f"grid {grid.name}: {other.name} and {job.method} {job.task} {job.run} are the same job; "
                        "remove one of them"
                    )
    return [*shared.values(), *tasks.values()]


def _entry(grid: Grid, name: str) -> TaskEntry:
    task = grid.tasks[name]
    model = assemble([task.config], {**grid.task_set, **task.set}).get("model") or {}
    requested = str(model.get("class_path", ""))
    entry = next((entry for entry in TASKS.values() if entry.name == requested.rsplit(".", 1)[-1]), None)
    if entry is None:
        known = ", ".join(entry.name for entry in TASKS.values())
        raise ConfigError(f"{task.config}: {requested or 'its model'} is no task; expected one of: {known}")
    protocol = task.protocol or model.get("init_args", {}).get("protocol")
    if protocol is not None and protocol not in entry.protocols:
        raise ConfigError(
            f"grid {grid.name}: task {name!r}: {entry.name} has no protocol {protocol!r}; expected one of: "
            f"{', '.join(entry.protocols)}"
        )
    return entry


def _pretrain_job(grid: Grid, name: str, method: MethodSpec, file: str, seeds: Seeds) -> Job:
    seed = {"seed_everything": seeds.pretrain, "data.init_args.seed": seeds.pretrain}
    overlays = [*grid.pretrain.overlays, *method.overlays]
    config = assemble([file, *overlays], {**grid.pretrain.set, **method.set, **seed})
    _check_method(file, config)
    job = Job(
        kind="pretrain",
        method=name,
        title=method.title or name,
        task="",
        fraction=None,
        run=f"p{seeds.pretrain}",
        seeds={"pretrain": seeds.pretrain},
        config=config,
        minutes=method.minutes,
        gigabytes=method.gigabytes,
        watts=grid.watts,
        keep=True,
        timeout_min=method.timeout_min or grid.timeout_min,
    )
    return _hashed(job, None)


def _check_method(file: str, config: dict[str, Any]) -> None:
    from medvlp.registry import methods

    # registered methods may be named by their class alone; others need a whole class path
    requested = str((config.get("model") or {}).get("class_path", ""))
    known = {entry.attr for entry in methods()}
    if "." not in requested and requested not in known:
        raise ConfigError(
            f"{file}: {requested or 'its model'} is no registered method; expected one of: {', '.join(sorted(known))}"
        )


def _task_jobs(
    grid: Grid, task: str, entry: TaskEntry, seeds: Seeds, pretrain: dict[tuple[str, int], Job]
) -> Iterator[Job]:
    spec = grid.tasks[task]
    fractions = spec.fractions or grid.fractions
    chosen = [fraction for fraction in fractions if seeds.fractions is None or fraction in seeds.fractions]
    for name, method in grid.methods.items():
        if not method.supports(task, entry.trains) or (method.tasks is not None and task not in method.tasks):
            continue
        encoder, weights = _encoder(name, method, seeds)
        for fraction in chosen if entry.trains else [None]:
            settings = {**grid.task_set, **spec.set}
            if spec.protocol:
                settings["model.init_args.protocol"] = spec.protocol
            if fraction is not None:
                settings |= {
                    "data.init_args.fraction": fraction,
                    "data.init_args.seed": seeds.data,
                    "seed_everything": seeds.head,
                    **spec.by_fraction.get(f"{fraction:g}", {}),
                }
            settings |= {**method.task_set.get(task, {}), "model.init_args.encoder": encoder}
            job = Job(
                kind="task",
                method=name,
                title=method.title or name,
                task=task,
                fraction=fraction,
                run=seeds.label,
                seeds={key: getattr(seeds, key) for key in ("pretrain", "data", "head")[: 3 if entry.trains else 1]},
                config=assemble([method.configs.get(task, spec.config)], settings),
                trains=entry.trains,
                needs=pretrain[name, seeds.pretrain].hash if method.pretrain else None,
                minutes=spec.minutes,
                panels=spec.panels if seeds == grid.runs[0] and fraction in (None, max(fractions)) else 0,
                keep=grid.keep_heads,
                timeout_min=spec.timeout_min or grid.timeout_min,
            )
            yield _hashed(job, weights)


def _encoder(name: str, method: MethodSpec, seeds: Seeds) -> tuple[dict[str, Any], str | None]:
    """Return the ``encoder`` setting of a task, and the hash of the file that it is read from, if any."""
    if method.pretrain:
        return {"checkpoint": ENCODER}, None
    try:
        if method.checkpoint:
            path = local_file(method.checkpoint, "checkpoint")
            return {"checkpoint": str(path)}, file_sha256(path)
        encoder = dict(method.encoder or {})
        weights = (encoder.get("image") or {}).get("weights")
        digest = file_sha256(local_file(weights, "weights file (.safetensors or .pth)")) if weights else None
        return {"seed": seeds.pretrain, **encoder}, digest
    except CheckpointError as error:
        raise ConfigError(f"method {name!r}: {error}") from error
