"""``medvlp benchmark table``: the papers' tables and our own, from result rows, in four formats."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from medvlp.benchmark.differences import RESAMPLES, Statistics
from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.resampled import Resampled
from medvlp.benchmark.rows import collected
from medvlp.benchmark.tables import (
    Table,
    csv_text,
    html_fragment,
    latex,
    layouts,
    markdown,
    own_tables,
    paper_tables,
    reported_tables,
    rows_left_out,
)
from medvlp.errors import ConfigError

_SUFFIXES = {"markdown": ".md", "latex": ".tex", "csv": ".csv", "html": ".html"}
_OWN = ("own", "summary")
"""Layouts of what was run."""

_FILTERS = {"protocol": "protocol", "part": "part", "task": "bm_task"}
"""Options that choose rows, and the columns they look at."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Benchmark tables</title></head>
<body>
<main>
{}</main>
</body>
</html>
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``medvlp benchmark table``."""
    add = parser.add_argument
    add("results", nargs="?", help="results.jsonl of a benchmark or of single runs; not needed with --reported-only")
    add(
        "--layout",
        nargs="+",
        metavar="NAME",
        help="own (what was run, a table per kind of task), summary (the same in one; see --fraction), "
        f"all (the papers'), or names: {', '.join(layouts())}. "
        "Default: own, with --reported-only all",
    )
    add("--format", choices=sorted(_SUFFIXES), help="default: by the suffix of --output, else markdown")
    add("--output", type=Path, help="a file (with a suffix), or a folder that gets a file per table; default: print")
    add("--reported-only", action="store_true", help="the papers' numbers alone")
    add_phantom_option(parser)
    add("--metric", nargs="+", default=[], metavar="NAME", help="shown where a column may have it, such as dice_mgca")
    add("--protocol", nargs="+", default=[], metavar="NAME", help="of tasks that ran by several, take these")
    add("--part", nargs="+", default=[], metavar="NAME", help="of tasks scored on several parts, take these")
    add("--task", nargs="+", default=[], metavar="NAME", help="take these tasks of the grid alone")
    add("--fraction", nargs="+", type=float, default=[], metavar="SHARE", help="of tasks that train, take these alone")
    add(
        "--resamples",
        type=int,
        default=RESAMPLES,
        help="of the patients, for intervals and significance; 0: none, and nothing bold (default: %(default)s)",
    )
    add("--cache", type=Path, metavar="DIR", help="keep the resampled metrics here, so that the next call is fast")


def add_phantom_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of tables and page that sets phantom results beside a paper's."""
    parser.add_argument(
        "--phantom-beside-paper",
        action="store_true",
        help="print the papers' numbers, of real images, beside results on the phantom; every caption says so. "
        "By default they are left out there",
    )


def run(args: argparse.Namespace) -> int:
    """Write the tables; return 0.

    Raises:
        ConfigError: unknown layout or metric, contradicting options, or two protocols in one column.
        DataError: results or predictions are missing or damaged.
    """
    if args.resamples < 0:
        raise ConfigError(f"--resamples {args.resamples}: give 0 or more")
    tables = _reported(args) if args.reported_only else _filled(args)
    form, output = _format(args), args.output
    if output is None:
        sys.stdout.write(_text(tables, form))
        return 0
    files = {output: tables} if output.suffix else {output / f"{t.name}{_SUFFIXES[form]}": [t] for t in tables}
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_text(content, form), encoding="utf-8")
    return 0


def _reported(args: argparse.Namespace) -> list[Table]:
    if args.results:
        raise ConfigError(f"--reported-only prints the papers' numbers and reads no results: leave out {args.results}")
    names = args.layout or ["all"]
    if own := [name for name in names if name in _OWN]:
        raise ConfigError(
            f"--layout {own[0]} has no reported numbers: leave out --reported-only, or name papers' tables"
        )
    return reported_tables(_expanded(names))


def _filled(args: argparse.Namespace) -> list[Table]:
    if not args.results:
        raise ConfigError("which results? Give the path of a results.jsonl, or --reported-only")
    path = Path(args.results)
    frame = _chosen(collected(path), args)
    grid = GridFile.read(path.parent, frame)
    if lost := rows_left_out(frame, grid, args.metric):
        print(lost, file=sys.stderr)
    names = args.layout or ["own"]
    inputs = frame, grid, Statistics(path.parent, args.resamples, store=Resampled(args.cache))
    tables = []
    if "own" in names:
        tables += own_tables(*inputs, metrics=args.metric, source=path.name)
    if "summary" in names:
        tables += own_tables(*inputs, metrics=args.metric, source=path.name, summary=True)
    papers = _expanded([name for name in names if name not in _OWN])
    beside = args.phantom_beside_paper
    filled = paper_tables(*inputs, papers, metrics=args.metric, source=path.name, beside_phantom=beside)
    if "all" in names:
        if empty := [table.name for table in filled if not table.has_values()]:
            print(f"no results for {', '.join(empty)}", file=sys.stderr)
        filled = [table for table in filled if table.has_values()]
    return tables + filled


def _expanded(names: Sequence[str]) -> list[str]:
    """Return names of layouts, "all" replaced by all of them, each once."""
    return list(dict.fromkeys(one for name in names for one in (layouts() if name == "all" else [name])))


def _chosen(frame: pd.DataFrame, args: argparse.Namespace) -> pd.DataFrame:
    """Return the rows that the options leave. A protocol or part is chosen within the tasks that have it."""
    present = {metric.partition("/")[0] for metric in frame["metric"]} | set(frame["metric"])
    if missing := [metric for metric in args.metric if metric not in present]:
        known = ", ".join(sorted(metric for metric in present if "/" not in metric))
        raise ConfigError(f"--metric {missing[0]}: no row has it; expected one of: {known}")
    for option, column in _FILTERS.items():
        requested = getattr(args, option)
        if missing := [name for name in requested if name not in set(frame[column])]:
            known = ", ".join(sorted(frame[column].unique()))
            raise ConfigError(f"--{option} {' '.join(missing)}: no row has it; expected one of: {known}")
        if requested:
            match = frame[column].isin(requested)
            others = ~frame["task"].isin(frame.loc[match, "task"]) if option != "task" else False
            frame = frame[match | others]
    if args.fraction:
        shares = frame["fraction"]
        frame = frame[shares.isna() | shares.isin(args.fraction)]
    if frame.empty:
        raise ConfigError("the options leave no row; choose fewer")
    return frame


def _format(args: argparse.Namespace) -> str:
    suffix = args.output.suffix if args.output else ""
    by_suffix = {suffix: name for name, suffix in _SUFFIXES.items()}
    if args.format:
        return args.format
    if suffix and suffix not in by_suffix:
        raise ConfigError(f"--output {args.output}: give --format, or one of the suffixes {', '.join(by_suffix)}")
    return by_suffix.get(suffix, "markdown")


def _text(tables: list[Table], form: str) -> str:
    if form == "csv":
        return csv_text(tables)
    writers: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "html": html_fragment}
    body = "\n".join(writers[form](table) for table in tables)
    return _PAGE.format(body) if form == "html" else body
