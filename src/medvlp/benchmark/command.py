"""``medvlp benchmark``: run, table, report, verify, compare."""

import argparse
from importlib import import_module

PARTS = {
    "run": ("medvlp.benchmark.run_command", "work off a grid of methods, tasks, fractions and seeds"),
    "table": ("medvlp.benchmark.table_command", "the papers' tables and our own from result rows"),
    "report": ("medvlp.benchmark.report.command", "one self-contained HTML page of a benchmark"),
    "verify": ("medvlp.benchmark.verify", "recompute every number from the saved predictions"),
    "compare": ("medvlp.benchmark.compare", "two result files side by side, with significance"),
}
"""Each module offers ``add_arguments(parser)`` and ``run(args) -> exit status``; imported when asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which subcommand, and what follows it."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, PARTS))
    parser.epilog = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in PARTS.items())
    parser.add_argument("part", choices=list(PARTS), metavar="COMMAND", help="see below; COMMAND --help says more")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="options of the command")


def run(args: argparse.Namespace) -> int:
    """Runs the chosen subcommand.

    Returns:
        Its exit status.
    """
    name, text = PARTS[args.part]
    module = import_module(name)
    parser = argparse.ArgumentParser(prog=f"medvlp benchmark {args.part}", description=f"{text[0].upper()}{text[1:]}.")
    module.add_arguments(parser)
    return module.run(parser.parse_args(args.words))
