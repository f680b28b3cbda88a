"""Tables in the layouts of the papers and of our own, from result rows and from what the papers report.

:func:`paper_tables` and :func:`own_tables` make a :class:`Table` of collected rows, :func:`reported_tables` of the
papers' numbers alone; :func:`markdown`, :func:`latex`, :func:`csv_text` and :func:`html_fragment` print it.
"""

from medvlp.benchmark.differences import Statistics
from medvlp.benchmark.tables.layouts import layouts, reported
from medvlp.benchmark.tables.model import Block, Cell, Column, Reported, Row, Table
from medvlp.benchmark.tables.own import own_tables, rows_left_out
from medvlp.benchmark.tables.paper import paper_tables, reported_tables
from medvlp.benchmark.tables.writing import csv_text, html_fragment, latex, markdown

__all__ = [
    "Block",
    "Cell",
    "Column",
    "Reported",
    "Row",
    "Statistics",
    "Table",
    "csv_text",
    "html_fragment",
    "latex",
    "layouts",
    "markdown",
    "own_tables",
    "paper_tables",
    "reported",
    "reported_tables",
    "rows_left_out",
]
