"""Result rows as a table on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from medvlp.results import ResultRow


def print_rows(rows: Sequence[ResultRow]) -> None:
    """Print the rows of one test: a line per metric, with its interval where there is one."""
    first = rows[0]
    title = f"{first.task} ({first.protocol}), {first.dataset} {first.part}, {first.method}: {first.samples} samples"
    table = Table(title=title)
    for column in ("metric", "value", f"{first.level:.0%} interval" if first.level else "interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for row in rows:
        known = row.low is not None and row.high is not None and row.low == row.low
        table.add_row(row.metric, f"{row.value:.4f}", f"{row.low:.4f} – {row.high:.4f}" if known else "")
    Console().print(table)
