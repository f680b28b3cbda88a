"""Tables before they are printed: columns, blocks of rows, cells, footnotes.

Within a block every column holds one task, dataset, protocol, metric and fraction; where a paper prints two protocols
in one column, they are two blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

NUMBER, NOT_RUN, CANNOT, LOST = "number", "-", "/", "?"
"""Status of a cell: a value; not run; not supported by the method; printed in the paper but no longer readable."""


@dataclass(frozen=True)
class Reported:
    """What a paper prints in a cell: a value such as "8.90", or "-", "/" or "?", and the number after ±, if any.

    ``flags`` holds inconsistencies within the paper or with another, a sentence each.
    """

    printed: str
    std: str | None = None
    note: str = ""
    flags: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """``NUMBER``, or the mark printed instead."""
        return self.printed if self.printed in (NOT_RUN, CANNOT, LOST) else NUMBER

    @property
    def text(self) -> str:
        """As the paper prints it: ``65.6 ± 1.7``."""
        return f"{self.printed} ± {self.std}" if self.std else self.printed


@dataclass(frozen=True)
class Cell:
    """One method in one column: our value, and the paper's beside it.

    Values are in the metric's own unit (in [0, 1] for AUROC, Dice, mAP); ``scale`` converts them to what is printed.

    Attributes:
        status: ``NUMBER`` if there is a value of ours, else the mark to print.
        value: mean over the ``runs``; ``std`` is their sample standard deviation, None for one run.
        low: lower end of the bootstrap interval of the mean over patients; None if unknown.
        best: whether it is the best of its column, by more than chance.
        reported: the paper's value; None if the paper has no such cell.
        jobs: hashes of the jobs of its result rows; of rows of single runs, the first twelve digits of their settings'
            hash.
        lines: lines of those rows in the results file.
        scale: 100 for per cent, otherwise 1.
        decimals: digits after the point of value and interval; ``std_decimals`` of the standard deviation.
        reason: why there is no value, if the rows say so.
    """

    status: str
    value: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    best: bool = False
    reported: Reported | None = None
    jobs: tuple[str, ...] = ()
    lines: tuple[int, ...] = ()
    scale: float = 100.0
    decimals: int = 1
    std_decimals: int = 1
    reason: str = ""

    @property
    def mean_text(self) -> str:
        """``65.6``, or the mark."""
        return self.status if self.value is None else f"{self.value * self.scale:.{self.decimals}f}"

    @property
    def std_text(self) -> str:
        """``1.7``, or empty."""
        return "" if self.std is None else f"{self.std * self.scale:.{self.std_decimals}f}"

    @property
    def interval_text(self) -> str:
        """``[63.1, 67.9]``, or empty."""
        if self.low is None or self.high is None:
            return ""
        return f"[{self.low * self.scale:.{self.decimals}f}, {self.high * self.scale:.{self.decimals}f}]"

    @property
    def sort_text(self) -> str:
        """Number to sort a column by: ours, or else the paper's; empty if there is none."""
        if self.value is not None:
            return f"{self.value * self.scale:.6g}"
        return self.reported.printed if self.reported and self.reported.status == NUMBER else ""


@dataclass(frozen=True)
class Column:
    """One column: its labels, outermost first, and the metric of ours that fills it ("" if there is none).

    ``fraction`` is None for zero-shot, or if the blocks hold the fractions.
    """

    labels: tuple[str, ...]
    metric: str = ""
    fraction: float | None = None


@dataclass(frozen=True)
class Row:
    """One method: a cell for each column, and a fact (epochs, pre-training data) for each of ``Table.fact_names``.

    ``method`` is its name in the grid; None if no result of ours fills the row.
    """

    label: str
    cells: tuple[Cell, ...]
    method: str | None = None
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """Rows under a heading; "" for none."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: ``g2d-1``, ``mgca-6``, ``own-segmentation``: also the label and the prefix of links.
        columns: equal labels of neighbours are printed as one.
        footnotes: sentences to print below.
        source: path of the results file as it was given; "" if the table holds reported numbers alone.
        row_header: heading of the rows' labels; ``fact_names`` those of their facts.
        phantom: whether some value comes from the phantom.
        reported_only: whether it holds the paper's values and none of ours.
        family: the kind of task of one of our own tables ("segmentation"); "" for a paper's.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    footnotes: tuple[str, ...] = ()
    source: str = ""
    row_header: str = "Method"
    fact_names: tuple[str, ...] = ()
    phantom: bool = False
    reported_only: bool = False
    family: str = ""

    def cells(self) -> Iterator[tuple[int, int, int, Cell]]:
        """Iterate over all cells, with the indices of their block, row in the block, and column."""
        for b, block in enumerate(self.blocks):
            for r, row in enumerate(block.rows):
                for c, cell in enumerate(row.cells):
                    yield b, r, c, cell

    @cached_property
    def flags(self) -> tuple[str, ...]:
        """The papers' inconsistencies that concern some cell, each once, in the order of the cells."""
        flags = (flag for *_, cell in self.cells() if cell.reported for flag in cell.reported.flags)
        return tuple(dict.fromkeys(flags))

    def marks(self, cell: Cell) -> str:
        """Return the letters of a cell's flags, such as ``a,c``, by their index in :attr:`flags`."""
        flags = cell.reported.flags if cell.reported else ()
        return ",".join(letter_of(number) for number in sorted(map(self.flags.index, flags)))

    def has_values(self) -> bool:
        """Return whether any cell holds a value of ours."""
        return any(cell.value is not None for *_, cell in self.cells())

    def anchor(self, block: int, row: int, column: int) -> str:
        """Return the link target of a cell's result rows; unique if table names are."""
        return f"{self.name}-{block + 1}-{row + 1}-{column + 1}"


def letter_of(number: int) -> str:
    """Convert 0 to "a", 25 to "z", 26 to "aa"."""
    more, last = divmod(number, 26)
    return (letter_of(more - 1) if more else "") + chr(ord("a") + last)
