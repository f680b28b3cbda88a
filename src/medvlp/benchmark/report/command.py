"""``medvlp benchmark report``: one self-contained HTML page of a results file."""

import argparse
from pathlib import Path

from medvlp.benchmark.differences import RESAMPLES
from medvlp.benchmark.table_command import add_phantom_option
from medvlp.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medvlp benchmark report``."""
    add = parser.add_argument
    add("results", help="results.jsonl of a benchmark (with grid.json and pictures beside it) or of single runs")
    add("--output", metavar="FILE", help="the page; default: report.html beside the results")
    add("--title", help="heading of the page; default: that of the grid")
    add(
        "--resamples",
        type=int,
        default=RESAMPLES,
        help="of the patients, for intervals and significance; 0: those of the rows, and nothing bold "
        "(default: %(default)s)",
    )
    add_phantom_option(parser)
    add("--cache", type=Path, metavar="DIR", help="keep the resampled metrics here, as `table --cache` does")


def run(args: argparse.Namespace) -> int:
    """Write the page; arguments and errors are those of :func:`medvlp.benchmark.report.page.write_report`."""
    from medvlp.benchmark.report.page import write_report

    if args.resamples < 0:
        raise ConfigError(f"--resamples {args.resamples}: give 0 or more")
    written = write_report(
        args.results,
        args.output,
        title=args.title,
        resamples=args.resamples,
        cache=args.cache,
        beside_phantom=args.phantom_beside_paper,
    )
    print(f"{written.path}: {written.rows} result rows, {written.tables} tables, {written.pictures} pictures")
    return 0
