"""Write a benchmark's page: one HTML file that holds its styles, script, charts and pictures."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from medvlp._version import __version__
from medvlp.benchmark.differences import RESAMPLES
from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.report.charts import cost_charts, learning_curves
from medvlp.benchmark.report.cost import FIGURES, costs_of
from medvlp.benchmark.report.panels import MIN_SCORE, panels
from medvlp.benchmark.report.rowgroups import anchor_of, row_groups
from medvlp.benchmark.report.summary import (
    Condition,
    class_scores,
    conditions_of,
    fraction_key,
    fraction_text,
    mean_text,
    methods_of,
    scores_of,
    with_conditions,
)
from medvlp.benchmark.resampled import Resampled
from medvlp.benchmark.rows import collected
from medvlp.benchmark.tables import Statistics, Table, own_tables, paper_tables
from medvlp.benchmark.tables.writing import environment, header, notes_of
from medvlp.errors import DataError
from medvlp.store import atomic_write


@dataclass(frozen=True)
class Written:
    """What :func:`write_report` wrote: the file, and how many rows, tables and pictures it shows.

    ``lost`` has the names of the pictures' files that ``grid.json`` names and that do not exist.
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
    """Write the page of a results file.

    Args:
        results: a JSON Lines file, of a benchmark with ``grid.json`` and pictures beside it, or of single runs.
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
    frame = with_conditions(collected(results))
    grid = GridFile.read(results.parent, frame)
    methods, conditions = methods_of(grid), conditions_of(frame)
    by_line = dict(zip(frame["line"], frame["condition"], strict=True))
    drawn, lost = panels(grid.panels, results.parent, methods)
    statistics = Statistics(results.parent, resamples, store=Resampled(cache))
    papers = paper_tables(frame, grid, statistics, source=results.name, beside_phantom=beside_phantom)
    papers = [table for table in papers if table.has_values()]
    own = own_tables(frame, grid, statistics, source=results.name)
    scores = scores_of(own, by_line)
    costs, cost_notes = costs_of(frame, grid, methods)
    about = _about(frame, grid, results.resolve().parent.name)
    values = {
        "about": about,
        "title": title or about["name"],
        "source": results.name,
        "methods": methods,
        "conditions": conditions,
        "fractions": sorted({c.fraction for c in conditions}, key=lambda fraction: fraction or 0.0),
        "titles": {name: task.title for name, task in grid.tasks.items()},
        "own": [_wide(table, by_line) for table in own],
        "papers": [_wide(table, by_line) for table in papers],
        "curves": learning_curves(scores, methods),
        "class_scores": class_scores(frame, conditions, methods),
        "costs": costs,
        "cost_notes": cost_notes,
        "cost_charts": cost_charts(scores, costs),
        "panels": drawn,
        "lost": lost,
        "tasks": row_groups(frame, conditions, methods),
    }
    try:
        with atomic_write(path, "w") as file:
            file.write(_render(values))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); give another --output") from error
    pictures = sum(1 + sum(cell is not None for cell in row["cells"]) for panel in drawn for row in panel["rows"])
    return Written(path, len(frame), len(own) + len(papers), pictures, tuple(lost))


def _wide(table: Table, by_line: Mapping[int, Condition]) -> dict[str, Any]:
    """Return a table for the template, every cell with the condition that the page's filters compare.

    Within a block all cells of a column have one condition, also those without a row of ours.
    """
    blocks = []
    for block in table.blocks:
        columns = zip(*(row.cells for row in block.rows), strict=True)
        known = [next((by_line[cell.lines[0]] for cell in cells if cell.lines), None) for cells in columns]
        rows = [(row, list(zip(row.cells, known, strict=True))) for row in block.rows]
        blocks.append({"title": block.title, "rows": rows})
    return {"table": table, "levels": header(table), "blocks": blocks, "notes": notes_of(table)}


def _about(frame: pd.DataFrame, grid: GridFile, folder: str) -> dict[str, Any]:
    """Return the head of the page: where the numbers come from, with a warning if they are of the phantom."""

    def distinct(column: str) -> list[str]:
        return [str(value) for value in frame[column].dropna().unique()] if column in frame else []

    versions: dict[str, dict[str, None]] = {}
    for row in frame.get("versions", ()):
        for name, version in row.items() if isinstance(row, dict) else ():
            versions.setdefault(name, {})[str(version)] = None
    times = sorted(time.replace("T", " ").replace("+00:00", " UTC") for time in distinct("time"))
    splits = frame[["dataset", "split", "split_sha256"]].drop_duplicates().dropna(subset="split_sha256")
    drawn = frame.loc[frame["phantom"], "dataset"].unique()
    numbers = "These numbers" if frame["phantom"].all() else f"Numbers on {', '.join(sorted(drawn))}"
    warning = (
        f"{numbers} come from the phantom, drawn radiographs with made-up reports. "
        "They say nothing about clinical performance."
    )
    return {
        "name": grid.title or grid.name or ", ".join(distinct("bm_grid")) or folder,
        "warning": warning if len(drawn) else "",
        "when": " to ".join(dict.fromkeys((*times[:1], *times[-1:]))),
        "rows": len(frame),
        "versions": [(name, ", ".join(texts)) for name, texts in versions.items()],
        "hardware": distinct("hardware"),
        "splits": [(dataset, split or "", sha[:12]) for dataset, split, sha in splits.itertuples(index=False)],
        "states": Counter(job.state for job in grid.jobs),
        "unfinished": [job for job in grid.jobs if job.state != "done"],
    }


def _render(values: dict[str, Any]) -> str:
    folder, page = Path(__file__).parent, environment(__package__)
    page.globals.update(
        anchor_of=anchor_of,
        figures=FIGURES,
        fraction_key=fraction_key,
        fraction_text=fraction_text,
        mean_text=mean_text,
        min_score=MIN_SCORE,
        version=__version__,
        # files of the package: the only texts that are not escaped
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        script=Markup((folder / "page.js").read_text(encoding="utf-8")),
    )
    return page.get_template("page.html").render(**values)
