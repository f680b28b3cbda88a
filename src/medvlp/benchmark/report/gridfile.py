"""What the report takes from ``grid.json``: the jobs and their state, the cost of pre-training, the pictures' files.

The file is optional, and so is nearly everything in it: a results file of single runs has none.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvlp.errors import DataError
from medvlp.results import read_json

NAME = "grid.json"
"""Name of the file, beside the results."""

_REMEDY = "let medvlp benchmark run write it anew, or move it away to report without it"


FIGURES = (
    *("seconds", "samples_per_second", "peak_memory_mb"),
    *("parameters", "trainable_parameters", "energy_kwh", "watts"),
)
"""Names of the numbers of :class:`Cost`."""


@dataclass(frozen=True)
class Cost:
    """What a job cost; None for what was not measured.

    Attributes:
        seconds: wall time.
        samples_per_second: throughput of training.
        peak_memory_mb: highest memory of the device (of the process, on a CPU), in MiB.
        parameters: all of the model.
        trainable_parameters: those that were trained.
        energy_kwh: estimate: time times ``watts``.
        watts: the power that the estimate assumes.
        device: what it ran on.
    """

    seconds: float | None = None
    samples_per_second: float | None = None
    peak_memory_mb: float | None = None
    parameters: float | None = None
    trainable_parameters: float | None = None
    energy_kwh: float | None = None
    watts: float | None = None
    device: str | None = None

    @classmethod
    def of(cls, figures: Mapping[str, float | None], device: str | None) -> "Cost":
        """From the numbers by name (:data:`FIGURES`) and the device."""
        return cls(
            figures["seconds"],
            figures["samples_per_second"],
            figures["peak_memory_mb"],
            figures["parameters"],
            figures["trainable_parameters"],
            figures["energy_kwh"],
            figures["watts"],
            device,
        )


@dataclass(frozen=True)
class Job:
    """One job of the grid.

    Attributes:
        hash: content hash of the job.
        kind: "pretrain" or "task".
        state: "done", "failed", "waiting" and the like.
        method: name of the method's row in the grid.
        title: how tables print it.
        task: name of the task's column; None for pre-training.
        fraction: share of the training part.
        run: name of the combination of seeds.
        error: why it failed.
        log: its log, relative to the grid's folder.
        cost: what it cost.
    """

    hash: str
    kind: str
    state: str
    method: str
    title: str
    task: str | None = None
    fraction: float | None = None
    run: str | None = None
    error: str | None = None
    log: str | None = None
    cost: Cost | None = None


@dataclass(frozen=True)
class PanelFile:
    """A file of predictions on images that are shown for all methods.

    Attributes:
        method: name of the method's row in the grid.
        title: how tables print it.
        task: name of the task's column.
        kind: "grounding", "segmentation" or "detection".
        path: the ``.npz`` file.
    """

    method: str
    title: str
    task: str
    kind: str
    path: Path


@dataclass(frozen=True)
class Grid:
    """The file's content; empty where there is no file.

    Attributes:
        title: of the grid, or its name.
        jobs: all jobs.
        panels: the pictures' files.
        states: how many jobs are in each state.
    """

    title: str | None = None
    jobs: tuple[Job, ...] = ()
    panels: tuple[PanelFile, ...] = ()
    states: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "states", dict(Counter(job.state for job in self.jobs)))


def read_grid(folder: Path) -> Grid:
    """Reads ``grid.json`` of a folder.

    Returns:
        Its content; an empty grid where there is no such file.

    Raises:
        DataError: the file is no JSON, or an entry lacks what it must have.
    """
    path = folder / NAME
    if not path.exists():
        return Grid()
    content = read_json(path, _REMEDY)
    jobs = [_job(entry, f"{path}, job {n}") for n, entry in _entries(content, "jobs", path)]
    panels = [_panel(entry, f"{path}, panel {n}", folder) for n, entry in _entries(content, "panels", path)]
    title = content.get("title") or content.get("name")
    return Grid(str(title) if title is not None else None, tuple(jobs), tuple(panels))


def _entries(content: dict[str, Any], key: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    entries = content.get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: {key} is no list of objects; {_REMEDY}")
    return list(enumerate(entries, 1))


def _texts(entry: dict[str, Any], where: str, needed: tuple[str, ...]) -> dict[str, str]:
    if lost := [key for key in needed if entry.get(key) is None]:
        raise DataError(f"{where}: has no {', '.join(lost)}; {_REMEDY}")
    return {key: str(entry[key]) for key in needed}


def _number(entry: dict[str, Any], key: str, where: str) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: {key} is {value!r}, not a number; {_REMEDY}")
    try:
        return None if math.isnan(value) else float(value)
    except OverflowError:
        raise DataError(f"{where}: {key} is too large for a number; {_REMEDY}") from None


def _text(entry: dict[str, Any], key: str) -> str | None:
    return str(entry[key]) if entry.get(key) is not None else None


def _job(entry: dict[str, Any], where: str) -> Job:
    needed = _texts(entry, where, ("hash", "kind", "state", "method"))
    return Job(
        **needed,
        title=str(entry.get("title") or needed["method"]),
        fraction=_number(entry, "fraction", where),
        cost=_cost(entry.get("cost"), where),
        task=_text(entry, "task"),
        run=_text(entry, "run"),
        error=_text(entry, "error"),
        log=_text(entry, "log"),
    )


def _cost(entry: Any, where: str) -> Cost | None:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise DataError(f"{where}: cost is {entry!r}, not an object; {_REMEDY}")
    figures = {name: _number(entry, name, f"{where}, cost") for name in FIGURES}
    return Cost.of(figures, _text(entry, "device"))


def _panel(entry: dict[str, Any], where: str, folder: Path) -> PanelFile:
    needed = _texts(entry, where, ("method", "task", "kind", "file"))
    return PanelFile(
        needed["method"],
        str(entry.get("title") or needed["method"]),
        needed["task"],
        needed["kind"],
        folder / needed["file"],
    )
