"""Mutations of tables as text, and what tables say by Python's strict parser."""

import csv
import io
import math
from typing import Any

import numpy as np
from mutations import TEXTS, Trial, mutate_bytes

Rows = list[list[str]]


def csv_text(rows: Rows, **form: Any) -> str:
    """Rows as a CSV file; ``form`` as for ``csv.writer``."""
    text = io.StringIO(newline="")
    csv.writer(text, **{"lineterminator": "\n", **form}).writerows(rows)
    return text.getvalue()


def strict_rows(data: bytes, encoding: str = "utf-8", sep: str = ",") -> Rows | None:
    """What the bytes say by Python's strict parser, lines of blanks alone left out; None if they are no table."""
    try:
        text = data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=sep, strict=True))
    except (csv.Error, UnicodeDecodeError):
        return None
    return [row for row in rows if row and not (len(row) == 1 and not row[0].strip())]


def change_cells(trial: Trial, rows: Rows) -> Rows:
    """A row or a field dropped, repeated, added, exchanged or replaced."""
    rows = [list(row) for row in rows]
    at = int(trial.rng.integers(1, len(rows))) if trial.often(0.85) else 0
    row = rows[at]
    field, other = (int(n) for n in trial.rng.integers(len(row), size=2))
    what = trial.pick("cell cell cell blank drop add swap row again shuffle columns short pad all")
    trial.note(f"{what}: row {at}, field {field}")
    if what == "cell":
        row[field] = trial.one(TEXTS).replace("\ud800", "?")
        trial.note(repr(row[field][:20]))
    elif what == "blank":
        row[field] = ""
    elif what == "drop":
        del row[field]
    elif what == "add":
        row.insert(trial.one([0, field, len(row)]), trial.one(["", "", "x", row[field]]))
    elif what == "swap":
        row[field], row[other] = row[other], row[field]
    elif what == "row":
        del rows[at]
    elif what == "again":
        rows.insert(int(trial.rng.integers(1, len(rows) + 1)), list(row))
    elif what == "shuffle":
        order = trial.rng.permutation(len(rows) - 1)
        rows[1:] = [rows[1 + i] for i in order]
    elif what == "columns":
        order = trial.rng.permutation(len(rows[0]))
        rows = [[r[i] for i in order] if len(r) == len(order) else r for r in rows]
    elif what == "short":
        del row[1 + field :]
    elif what == "pad":
        rows = [[*r, ""] for r in rows]
    else:  # one cell in every row
        rows = [[*r[:field], "" if trial.often(0.5) else r[field], *r[field + 1 :]] for r in rows]
    return rows


def mutate_table(trial: Trial, rows: Rows, sep: str = ",") -> bytes:
    """The rows as another file: changed cells, another dialect, other bytes."""
    for _ in range(int(trial.one([0, 1, 1, 1, 2]))):
        rows = change_cells(trial, rows) if len(rows) > 1 and all(rows) else rows
    how = trial.pick("plain plain plain plain plain plain all crlf cr bom utf-16 latin-1 sep quote bytes bytes open")
    trial.note(how)
    form: dict[str, Any] = {"delimiter": sep}
    if how == "all":
        form["quoting"] = csv.QUOTE_ALL
    elif how in ("crlf", "cr"):
        form["lineterminator"] = {"crlf": "\r\n", "cr": "\r"}[how]
    elif how == "sep":
        form["delimiter"] = trial.one([";", "\t", "|", ","])
    text = csv_text(rows, **form)
    if how == "quote":
        at = int(trial.rng.integers(len(text)))
        text = text[:at] + trial.one(['"', '""', "\n", "\r", sep, "\0", "#", "\\", "'"]) + text[at:]
    elif how == "open":
        text = text.rstrip("\n") + trial.one(["", "\n\n\n", '"', "\x1a", " ", sep])
    data = text.encode({"bom": "utf-8-sig", "utf-16": "utf-16", "latin-1": "latin-1"}.get(how, "utf-8"), "replace")
    return mutate_bytes(trial, data) if how == "bytes" else data


def number_in(cell: str) -> float | None:
    """The finite number in a cell, NaN for a blank one, None where there is none."""
    if not cell.strip():
        return math.nan
    try:
        value = float(np.float32(float(cell)))
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def same_number(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
