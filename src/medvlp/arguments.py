"""The form that the commands over a corpus share: ``medvlp COMMAND DATASET --root DIR``."""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

from medvlp.errors import ConfigError


def add_corpus_arguments(
    parser: argparse.ArgumentParser, names: Collection[str] | None = None, *, default: str | None = None
) -> None:
    """Add ``DATASET`` and ``--root``, and, without help, the former ``--data``, ``--layout`` and positional root.

    Args:
        parser: of one command.
        names: datasets to choose from; None leaves the check to the command.
        default: dataset that is taken if none is given.
    """
    text = f"see: medvlp list datasets{f' (default: {default})' if default else ''}"
    parser.add_argument("dataset", nargs="?", choices=names, metavar="DATASET", help=text)
    parser.add_argument("old_root", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the corpus (required)")
    parser.add_argument("--data", "--layout", choices=names, dest="old_dataset", help=argparse.SUPPRESS)
    parser.set_defaults(default_dataset=default)


def settle_corpus_arguments(args: argparse.Namespace, command: str) -> None:
    """Set ``dataset`` and ``root`` of parsed arguments, and warn on stderr where a former form was used.

    Args:
        args: as parsed, of a parser with :func:`add_corpus_arguments`.
        command: for messages.

    Raises:
        ConfigError: one of the two is missing, or given twice.
    """
    usage = f"medvlp {command} DATASET --root DIR"
    old = args.old_dataset is not None or args.old_root is not None
    if args.old_dataset is not None and args.dataset is not None:
        raise ConfigError(f"the dataset is given twice, as {args.dataset} and {args.old_dataset}; write: {usage}")
    if args.old_root is not None and args.root is not None:
        raise ConfigError(f"the folder is given twice, as {args.old_root} and {args.root}; write: {usage}")
    args.dataset = args.dataset or args.old_dataset or args.default_dataset
    args.root = args.old_root if args.root is None else args.root
    if args.dataset is None or args.root is None:
        raise ConfigError(f"{'DATASET' if args.dataset is None else '--root'} is missing; write: {usage}")
    if old:
        print(f"medvlp {command}: this form is deprecated; write: {usage}", file=sys.stderr)
