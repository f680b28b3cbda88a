"""``medvlp benchmark compare``: two result files side by side, with what of it is more than chance."""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from medvlp.benchmark.differences import RESAMPLES, Difference, difference
from medvlp.benchmark.resampled import Resampled
from medvlp.benchmark.rows import CELL, collected, is_performance, mixed_versions, primary_rows, records
from medvlp.benchmark.tables.writing import one_line
from medvlp.errors import ConfigError, DataError
from medvlp.metrics.significance import holm

_PRINTED = ("bm_method", "bm_task", "protocol", "part", "fraction", "metric")
_HEADINGS = ("method", "task", "protocol", "part", "fraction", "metric", "A", "B", "B − A", "interval", "p", "note")


@dataclass(frozen=True)
class Comparison:
    """A cell in both files.

    Attributes:
        cell: what the rows have in common, by the names of :data:`medvlp.benchmark.rows.CELL`.
        runs: those in both files.
        a: mean over them in the first file; NaN where it is not defined.
        b: in the second.
        value: b minus a.
        found: interval and p of that; None where there is none.
        p: Holm-corrected over the whole comparison; NaN where there is none.
        note: why there is no interval.
    """

    cell: Mapping[str, Any]
    runs: tuple[str, ...]
    a: float
    b: float
    value: float
    found: Difference | None
    p: float
    note: str

    def worse(self, level: float) -> bool:
        """Whether the second file is worse by more than chance."""
        return is_performance(str(self.cell["metric"])) and self.value < 0 and self.p < 1 - level


@dataclass(frozen=True)
class Compared:
    """Two files side by side.

    Attributes:
        both: the cells in both.
        only_a: cells and runs that the second file lacks, in words.
        only_b: those that the first lacks.
        level: of the intervals.
        notes: sentences about rows that are left out, and about rows of several versions.
    """

    both: list[Comparison]
    only_a: list[str]
    only_b: list[str]
    level: float
    notes: tuple[str, ...] = ()

    @property
    def worse(self) -> list[Comparison]:
        """The cells in which the second file is worse by more than chance."""
        return [row for row in self.both if row.worse(self.level)]


def compare(
    a: str | Path,
    b: str | Path,
    metrics: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Compared:
    """Compares the cells of two result files, run by run.

    Where the predictions of both lie beside their files and are of the same samples, on identical resamples of the
    patients (:func:`medvlp.benchmark.differences.difference`); elsewhere there is the plain difference and a note.

    Args:
        a: a results file.
        b: another.
        metrics: those to compare, or "all" for all that tell good from bad; None: one for each task
            (:data:`medvlp.benchmark.rows.PRIMARY`).
        level: of the intervals.
        resamples: of the patients.
        seed: of the draws.

    Raises:
        ConfigError: a metric that neither file has, or a level outside (0, 1).
        DataError: from reading the files.
    """
    if not 0 < level < 1:
        raise ConfigError(f"--level lies in (0, 1), not {level}")
    files = Path(a), Path(b)
    chosen = [_chosen(collected(file), metrics) for file in files]
    frames = [frame for frame, _ in chosen]
    notes = [f"{name}: {lost}" for name, (_, lost) in zip("AB", chosen, strict=True) if lost]
    notes += filter(None, [mixed_versions(pd.concat(frames))])
    if metrics and not any(map(len, frames)):
        raise ConfigError(f"neither file has {', '.join(metrics)}: see the column metric of {a}")
    cells = [_cells(frame) for frame in frames]
    both: list[Comparison] = []
    only: tuple[list[str], list[str]] = ([], [])
    store = Resampled()
    for key in dict.fromkeys([*cells[0], *cells[1]]):
        sides = [own.get(key, {}) for own in cells]
        for side, lost in enumerate(only):
            if runs := [run for run in sides[side] if run not in sides[1 - side]]:
                lost.append(f"{_named(key)}: {', '.join(runs)}")
        if shared := tuple(run for run in sides[0] if run in sides[1]):
            pair = [[side[run] for run in shared] for side in sides]
            both.append(_compared(key, shared, pair, files, level, resamples, seed, store))
    corrected = holm([row.p for row in both]).tolist()
    both = [Comparison(**{**vars(row), "p": p}) for row, p in zip(both, corrected, strict=True)]
    return Compared(both, *only, level, tuple(notes))


def _chosen(frame: pd.DataFrame, metrics: Sequence[str] | None) -> tuple[pd.DataFrame, str]:
    if not metrics:
        return primary_rows(frame)
    wanted = frame["metric"].map(is_performance if "all" in metrics else lambda metric: metric in metrics)
    return frame[wanted], ""


def _cells(frame: pd.DataFrame) -> dict[tuple[Any, ...], dict[str, dict[str, Any]]]:
    """Cell to run to row."""
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in records(frame):
        runs = found.setdefault(tuple(row[name] for name in CELL), {})
        if row["bm_run"] in runs:
            lines = f"lines {runs[row['bm_run']]['line']} and {row['line']}"
            raise DataError(
                f"{_named(tuple(row[name] for name in CELL))}, {row['bm_run']}: {lines} are of one run with other "
                "settings or another checkpoint; keep one of them in the file"
            )
        runs[row["bm_run"]] = row
    return found


def _compared(
    key: tuple[Any, ...],
    runs: tuple[str, ...],
    sides: list[list[dict[str, Any]]],
    files: tuple[Path, Path],
    level: float,
    resamples: int,
    seed: int,
    store: Resampled,
) -> Comparison:
    cell = dict(zip(CELL, key, strict=True))
    a, b = (float(np.mean([math.nan if r["value"] is None else r["value"] for r in rows])) for rows in sides)
    found, note = None, _obstacle(sides, (a, b))
    if not note:
        try:
            found = difference(
                sides[1],
                sides[0],
                cell["metric"],
                files[1].parent,
                resamples,
                seed,
                folder_b=files[0].parent,
                level=level,
                store=store,
            )
            note = "not defined in any resample" if math.isnan(found.p) else ""
        except (ConfigError, DataError) as error:
            note = str(error)
    return Comparison(cell, runs, a, b, b - a, found, math.nan if found is None else found.p, note)


def _obstacle(sides: list[list[dict[str, Any]]], values: tuple[float, float]) -> str:
    """What keeps two cells from being compared sample by sample, as far as their rows tell."""
    undefined = [name for name, value in zip("AB", values, strict=True) if math.isnan(value)]
    if undefined:
        return f"not defined in {' and '.join(undefined)}"
    if sides[0][0]["phantom"] != sides[1][0]["phantom"]:
        return f"{'A' if sides[0][0]['phantom'] else 'B'} is of the phantom, the other is not"
    splits = [{row.get("split_sha256") for row in rows} for rows in sides]
    if splits[0] != splits[1]:
        hashes = [", ".join(sorted(str(own)[:8] for own in split)) for split in splits]
        return f"other splits: {hashes[0]} in A, {hashes[1]} in B"
    return ""


def _named(key: tuple[Any, ...]) -> str:
    cell = dict(zip(CELL, key, strict=True))
    return ", ".join(_text(cell[name]) for name in _PRINTED if cell[name] is not None)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _line(row: Comparison) -> list[str]:
    """The columns of :data:`_HEADINGS`."""
    interval = p = ""
    if row.found is not None and not math.isnan(row.p):
        interval, p = f"{row.found.low:+.4f} to {row.found.high:+.4f}", f"{row.p:.4f}"
    return [
        *(_text(row.cell[name]) for name in _PRINTED),
        f"{row.a:.4f}",
        f"{row.b:.4f}",
        f"{row.value:+.4f}",
        interval,
        p,
        row.note,
    ]


def _escaped(text: str) -> str:
    return re.sub(r"([\\`\[\]<>|])", r"\\\1", one_line(text))


def to_markdown(found: Compared) -> str:
    """A table, and lists of what only one file has; differences beyond chance are bold."""
    lines = [f"| {' | '.join(_HEADINGS)} |", f"|{'---|' * len(_HEADINGS)}"]
    for row in found.both:
        columns = [_escaped(column) for column in _line(row)]
        if row.p < 1 - found.level:
            columns[8] = f"**{columns[8]}**"
        lines.append(f"| {' | '.join(columns)} |")
    for name, only in (("A", found.only_a), ("B", found.only_b)):
        if only:
            lines += ["", f"Only in {name}:", "", *(f"* {_escaped(text)}" for text in only)]
    for note in found.notes:
        lines += ["", _escaped(note)]
    return "\n".join(lines) + "\n"


def to_json(found: Compared) -> str:
    """All of it as JSON, with null where there is no number."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(own) for key, own in value.items()}
        if isinstance(value, list | tuple):
            return [plain(own) for own in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(plain(asdict(found)), indent=1, allow_nan=False)


def _print(found: Compared, title: str, console: Console) -> None:
    table = Table(title=title)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in ("fraction", "A", "B", "B − A", "p") else "left")
    for row in found.both:
        beyond = row.p < 1 - found.level
        table.add_row(*_line(row), style=("red" if row.value < 0 else "green") if beyond else None)
    console.print(table)
    for name, only in (("A", found.only_a), ("B", found.only_b)):
        for text in only:
            console.print(f"only in {name}: {text}", highlight=False)
    for note in found.notes:
        console.print(note, highlight=False)
    console.print(
        f"{len(found.both)} cells in both, {sum(row.p < 1 - found.level for row in found.both)} differ by more than "
        f"chance (Holm over all, level {found.level:g}), {len(found.worse)} of them worse in B",
        highlight=False,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``medvlp benchmark compare``."""
    parser.add_argument("a", type=Path, help="results file")
    parser.add_argument("b", type=Path, help="results file that is compared with it")
    parser.add_argument(
        "--metric", action="append", help="metric to compare, may be repeated; all; by default one for each task"
    )
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals; 1 − level is the level of tests")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="bootstrap resamples of the patients")
    parser.add_argument("--format", choices=("rich", "markdown", "json"), default="rich", help="of what is printed")
    parser.add_argument("--fail-on-worse", action="store_true", help="exit with 1 if B is significantly worse anywhere")


def run(args: argparse.Namespace) -> int:
    """Compares the files and prints the result.

    Returns:
        1 if ``--fail-on-worse`` is given and the second file is worse somewhere by more than chance, otherwise 0.
    """
    found = compare(args.a, args.b, args.metric, args.level, args.resamples)
    if args.format == "rich":
        _print(found, f"A: {args.a}, B: {args.b}", Console(markup=False))
    else:
        print((to_markdown(found) if args.format == "markdown" else to_json(found)).rstrip())
    return int(args.fail_on_worse and bool(found.worse))
