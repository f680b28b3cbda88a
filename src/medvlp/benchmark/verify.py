"""``medvlp benchmark verify``: compute every number of a results file again from the saved predictions."""

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from medvlp.benchmark.gridfile import NAME, GridFile
from medvlp.benchmark.resampled import Predictions, RowError, measures_of, predictions_path, samples_of
from medvlp.benchmark.rows import collected, records
from medvlp.console import console, progress_bar
from medvlp.metrics.bootstrap import interval
from medvlp.results import numbered_rows
from medvlp.store import file_sha256, value_sha256
from medvlp.tasks.base import bootstrap_seed

TOLERANCE = 1e-6
"""Largest difference that counts as rounding: another processor sums in another order."""

KINDS = {
    "cut line": "a line of the file is no result row",
    "no predictions": "the predictions file is missing, or the row names none",
    "changed predictions": "the predictions file is not the one that the row was written with",
    "unreadable predictions": "the predictions file is damaged",
    "no facts": "written before facts were recorded: the number cannot be computed again",
    "changed value": "the predictions give another number",
    "changed interval": "the predictions give another interval",
    "no checkpoint": "a checkpoint of the grid is missing",
    "changed checkpoint": "a checkpoint of the grid is not the one that its results came from",
}
"""Kinds of faults."""


@dataclass(frozen=True)
class Fault:
    """A check that failed: one of :data:`KINDS`, the file with its lines, what is wrong, and the number of rows."""

    kind: str
    place: str
    what: str
    rows: int = 1


@dataclass
class Verification:
    """The faults that :func:`verify` found, in order, and the numbers of rows, values, intervals and files checked."""

    faults: list[Fault] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, place: str, what: str, rows: int = 1) -> None:
        """Add a fault."""
        self.faults.append(Fault(kind, place, what, rows))


def verify(
    path: str | Path, *, checkpoints: bool = True, resamples: bool = True, progress: bool = False
) -> Verification:
    """Check a results file against the files beside it.

    Each predictions file is hashed and scored once, by its task's own measures; the value, the number of samples and
    patients, and the interval (from the same resamples) of the rows are compared, to :data:`TOLERANCE`. The
    checkpoints that ``grid.json`` names are hashed.

    Args:
        path: a results file.
        checkpoints: hash the checkpoints.
        resamples: compute the intervals again, which takes most of the time.
        progress: show a bar.

    Raises:
        DataError: the file does not exist, has no row, or has an invalid row.
    """
    path = Path(path)
    result = Verification()
    for line in numbered_rows(path)[1]:
        result.add("cut line", f"{path}:{line}", "no result row; cut short by an interrupted run?")
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in records(collected(path, latest=False)):
        key = [row["task"], row.get("predictions"), row.get("predictions_sha256"), row.get("notes")]
        runs.setdefault(value_sha256(key), []).append(row)
    with progress_bar("predictions", len(runs), show=progress) as update:
        for rows in runs.values():
            _verify_run(rows, path, resamples, result)
            update(advance=1)
    if checkpoints:
        _verify_checkpoints(path.parent, result)
    return result


def _verify_run(rows: list[dict[str, Any]], path: Path, resamples: bool, result: Verification) -> None:
    """Check all rows of one predictions file."""
    result.checked["rows"] += len(rows)
    first, folder = rows[0], path.parent
    try:
        file = predictions_path(first, folder)
        result.checked["prediction files"] += 1
        if file_sha256(file) != first.get("predictions_sha256"):
            raise RowError("changed predictions", f"the SHA-256 of {file} is not the row's; run the evaluation again")
        predictions, measures = samples_of(first, folder), measures_of(first)
    except RowError as error:
        lines = _ranges([row["line"] for row in rows])
        result.add(error.kind, f"{path}:{lines}", f"{_name(first)}: {error}", len(rows))
        return
    values = {name: float(value) for name, value in measures(predictions.samples, None).items()}
    intervals: dict[tuple[int, float], Mapping[str, tuple[float, float]]] = {}
    for row in rows:
        place, name = f"{path}:{row['line']}", f"{_name(row)}, {row['metric']}"
        result.checked["values"] += 1
        for text in _changes(row, values, predictions):
            result.add("changed value", place, f"{name}: {text}")
        if not resamples or not row.get("resamples"):
            continue
        settings = int(row["resamples"]), float(row["level"])
        if settings not in intervals:
            seed = bootstrap_seed(len(predictions.samples))
            intervals[settings] = interval(measures, predictions.samples, predictions.codes, *settings, seed)
        result.checked["intervals"] += 1
        low, high = intervals[settings].get(row["metric"], (math.nan, math.nan))
        if not (_equal(row["low"], low) and _equal(row["high"], high)):
            text = f"{row['low']} to {row['high']} was written, {low} to {high} found"
            result.add("changed interval", place, f"{name}: {text}")


def _changes(row: Mapping[str, Any], values: Mapping[str, float], predictions: Predictions) -> Iterator[str]:
    if row["metric"] not in values:
        yield "this version of medvlp has no such metric"
    elif not _equal(row["value"], values[row["metric"]]):
        yield f"{row['value']} was written, {values[row['metric']]} found"
    counts = {"samples": len(predictions.ids), "groups": len(set(predictions.groups))}
    for name, count in counts.items():
        if row.get(name) not in (None, count):
            yield f"{row[name]} {name} were written, {count} found"


def _equal(written: float | None, computed: float) -> bool:
    if written is None or math.isnan(written):
        return math.isnan(computed)
    return abs(written - computed) <= TOLERANCE * max(1.0, abs(written))


def _verify_checkpoints(folder: Path, result: Verification) -> None:
    hash_of = cache(file_sha256)  # one checkpoint serves many jobs, and may be large
    for job in GridFile.read(folder).jobs:
        if not job.checkpoint or not job.checkpoint_sha256:
            continue
        what = f"checkpoint of {job.title or job.method}, run {job.run}"
        file = folder / job.checkpoint
        if not file.is_file():
            result.add("no checkpoint", str(file), f"{what} does not exist; its job can be run again")
        elif hash_of(file) != job.checkpoint_sha256:
            text = f"{what}: its SHA-256 is not the recorded one; run its jobs again"
            result.add("changed checkpoint", str(file), text)
    if (folder / NAME).is_file():
        result.checked["checkpoints"] = hash_of.cache_info().currsize


def _name(row: Mapping[str, Any]) -> str:
    fraction = "" if row.get("fraction") is None else f" {row['fraction']:g}"
    return f"{row['bm_method']}, {row['bm_task']}{fraction}, {row['bm_run']}"


def _ranges(lines: Sequence[int]) -> str:
    """Format ascending numbers as "1-9, 12"."""
    series = pd.Series(lines)
    runs = series.groupby((series.diff() != 1).cumsum())
    return ", ".join(f"{run.min()}-{run.max()}" if len(run) > 1 else f"{run.min()}" for _, run in runs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``medvlp benchmark verify``."""
    parser.add_argument("results", type=Path, help="results file of medvlp benchmark run, or of single runs")
    options = {"--checkpoints": "hash the checkpoints of grid.json", "--resamples": "compute the intervals again"}
    for name, text in options.items():
        parser.add_argument(name, action=argparse.BooleanOptionalAction, default=True, help=text)


def run(args: argparse.Namespace) -> int:
    """Check the file and print the faults; return 1 if there are any, otherwise 0."""
    terminal = console()
    result = verify(args.results, checkpoints=args.checkpoints, resamples=args.resamples, progress=True)
    if result.faults:
        table = Table(title=f"{args.results}: what does not hold")
        for column in ("what", "where", "which"):
            table.add_column(column, overflow="fold")
        for fault in result.faults:
            table.add_row(fault.kind, fault.place, fault.what)
        terminal.print(table)
    counts = ", ".join(f"{count} {name}" for name, count in result.checked.items())
    terminal.print(f"checked: {counts}")
    if not result.faults:
        terminal.print("all of it holds")
    for kind, meaning in KINDS.items():
        if count := sum(fault.rows for fault in result.faults if fault.kind == kind):
            terminal.print(f"{kind}: {count} ({meaning})", style="red")
    return int(bool(result.faults))
