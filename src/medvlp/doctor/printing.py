"""A diagnosis on the terminal: coloured and wrapped on one, plain lines elsewhere."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from medvlp.doctor.report import Check, Diagnosis, Level

_STYLES: dict[Level, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}
_WIDTH = 8  # of the level column

LISTED = 20
"""Items that are shown of each check; all of them are in the JSON."""


def printable(text: str) -> str:
    """Text of unknown origin without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print a diagnosis.

    Args:
        diagnosis: what was found.
        console: where to.
    """
    options = "".join(f" {key}={value}" for key, value in diagnosis.options.items())
    console.print(Text(printable(f"{diagnosis.title} in {diagnosis.root}{options}"), style="bold"))
    for check in diagnosis.checks:
        _show_check(check, console)
    if diagnosis.tasks:
        _line(console, "tasks", ", ".join(t for t, state in diagnosis.tasks.items() if state.runs) or "none can run")
    if diagnosis.splits:
        made = (f"{name} (default)" if s.default else name for name, s in diagnosis.splits.items() if s.made)
        _line(console, "splits", ", ".join(made) or "none can be made")
    counts = {level: sum(1 for _ in diagnosis.at(level)) for level in ("error", "warning", "note")}
    words = ", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts.items() if n)
    verdict = "nothing that is needed is absent or corrupt" if diagnosis.ok else "something needed is absent or corrupt"
    _line(console, "result", f"{verdict} ({words or 'no remarks'})", style="green" if diagnosis.ok else "bold red")
    for command in diagnosis.next:
        _line(console, "next", command)


def _show_check(check: Check, console: Console) -> None:
    _line(console, check.level, f"{check.name}: {check.found}", style=_STYLES[check.level])
    details = [f"expected: {check.expected}"] if check.expected else []
    if check.remedy:
        details.append(f"remedy: {check.remedy}")
    if check.level != "ok":
        details += check.items[:LISTED]
        if len(check.items) > LISTED:
            details.append(f"and {len(check.items) - LISTED:,} more (all with --json)")
    for detail in details:
        if console.is_terminal:
            console.print(Padding(Text(printable(detail), style="dim", overflow="fold"), (0, 0, 0, _WIDTH + 2)))
        else:
            console.print(Text(" " * (_WIDTH + 2) + printable(detail)), soft_wrap=True)


def _line(console: Console, head: str, text: str, style: str = "bold") -> None:
    if not console.is_terminal:
        console.print(Text(f"{head:<{_WIDTH}}  {printable(text)}"), soft_wrap=True)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=_WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(head, style=style), Text(printable(text), overflow="fold"))
    console.print(grid)
