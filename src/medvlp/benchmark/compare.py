"""``medvlp benchmark compare``: compare two result files cell by cell."""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from medvlp.benchmark.differences import RESAMPLES, Difference, Statistics
from medvlp.benchmark.rows import CELL, by_run, collected, is_performance, mixed_versions, primary_rows, records
from medvlp.benchmark.tables.writing import one_line
from medvlp.console import console
from medvlp.errors import ConfigError, DataError
from medvlp.metrics.significance import holm

_PRINTED = ("bm_method", "bm_task", "protocol", "part", "fraction", "metric")
_HEADINGS = ("method", "task", "protocol", "part", "fraction", "metric", "A", "B", "B − A", "interval", "p", "note")

_Rows = list[Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """A cell in both files (the columns :data:`medvlp.benchmark.rows.CELL`), over the runs that both have.

    ``a`` and ``b`` are means, NaN if undefined, and ``value`` is b minus a; ``p`` is Holm-corrected over the whole
    comparison. Where ``found`` has no interval and p-value of the difference, ``note`` says why.
    """

    cell: Mapping[str, Any]
    runs: tuple[str, ...]
    a: float
    b: float
    value: float
    found: Difference | None = None
    p: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Compared:
    """Comparison of two files.

    Attributes:
        both: the cells in both.
        only_a: cells and runs that the second file lacks, as text; ``only_b`` those that the first lacks.
        level: of the intervals.
        notes: sentences about rows that are dropped, and about rows of several versions.
    """

    both: list[Comparison]
    only_a: list[str]
    only_b: list[str]
    level: float
    notes: tuple[str, ...] = ()

    @property
    def worse(self) -> list[Comparison]:
        """The cells in which the second file is significantly worse."""
        return [row for row in self.both if self.differs(row) and row.value < 0 and is_performance(row.cell["metric"])]

    def differs(self, row: Comparison) -> bool:
        """Return whether the files differ significantly in a cell."""
        return row.p < 1 - self.level


def compare(
    a: str | Path,
    b: str | Path,
    metrics: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Compared:
    """Compare the cells of two result files, run by run.

    If the predictions of both exist and are of the same samples, they are compared on identical resamples of the
    patients (:class:`medvlp.benchmark.differences.Statistics`); otherwise only the means are, and a note says why.

    Args:
        a: a results file.
        b: another.
        metrics: those to compare, or "all" for all that measure performance; None: the primary one of each task
            (:data:`medvlp.benchmark.rows.PRIMARY`).
        level: of the intervals.
        resamples: number of resamples of the patients.

    Raises:
        ConfigError: neither file has the metric, a run is given twice, or the level is outside (0, 1).
        DataError: a file cannot be read.
    """
    if not 0 < level < 1:
        raise ConfigError(f"--level must be in (0, 1), not {level}")
    files = Path(a), Path(b)
    frames, lost = zip(*(_chosen(collected(file), metrics) for file in files), strict=True)
    notes = [f"{name}: {text}" for name, text in zip("AB", lost, strict=True) if text]
    notes += filter(None, [mixed_versions(pd.concat(frames))])
    if metrics and not any(map(len, frames)):
        raise ConfigError(f"neither file has {', '.join(metrics)}: see the column metric of {a}")
    cells = [_cells(frame, file.parent) for frame, file in zip(frames, files, strict=True)]
    both: list[Comparison] = []
    only: tuple[list[str], list[str]] = ([], [])
    statistics = Statistics(Path(), resamples, level)
    for key in dict.fromkeys([*cells[0], *cells[1]]):
        sides = [by_run(side.get(key, [])) for side in cells]
        cell = dict(zip(CELL, key, strict=True))
        for side, missing in enumerate(only):
            if runs := [run for run in sides[side] if run not in sides[1 - side]]:
                name = ", ".join(_text(cell[column]) for column in _PRINTED if cell[column] is not None)
                missing.append(f"{name}: {', '.join(runs)}")
        if shared := tuple(run for run in sides[0] if run in sides[1]):
            rows_a, rows_b = ([side[run] for run in shared] for side in sides)
            mean_a, mean_b = _mean(rows_a), _mean(rows_b)
            test, note = None, _obstacle(rows_a, rows_b)
            if not note:
                try:
                    test = statistics.difference(rows_b, rows_a, cell["metric"])
                    note = "not defined in any resample" if math.isnan(test.p) else ""
                except (ConfigError, DataError) as error:
                    note = str(error)
            p = test.p if test else math.nan
            both.append(Comparison(cell, shared, mean_a, mean_b, mean_b - mean_a, test, p, note))
    corrected = holm([row.p for row in both]).tolist()
    both = [replace(row, p=p) for row, p in zip(both, corrected, strict=True)]
    return Compared(both, *only, level, tuple(notes))


def _chosen(frame: pd.DataFrame, metrics: Sequence[str] | None) -> tuple[pd.DataFrame, str]:
    if not metrics:
        return primary_rows(frame)
    return frame[frame["metric"].map(is_performance if "all" in metrics else lambda metric: metric in metrics)], ""


def _cells(frame: pd.DataFrame, folder: Path) -> dict[tuple[Any, ...], _Rows]:
    """Return the rows of each cell, with predictions relative to the working directory."""
    cells: dict[tuple[Any, ...], _Rows] = {}
    for row in records(frame):
        if row.get("predictions"):
            row["predictions"] = str(folder / row["predictions"])
        cells.setdefault(tuple(row[name] for name in CELL), []).append(row)
    return cells


def _mean(rows: _Rows) -> float:
    return float(np.mean([math.nan if row["value"] is None else row["value"] for row in rows]))


def _obstacle(rows_a: _Rows, rows_b: _Rows) -> str:
    """Say why two cells cannot be compared sample by sample, as far as their rows tell."""
    undefined = [name for name, rows in (("A", rows_a), ("B", rows_b)) if math.isnan(_mean(rows))]
    if undefined:
        return f"not defined in {' and '.join(undefined)}"
    if rows_a[0]["phantom"] != rows_b[0]["phantom"]:
        return f"{'A' if rows_a[0]['phantom'] else 'B'} is of the phantom, the other is not"
    splits = [{row.get("split_sha256") for row in rows} for rows in (rows_a, rows_b)]
    if splits[0] != splits[1]:
        hashes = [", ".join(sorted(str(value)[:8] for value in split)) for split in splits]
        return f"other splits: {hashes[0]} in A, {hashes[1]} in B"
    return ""


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _line(row: Comparison) -> list[str]:
    interval = p = ""
    if row.found is not None and not math.isnan(row.p):
        interval, p = f"{row.found.low:+.4f} to {row.found.high:+.4f}", f"{row.p:.4f}"
    values = [f"{row.a:.4f}", f"{row.b:.4f}", f"{row.value:+.4f}"]
    return [*(_text(row.cell[name]) for name in _PRINTED), *values, interval, p, row.note]


def _escaped(text: str) -> str:
    return re.sub(r"([\\`\[\]<>|])", r"\\\1", one_line(text))


def to_markdown(compared: Compared) -> str:
    """Format as a table, with lists of what only one file has; significant differences are bold."""
    lines = [f"| {' | '.join(_HEADINGS)} |", f"|{'---|' * len(_HEADINGS)}"]
    for row in compared.both:
        columns = [_escaped(column) for column in _line(row)]
        if compared.differs(row):
            columns[8] = f"**{columns[8]}**"
        lines.append(f"| {' | '.join(columns)} |")
    for name, only in (("A", compared.only_a), ("B", compared.only_b)):
        if only:
            lines += ["", f"Only in {name}:", "", *(f"* {_escaped(text)}" for text in only)]
    for note in compared.notes:
        lines += ["", _escaped(note)]
    return "\n".join(lines) + "\n"


def to_json(compared: Compared) -> str:
    """Format everything as JSON, with null for undefined numbers."""
    content = json.loads(json.dumps(asdict(compared)), parse_constant=lambda _: None)
    return json.dumps(content, indent=1)


def _print(compared: Compared, title: str) -> None:
    terminal = console()
    table = Table(title=title)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in ("fraction", "A", "B", "B − A", "p") else "left")
    for row in compared.both:
        colour = "red" if row.value < 0 else "green"
        table.add_row(*_line(row), style=colour if compared.differs(row) else None)
    terminal.print(table)
    only = [*(f"only in A: {text}" for text in compared.only_a), *(f"only in B: {text}" for text in compared.only_b)]
    for text in (*only, *compared.notes):
        terminal.print(text)
    terminal.print(
        f"{len(compared.both)} cells in both, {sum(map(compared.differs, compared.both))} differ by more than "
        f"chance (Holm over all, level {compared.level:g}), {len(compared.worse)} of them worse in B",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``medvlp benchmark compare``."""
    add = parser.add_argument
    add("a", type=Path, help="results file")
    add("b", type=Path, help="results file that is compared with it")
    add("--metric", action="append", help="metric to compare, may be repeated; all; default: the primary of each task")
    add("--level", type=float, default=0.95, help="of the intervals; 1 − level is the level of tests")
    add("--resamples", type=int, default=RESAMPLES, help="bootstrap resamples of the patients")
    add("--format", choices=("rich", "markdown", "json"), default="rich", help="of the output")
    add("--fail-on-worse", action="store_true", help="exit with 1 if B is significantly worse anywhere")


def run(args: argparse.Namespace) -> int:
    """Compare the files and print the result; return 1 if ``--fail-on-worse`` is given and B is worse, otherwise 0."""
    compared = compare(args.a, args.b, args.metric, args.level, args.resamples)
    if args.format == "rich":
        _print(compared, f"A: {args.a}, B: {args.b}")
    else:
        print((to_markdown(compared) if args.format == "markdown" else to_json(compared)).rstrip())
    return int(args.fail_on_worse and bool(compared.worse))
