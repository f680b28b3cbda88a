"""Writes the report: one HTML page with its styles, script, charts and pictures in it."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medvlp._version import __version__
from medvlp.benchmark.differences import RESAMPLES
from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.report.about import about
from medvlp.benchmark.report.bars import bars
from medvlp.benchmark.report.cost import assumptions, cost_charts, count, duration, number, spent
from medvlp.benchmark.report.curves import curves
from medvlp.benchmark.report.panels import MIN_SCORE, panels
from medvlp.benchmark.report.rowgroups import Group, groups_of
from medvlp.benchmark.report.summary import (
    Condition,
    Method,
    condition_of,
    conditions_of,
    means_of_tables,
    methods_of,
)
from medvlp.benchmark.report.svg import swatch
from medvlp.benchmark.report.wide import wide
from medvlp.benchmark.resampled import Resampled
from medvlp.benchmark.rows import COLUMN, collected
from medvlp.benchmark.tables import Statistics, Table, own_tables, paper_tables
from medvlp.errors import DataError
from medvlp.store import atomic_write

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Written:
    """What :func:`write_report` wrote.

    Attributes:
        path: the page.
        rows: result rows in it.
        tables: tables in it.
        pictures: qualitative pictures in it.
        lost: pictures' files that ``grid.json`` names and that are not there.
    """

    path: Path
    rows: int
    tables: int
    pictures: int
    lost: tuple[str, ...]


def write_report(
    results: str | Path,
    output: str | Path | None = None,
    *,
    title: str | None = None,
    resamples: int = RESAMPLES,
    cache: Path | None = None,
    beside_phantom: bool = False,
) -> Written:
    """Writes the report of a results file.

    Args:
        results: a JSON Lines file: a benchmark's with ``grid.json`` and pictures beside it, or that of single runs.
        output: the page; ``report.html`` beside the results if None.
        title: heading of the page; that of the grid if None.
        resamples: of the patients, for intervals and significance; 0 for the rows' own intervals, and nothing bold.
        cache: folder of resampled metrics, shared with the tables; None to resample again.
        beside_phantom: print the papers' numbers beside results on the phantom; the captions say so.

    Raises:
        ConfigError: two protocols or datasets under one task of the grid.
        DataError: results, ``grid.json``, predictions or pictures are missing or damaged, or the page cannot be
            written.
    """
    results = Path(results)
    path = results.with_name("report.html") if output is None else Path(output)
    frame = collected(results)
    grid = GridFile.read(results.parent, frame)
    methods = methods_of(grid)
    drawn, lost = panels(grid.panels, results.parent, methods)
    statistics = Statistics(results.parent, resamples, store=Resampled(cache))
    papers = paper_tables(
        frame, results.parent, statistics=statistics, source=results.name, grid=grid, beside_phantom=beside_phantom
    )
    values = {
        **_numbers(results, frame, grid, methods, statistics, papers),
        **{"methods": methods, "panels": drawn, "lost": lost},
    }
    facts = about(frame, grid, results.resolve().parent.name)
    _write(path, _render({**values, "about": facts, "title": title or facts.name, "version": __version__}))
    pictures = sum(1 + sum(cell is not None for cell in row.cells) for panel in drawn for row in panel.rows)
    tables = len(values["own"]) + len(values["papers"])
    return Written(path, len(frame), tables, pictures, tuple(lost))


def _numbers(
    results: Path,
    frame: pd.DataFrame,
    grid: GridFile,
    methods: list[Method],
    statistics: Statistics,
    papers: list[Table],
) -> dict[str, Any]:
    """Everything with numbers in it, for the template."""
    own = own_tables(frame, results.parent, statistics=statistics, source=results.name, grid=grid)
    by_line = _conditions_by_line(frame)
    names = dict(zip(frame["line"].tolist(), frame["bm_method"].astype(str).tolist(), strict=True))
    means = means_of_tables(own, by_line)
    costs = spent(frame, grid, methods)
    return {
        "own": [wide(table, by_line, names) for table in own],
        "papers": [wide(table, by_line, names) for table in _with_values(papers)],
        "curves": curves(means, methods),
        "bars": bars(frame, methods),
        "costs": costs,
        "energy": assumptions(costs),
        "cost_charts": cost_charts(costs, means),
        "shelves": _shelves(groups_of(frame, methods)),
        "conditions": conditions_of(frame),
        "fractions": _fractions(conditions_of(frame)),
        "titles": {name: task.title for name, task in grid.tasks.items()},
        "source": results.name,
    }


def _with_values(tables: list[Table]) -> list[Table]:
    return [table for table in tables if table.has_values()]


def _shelves(groups: list[Group]) -> list[list[Group]]:
    """The groups of each task together; they come in the order of tasks."""
    return [list(own) for _, own in groupby(groups, key=lambda group: group.condition.without_fraction())]


def _fractions(conditions: list[Condition]) -> list[tuple[str, str]]:
    """Values and texts of the filter, ascending."""
    ordered = sorted(conditions, key=lambda condition: condition.fraction or 0.0)
    return list(dict.fromkeys((condition.fraction_key, condition.fraction_text) for condition in ordered))


def _conditions_by_line(frame: pd.DataFrame) -> dict[int, Condition]:
    known: dict[tuple[Any, ...], Condition] = {}
    found = {}
    for line, *values in frame[["line", *COLUMN]].itertuples(index=False):
        key = tuple(str(value) for value in values)
        if key not in known:
            known[key] = condition_of(values)
        found[int(line)] = known[key]
    return found


def _render(values: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        count=count,
        duration=duration,
        number=number,
        swatch=swatch,
        min_score=MIN_SCORE,
        # of the package, not of the results: the only texts that go into the page as they are
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
    )
    return environment.get_template("page.html").render(**values)


def _write(path: Path, text: str) -> None:
    try:
        with atomic_write(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise DataError(f"{path}: the report cannot be written ({error.strerror}); give another --output") from error
