"""Write the results file and ``grid.json`` from the folders of finished jobs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlp._version import __version__
from medvlp.benchmark.grid import Grid
from medvlp.benchmark.gridfile import Cost, GridFile, JobRecord, PanelRecord, TaskRecord, record_of
from medvlp.benchmark.jobs import Job
from medvlp.benchmark.work import LOG, RESULTS, is_done, job_folder, read_state
from medvlp.results import append_lines, read_rows
from medvlp.store import atomic_write

COLLECTED, PANELS = "results.jsonl", "panels.npz"


def rows_of(work: Path, job: Job, grid: Grid) -> list[dict[str, Any]]:
    """Return the rows of a finished job, with the key ``benchmark`` (see :mod:`medvlp.benchmark`)."""
    folder = job_folder(work, job)
    facts = {
        "grid": grid.name,
        "method": job.method,
        "title": job.title,
        "task": job.task,
        "run": job.run,
        "seeds": job.seeds,
        "job": job.hash,
        "pretrain_job": job.needs,
    }
    rows = []
    for row in read_rows(folder / RESULTS):
        if row.get("predictions"):
            row["predictions"] = str((folder / row["predictions"]).relative_to(work))
        rows.append({**row, "benchmark": facts})
    return rows


def append(work: Path, job: Job, grid: Grid) -> None:
    """Append the rows of a job that has just ended; :func:`collect` repairs the file if that is interrupted."""
    append_lines(work / COLLECTED, map(json.dumps, rows_of(work, job, grid)))


def collect(work: Path, jobs: Sequence[Job], grid: Grid) -> None:
    """Write the rows of all finished jobs, in the order of the jobs, and replace the file.

    This repairs a truncated file, repeated rows and rows of jobs that are no longer in the grid.
    """
    with atomic_write(work / COLLECTED, "w") as file:
        for job in jobs:
            if job.kind == "task" and is_done(work, job):
                file.writelines(json.dumps(row) + "\n" for row in rows_of(work, job, grid))


def describe(work: Path, jobs: Sequence[Job], grid: Grid, states: dict[str, str]) -> None:
    """Write ``grid.json``; ``states`` maps hashes to states, and jobs that are not in it are waiting."""
    trains = {job.task: job.trains for job in jobs if job.kind == "task"}
    cannot = {
        name: [task for task in grid.tasks if not method.supports(task, trains.get(task, True))]
        for name, method in grid.methods.items()
    }
    GridFile(
        name=grid.name,
        title=grid.title or grid.name,
        medvlp=__version__,
        methods={name: method.title or name for name, method in grid.methods.items()},
        tasks={name: TaskRecord(title=task.title or name, metric=task.metric) for name, task in grid.tasks.items()},
        runs=[vars(seeds) for seeds in grid.runs],
        cannot={name: tasks for name, tasks in cannot.items() if tasks},
        watts=grid.watts,
        jobs=[_record(work, job, states.get(job.hash, "waiting")) for job in jobs],
        panels=[_panels(work, job) for job in jobs if (job_folder(work, job) / PANELS).is_file()],
    ).write(work)


def _record(work: Path, job: Job, state: str) -> JobRecord:
    folder = job_folder(work, job)
    note = read_state(folder) or {}
    relative = folder.relative_to(work)
    keys = ("hash", "kind", "method", "title", "task", "fraction", "run", "seeds", "needs")
    return JobRecord(
        **{key: getattr(job, key) for key in keys},
        state=state,
        seconds=note.get("seconds"),
        log=str(relative / LOG) if (folder / LOG).is_file() else None,
        error=note.get("error"),
        checkpoint=str(relative / note["checkpoint"]) if note.get("checkpoint") else None,
        checkpoint_sha256=note.get("checkpoint_sha256"),
        cost=record_of(Cost | None, note.get("cost"), f"{folder}: cost"),
    )


def _panels(work: Path, job: Job) -> PanelRecord:
    kind = str(job.config["model"].get("class_path", "")).rsplit(".", 1)[-1].lower()
    file = str(job_folder(work, job).relative_to(work) / PANELS)
    return PanelRecord(method=job.method, title=job.title, task=job.task, kind=kind, file=file)
