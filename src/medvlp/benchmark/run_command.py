"""``medvlp benchmark run``."""

import argparse
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from medvlp.benchmark.executors import Executor, InProcess, LocalPool, Submitit, end_after_signal
from medvlp.benchmark.grid import Grid, read_grid
from medvlp.benchmark.jobs import expand
from medvlp.benchmark.progress import Progress, counted, duration
from medvlp.benchmark.runner import Runner, estimates
from medvlp.benchmark.work import run_job
from medvlp.console import console
from medvlp.errors import ConfigError

EXECUTORS = ("process", "pool", "slurm", "submitit-local")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medvlp benchmark run``."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="GRID", help="the grid, a YAML file")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs with estimates of time and disk space")
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
        "--timeout-min", type=float, metavar="MINUTES", help="time limit of each job, instead of the grid's"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="methods or tasks of the grid")
    parser.add_argument("--no-retry", action="store_true", help="skip jobs that failed before")
    parser.add_argument(
        "--drop-features",
        action="store_true",
        help="delete the stored features of frozen encoders once every job of the grid is done",
    )
    parser.add_argument("--work", type=Path, help="output folder, instead of the grid's")


def run(args: argparse.Namespace) -> int:
    """Run the jobs of a grid; return 0 if every job is done, 1 if one failed.

    Raises:
        ConfigError: the grid or an option is wrong.
    """
    grid = read_grid(args.config)
    if args.work:
        grid = replace(grid, work=str(args.work))
    if args.timeout_min is not None:
        if not args.timeout_min > 0:
            raise ConfigError(f"--timeout-min is {args.timeout_min}; give minutes above 0")
        grid = replace(grid, timeout_min=args.timeout_min)
    jobs = expand(grid)
    runner = Runner(grid, jobs, only=args.only, retry=not args.no_retry, drop_features=args.drop_features)
    if args.dry_run:
        _show(runner)
        return 0
    executor = _executor(args, grid, any(job.timeout_min is not None for job in runner.requested))
    with Progress(runner.requested) as progress:
        try:
            states = runner.run(executor, progress)
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a signal that ended a job
            text = counted({h: "waiting" if state == "running" else state for h, state in progress.states.items()})
            print(f"interrupted: {text}; the same command resumes", file=sys.stderr)
            raise
    print(f"{counted(states)}; rows in {grid.folder / 'results.jsonl'}")
    return int(any(state != "done" for state in states.values()))


def _executor(args: argparse.Namespace, grid: Grid, timed: bool) -> Executor:
    if args.executor == "process":
        if timed:  # a job that hangs cannot be stopped in this process
            return LocalPool(run_job, 1)
        end_after_signal()
        return InProcess(run_job)
    if args.executor == "pool":
        devices = args.devices or _cuda_devices()
        return LocalPool(run_job, args.workers or len(devices) or len(os.sched_getaffinity(0)), devices)
    if args.devices or args.workers:
        raise ConfigError("--devices and --workers need --executor pool; for SLURM see slurm: in the grid")
    cluster = "slurm" if args.executor == "slurm" else "local"
    return Submitit(run_job, grid.folder / "submitit", grid.slurm, cluster)


def _cuda_devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _show(runner: Runner) -> None:
    """Print the jobs with their estimates, and the sum of what is left."""
    estimate, states = estimates(runner.work, runner.jobs), runner.states()
    table = Table(title=f"{runner.grid.title or runner.grid.name}: {len(runner.requested)} jobs")
    for column in ("job", "state", "time", "disk"):
        table.add_column(column, justify="left" if column in ("job", "state") else "right", no_wrap=column == "job")
    for job in runner.requested:
        seconds, size = estimate[job.hash]
        table.add_row(job.name, states[job.hash], duration(seconds), f"{size / 1e6:.0f} MB")
    left = [job for job in runner.requested if states[job.hash] != "done"]
    terminal = console()
    terminal.print(table)
    kinds = Counter(job.kind for job in left)
    seconds, size = (sum(estimate[job.hash][i] for job in left) for i in (0, 1))
    terminal.print(
        f"left: {kinds['pretrain']} pre-trainings and {kinds['task']} tasks, about {duration(seconds)} one after "
        f"the other and {size / 1e9:.2f} GB (measured on finished jobs, else estimated by the grid), without "
        "the stored features of frozen encoders, whose size each job logs"
    )
