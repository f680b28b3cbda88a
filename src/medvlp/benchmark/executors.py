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
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from medvlp.benchmark.jobs import Job
from medvlp.benchmark.work import TERMINATED, devices_and_nodes, leave_note
from medvlp.errors import ConfigError, MedVLPError

Work = Callable[..., dict[str, Any]]
"""A picklable function and what it is given; its note of how the job ended comes back."""

_KINDS = ("pretrain", "task")
_MINUTES = 24 * 60
"""Time limit of a job where the grid gives none; submitit's own is five minutes."""

_GRACE = 10.0
"""Seconds that a process gets to end by itself once it is told to."""

_TIMEOUTS = 50
"""How often a job may run out of SLURM's time and go on from its checkpoint: preemption is not counted."""

_GPUS = ("gpus_per_node", "slurm_gpus_per_node", "slurm_gpus_per_task", "slurm_gres")


class JobTimeoutError(MedVLPError):
    """A job took longer than it may."""


class Executor(ABC):
    """Takes jobs and says when they are done."""

    capacity: int = 1
    """How many jobs it takes at once."""

    @abstractmethod
    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Hands in jobs.

        Args:
            calls: the arguments of each.

        Returns:
            A handle per job, with ``done()`` and ``result()``.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends what still runs."""


class InProcess(Executor):
    """One job after the other in this process, which cannot end a job that hangs.

    Args:
        function: what a job is.
    """

    def __init__(self, function: Work) -> None:
        self.function = function

    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Runs the jobs and returns when they are done."""
        handles = []
        for call in calls:
            handle: Future = Future()
            try:
                handle.set_result(self.function(*call))
            except Exception as error:
                handle.set_exception(error)
            handles.append(handle)
        return handles

    def close(self) -> None:
        """Nothing runs when nobody waits."""


def end_after_signal() -> None:
    """Lets SIGTERM and SIGINT end this process within :data:`_GRACE` even if a job hangs.

    Lightning puts the end off until a batch is done. A thread is woken by the signal itself, so that the main thread
    may wait in native code.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a loader's worker may be told to end

    def watch() -> None:
        while (number := os.read(read, 1)[0]) not in (signal.SIGTERM, signal.SIGINT):
            pass
        time.sleep(_GRACE)
        os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()


def _kept_alive(function: Work, call: tuple[Any, ...]) -> dict[str, Any]:
    """A job in a pool's process, which may be told to end; that must end neither the pool nor its owner."""
    (began,) = _BEGAN
    began.value = time.monotonic()
    try:
        return function(*call)
    except SystemExit as end:
        raise RuntimeError(f"it was told to end (status {end.code})") from None
    finally:
        began.value = 0.0


_BEGAN: list[Any] = []
"""In a pool's process: when its job began by the clock that all processes share; 0 while it has none."""


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a killed run must leave nobody behind who writes its files."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.killpg(0, signal.SIGKILL)


def _initialise(parent: int, device: str | None, threads: int, began: Any) -> None:
    _BEGAN[:] = [began]
    os.setpgid(0, 0)  # what the process starts ends with it; Ctrl-C reaches the runner alone, which ends the processes
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    # before torch is imported, by which it is read
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class _Process:
    """One process for one job after the other, which can be ended in the midst of its work.

    Args:
        device: that it sees; None for all.
        threads: that it may use.
    """

    def __init__(self, device: str | None, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._began = context.Value("d", 0.0, lock=False)
        arguments = (os.getpid(), device, threads, self._began)
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_initialise, initargs=arguments)

    def submit(self, *call: Any) -> Future:
        return self._pool.submit(_kept_alive, *call)

    def minutes(self) -> float:
        """For how long its job has run."""
        return (time.monotonic() - self._began.value) / 60 if self._began.value else 0.0

    def signal(self, number: int) -> bool:
        """Sends a signal to the process and to what it has started; says whether it is still there."""
        # there is no public way to end a process in the midst of its work before Python 3.14
        alive = [process for process in list((self._pool._processes or {}).values()) if process.is_alive()]
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                # before it has a group of its own, it has started nothing
                own = os.getpgid(process.pid or 0) == process.pid
                (os.killpg if own else os.kill)(process.pid or 0, number)
        return bool(alive)

    def shut_down(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Timed:
    """A job in a process, which ends when its time is over.

    Args:
        future: of the process.
        process: that runs it.
        limit: minutes; None for no limit.
    """

    def __init__(self, future: Future, process: _Process, limit: float | None) -> None:
        self._future, self._process, self._limit = future, process, limit
        self._over = False
        self.exception = future.exception

    def done(self) -> bool:
        if self._future.done():
            return True
        if self._limit is not None and not self._over and self._process.minutes() > self._limit:
            self._over = self._process.signal(signal.SIGKILL)
        return False

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        try:
            return self._future.result(timeout)
        except BrokenProcessPool:
            if self._over:
                raise JobTimeoutError(f"ended after timeout_min, {self._limit:g} minutes") from None
            raise


class LocalPool(Executor):
    """Processes of this machine, each with a device of its own, or with its share of the cores.

    Each is a pool of one: a process that dies (out of memory, say) takes its own job with it and no other, and the
    next job gets a new one.

    Args:
        function: what a job is.
        workers: number of processes.
        devices: CUDA devices that they take in turn; none on a CPU.
    """

    def __init__(self, function: Work, workers: int, devices: Sequence[str] = ()) -> None:
        if workers < 1:
            raise ConfigError(f"a pool needs at least one process, not {workers}")
        self.function, self.capacity, self.devices = function, workers, list(devices)
        self._processes: list[_Process | None] = [None] * workers
        self._busy: list[_Timed | None] = [None] * workers

    def _process(self, slot: int) -> _Process:
        process = self._processes[slot]
        if process is None:
            device = self.devices[slot % len(self.devices)] if self.devices else None
            process = _Process(device, max(1, len(os.sched_getaffinity(0)) // self.capacity))
            self._processes[slot] = process
        return process

    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Hands each job to a free process."""
        handles = []
        for call in calls:
            slot = next(i for i, busy in enumerate(self._busy) if busy is None or busy.done())
            busy = self._busy[slot]
            if busy is not None and busy.exception() is not None:
                self._processes[slot] = None  # the process died; whatever is left of it goes with the old one
            process = self._process(slot)
            handle = _Timed(process.submit(self.function, call), process, call[0].timeout_min)
            self._busy[slot] = handle
            handles.append(handle)
        return handles

    def close(self) -> None:
        """Ends the processes, whatever they are doing: by SIGTERM, and after :data:`_GRACE` by SIGKILL."""
        processes = [process for process in self._processes if process is not None]
        try:
            end = time.monotonic() + _GRACE
            alive = [process for process in processes if process.signal(signal.SIGTERM)]
            while alive and time.monotonic() < end:
                time.sleep(0.05)
                alive = [process for process in alive if process.signal(0)]
        finally:  # also if Ctrl-C comes again
            for process in processes:
                process.signal(signal.SIGKILL)
                process.shut_down()


def _end_when_over(job: Job, work: Path) -> None:
    """Leaves a note and ends this process once the job's time is over."""
    assert job.timeout_min is not None
    time.sleep(60 * job.timeout_min)
    leave_note(job, work, f"ended after timeout_min, {job.timeout_min:g} minutes")
    os.kill(os.getpid(), signal.SIGKILL)


class _Requeued:
    """A job as SLURM sees it: preempted or out of time, it is queued again and goes on from its checkpoint.

    Args:
        function: what the job is.
    """

    def __init__(self, function: Work) -> None:
        self.function = function

    def __call__(self, *call: Any) -> dict[str, Any]:
        from submitit import JobEnvironment

        here = JobEnvironment()
        if call[0].timeout_min is not None:
            threading.Thread(target=_end_when_over, args=call[:2], daemon=True).start()
        try:
            note = self.function(*call)
        except SystemExit as end:
            while end.code == TERMINATED and here.cluster == "slurm":
                # SLURM kills what it preempts, and queues it again; a process that ends before would count as done
                time.sleep(1)
            raise
        if note["state"] == "failed" and here.num_tasks > 1:
            # the other processes wait for this one; srun ends them when one ends with an error
            raise RuntimeError(f"process {here.global_rank} of {here.num_tasks}: {note['error']}")
        return note

    def checkpoint(self, *call: Any) -> Any:
        """What submitit submits in the place of an interrupted job: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *call)


class _Submitted:
    """A job of one process or of several, of which the first speaks for all.

    Args:
        job: of submitit.
    """

    def __init__(self, job: Any) -> None:
        self.job = job

    def done(self) -> bool:
        return self.job.done()

    def result(self) -> dict[str, Any]:
        return self.job.results()[0]


class Submitit(Executor):
    """SLURM through submitit: the jobs that are ready at a time and ask for the same become one job array.

    On SLURM a job gets a process and a GPU for each device of its ``trainer.devices`` on ``trainer.num_nodes`` nodes,
    which is what Lightning expects there. ``parameters`` go over that.

    Args:
        function: what a job is; its first argument is a :class:`~medvlp.benchmark.jobs.Job`.
        folder: for submitit's files, seen by all nodes.
        parameters: of submitit's executor, such as ``timeout_min`` (a day if not given), ``slurm_partition``,
            ``cpus_per_task``; those under ``pretrain`` and ``task`` are for jobs of that kind alone.
        cluster: "slurm", or "local" for processes of this machine, on its CPU unless ``gpus_per_node`` is given.

    Raises:
        ConfigError: submitit is not installed, there is no SLURM, or a parameter is unknown.
    """

    capacity = 10**6

    def __init__(self, function: Work, folder: Path, parameters: dict[str, Any], cluster: str = "slurm") -> None:
        self.function, self.folder, self.cluster = function, folder, cluster
        self._common = {key: value for key, value in parameters.items() if key not in _KINDS}
        self._by_kind = {kind: dict(parameters.get(kind) or {}) for kind in _KINDS}
        self._handles: list[_Submitted] = []
        for kind in _KINDS:  # what is wrong is said before anything runs
            self._executor({**self._common, **self._by_kind[kind]})

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

    def parameters_of(self, job: Job) -> dict[str, Any]:
        """What a job is submitted with."""
        asked = {**self._common, **self._by_kind[job.kind]}
        if self.cluster != "slurm":
            return asked
        devices, nodes = devices_and_nodes(job)
        shape: dict[str, Any] = {"nodes": nodes, "tasks_per_node": devices}
        if job.config.get("trainer", {}).get("accelerator") != "cpu" and not any(key in asked for key in _GPUS):
            shape["gpus_per_node"] = devices
        if devices * nodes > 1:
            shape["slurm_srun_args"] = ["--kill-on-bad-exit=1"]
        return {**shape, **asked}

    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Submits the jobs as one array per kind of resources."""
        asked = [self.parameters_of(call[0]) for call in calls]
        arrays: dict[str, list[int]] = {}
        for at, parameters in enumerate(asked):
            arrays.setdefault(json.dumps(parameters, sort_keys=True, default=str), []).append(at)
        handles: dict[int, _Submitted] = {}
        for places in arrays.values():
            executor = self._executor(asked[places[0]])
            try:
                with executor.batch():
                    jobs = [executor.submit(_Requeued(self.function), *calls[at]) for at in places]
            except RuntimeError as error:
                raise ConfigError(f"slurm: the jobs were refused: {' '.join(str(error).split())}") from error
            found = dict(zip(places, map(_Submitted, jobs), strict=True))
            self._handles += found.values()
            handles |= found
        return [handles[at] for at in range(len(calls))]

    def close(self) -> None:
        """Takes back what has not ended."""
        for handle in self._handles:
            if not handle.done():
                handle.job.cancel()
