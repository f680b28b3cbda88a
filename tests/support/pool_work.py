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


def hangs(given: Job, folder: Path) -> dict[str, Any]:
    """Says in a file which process it is, and hears no signal, as a job that hangs in native code."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write(folder / given.method, str(os.getpid()))
    while True:
        time.sleep(1)


def write(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def second_time_lucky(given: Job, folder: Path) -> dict[str, Any]:
    """Waits to be interrupted the first time, and is done the second time."""
    started = folder / f"{given.method}.started"
    if started.exists():
        return {"state": "done", "pid": os.getpid(), "first": int(started.read_text())}
    write(started, str(os.getpid()))
    while True:
        time.sleep(1)


def fails_in_second_process(given: Job) -> dict[str, Any]:
    """Of a job of several processes, one fails."""
    from submitit import JobEnvironment

    rank = JobEnvironment().global_rank
    return {"state": "failed", "error": "no space left"} if rank == 1 else {"state": "done", "rank": rank}
