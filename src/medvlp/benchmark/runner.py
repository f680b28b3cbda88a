"""Run the jobs of a grid: finished jobs are kept, interrupted ones resume, and failures do not stop the others.

Results are collected from the folders of finished jobs, with ``grid.json`` beside them.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from filelock import FileLock, Timeout

from medvlp._version import __version__
from medvlp.benchmark.executors import Executor, JobTimeoutError
from medvlp.benchmark.grid import Grid
from medvlp.benchmark.gridfile import Cost, GridFile, JobRecord, PanelRecord, TaskRecord, record_of
from medvlp.benchmark.jobs import Job
from medvlp.benchmark.progress import Progress
from medvlp.benchmark.work import LOG, RESULTS, checkpoint_of, is_done, job_folder, leave_note, read_state
from medvlp.errors import ConfigError
from medvlp.results import append_lines, read_rows
from medvlp.store import atomic_write

COLLECTED, PANELS = "results.jsonl", "panels.npz"
_POLL = 0.2
_PATIENCE = 20.0
"""Seconds to wait for the folder: processes of a killed run end within that time."""


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
        seconds=record_of(float | None, note.get("seconds"), f"{folder}: seconds"),
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


def estimates(work: Path, jobs: Sequence[Job]) -> dict[str, tuple[float, float]]:
    """Estimate seconds and bytes of each job, by its hash.

    Measured on finished jobs of the same task and fraction (or method, for pre-training) in this folder; otherwise the
    grid's own estimates.
    """
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for job in jobs:
        folder = job_folder(work, job)
        state = read_state(folder)
        if state and state["state"] == "done":
            size = float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
            measured.setdefault(_kind(job), []).append((state["seconds"], size))
    result = {}
    for job in jobs:
        known = measured.get(_kind(job), [(60 * job.minutes, 1e9 * job.gigabytes)])
        result[job.hash] = (median(seconds for seconds, _ in known), median(size for _, size in known))
    return result


def _kind(job: Job) -> tuple[str, str]:
    return (job.task, f"{job.fraction}") if job.kind == "task" else ("", job.method)


class Runner:
    """One benchmark in one folder.

    Args:
        grid: what is run.
        jobs: of :func:`medvlp.benchmark.jobs.expand`.
        only: names of tasks or methods; other jobs are not run.
        retry: run jobs again that failed before.
        drop_features: once all jobs are done, delete the stored features of frozen encoders.

    Raises:
        ConfigError: ``only`` names an unknown task or method.
    """

    def __init__(
        self,
        grid: Grid,
        jobs: Sequence[Job],
        *,
        only: Sequence[str] = (),
        retry: bool = True,
        drop_features: bool = False,
    ) -> None:
        self.grid, self.jobs, self.work = grid, list(jobs), grid.folder
        self.retry, self.drop_features = retry, drop_features
        methods, tasks = ([name for name in only if name in names] for names in (grid.methods, grid.tasks))
        if unknown := [name for name in only if name not in (*methods, *tasks)]:
            expected = ", ".join(sorted({*grid.methods, *grid.tasks}))
            raise ConfigError(f"--only {unknown[0]}: no method or task of {grid.name}; expected one of: {expected}")
        # names of methods select rows, names of tasks columns
        chosen = [
            job
            for job in self.jobs
            if job.kind == "task" and (not methods or job.method in methods) and (not tasks or job.task in tasks)
        ]
        needed = {job.needs for job in chosen}
        self.requested = [job for job in self.jobs if job in chosen or job.hash in needed]
        self._by_hash = {job.hash: job for job in self.jobs}

    def states(self) -> dict[str, str]:
        """Return "done", "failed" or "waiting" by hash, as recorded in the folders."""
        states = {}
        for job in self.jobs:
            failed = (read_state(job_folder(self.work, job)) or {}).get("state") == "failed"
            states[job.hash] = "done" if is_done(self.work, job) else "failed" if failed else "waiting"
        return states

    def run(self, executor: Executor, progress: Progress) -> dict[str, str]:
        """Run the jobs that are left.

        Returns:
            Hash to "done", "failed", "blocked" (its pre-training failed) or "waiting".

        Raises:
            ConfigError: another run uses the folder, or the disk is too small.
            CheckpointError: a checkpoint that results were made with has changed, and another job needs it.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.work / ".lock", timeout=_PATIENCE):
                return self._run(executor, progress)
        except Timeout as error:
            raise ConfigError(f"{self.work}: another run is at work in this folder; wait for it or end it") from error

    def _run(self, executor: Executor, progress: Progress) -> dict[str, str]:
        for rest in self.work.glob("features/*.part*"):
            shutil.rmtree(rest, ignore_errors=True)  # of killed jobs
        states = self.states()
        left = [j for j in self.requested if states[j.hash] != "done" and (self.retry or states[j.hash] != "failed")]
        # a pre-trained method whose tasks are all done is not needed again, even if its checkpoint was deleted
        tasks_left = {job.needs for job in left if job.kind == "task"}
        left = [job for job in left if job.kind == "task" or job.hash in tasks_left]
        states |= {job.hash: "waiting" for job in left}  # a failed pre-training that is tried again blocks no task
        for job in self.requested:
            progress.states[job.hash] = states[job.hash]
        checkpoints = {h: checkpoint_of(self.work, self._by_hash[h]) for h in tasks_left if h and states[h] == "done"}
        estimate = estimates(self.work, self.jobs)
        needed, free = sum(estimate[job.hash][1] for job in left), shutil.disk_usage(self.work).free
        if needed > free:
            raise ConfigError(
                f"{self.work}: the jobs would leave about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free "
                "space, or set work: to another disk"
            )
        collect(self.work, self.jobs, self.grid)
        self._run_jobs(left, states, checkpoints, executor, progress)
        collect(self.work, self.jobs, self.grid)
        describe(self.work, self.jobs, self.grid, states)
        if self.drop_features and all(state == "done" for state in states.values()):
            shutil.rmtree(self.work / "features", ignore_errors=True)
        return {job.hash: states[job.hash] for job in self.requested}

    def _run_jobs(
        self,
        left: Sequence[Job],
        states: dict[str, str],
        checkpoints: dict[str, Path],
        executor: Executor,
        progress: Progress,
    ) -> None:
        """Submit jobs as soon as their pre-training is done; ``states`` is updated."""
        waiting = list(left)
        running: dict[str, tuple[Job, Any]] = {}
        try:
            while waiting or running:
                for job in [job for job in waiting if job.needs and states[job.needs] in ("failed", "blocked")]:
                    waiting.remove(job)
                    states[job.hash] = "blocked"
                    progress.set(job, "blocked", f"the pre-training of {job.method} failed")
                ready = [job for job in waiting if job.needs is None or states[job.needs] == "done"]
                ready = ready[: max(0, executor.capacity - len(running))]
                for job in ready:
                    if job.needs and job.needs not in checkpoints:
                        checkpoints[job.needs] = checkpoint_of(self.work, self._by_hash[job.needs])
                    waiting.remove(job)
                    states[job.hash] = "running"
                    progress.set(job, "running")
                if ready:
                    calls = [(job, self.work, checkpoints.get(job.needs or "")) for job in ready]
                    handles = zip(ready, executor.submit(calls), strict=True)
                    running |= {job.hash: (job, handle) for job, handle in handles}
                    describe(self.work, self.jobs, self.grid, states)
                ended = [hash for hash, (_, handle) in running.items() if handle.done()]
                for hash in ended:
                    self._end(*running.pop(hash), states, progress)
                if ended:
                    estimate = estimates(self.work, self.jobs)
                    rest = sum(estimate[j.hash][0] for j in (*waiting, *(job for job, _ in running.values())))
                    progress.estimate(rest / min(executor.capacity, max(1, len(running))))
                elif not ready:
                    time.sleep(_POLL)
        finally:
            executor.close()

    def _end(self, job: Job, handle: Any, states: dict[str, str], progress: Progress) -> None:
        folder = job_folder(self.work, job)
        try:
            state = handle.result()
        except Exception as death:
            # the process died: out of memory, or a fault in native code
            text = " ".join(str(death).split()) or type(death).__name__
            text = text if isinstance(death, JobTimeoutError) else f"its process ended: {text[-500:]}"
            # a job on a cluster that ended itself has recorded why
            recorded = read_state(folder)
            state = recorded if recorded and recorded["state"] == "failed" else leave_note(job, self.work, text)
        states[job.hash] = state["state"]
        error = f"{state['error']} (log: {folder / 'log.txt'})" if "error" in state else ""
        progress.set(job, state["state"], error)
        if state["state"] == "done" and job.kind == "task":
            append(self.work, job, self.grid)
