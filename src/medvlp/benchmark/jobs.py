"""From a grid to jobs: what is run, with which config, in which order, and under which content hash."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from medvlp.benchmark.configs import assemble, meaning
from medvlp.benchmark.grid import Grid, MethodSpec, Seeds
from medvlp.errors import CheckpointError, ConfigError
from medvlp.io.paths import local_file
from medvlp.results import sha256_of
from medvlp.tasks.catalog import TASKS, TaskEntry

ENCODER = "<encoder>"
"""Stands in a task's config for the checkpoint of a pre-training job, whose place is known when the job runs."""

_FORMAT = 1
"""Part of every hash: raised when jobs of an older medvlp must not count as done."""


@dataclass(frozen=True)
class Job:
    """One run of ``medvlp fit`` and ``medvlp test``.

    Attributes:
        kind: "pretrain" or "task".
        method: name in the grid.
        title: of the method.
        task: name in the grid; empty for pre-training.
        fraction: of the training part; None where nothing is trained.
        run: name of the combination of seeds.
        seeds: that combination.
        config: settings of the run.
        trains: whether there is anything to fit.
        needs: hash of the pre-training job whose checkpoint it starts from.
        minutes: the grid's guess.
        gigabytes: the grid's guess of what stays on the disk.
        watts: assumed power of the device.
        panels: images kept for the report.
        keep: keep the checkpoints when it is done.
        timeout_min: minutes after which it is ended; None for no limit.
        hash: of all that the numbers depend on.
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
    hash: str = field(default="")

    @property
    def name(self) -> str:
        """Its folder: readable first, and the hash that makes it this job and no other."""
        fraction = "" if self.fraction is None else f"{self.fraction:g}"
        parts = [self.method, self.task or "pretrain", fraction, self.run, self.hash[:12]]
        return ".".join(part for part in parts if part)

    def describe(self) -> dict[str, Any]:
        """Without its config: what ``grid.json`` says of it."""
        keys = ("hash", "kind", "method", "title", "task", "fraction", "run", "seeds", "needs")
        return {key: asdict(self)[key] for key in keys}


def _hashed(job: Job, weights: str | None) -> Job:
    """The job with its hash: over settings, seeds and the encoder's origin, and not over names or places."""
    content = {
        "format": _FORMAT,
        "kind": job.kind,
        "config": meaning(job.config),
        "needs": job.needs,
        "weights": weights,
    }
    return Job(**{**{f: getattr(job, f) for f in job.__dataclass_fields__}, "hash": sha256_of(content)})


def _run_name(seeds: Seeds) -> str:
    return seeds.name or f"p{seeds.pretrain}d{seeds.data}h{seeds.head}"


def expand(grid: Grid) -> list[Job]:
    """The jobs of a grid: pre-training first, then runs of seeds one after the other, so that tables fill evenly.

    A task that trains nothing is run once per encoder, whatever the seeds of subset and head.

    Raises:
        ConfigError: an unknown method, task or protocol; a config that is no such thing; two jobs that are the same.
    """
    runs = {}
    for seeds in grid.runs:
        if _run_name(seeds) in runs:
            raise ConfigError(f"grid {grid.name}: the run {_run_name(seeds)} stands twice")
        runs[_run_name(seeds)] = seeds
    entries = {name: _entry(grid, name) for name in grid.tasks}
    pretrain: dict[tuple[str, int], Job] = {}
    for seeds in grid.runs:
        for name, method in grid.methods.items():
            if method.pretrain and (name, seeds.pretrain) not in pretrain:
                pretrain[name, seeds.pretrain] = _pretrain_job(grid, name, method, seeds)
    shared: dict[str, Job] = {}
    for key, job in pretrain.items():
        # two methods of one pre-training (G2D's encoder with and without its decoder) share the job
        pretrain[key] = shared.setdefault(job.hash, job)
    jobs = list(shared.values())
    seen: dict[str, Job] = {}
    for run, seeds in runs.items():
        for task, entry in entries.items():
            for job in _task_jobs(grid, task, entry, run, seeds, pretrain):
                other = seen.setdefault(job.hash, job)
                if other is job:
                    jobs.append(job)
                elif other.method != job.method or entry.trains:
                    raise ConfigError(
                        f"grid {grid.name}: {other.name} and {job.method} {job.task} {run} are the same job; take one "
                        "of the two out"
                    )
    return jobs


def _entry(grid: Grid, name: str) -> TaskEntry:
    task = grid.tasks[name]
    config = assemble([task.config], {**grid.task_set, **task.set})
    wanted = (config.get("model") or {}).get("class_path", "")
    found = next((entry for entry in TASKS.values() if entry.name == str(wanted).rsplit(".", 1)[-1]), None)
    if found is None:
        known = ", ".join(entry.name for entry in TASKS.values())
        raise ConfigError(f"{task.config}: {wanted or 'its model'} is no task; there are {known}")
    protocol = task.protocol or config["model"].get("init_args", {}).get("protocol")
    if protocol is not None and protocol not in found.protocols:
        raise ConfigError(
            f"grid {grid.name}: task {name!r}: {found.name} has no protocol {protocol!r}; it has "
            f"{', '.join(found.protocols)}"
        )
    return found


def _pretrain_job(grid: Grid, name: str, method: MethodSpec, seeds: Seeds) -> Job:
    assert method.pretrain is not None
    settings = {
        **grid.pretrain.set,
        **method.set,
        "seed_everything": seeds.pretrain,
        "data.init_args.seed": seeds.pretrain,
    }
    config = assemble([method.pretrain, *grid.pretrain.overlays, *method.overlays], settings)
    _check_method(method.pretrain, config)
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
    """Registered methods are known by the last part of what their entry points name; others by a whole class path."""
    from medvlp.registry import methods

    wanted = str((config.get("model") or {}).get("class_path", ""))
    known = {entry.target.rsplit(":", 1)[-1] for entry in methods()}
    if "." not in wanted and wanted not in known:
        there = ", ".join(sorted(known))
        raise ConfigError(f"{file}: {wanted or 'its model'} is no registered method; there are {there}")


def _task_jobs(
    grid: Grid, task: str, entry: TaskEntry, run: str, seeds: Seeds, pretrain: dict[tuple[str, int], Job]
) -> Iterator[Job]:
    spec = grid.tasks[task]
    for name, method in grid.methods.items():
        if not takes_part(method, task, entry):
            continue
        encoder, weights = _encoder(name, method, seeds)
        needs = pretrain[name, seeds.pretrain].hash if method.pretrain else None
        for fraction in (spec.fractions or grid.fractions) if entry.trains else [None]:
            if fraction is not None and seeds.fractions is not None and fraction not in seeds.fractions:
                continue
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
            settings |= method.task_set.get(task, {})
            settings["model.init_args.encoder"] = encoder
            config = assemble([method.configs.get(task, spec.config)], settings)
            job = Job(
                kind="task",
                method=name,
                title=method.title or name,
                task=task,
                fraction=fraction,
                run=run,
                seeds={
                    key: getattr(seeds, key)
                    for key in (("pretrain", "data", "head") if entry.trains else ("pretrain",))
                },
                config=config,
                trains=entry.trains,
                needs=needs,
                minutes=spec.minutes,
                panels=spec.panels if run == _run_name(grid.runs[0]) and fraction in (None, _most(grid, task)) else 0,
                keep=grid.keep_heads,
                timeout_min=spec.timeout_min or grid.timeout_min,
            )
            yield _hashed(job, weights)


def _most(grid: Grid, task: str) -> float:
    return max(grid.tasks[task].fractions or grid.fractions)


def takes_part(method: MethodSpec, task: str, entry: TaskEntry) -> bool:
    """Whether a method is run on a task: it can do it, and the grid does not leave it out."""
    if task in method.cannot or (method.encoder is not None and not entry.trains):
        return False
    return method.tasks is None or task in method.tasks


def _encoder(name: str, method: MethodSpec, seeds: Seeds) -> tuple[dict[str, Any], str | None]:
    """The task's ``encoder`` setting, and the hash of the file it comes from, if it comes from one."""
    if method.pretrain:
        return {"checkpoint": ENCODER}, None
    if method.checkpoint:
        path = _local(name, method.checkpoint, "checkpoint")
        return {"checkpoint": str(path)}, sha256_of(path)
    encoder = dict(method.encoder or {})
    weights = (encoder.get("image") or {}).get("weights")
    digest = sha256_of(_local(name, weights, "weights file (.safetensors or .pth)")) if weights else None
    return {"seed": seeds.pretrain, **encoder}, digest


def _local(method: str, path: str, what: str) -> Path:
    try:
        return local_file(path, what)
    except CheckpointError as error:
        raise ConfigError(f"method {method!r}: {error}") from error
