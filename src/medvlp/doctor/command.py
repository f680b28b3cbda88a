"""``medvlp doctor``."""

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvlp.datasets import CORPORA, corpus_class
from medvlp.datasets.options import OPTION_HELP, corpus_from_words
from medvlp.doctor.examine import examine, unreadable
from medvlp.doctor.pixels import Progress
from medvlp.doctor.printing import show
from medvlp.doctor.report import Diagnosis
from medvlp.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``medvlp doctor``."""
    parser.add_argument("dataset", choices=list(CORPORA), metavar="DATASET", help="see: medvlp list datasets")
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the corpus")
    parser.add_argument("--deep", action="store_true", help="decode every image, draw every mask, verify SHA256SUMS")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help=OPTION_HELP)
    parser.add_argument("--lists", type=Path, metavar="DIR", help="the authors' list files, for splits that need them")
    parser.add_argument("--workers", type=int, help="threads (default: by the number of cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON object with every item, and nothing else")


def run(args: argparse.Namespace) -> int:
    """``medvlp doctor``.

    Returns:
        Exit status: 0, or 1 if something needed is absent or corrupt.

    Raises:
        SystemExit: of status 2, if an option is wrong.
    """
    from rich.console import Console

    if args.workers is not None and args.workers < 1:
        return _usage(f"--workers must be at least 1, not {args.workers}")
    try:
        with _bar(not args.json) as progress:
            diagnoses = diagnose(
                args.dataset,
                args.root,
                args.option,
                lists=args.lists,
                deep=args.deep,
                workers=args.workers,
                progress=progress,
            )
    except ConfigError as error:
        return _usage(str(error))
    ok = all(diagnosis.ok for diagnosis in diagnoses)
    if args.json:
        result = {
            "dataset": args.dataset,
            "root": str(args.root),
            "deep": args.deep,
            "ok": ok,
            "diagnoses": [diagnosis.as_dict() for diagnosis in diagnoses],
        }
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        console = Console(highlight=False)
        for number, diagnosis in enumerate(diagnoses):
            if number:
                console.print()
            show(diagnosis, console)
    return 0 if ok else 1


def diagnose(
    name: str,
    root: Path,
    words: list[str],
    *,
    lists: Path | None = None,
    deep: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Diagnosis]:
    """Examine a folder, in each edition that it holds unless the options name one.

    Args:
        name: a key of :data:`medvlp.datasets.CORPORA`.
        root: folder of the corpus.
        words: options of the corpus, ``key=value``.
        lists: see :func:`~medvlp.doctor.examine.examine`.
        deep: likewise.
        workers: likewise.
        progress: likewise.

    Raises:
        ConfigError: an option is wrong.
    """
    kind = corpus_class(name)
    given = dict(word.partition("=")[::2] for word in words)
    variants = [v for v in kind.variants(root) if all(given.get(key, value) == value for key, value in v.items())]
    if not variants and words:
        variants = [{}]  # what the options name is not there; the reader says so
    diagnoses = []
    for variant in variants:
        options = {**variant, **given}
        corpus = corpus_from_words(name, root, [f"{key}={value}" for key, value in options.items()], on_error="skip")
        diagnoses.append(examine(corpus, options=options, lists=lists, deep=deep, workers=workers, progress=progress))
    if not diagnoses:
        found = "holds no list of any edition" if root.is_dir() else "does not exist"
        error = ConfigError(f"the {kind.title} folder {root} {found}; get it from {kind.source}")
        diagnoses.append(unreadable(name, kind.title, root, error, {}))
    return diagnoses


def _usage(reason: str) -> int:
    print(f"medvlp doctor: error: {reason}", file=sys.stderr)
    return 2


@contextmanager
def _bar(wanted: bool) -> Any:
    """A progress bar on the standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not wanted or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total or None)

        yield update
