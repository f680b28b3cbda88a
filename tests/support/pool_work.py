"""What the tests of executors hand to processes of their own; it imports no torch, as the runner does not."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from medvlp.benchmark.jobs import Job


def job(name: str, kind: Any = "task", **trainer: Any) -> Job:
    """A job of which executors need the name and the trainer alone."""
    return Job(kind, name, name, "", None, "a", {}, {"trainer": {"accelerator": "cpu", **trainer}})


def around(given: Job, *rest: Any) -> dict[str, Any]:
    """What a job sees around it."""
    import torch

    return {
        "state": "done",
        "name": given.method,
        "pid": os.getpid(),
        "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": torch.get_num_threads(),
    }


def dies(given: Job, how: str = "") -> dict[str, Any]:
    """Ends its process in the named way, if it is named one."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exits":
        os._exit(3)
    if how == "terminated":
        raise SystemExit(128 + signal.SIGTERM)
    return {"state": "done", "name": given.method}


def waits(given: Job, folder: Path, seconds: float) -> dict[str, Any]:
    """Says in a file that it is there, and goes on writing to it for some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        (folder / given.method).write_text(f"{os.getpid()} {time.time()}")
        time.sleep(0.05)
    return {"state": "done"}


def second_time_lucky(given: Job, folder: Path) -> dict[str, Any]:
    """Waits to be interrupted the first time, and is done the second time."""
    started = folder / f"{given.method}.started"
    if started.exists():
        return {"state": "done", "pid": os.getpid(), "first": int(started.read_text())}
    started.write_text(str(os.getpid()))
    time.sleep(60)
    return {"state": "failed", "error": "nobody interrupted it"}


def fails_in_second_process(given: Job) -> dict[str, Any]:
    """Of a job of several processes, one fails."""
    from submitit import JobEnvironment

    rank = JobEnvironment().global_rank
    return {"state": "failed", "error": "no space left"} if rank == 1 else {"state": "done", "rank": rank}
