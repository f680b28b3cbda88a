"""One file of rows, and ``grid.json``, from the folders of the jobs that are done."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlp._version import __version__
from medvlp.benchmark.grid import Grid
from medvlp.benchmark.jobs import Job
from medvlp.benchmark.work import LOG, RESULTS, is_done, job_folder, read_state
from medvlp.results import append_lines, read_rows

COLLECTED, DESCRIBED = "results.jsonl", "grid.json"


def rows_of(work: Path, job: Job, grid: Grid) -> list[dict[str, Any]]:
    """The rows of a job that is done, with the key ``benchmark`` (see :mod:`medvlp.benchmark`)."""
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
    """Adds the rows of a job that has just ended; :func:`collect` makes the file whole whatever happens to this."""
    append_lines(work / COLLECTED, map(json.dumps, rows_of(work, job, grid)))


def collect(work: Path, jobs: Sequence[Job], grid: Grid) -> tuple[int, int]:
    """Writes the rows of all jobs that are done, in the order of the jobs, in the place of the file that is there.

    A file cut short, doubled rows and rows of jobs that are no longer in the grid are mended in this way: what counts
    lies in the jobs' own folders.

    Returns:
        How many jobs are done, and how many rows that makes.
    """
    done, count = 0, 0
    part = work / (COLLECTED + ".part")
    with part.open("w", encoding="utf-8") as file:
        for job in jobs:
            if job.kind == "task" and is_done(work, job):
                done += 1
                for row in rows_of(work, job, grid):
                    file.write(json.dumps(row) + "\n")
                    count += 1
    part.replace(work / COLLECTED)
    return done, count


def describe(work: Path, jobs: Sequence[Job], grid: Grid, states: dict[str, str]) -> None:
    """Writes ``grid.json``: the jobs, how they ended, what pre-training cost, and where panels lie."""
    entries, panels = [], []
    for job in jobs:
        folder = job_folder(work, job)
        state = read_state(folder) or {}
        place = folder.relative_to(work)
        entry = {
            **job.describe(),
            "state": states.get(job.hash, "waiting"),
            "seconds": state.get("seconds"),
            "log": str(place / LOG) if (folder / LOG).is_file() else None,
            "error": state.get("error"),
            "checkpoint": str(place / state["checkpoint"]) if state.get("checkpoint") else None,
            "checkpoint_sha256": state.get("checkpoint_sha256"),
            "cost": state.get("cost"),
        }
        entries.append(entry)
        if (folder / "panels.npz").is_file():
            about = {key: entry[key] for key in ("method", "title", "task")}
            kind = str(job.config["model"].get("class_path", "")).rsplit(".", 1)[-1].lower()
            panels.append({**about, "kind": kind, "file": str(place / "panels.npz")})
    trains = {job.task: job.trains for job in jobs if job.kind == "task"}
    cannot = {
        name: [task for task in grid.tasks if task in method.cannot or (method.encoder and not trains.get(task, True))]
        for name, method in grid.methods.items()
    }
    content = {
        "name": grid.name,
        "title": grid.title or grid.name,
        "medvlp": __version__,
        "methods": {name: method.title or name for name, method in grid.methods.items()},
        "tasks": {name: {"title": t.title or name, "metric": t.metric} for name, t in grid.tasks.items()},
        "runs": [vars(seeds) for seeds in grid.runs],
        "cannot": {name: tasks for name, tasks in cannot.items() if tasks},
        "watts": grid.watts,
        "jobs": entries,
        "panels": panels,
    }
    part = work / f"{DESCRIBED}.{os.getpid()}.part"
    part.write_text(json.dumps(content, indent=1))
    part.replace(work / DESCRIBED)
