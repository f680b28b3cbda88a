"""``medvlp benchmark verify``: every number of a results file once more, from the saved predictions."""

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from medvlp.benchmark.gridfile import NAME, GridFile
from medvlp.benchmark.recompute import FactsMissingError, Predictions, measures_of, samples_of
from medvlp.benchmark.rows import collected, line_numbers, records
from medvlp.errors import DataError
from medvlp.metrics.bootstrap import interval
from medvlp.store import sha256_of
from medvlp.tasks.base import bootstrap_seed

TOLERANCE = 1e-6
"""Largest difference that is rounding: another processor sums in another order."""

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
"""What can fail, and what it means."""


@dataclass(frozen=True)
class Fault:
    """Something that does not hold.

    Attributes:
        kind: one of :data:`KINDS`.
        place: the file, with the lines where it is a file of rows.
        what: which row or file, and what is wrong with it.
        rows: how many rows it concerns.
    """

    kind: str
    place: str
    what: str
    rows: int = 1


@dataclass
class Verification:
    """What was checked, and what of it failed.

    Attributes:
        faults: in the order they were found.
        checked: what to how many: rows, values, intervals, prediction files, checkpoints.
    """

    faults: list[Fault] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, place: str, what: str, rows: int = 1) -> None:
        """Notes a fault."""
        self.faults.append(Fault(kind, place, what, rows))


def verify(
    path: str | Path, *, checkpoints: bool = True, resamples: bool = True, progress: bool = False
) -> Verification:
    """Checks a results file against what lies beside it.

    Each predictions file is hashed and scored once, by its task's own measures; of the rows the value, the number of
    samples and patients, and the interval (from the same resamples) are compared, to :data:`TOLERANCE`. Where a
    ``grid.json`` lies beside it, the checkpoints that it names are hashed.

    Args:
        path: a results file.
        checkpoints: hash the checkpoints.
        resamples: compute the intervals again, which takes most of the time.
        progress: show a bar.

    Raises:
        DataError: there is no such file, no row in it, or one without its keys.
    """
    path = Path(path)
    found = Verification()
    for line in line_numbers(path)[1] if path.is_file() else ():
        found.add("cut line", f"{path}:{line}", "no result row; cut short by an interrupted run?")
    rows = records(collected(path, latest=False))
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        key = [row["task"], row.get("predictions"), row.get("predictions_sha256"), row.get("notes")]
        runs.setdefault(sha256_of(key), []).append(row)
    for own in track(list(runs.values()), "predictions", disable=not progress, transient=True):
        _verify_run(own, path, resamples, found)
    if checkpoints:
        _verify_checkpoints(path.parent, found)
    return found


def _verify_run(rows: list[dict[str, Any]], path: Path, resamples: bool, found: Verification) -> None:
    """All rows of one predictions file."""
    found.checked["rows"] += len(rows)
    fault = _of_file(rows[0], path.parent, found)
    if fault is None:
        try:
            predictions = samples_of(rows[0], path.parent)
            measures = measures_of(rows[0])
        except FactsMissingError as error:
            fault = "no facts", str(error)
        except DataError as error:
            fault = "unreadable predictions", str(error)
    if fault is not None:
        place = f"{path}:{_ranges([row['line'] for row in rows])}"
        found.add(fault[0], place, f"{_name(rows[0])}: {fault[1]}", len(rows))
        return
    values = {name: float(value) for name, value in measures(predictions.samples, None).items()}
    intervals: dict[tuple[int, float], Mapping[str, tuple[float, float]]] = {}
    for row in rows:
        place, name = f"{path}:{row['line']}", f"{_name(row)}, {row['metric']}"
        for wrong in _compared(row, values, predictions, found):
            found.add("changed value", place, f"{name}: {wrong}")
        if not resamples or not row.get("resamples"):
            continue
        how = int(row["resamples"]), float(row["level"])
        if how not in intervals:
            seed = bootstrap_seed(len(predictions.samples))
            intervals[how] = interval(measures, predictions.samples, predictions.codes, *how, seed)
        found.checked["intervals"] += 1
        low, high = intervals[how].get(row["metric"], (math.nan, math.nan))
        if not (_equal(row["low"], low) and _equal(row["high"], high)):
            found.add(
                "changed interval", place, f"{name}: {row['low']} to {row['high']} was written, {low} to {high} found"
            )


def _of_file(row: Mapping[str, Any], folder: Path, found: Verification) -> tuple[str, str] | None:
    """What is wrong with the predictions file as a file, if anything."""
    name = row.get("predictions")
    if not isinstance(name, str):
        return "no predictions", "the row names no predictions file; run the evaluation again"
    file = folder / name
    if not file.is_file():
        return "no predictions", f"{file} does not exist; copy it there or run the evaluation again"
    found.checked["prediction files"] += 1
    if sha256_of(file) != row.get("predictions_sha256"):
        return "changed predictions", f"the SHA-256 of {file} is not the row's; run the evaluation again"
    return None


def _compared(
    row: Mapping[str, Any], values: Mapping[str, float], predictions: Predictions, found: Verification
) -> Iterable[str]:
    found.checked["values"] += 1
    if row["metric"] not in values:
        yield "this version of medvlp has no such metric"
    elif not _equal(row["value"], values[row["metric"]]):
        yield f"{row['value']} was written, {values[row['metric']]} found"
    counts = {"samples": len(predictions.ids), "groups": len(set(predictions.groups))}
    for name, count in counts.items():
        if row.get(name) is not None and row[name] != count:
            yield f"{row[name]} {name} were written, {count} found"


def _equal(written: float | None, computed: float) -> bool:
    if written is None or math.isnan(written):
        return math.isnan(computed)
    return abs(written - computed) <= TOLERANCE * max(1.0, abs(written))


def _verify_checkpoints(folder: Path, found: Verification) -> None:
    """The checkpoints that ``grid.json`` names, if there is one."""
    known: dict[str, str] = {}  # one checkpoint serves many jobs, and may be large
    for job in GridFile.read(folder).jobs:
        if not job.checkpoint or not job.checkpoint_sha256:
            continue
        what = f"checkpoint of {job.title or job.method}, run {job.run}"
        file = folder / job.checkpoint
        if not file.is_file():
            found.add("no checkpoint", str(file), f"{what} does not exist; its job can be run again")
            continue
        if job.checkpoint not in known:
            known[job.checkpoint] = sha256_of(file)
        if known[job.checkpoint] != job.checkpoint_sha256:
            found.add(
                "changed checkpoint", str(file), f"{what}: its SHA-256 is not the recorded one; run its jobs again"
            )
    if (folder / NAME).is_file():
        found.checked["checkpoints"] = len(known)


def _name(row: Mapping[str, Any]) -> str:
    fraction = "" if row.get("fraction") is None else f" {row['fraction']:g}"
    return f"{row['bm_method']}, {row['bm_task']}{fraction}, {row['bm_run']}"


def _ranges(lines: Sequence[int]) -> str:
    """Ascending numbers as "1-9, 12"."""
    parts: list[list[int]] = []
    for line in lines:
        if parts and line == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], line]
        else:
            parts.append([line])
    return ", ".join("-".join(map(str, part)) for part in parts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``medvlp benchmark verify``."""
    parser.add_argument("results", type=Path, help="results file of medvlp benchmark run, or of single runs")
    parser.add_argument(
        "--checkpoints",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="hash the checkpoints that grid.json names",
    )
    parser.add_argument(
        "--resamples",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute the intervals again as well",
    )


def run(args: argparse.Namespace) -> int:
    """Checks the file and prints what failed.

    Returns:
        1 if anything failed, otherwise 0.
    """
    console = Console(markup=False)
    found = verify(args.results, checkpoints=args.checkpoints, resamples=args.resamples, progress=console.is_terminal)
    if found.faults:
        table = Table(title=f"{args.results}: what does not hold")
        for column in ("what", "where", "which"):
            table.add_column(column, overflow="fold")
        for fault in found.faults:
            table.add_row(fault.kind, fault.place, fault.what)
        console.print(table)
    counts = ", ".join(f"{count} {name}" for name, count in found.checked.items())
    console.print(f"checked: {counts}", highlight=False)
    if not found.faults:
        console.print("all of it holds")
        return 0
    for kind, meaning in KINDS.items():
        if own := [fault for fault in found.faults if fault.kind == kind]:
            count = sum(fault.rows for fault in own)
            console.print(f"{kind}: {count} ({meaning})", highlight=False, style="red")
    return 1
