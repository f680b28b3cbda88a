"""Where jobs run: in this process, in local processes with a device each, or through SLURM."""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from medvlp.benchmark.jobs import Job
from medvlp.benchmark.work import TERMINATED, devices_and_nodes, leave_note
from medvlp.errors import ConfigError, MedVLPError

Work = Callable[..., dict[str, Any]]
"""Picklable function that runs a job and returns its state."""

_KINDS = ("pretrain", "task")
_MINUTES = 24 * 60
"""Default time limit of a SLURM job; submitit's own is five minutes."""

_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL."""

_TIMEOUTS = 50
"""How often a job that reaches SLURM's time limit is queued again; preemption does not count."""

_GPUS = ("gpus_per_node", "slurm_gpus_per_node", "slurm_gpus_per_task", "slurm_gres")


class JobTimeoutError(MedVLPError):
    """A job reached its time limit."""


class Executor(ABC):
    """Runs jobs, at most ``capacity`` at a time."""

    capacity: int = 1

    @abstractmethod
    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Submit jobs, given the arguments of each; return a handle with ``done()`` and ``result()`` per job."""

    def close(self) -> None:  # noqa: B027 - optional
        """Stop the jobs that are still running."""


class InProcess(Executor):
    """Run one job after the other in this process; a job that hangs cannot be stopped."""

    def __init__(self, function: Work) -> None:
        self.function = function

    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run the jobs and return when they have ended."""
        handles: list[Future[dict[str, Any]]] = [Future() for _ in calls]
        for handle, call in zip(handles, calls, strict=True):
            try:
                handle.set_result(self.function(*call))
            except Exception as error:
                handle.set_exception(error)
        return handles


def end_after_signal() -> None:
    """Let SIGTERM and SIGINT end this process within :data:`_GRACE` even if a job hangs.

    Lightning delays the end until a batch is done. The signal itself wakes up a thread, so the main thread may be
    waiting in native code.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # a signal to a data loader's worker must not reach this process through the shared pipe
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def watch() -> None:
        while (number := os.read(read, 1)[0]) not in (signal.SIGTERM, signal.SIGINT):
            pass
        time.sleep(_GRACE)
        os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()


def _end_with(parent: int) -> None:
    """Kill this process group once its parent is gone, so that no orphan keeps writing to the job's files."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


def _serve(jobs: Connection, parent: int, device: str | None, threads: int) -> None:
    """Run jobs from a pipe; for each, send the time at which it began and then its state, or the error it raised."""
    os.setpgid(0, 0)  # data loaders end with the worker; Ctrl-C reaches the runner alone, which ends the workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported, which is later
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.suppress(EOFError):  # the parent is gone
        while True:
            function, call = jobs.recv()
            jobs.send(time.monotonic())
            try:
                outcome: Any = function(*call)
            except SystemExit as end:
                outcome = RuntimeError(f"it was told to end (status {end.code})")
            except Exception as error:  # whose class may not be picklable
                outcome = RuntimeError(str(error) or type(error).__name__)
            jobs.send(outcome)


class _Worker:
    """A process that runs jobs one after the other and can be killed while it does; it sees one device, or all."""

    def __init__(self, device: str | None, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, os.getpid(), device, threads))
        self.process.start()
        theirs.close()

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children."""
        if self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                pid = self.process.pid or 0
                # before it has a group of its own, it has no children
                (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, number)


class _Running:
    """Handle of a job that an idle worker takes; it is killed after ``limit`` minutes unless that is None."""

    def __init__(self, worker: _Worker, function: Work, call: tuple[Any, ...], limit: float | None) -> None:
        self._worker, self._limit = worker, limit
        self._began: float | None = None
        self._outcome: dict[str, Any] | Exception | None = None
        with contextlib.suppress(BrokenPipeError):  # the worker has just died
            worker.pipe.send((function, call))

    def done(self) -> bool:
        if self._outcome is None:
            self._outcome = self._receive()
        return self._outcome is not None

    def _receive(self) -> dict[str, Any] | Exception | None:
        process, pipe = self._worker.process, self._worker.pipe
        alive = process.is_alive()  # asked first: a dead process has sent all that it ever will
        with contextlib.suppress(EOFError, ConnectionResetError):
            if self._began is None and pipe.poll():
                self._began = pipe.recv()
            if self._began is not None and pipe.poll():
                outcome: dict[str, Any] | Exception = pipe.recv()
                return outcome
        if not alive:
            code = process.exitcode or 0
            return RuntimeError(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}")
        if self._began is None or self._limit is None or time.monotonic() - self._began <= 60 * self._limit:
            return None
        self._worker.signal(signal.SIGKILL)
        process.join()
        return JobTimeoutError(f"ended after timeout_min, {self._limit:g} minutes")

    def result(self) -> dict[str, Any]:
        while not self.done():
            time.sleep(0.05)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome or {}


class LocalPool(Executor):
    """Run jobs in processes of this machine, each with a device of its own or with its share of the cores.

    A process that dies (out of memory, for example) fails its own job alone; the next job gets a new process. CUDA
    devices are assigned in turn; on a CPU there are none.
    """

    def __init__(self, function: Work, workers: int, devices: Sequence[str] = ()) -> None:
        if workers < 1:
            raise ConfigError(f"a pool needs at least one process, not {workers}")
        self.function, self.capacity, self.devices = function, workers, list(devices)
        self._slots: list[tuple[_Worker, _Running] | None] = [None] * workers

    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Hand each job to an idle process; there must be one for each."""
        handles = []
        for call in calls:
            i = next(i for i, slot in enumerate(self._slots) if slot is None or slot[1].done())
            slot = self._slots[i]
            if slot is not None and slot[0].process.is_alive():
                worker = slot[0]
            else:
                device = self.devices[i % len(self.devices)] if self.devices else None
                worker = _Worker(device, max(1, len(os.sched_getaffinity(0)) // self.capacity))
            handle = _Running(worker, self.function, call, call[0].timeout_min)
            self._slots[i] = worker, handle
            handles.append(handle)
        return handles

    def close(self) -> None:
        """End the processes, whatever they are doing: by SIGTERM, and after :data:`_GRACE` by SIGKILL."""
        workers = [slot[0] for slot in self._slots if slot is not None]
        try:
            end = time.monotonic() + _GRACE
            for worker in workers:
                worker.signal(signal.SIGTERM)
            for worker in workers:
                worker.process.join(max(0.0, end - time.monotonic()))
        finally:  # also after a second Ctrl-C
            for worker in workers:
                worker.signal(signal.SIGKILL)


def _end_when_over(job: Job, work: Path) -> None:
    assert job.timeout_min is not None
    time.sleep(60 * job.timeout_min)
    leave_note(job, work, f"ended after timeout_min, {job.timeout_min:g} minutes")
    os.kill(os.getpid(), signal.SIGKILL)


class _Requeued:
    """A job on SLURM: after preemption or a timeout, it is queued again and resumes from its checkpoint."""

    def __init__(self, function: Work) -> None:
        self.function = function

    def __call__(self, *call: Any) -> dict[str, Any]:
        from submitit import JobEnvironment

        environment = JobEnvironment()
        if call[0].timeout_min is not None:
            threading.Thread(target=_end_when_over, args=call[:2], daemon=True).start()
        try:
            state = self.function(*call)
        except SystemExit as end:
            while end.code == TERMINATED and environment.cluster == "slurm":
                # SLURM kills and requeues preempted jobs; a process that ends earlier would count as done
                time.sleep(1)
            raise
        if state["state"] == "failed" and environment.num_tasks > 1:
            # the other processes wait for this one; srun ends them when one ends with an error
            raise RuntimeError(f"process {environment.global_rank} of {environment.num_tasks}: {state['error']}")
        return state

    def checkpoint(self, *call: Any) -> Any:
        """Return what submitit queues after an interruption: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *call)


class _Submitted:
    """Handle of a submitit job of one or several processes, of which the first returns the state."""

    def __init__(self, job: Any) -> None:
        self.job, self.done = job, job.done

    def result(self) -> dict[str, Any]:
        first: dict[str, Any] = self.job.results()[0]
        return first


class Submitit(Executor):
    """Run jobs on SLURM through submitit; ready jobs with equal resources become one job array.

    On SLURM a job gets a process and a GPU for each device of its ``trainer.devices`` on ``trainer.num_nodes`` nodes,
    as Lightning expects there; ``parameters`` override that.

    Args:
        function: runs a job; its first argument is a :class:`~medvlp.benchmark.jobs.Job`.
        folder: for submitit's files; all nodes must see it.
        parameters: of submitit's executor, such as ``timeout_min`` (default: a day), ``slurm_partition``,
            ``cpus_per_task``; those under ``pretrain`` and ``task`` apply to jobs of that kind only.
        cluster: "slurm", or "local" for processes of this machine, on its CPU unless ``gpus_per_node`` is given.
    """

    capacity = 10**6

    def __init__(self, function: Work, folder: Path, parameters: dict[str, Any], cluster: str = "slurm") -> None:
        self.function, self.folder, self.cluster = function, folder, cluster
        common = {key: value for key, value in parameters.items() if key not in _KINDS}
        self._parameters = {kind: {**common, **(parameters.get(kind) or {})} for kind in _KINDS}
        self._handles: list[_Submitted] = []
        for settings in self._parameters.values():  # report mistakes before anything runs
            self._executor(settings)

    def _executor(self, parameters: dict[str, Any]) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("the SLURM executor needs submitit: pip install 'medvlp[slurm]'") from error
        try:
            executor = submitit.AutoExecutor(self.folder, self.cluster, slurm_max_num_timeout=_TIMEOUTS)
            executor.update_parameters(**{"name": "medvlp", "timeout_min": _MINUTES, **parameters})
        except (NameError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ConfigError(f"slurm: {' '.join(str(error).split())}") from error
        return executor

    def _parameters_of(self, job: Job) -> dict[str, Any]:
        given = self._parameters[job.kind]
        if self.cluster != "slurm":
            return given
        devices, nodes = devices_and_nodes(job)
        shape: dict[str, Any] = {"nodes": nodes, "tasks_per_node": devices}
        if job.config.get("trainer", {}).get("accelerator") != "cpu" and not any(key in given for key in _GPUS):
            shape["gpus_per_node"] = devices
        if devices * nodes > 1:
            shape["slurm_srun_args"] = ["--kill-on-bad-exit=1"]
        return {**shape, **given}

    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Submit one job array for each set of resources."""
        parameters = [self._parameters_of(call[0]) for call in calls]
        keys = [json.dumps(settings, sort_keys=True, default=str) for settings in parameters]
        handles: dict[int, _Submitted] = {}
        for key in dict.fromkeys(keys):
            members = [i for i, other in enumerate(keys) if other == key]
            executor = self._executor(parameters[members[0]])
            try:
                with executor.batch():
                    jobs = [executor.submit(_Requeued(self.function), *calls[i]) for i in members]
            except RuntimeError as error:
                raise ConfigError(f"slurm: the jobs were refused: {' '.join(str(error).split())}") from error
            handles |= dict(zip(members, map(_Submitted, jobs), strict=True))
            self._handles += [handles[i] for i in members]
        return [handles[i] for i in range(len(calls))]

    def close(self) -> None:
        """Cancel the jobs that have not ended."""
        for handle in self._handles:
            if not handle.done():
                handle.job.cancel()
