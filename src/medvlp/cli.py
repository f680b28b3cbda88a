"""The ``medvlp`` command: fit, validate, test and predict (:mod:`medvlp.running`), and the small commands beside them.

Nothing heavy is imported before it is known to be needed: ``medvlp --help`` and ``medvlp list`` answer at once.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from medvlp._version import __version__
from medvlp.errors import ConfigError, MedVLPError, os_error_line

RUN_COMMANDS = {
    "fit": "pre-train a method, or train a task's head or encoder",
    "validate": "evaluate a checkpoint on the validation split",
    "test": "evaluate a checkpoint, or run a task, on the test split",
    "predict": "embed the test split into embeddings.npz",
}


TOOLS = {
    "doctor": ("medvlp.doctor", "check a corpus folder: what is there, what is missing, what can run"),
    "prepare": ("medvlp.prepare", "decode and resize a corpus once, for fast loading"),
    "view": ("medvlp.view", "draw samples of a corpus with their annotations"),
    "phantom": ("medvlp.phantom.command", "write rendered radiographs with reports in a corpus's layout"),
    "benchmark": ("medvlp.benchmark.command", "methods × tasks × fractions × seeds, and the tables that come out"),
}
"""Commands with a module of their own, which offers ``add_arguments(parser)`` and ``run(args) -> exit status``."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medvlp",
        description="Vision-language pre-training for chest radiographs.",
        epilog="medvlp fit --config experiments/quickstart.yaml runs the whole of it on rendered radiographs.",
    )
    parser.add_argument("--version", action="version", version=f"medvlp {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in RUN_COMMANDS.items():
        # Listed for --help; LightningCLI parses their arguments.
        commands.add_parser(name, help=f"{text} (medvlp {name} --help)", add_help=False)
    for name, (_, text) in TOOLS.items():
        commands.add_parser(name, help=f"{text} (medvlp {name} --help)", add_help=False)
    listing = commands.add_parser("list", help="list methods, datasets or tasks")
    listing.add_argument("what", nargs="?", choices=["methods", "datasets", "tasks"], default="methods")
    return parser


def _list(what: str) -> None:
    from rich.table import Table

    from medvlp.console import console

    table = Table()
    if what == "methods":
        from medvlp.registry import methods

        for column in ("method", "class", "package"):
            table.add_column(column)
        for entry in methods():
            table.add_row(entry.name, entry.value, entry.dist.name if entry.dist else "")
    elif what == "datasets":
        from medvlp.datamodules import DATA_MODULES
        from medvlp.datasets import CORPORA, corpus_class
        from medvlp.splits import split_names

        for column in ("name", "dataset", "data module", "tasks", "splits (the first is the default)"):
            table.add_column(column)
        for name in CORPORA:
            corpus = corpus_class(name)
            splits = ", ".join(split_names(name))
            table.add_row(name, corpus.title, DATA_MODULES[name], ", ".join(corpus.tasks), splits)
        table.add_row("pairs", "own table of images and texts", DATA_MODULES["pairs"], "pairs", "a column, or by hash")
    else:
        for column in ("task", "how it runs"):
            table.add_column(column)
        from medvlp.tasks.catalog import TASKS

        table.add_column("protocols")
        table.add_row("pre-training", "medvlp fit", "variants of the methods")
        for name, task in TASKS.items():
            how = "medvlp fit, medvlp test" if task.trains else "medvlp test"
            table.add_row(f"{name} ({task.name})", how, ", ".join(task.protocols))
    console().print(table)


def _tool(name: str, words: Sequence[str]) -> int:
    module = importlib.import_module(TOOLS[name][0])
    parser = argparse.ArgumentParser(prog=f"medvlp {name}", description=TOOLS[name][1] + ".")
    module.add_arguments(parser)
    # Options may stand between DATASET and a root without --root, which argparse allows without subcommands alone.
    return module.run(parser.parse_args(words) if name == "benchmark" else parser.parse_intermixed_args(words))


def _one_line(message: str, name: str) -> str:
    """The message alone; an error that crossed from a loader worker carries the worker's traceback before it."""
    lines = [line for line in message.splitlines() if line.strip()] or [name]
    if len(lines) > 1 and "Original Traceback" in message:
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)


def _written_folder() -> str:
    """The folder that the command writes, as far as its words tell: a full disk's error names no file."""
    words = [part for word in sys.argv for part in word.split("=", 1)]
    for option in ("--out", "--trainer.default_root_dir", "--root", "--work"):
        if option in words[:-1]:
            return words[words.index(option) + 1]
    return os.getcwd()


def _deliberate(error: BaseException | None) -> str | None:
    """The line to print of a deliberate error, or of the system's refusal, that another was raised from.

    jsonargparse wraps what a constructor raises.
    """
    while error is not None:
        if isinstance(error, MedVLPError):
            return _one_line(str(error), type(error).__name__)
        if isinstance(error, OSError):
            return _one_line(os_error_line(error, _written_folder()), type(error).__name__)
        error = error.__cause__
    return None


def _interrupted(end: BaseException | None) -> bool:
    """Whether Ctrl-C ended the command; Lightning turns it into an exit with status 1."""
    while end is not None and not isinstance(end, KeyboardInterrupt):
        end = end.__cause__ or end.__context__
    return end is not None


def main(argv: Sequence[str] | None = None) -> None:
    """The console command.

    Args:
        argv: arguments; those of the process if None.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if any("\0" in word for word in words):
            raise ConfigError("an argument holds a zero byte, which no path can")
        if words and words[0] in RUN_COMMANDS:
            # imported for its commands alone: it brings torch and Lightning
            from medvlp.running import build_cli

            build_cli(argv)
            return
        if words and words[0] in TOOLS:
            sys.exit(_tool(words[0], words[1:]))
        _list(_parser().parse_args(words).what)
    except BrokenPipeError:
        # whoever read the output has closed it (medvlp list | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        if not _interrupted(end):
            raise
        print("medvlp: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        deliberate = _deliberate(error)
        if deliberate is None:
            raise
        print(f"medvlp: error: {deliberate}", file=sys.stderr)
        sys.exit(1)
