"""Works off the jobs of a grid: what is done stays done, what is interrupted goes on, what fails stops nothing else."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from filelock import FileLock, Timeout

from medvlp.benchmark.collect import append, collect, describe
from medvlp.benchmark.executors import Executor, JobTimeoutError
from medvlp.benchmark.grid import Grid
from medvlp.benchmark.jobs import Job
from medvlp.benchmark.progress import Progress
from medvlp.benchmark.work import checkpoint_of, is_done, job_folder, leave_note, read_state
from medvlp.errors import ConfigError

_POLL = 0.2
_PATIENCE = 20.0
"""Seconds for which a run waits for the folder: what a killed one has left ends within that time."""


def guess(work: Path, jobs: Sequence[Job]) -> dict[str, tuple[float, float]]:
    """Seconds and bytes that each job will take.

    Measured on jobs of the same task (or method, for pre-training) where some are done in this folder; the grid's own
    guess elsewhere.
    """
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for job in jobs:
        state = read_state(job_folder(work, job))
        if state and state["state"] == "done":
            measured.setdefault(_alike(job), []).append((state["seconds"], _size(job_folder(work, job))))
    result = {}
    for job in jobs:
        known = measured.get(_alike(job))
        if known:
            result[job.hash] = (median(s for s, _ in known), median(b for _, b in known))
        else:
            result[job.hash] = (60 * job.minutes, 1e9 * job.gigabytes)
    return result


def _alike(job: Job) -> tuple[str, str]:
    return (job.task, f"{job.fraction}") if job.kind == "task" else ("", job.method)


def _size(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


class Runner:
    """One benchmark in one folder.

    Args:
        grid: what is run.
        jobs: of :func:`medvlp.benchmark.jobs.expand`.
        only: names of tasks or methods; other jobs are left for another time.
        retry: run jobs again that failed before.
        drop_features: once all jobs are done, delete what frozen encoders computed; a later task computes it anew.
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
        known = {*grid.methods, *grid.tasks}
        for name in only:
            if name not in known:
                there = ", ".join(sorted(known))
                raise ConfigError(f"--only {name}: no method or task of {grid.name}; there are {there}")
        chosen = [job for job in self.jobs if job.kind == "task" and _chosen(job, grid, only)]
        needed = {job.needs for job in chosen}
        self.wanted = [job for job in self.jobs if job in chosen or job.hash in needed]
        self.retry = retry
        self.drop_features = drop_features
        self.by_hash = {job.hash: job for job in self.jobs}

    def states(self) -> dict[str, str]:
        """Hash to "done", "failed" or "waiting", as the folders say."""
        found = {}
        for job in self.jobs:
            state = read_state(job_folder(self.work, job))
            failed = state is not None and state["state"] == "failed"
            found[job.hash] = "done" if is_done(self.work, job) else "failed" if failed else "waiting"
        return found

    def run(self, executor: Executor, progress: Progress) -> dict[str, str]:
        """Works off what is left.

        Args:
            executor: where.
            progress: what is told of it.

        Returns:
            Hash to "done", "failed", "blocked" (its pre-training failed) or "waiting".

        Raises:
            ConfigError: another run is at work in the folder, or the disk is too small.
            CheckpointError: a checkpoint that results were made with has changed, and more of it is wanted.
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
        left = [j for j in self.wanted if states[j.hash] != "done" and (self.retry or states[j.hash] != "failed")]
        # a pre-trained method whose tasks are all done is not needed again, even if its checkpoint was deleted
        tasks_left = {job.needs for job in left if job.kind == "task"}
        left = [job for job in left if job.kind == "task" or job.hash in tasks_left]
        states |= {job.hash: "waiting" for job in left}  # a failed pre-training that is tried again blocks no task
        for job in self.wanted:
            progress.states[job.hash] = states[job.hash]
        checkpoints = {h: checkpoint_of(self.work, self.by_hash[h]) for h in tasks_left if h and states[h] == "done"}
        self._check_disk(left)
        collect(self.work, self.jobs, self.grid)
        self.work_off(left, states, checkpoints, executor, progress)
        collect(self.work, self.jobs, self.grid)
        describe(self.work, self.jobs, self.grid, states)
        if self.drop_features and all(state == "done" for state in states.values()):
            shutil.rmtree(self.work / "features", ignore_errors=True)
        return {job.hash: states[job.hash] for job in self.wanted}

    def _check_disk(self, left: Sequence[Job]) -> None:
        estimate = guess(self.work, self.jobs)
        needed = sum(estimate[job.hash][1] for job in left)
        free = shutil.disk_usage(self.work).free
        if needed > free:
            raise ConfigError(
                f"{self.work}: the jobs would leave about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free "
                "space, or set work: to another disk"
            )

    def work_off(
        self,
        left: Sequence[Job],
        states: dict[str, str],
        checkpoints: dict[str, Path],
        executor: Executor,
        progress: Progress,
    ) -> None:
        """Hands jobs to the executor as soon as what they need is there; ``states`` is kept up to date."""
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
                        checkpoints[job.needs] = checkpoint_of(self.work, self.by_hash[job.needs])
                    waiting.remove(job)
                    states[job.hash] = "running"
                    progress.set(job, "running")
                if ready:
                    calls = [(job, self.work, checkpoints.get(job.needs or "")) for job in ready]
                    running |= {
                        job.hash: (job, handle) for job, handle in zip(ready, executor.submit(calls), strict=True)
                    }
                    describe(self.work, self.jobs, self.grid, states)
                ended = [hash for hash, (_, handle) in running.items() if handle.done()]
                for hash in ended:
                    job, handle = running.pop(hash)
                    self._ended(job, handle, states, progress)
                estimate = guess(self.work, self.jobs) if ended else None
                if estimate:
                    rest = sum(estimate[j.hash][0] for j in (*waiting, *(job for job, _ in running.values())))
                    progress.estimate(rest / min(executor.capacity, max(1, len(running))))
                if not ended and not ready:
                    time.sleep(_POLL)
        finally:
            executor.close()

    def _ended(self, job: Job, handle: Any, states: dict[str, str], progress: Progress) -> None:
        try:
            note = handle.result()
        except Exception as death:
            # the process itself died: killed for memory, or by a fault in native code
            what = " ".join(str(death).split()) or type(death).__name__
            what = what if isinstance(death, JobTimeoutError) else f"its process ended: {what[-500:]}"
            # of a job on a cluster that ended itself there is a note already
            left = read_state(job_folder(self.work, job))
            note = left if left and left["state"] == "failed" else leave_note(job, self.work, what)
        states[job.hash] = note["state"]
        error = f"{note['error']} (log: {job_folder(self.work, job) / 'log.txt'})" if "error" in note else ""
        progress.set(job, note["state"], error)
        if note["state"] == "done" and job.kind == "task":
            append(self.work, job, self.grid)


def _chosen(job: Job, grid: Grid, only: Sequence[str]) -> bool:
    """Names of methods choose rows, names of tasks columns; of both, where they cross."""
    methods = [name for name in only if name in grid.methods]
    tasks = [name for name in only if name in grid.tasks]
    return (not methods or job.method in methods) and (not tasks or job.task in tasks)
