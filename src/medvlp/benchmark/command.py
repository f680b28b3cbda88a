"""``medvlp benchmark``: run, table, report, verify, compare."""

import argparse
from importlib import import_module

_PARTS = {
    "run": ("medvlp.benchmark.run_command", "work off a grid of methods, tasks, fractions and seeds"),
    "table": ("medvlp.benchmark.table_command", "the papers' tables and our own from result rows"),
    "report": ("medvlp.benchmark.report.command", "one self-contained HTML page of a benchmark"),
    "verify": ("medvlp.benchmark.verify", "recompute every number from the saved predictions"),
    "compare": ("medvlp.benchmark.compare", "two result files side by side, with significance"),
}
"""Each module offers ``add_arguments(parser)`` and ``run(args) -> exit status``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of ``medvlp benchmark``."""
    commands = parser.add_subparsers(dest="benchmark", metavar="COMMAND", required=True)
    for name, (module, text) in _PARTS.items():
        import_module(module).add_arguments(commands.add_parser(name, help=text, description=text.capitalize() + "."))


def run(args: argparse.Namespace) -> int:
    """Runs the chosen subcommand.

    Returns:
        Its exit status.
    """
    return import_module(_PARTS[args.benchmark][0]).run(args)
