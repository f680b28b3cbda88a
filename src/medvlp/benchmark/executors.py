"""Where jobs run: in this process, in local processes with a device each, or through SLURM."""

import multiprocessing
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from medvlp.errors import ConfigError

Work = Callable[..., dict[str, Any]]
"""A picklable function and what it is given; its note of how the job ended comes back."""


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
    """One job after the other in this process.

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


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: a killed run must leave nobody behind who writes its files."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _initialise(parent: int, device: str | None, threads: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    # before torch is imported, by which it is read
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
        self._pools: list[ProcessPoolExecutor | None] = [None] * workers
        self._busy: list[Future | None] = [None] * workers

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        pool = self._pools[slot]
        if pool is None:
            device = self.devices[slot % len(self.devices)] if self.devices else None
            threads = max(1, len(os.sched_getaffinity(0)) // self.capacity)
            pool = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_initialise,
                initargs=(os.getpid(), device, threads),
            )
            self._pools[slot] = pool
        return pool

    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Hands each job to a free process."""
        handles = []
        for call in calls:
            slot = next(i for i, busy in enumerate(self._busy) if busy is None or busy.done())
            busy = self._busy[slot]
            if busy is not None and busy.exception() is not None:
                self._pools[slot] = None  # the process died; whatever is left of it goes with the old pool
            handle = self._pool(slot).submit(self.function, *call)
            self._busy[slot] = handle
            handles.append(handle)
        return handles

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for pool in self._pools:
            if pool is not None:
                # there is no public way to end a process in the middle of its work before Python 3.14
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                pool.shutdown(wait=False, cancel_futures=True)


class _Requeued:
    """A job as SLURM sees it: preempted or out of time, it is queued again and goes on from its checkpoint.

    Args:
        function: what the job is.
    """

    def __init__(self, function: Work) -> None:
        self.function = function

    def __call__(self, *call: Any) -> dict[str, Any]:
        return self.function(*call)

    def checkpoint(self, *call: Any) -> Any:
        """What submitit submits in the place of an interrupted job: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *call)


class Submitit(Executor):
    """SLURM through submitit: the jobs that are ready at a time become one job array.

    Args:
        function: what a job is.
        folder: for submitit's files, seen by all nodes.
        parameters: of submitit's executor, such as ``timeout_min``, ``slurm_partition``, ``gpus_per_node``.
        cluster: "slurm", or "local" for processes of this machine.

    Raises:
        ConfigError: submitit is not installed, or knows no such parameter.
    """

    capacity = 10**6

    def __init__(self, function: Work, folder: Path, parameters: dict[str, Any], cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("the SLURM executor needs submitit: pip install 'medvlp[slurm]'") from error
        self.function = function
        self._handles: list[Any] = []
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self.executor.update_parameters(**{"name": "medvlp", **parameters})
        except (NameError, TypeError, RuntimeError) as error:
            raise ConfigError(f"slurm: {' '.join(str(error).split())}") from error

    def submit(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Submits the jobs as one array."""
        with self.executor.batch():
            handles = [self.executor.submit(_Requeued(self.function), *call) for call in calls]
        self._handles += handles
        return handles

    def close(self) -> None:
        """Takes back what has not ended."""
        for handle in self._handles:
            if not handle.done():
                handle.cancel()
