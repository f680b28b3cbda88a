"""``grid.json`` beside a benchmark's results: methods, tasks, jobs with their costs, and files of predictions."""

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin

import pandas as pd

from medvlp.errors import DataError
from medvlp.results import read_json
from medvlp.store import atomic_write

NAME = "grid.json"
_REMEDY = "run medvlp benchmark run again, which writes it, or move it away"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a training, as :class:`~medvlp.benchmark.callbacks.CostMeter` measured it; None if not measured."""

    seconds: float | None = None
    samples: float | None = None
    samples_per_second: float | None = None
    peak_memory_mb: float | None = None
    parameters: float | None = None
    trainable_parameters: float | None = None
    device: str | None = None
    watts: float | None = None
    energy_kwh: float | None = None


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A :class:`~medvlp.benchmark.jobs.Job` and how it ended; paths are relative to the folder of ``grid.json``."""

    hash: str
    kind: str
    method: str
    title: str = ""
    task: str | None = None
    fraction: float | None = None
    run: str | None = None
    seeds: dict[str, Any] | None = None
    needs: str | None = None
    state: str
    seconds: float | None = None
    log: str | None = None
    error: str | None = None
    checkpoint: str | None = None
    checkpoint_sha256: str | None = None
    cost: Cost | None = None


@dataclass(frozen=True, kw_only=True)
class PanelRecord:
    """A method's predictions on the images that the page shows for all methods.

    ``kind`` is "grounding", "segmentation" or "detection"; ``file`` is relative to the folder of ``grid.json``.
    """

    method: str
    title: str = ""
    task: str
    kind: str
    file: str


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """Title of a task, and the metric that the grid asks for; "" for the task's primary one."""

    title: str
    metric: str = ""


@dataclass(frozen=True, kw_only=True)
class GridFile:
    """Content of ``grid.json``.

    ``methods`` (names to titles) and ``tasks`` are in the order of tables, ``runs`` holds the combinations of seeds,
    ``cannot`` the tasks of each method for which tables print "/", ``medvlp`` the version that wrote the file.
    """

    name: str | None = None
    title: str | None = None
    medvlp: str | None = None
    methods: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    cannot: dict[str, list[str]] = field(default_factory=dict)
    watts: float | None = None
    jobs: list[JobRecord]
    panels: list[PanelRecord] = field(default_factory=list)

    @classmethod
    def read(cls, folder: str | Path, frame: pd.DataFrame | None = None) -> Self:
        """Read and check the file of a folder; without it, as beside results of single runs, all is empty.

        Methods and tasks that only the rows in ``frame`` name (:func:`medvlp.benchmark.rows.collected`) are appended.
        """
        path = Path(folder) / NAME
        grid = record_of(cls, read_json(path, _REMEDY), f"{path}:") if path.exists() else cls(jobs=[])
        if frame is None:
            return grid
        first = frame.drop_duplicates("bm_method")
        methods = dict(zip(first["bm_method"].astype(str), first["bm_title"].astype(str), strict=True))
        tasks = {name: TaskRecord(title=name) for name in frame["bm_task"].unique()}
        # the order and the titles of the file come first
        methods, tasks = {**grid.methods, **methods, **grid.methods}, {**grid.tasks, **tasks, **grid.tasks}
        return replace(grid, methods=methods, tasks=tasks)

    def write(self, folder: Path) -> None:
        """Write the file, replacing that of the folder."""
        with atomic_write(folder / NAME, "w") as file:
            json.dump(asdict(self), file, indent=1)


def record_of(kind: Any, value: Any, where: str) -> Any:
    """Build a class of this module, or a type of its annotations, from JSON; unknown keys are ignored.

    Raises:
        DataError: a required key is missing, or a value has another type; ``where`` names file and entry.
    """
    options = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if kind is Any or (value is None and NoneType in options):
        return value
    plain: Any = get_origin(options[0]) or options[0]
    expected: Any = {float: int | float}.get(plain, dict if is_dataclass(plain) else plain)
    if not isinstance(value, expected) or isinstance(value, bool):
        raise DataError(f"{where} is {value!r:.60}, not {plain.__name__}; {_REMEDY}")
    if plain is float:
        return _finite(value, where)
    if plain is list:
        return [record_of(get_args(kind)[0], entry, f"{where}[{n}]") for n, entry in enumerate(value)]
    if plain is dict:
        entry_type = get_args(options[0])[1]
        return {name: record_of(entry_type, entry, f"{where}[{name!r}]") for name, entry in value.items()}
    if not is_dataclass(plain):
        return value
    given = {f.name: (f.type, value[f.name]) for f in fields(plain) if value.get(f.name) is not None}
    required = (f.name for f in fields(plain) if f.default is MISSING and f.default_factory is MISSING)
    if missing := [name for name in required if name not in given]:
        raise DataError(f"{where} has no {', '.join(missing)}; {_REMEDY}")
    return options[0](**{name: record_of(*typed, f"{where} {name}") for name, typed in given.items()})


def _finite(value: float, where: str) -> float | None:
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        raise DataError(f"{where} is too large for a number; {_REMEDY}") from None
