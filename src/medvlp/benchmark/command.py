"""``medvlp benchmark``: run, table, report, verify, compare."""

import argparse
from importlib import import_module

PARTS = {
    "run": ("medvlp.benchmark.run_command", "run a grid of methods, tasks, fractions and seeds"),
    "table": ("medvlp.benchmark.table_command", "the papers' tables and our own from result rows"),
    "report": ("medvlp.benchmark.report.command", "one self-contained HTML page of a benchmark"),
    "verify": ("medvlp.benchmark.verify", "recompute every number from the saved predictions"),
    "compare": ("medvlp.benchmark.compare", "compare two result files, with significance"),
}
"""Subcommands: a module with ``add_arguments(parser)`` and ``run(args) -> exit status``, and a help text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand and its options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, PARTS))
    parser.epilog = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in PARTS.items())
    parser.add_argument("part", choices=list(PARTS), metavar="COMMAND", help="see below; COMMAND --help says more")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="options of the command")


def run(args: argparse.Namespace) -> int:
    """Run the chosen subcommand and return its exit status."""
    name, text = PARTS[args.part]
    module = import_module(name)
    parser = argparse.ArgumentParser(prog=f"medvlp benchmark {args.part}", description=f"{text[0].upper()}{text[1:]}.")
    module.add_arguments(parser)
    return module.run(parser.parse_args(args.words))
