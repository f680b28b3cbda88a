"""Numbers that the papers report: every cell of their tables, with its place and its inconsistencies.

``reported.csv`` has one row per printed cell. Values and standard deviations are kept as printed, since 8.90 and 8.9
differ in precision. ``flag`` holds, separated by " | ", where the paper contradicts itself or another paper.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd

from medvlp.benchmark.tables.model import CANNOT, LOST, NOT_RUN, Reported

FRACTIONS = {"1%": 0.01, "10%": 0.1, "100%": 1.0, "zero-shot": None}
"""Printed fractions to shares of the training part."""


@cache
def reported() -> pd.DataFrame:
    """Return all numbers of the papers' tables, in the papers' order; do not change the frame.

    Returns:
        One row per printed cell. The columns are those of ``reported.csv``, as strings except ``value`` and ``std``
        (float, NaN if none is printed), and also ``printed`` and ``printed_std`` (as printed; "-", "/" or "?" instead
        of a value) and ``flags`` (tuples of strings).
    """
    with resources.files(__package__).joinpath("reported.csv").open(encoding="utf-8") as file:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    frame["printed"] = frame["value"].where(frame["value"] != "", frame["note"].map(_mark))
    frame["printed_std"] = frame["std"]
    for column in ("value", "std"):
        frame[column] = pd.to_numeric(frame[column].where(frame[column] != ""))
    frame["flags"] = [tuple(part for part in flag.split(" | ") if part) for flag in frame["flag"]]
    return frame


def _mark(note: str) -> str:
    for mark in (NOT_RUN, CANNOT):
        if f"printed '{mark}'" in note:
            return mark
    return LOST if "UNRECOVERED" in note else ""


def as_reported(row: Mapping[str, Any]) -> Reported:
    """Turn a row of :func:`reported` into the content of a cell."""
    return Reported(row["printed"], row["printed_std"] or None, row["note"], row["flags"])
