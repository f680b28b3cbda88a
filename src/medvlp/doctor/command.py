"""``medvlp doctor``: its options, and findings on the terminal, coloured and wrapped, or in plain lines elsewhere."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from medvlp.arguments import add_corpus_arguments, settle_corpus_arguments
from medvlp.console import console, progress_bar
from medvlp.datasets import CORPORA, corpus_class
from medvlp.datasets.options import OPTION_HELP, corpus_from_words
from medvlp.doctor.examine import examine
from medvlp.doctor.findings import Diagnosis, Finding, Level
from medvlp.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

_STYLES: dict[Level, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}
_WIDTH = 8  # of the level column
_LISTED = 20  # items shown of each finding; all of them are in the JSON


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``medvlp doctor``."""
    add_corpus_arguments(parser, CORPORA)
    parser.add_argument("--deep", action="store_true", help="decode every image, draw every mask, verify SHA256SUMS")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help=OPTION_HELP)
    parser.add_argument("--lists", type=Path, metavar="DIR", help="the authors' list files, for splits that need them")
    parser.add_argument("--workers", type=int, help="threads (default: by the number of cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON object with every item, and nothing else")


def run(args: argparse.Namespace) -> int:
    """Run ``medvlp doctor``.

    Returns:
        Exit status: 0; 1 if something needed is absent or corrupt; 2 if an option is wrong.
    """
    try:
        settle_corpus_arguments(args, "doctor")
        if args.workers is not None and args.workers < 1:
            raise ConfigError(f"--workers must be at least 1, not {args.workers}")
        with progress_bar(show=not args.json) as update:
            diagnoses = diagnose(
                args.dataset,
                args.root,
                args.option,
                lists=args.lists,
                deep=args.deep,
                workers=args.workers,
                progress=lambda stage, done, total: update(description=stage, completed=done, total=total or None),
            )
    except ConfigError as error:
        print(f"medvlp doctor: error: {error}", file=sys.stderr)
        return 2
    ok = all(diagnosis.ok for diagnosis in diagnoses)
    if args.json:
        result = {"dataset": args.dataset, "root": str(args.root), "deep": args.deep, "ok": ok}
        print(json.dumps({**result, "diagnoses": [diagnosis.as_dict() for diagnosis in diagnoses]}, indent=2))
    else:
        terminal = console()
        for number, diagnosis in enumerate(diagnoses):
            if number:
                terminal.print()
            show(diagnosis, terminal)
    return 0 if ok else 1


def diagnose(name: str, root: Path, words: list[str], **settings: Any) -> list[Diagnosis]:
    """Examine a folder, in each edition that it holds unless the options name one.

    Args:
        name: a key of :data:`medvlp.datasets.CORPORA`.
        root: folder of the corpus.
        words: options of the corpus, ``key=value``.
        **settings: see :func:`~medvlp.doctor.examine.examine`.
    """
    corpus_type = corpus_class(name)
    given = dict(word.partition("=")[::2] for word in words)
    variants = [
        v for v in corpus_type.variants(root) if all(given.get(key, value) == value for key, value in v.items())
    ]
    if not variants and words:
        variants = [{}]  # the reader says that the edition named is not there
    diagnoses = []
    for variant in variants:
        options = {**variant, **given}
        corpus = corpus_from_words(name, root, [f"{key}={value}" for key, value in options.items()], on_error="skip")
        diagnoses.append(examine(corpus, options=options, **settings))
    if not diagnoses:
        state = "holds no list of any edition" if root.is_dir() else "does not exist"
        text = f"the {corpus_type.title} folder {root} {state}; get it from {corpus_type.source}"
        finding = Finding("options", "error", " ".join(text.split()))
        diagnoses.append(Diagnosis(name, corpus_type.title, root, checks=[finding]))
    return diagnoses


def printable(text: str) -> str:
    """Escape control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def show(diagnosis: Diagnosis, terminal: "Console") -> None:
    """Print a diagnosis."""
    options = "".join(f" {key}={value}" for key, value in diagnosis.options.items())
    terminal.print(Text(printable(f"{diagnosis.title} in {diagnosis.root}{options}"), style="bold"))
    for finding in diagnosis.checks:
        _show_finding(finding, terminal)
    if diagnosis.tasks:
        _line(terminal, "tasks", ", ".join(t for t, state in diagnosis.tasks.items() if state.runs) or "none can run")
    if diagnosis.splits:
        names = (f"{name} (default)" if s.default else name for name, s in diagnosis.splits.items() if s.made)
        _line(terminal, "splits", ", ".join(names) or "none can be made")
    counts = diagnosis.as_dict()["levels"]
    named = ((counts[level], level) for level in ("error", "warning", "note"))
    remarks = ", ".join(f"{n} {level}{'s' if n != 1 else ''}" for n, level in named if n) or "no remarks"
    verdict = "nothing that is needed is absent or corrupt" if diagnosis.ok else "something needed is absent or corrupt"
    _line(terminal, "result", f"{verdict} ({remarks})", style="green" if diagnosis.ok else "bold red")
    for command in diagnosis.next:
        _line(terminal, "next", command)


def _show_finding(finding: Finding, terminal: "Console") -> None:
    _line(terminal, finding.level, f"{finding.name}: {finding.found}", style=_STYLES[finding.level])
    details = [f"{key}: {text}" for key in ("expected", "remedy") if (text := getattr(finding, key))]
    if finding.level != "ok":
        details += finding.items[:_LISTED]
        if len(finding.items) > _LISTED:
            details.append(f"and {len(finding.items) - _LISTED:,} more (all with --json)")
    for detail in details:
        if terminal.is_terminal:
            terminal.print(Padding(Text(printable(detail), style="dim", overflow="fold"), (0, 0, 0, _WIDTH + 2)))
        else:
            terminal.print(Text(" " * (_WIDTH + 2) + printable(detail)), soft_wrap=True)


def _line(terminal: "Console", head: str, text: str, style: str = "bold") -> None:
    if not terminal.is_terminal:
        terminal.print(Text(f"{head:<{_WIDTH}}  {printable(text)}"), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(head, style=style), Text(printable(text), overflow="fold"))
    terminal.print(grid)
