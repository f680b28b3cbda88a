"""The numbers that the papers print: every cell of their tables, with where it stands and what is odd about it.

``reported.csv`` has one row per printed cell. Values and standard deviations are kept as printed, since 8.90 and 8.9
claim different precision.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from io import StringIO
from typing import Any

import pandas as pd

from medvlp.benchmark.tables.model import CANNOT, LOST, NOT_RUN, Reported
from medvlp.errors import DataError

FILE = "reported.csv"
KEY = ("source_paper", "table", "task", "dataset", "protocol", "method", "backbone", "metric", "fraction", "class")
"""Columns that tell the cells apart."""

COLUMNS = (*KEY, "value", "std", "note", "flag")
"""Columns of the file: ``flag`` holds, separated by " | ", where the paper contradicts itself or another paper."""

_PAPERS = ("G2D", "MGCA", "MaCo")
_FRACTIONS = {"1%": 0.01, "10%": 0.1, "100%": 1.0, "zero-shot": None}


def fraction_of(printed: str) -> float | None:
    """Share of the training part as a number; None for "zero-shot".

    Raises:
        DataError: no fraction of the papers.
    """
    if printed not in _FRACTIONS:
        raise DataError(f"{printed!r} is no fraction of the papers; there are {', '.join(_FRACTIONS)}")
    return _FRACTIONS[printed]


def parse(text: str, name: str = FILE) -> pd.DataFrame:
    """Reads and checks a table of reported numbers.

    Args:
        text: comma-separated, with :data:`COLUMNS`.
        name: of the file, for errors.

    Returns:
        The columns as strings but ``value`` and ``std`` (float, NaN where none is printed), and also ``printed`` and
        ``printed_std`` (as printed; in place of a value "-", "/" or "?"), ``share`` (the fraction as a number, NaN for
        zero-shot) and ``flags`` (tuples of strings).

    Raises:
        DataError: a column is missing, a value is no number or out of range, a cell comes twice, or an empty one does
            not say why.
    """
    frame = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
    if missing := set(COLUMNS) - set(frame.columns):
        raise DataError(f"{name}: no column {', '.join(sorted(missing))}; restore the file of the release")
    lines = frame.index + 2
    for column in ("value", "std"):
        numbers = pd.to_numeric(frame[column].where(frame[column] != ""), errors="coerce")
        _refuse(name, lines[(frame[column] != "") & numbers.isna()], f"{column} is no number")
        _refuse(name, lines[(numbers < 0) | (numbers > 100)], f"{column} is outside 0 to 100")
        printed = "printed" if column == "value" else "printed_std"
        frame[printed], frame[column] = frame[column], numbers
    _refuse(name, lines[~frame["source_paper"].isin(_PAPERS)], f"source_paper is none of {', '.join(_PAPERS)}")
    _refuse(name, lines[~frame["fraction"].isin(list(_FRACTIONS))], f"fraction is none of {', '.join(_FRACTIONS)}")
    _refuse(name, lines[frame.duplicated(list(KEY))], "a cell comes twice")
    empty = frame["value"].isna()
    frame.loc[empty, "printed"] = frame.loc[empty, "note"].map(_mark)
    _refuse(name, lines[frame["printed"] == ""], "there is neither a value nor a note that says what is printed")
    frame["share"] = pd.to_numeric(frame["fraction"].map(_FRACTIONS))
    frame["flags"] = [tuple(part for part in flag.split(" | ") if part) for flag in frame["flag"]]
    return frame


def _refuse(name: str, lines: pd.Index, what: str) -> None:
    if len(lines):
        raise DataError(f"{name}, line {lines[0]}: {what}; correct the line")


def _mark(note: str) -> str:
    for mark in (NOT_RUN, CANNOT):
        if f"printed '{mark}'" in note:
            return mark
    return LOST if "UNRECOVERED" in note else ""


@cache
def _shipped() -> pd.DataFrame:
    return parse(resources.files(__package__).joinpath(FILE).read_text("utf-8"))


def reported() -> pd.DataFrame:
    """All numbers of the papers' tables; see :func:`parse` for the columns.

    Returns:
        A copy, one row per printed cell, in the order of the papers.

    Raises:
        DataError: the shipped file was damaged.
    """
    return _shipped().copy()


def as_reported(row: Mapping[str, Any]) -> Reported:
    """A row of :func:`reported` as a cell prints it."""
    return Reported(row["printed"], row["printed_std"] or None, row["note"], row["flags"])
