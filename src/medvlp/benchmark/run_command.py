"""``medvlp benchmark run``."""

import argparse
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from medvlp.benchmark.executors import Executor, InProcess, LocalPool, Submitit, end_after_signal
from medvlp.benchmark.grid import Grid, read_grid
from medvlp.benchmark.jobs import expand
from medvlp.benchmark.progress import Progress, counted, duration
from medvlp.benchmark.runner import Runner, guess
from medvlp.benchmark.work import run_job
from medvlp.errors import ConfigError

EXECUTORS = ("process", "pool", "slurm", "submitit-local")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``medvlp benchmark run``."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="GRID", help="the grid, a YAML file")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs, and about what time and disk they take")
    parser.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="process",
        help="process: one job after the other in this process (default); pool: local processes, a device each; "
        "slurm: submitit, one job array; submitit-local: submitit's processes on this machine",
    )
    parser.add_argument("--workers", type=int, help="processes of the pool (default: the devices, else the cores)")
    parser.add_argument("--devices", nargs="+", metavar="N", help="CUDA devices of the pool")
    parser.add_argument(
        "--timeout-min", type=float, metavar="MINUTES", help="end a job after this time; in the place of the grid's"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="methods or tasks of the grid")
    parser.add_argument("--no-retry", action="store_true", help="leave jobs that failed before")
    parser.add_argument(
        "--drop-features",
        action="store_true",
        help="delete the stored features of frozen encoders once every job of the grid is done",
    )
    parser.add_argument("--work", type=Path, help="folder of everything that comes out, in the place of the grid's")


def run(args: argparse.Namespace) -> int:
    """``medvlp benchmark run``.

    Returns:
        0 if every job is done, 1 if one failed.

    Raises:
        ConfigError: from the grid.
    """
    grid = read_grid(args.config)
    if args.work:
        grid = Grid(**{**vars(grid), "work": str(args.work)})
    if args.timeout_min is not None:
        if not args.timeout_min > 0:
            raise ConfigError(f"--timeout-min is {args.timeout_min}; give minutes above 0")
        grid = replace(grid, timeout_min=args.timeout_min)
    jobs = expand(grid)
    runner = Runner(grid, jobs, only=args.only, retry=not args.no_retry, drop_features=args.drop_features)
    if args.dry_run:
        _show(runner)
        return 0
    executor = _executor(args, grid, any(job.timeout_min is not None for job in runner.wanted))
    with Progress(runner.wanted) as progress:
        try:
            states = runner.run(executor, progress)
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a signal that a job was ended by
            text = counted({h: "waiting" if state == "running" else state for h, state in progress.states.items()})
            print(f"ended before it was done: {text}; the same command goes on from there", file=sys.stderr)
            raise
    print(f"{counted(states)}; rows in {grid.folder / 'results.jsonl'}")
    return int(any(state != "done" for state in states.values()))


def _executor(args: argparse.Namespace, grid: Grid, timed: bool) -> Executor:
    if args.executor == "process":
        if timed:  # a job that hangs cannot be ended in this process
            return LocalPool(run_job, 1)
        end_after_signal()
        return InProcess(run_job)
    if args.executor == "pool":
        devices = args.devices or _cuda_devices()
        return LocalPool(run_job, args.workers or len(devices) or len(os.sched_getaffinity(0)), devices)
    if args.devices or args.workers:
        raise ConfigError("--devices and --workers belong to the pool; for SLURM see slurm: in the grid")
    cluster = "slurm" if args.executor == "slurm" else "local"
    return Submitit(run_job, grid.folder / "submitit", grid.slurm, cluster)


def _cuda_devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _show(runner: Runner) -> None:
    """The jobs by group, each with what it will take, and the sum of what is left."""
    estimate, states = guess(runner.work, runner.jobs), runner.states()
    table = Table(title=f"{runner.grid.title or runner.grid.name}: {len(runner.wanted)} jobs")
    for column in ("job", "state", "time", "disk"):
        table.add_column(column, justify="left" if column in ("job", "state") else "right", no_wrap=column == "job")
    for job in runner.wanted:
        seconds, size = estimate[job.hash]
        table.add_row(job.name, states[job.hash], duration(seconds), f"{size / 1e6:.0f} MB")
    left = [job for job in runner.wanted if states[job.hash] != "done"]
    console = Console(markup=False)
    console.print(table)
    kinds = Counter(job.kind for job in left)
    seconds, size = (sum(estimate[job.hash][i] for job in left) for i in (0, 1))
    console.print(
        f"left: {kinds['pretrain']} pre-trainings and {kinds['task']} tasks, about {duration(seconds)} one after the "
        f"other and {size / 1e9:.2f} GB (measured on jobs that are done, else guessed by the grid); stored features of "
        "frozen encoders come on top, whose size each job says"
    )
