"""Live table of a running benchmark."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medvlp.benchmark.jobs import Job
from medvlp.console import console

STATES = ("done", "running", "waiting", "failed", "blocked")


class Progress:
    """A live table on a terminal; elsewhere a line per job that ends.

    It writes to a copy of the standard output, because jobs of this process redirect theirs to their logs.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.states: dict[str, str] = {job.hash: "waiting" for job in jobs}
        self._started: dict[str, float] = {}
        self._left = 0.0
        self._file = os.fdopen(os.dup(1), "w", buffering=1)
        self.console = console(file=self._file)
        self._live = Live(get_renderable=self._draw, console=self.console, refresh_per_second=2, transient=False)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()
        self._file.close()

    def set(self, job: Job, state: str, note: str = "") -> None:
        """Set the state of a job, and print it if the job has ended."""
        self.states[job.hash] = state
        if state == "running":
            self._started[job.hash] = time.monotonic()
            return
        started = self._started.pop(job.hash, None)
        time_text = "" if started is None else f"  {time.monotonic() - started:.0f} s"
        count = Counter(self.states.values())
        text = f"{state:8} {job.name}{time_text}  {count['done']}/{len(self.jobs)}  {note}".rstrip()
        if not self.console.is_terminal or state != "done":
            self.console.print(Text(text, style="red" if state in ("failed", "blocked") else ""), soft_wrap=True)

    def estimate(self, seconds: float) -> None:
        """Set the estimated time that is left."""
        self._left = seconds

    def _draw(self) -> Group:
        table = Table(title="medvlp benchmark")
        table.add_column("task")
        for state in STATES:
            table.add_column(state, justify="right")
        groups: dict[str, Counter[str]] = {}
        for job in self.jobs:
            groups.setdefault(job.task or "pre-training", Counter())[self.states[job.hash]] += 1
        for name, count in groups.items():
            table.add_row(name, *(str(count[state] or "") for state in STATES))
        now = time.monotonic()
        running = [job for job in self.jobs if self.states[job.hash] == "running"]
        lines = [f"{job.name}  {now - self._started.get(job.hash, now):.0f} s" for job in running[:8]]
        if len(running) > 8:
            lines.append(f"and {len(running) - 8} more")
        return Group(table, *lines, f"about {duration(self._left)} left" if self._left else "")


def duration(seconds: float) -> str:
    """Format seconds as "5 s", "2 min" or "2 h 30 min"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(states: Mapping[str, str]) -> str:
    """Format the states as "3 done, 1 failed"."""
    count = Counter(states.values())
    return ", ".join(f"{count[state]} {state}" for state in STATES if count[state]) or "nothing to do"
