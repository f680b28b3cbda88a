"""The papers' tables as data: what they report, their columns and rows, and the results of ours that belong in them.

``reported.csv`` has one row per printed cell. Values and standard deviations are kept as printed, since 8.90 and 8.9
differ in precision. ``flag`` holds, separated by " | ", where the paper contradicts itself or another paper.
``layouts.yaml`` holds, beside the mapping of printed names to ours, one entry per table:

================ ======================================================================================
key              meaning
================ ======================================================================================
paper, table     its source
caption          what it shows
header           one template per header line, over title, task, dataset, metric, class and fraction
row_header       heading of the rows; fact_names those of further row headers
decimals, scale  digits after the point; factor from our unit (100: per cent)
marks            what the paper's "-", "/" and "?" mean
remarks          footnotes to the whole table
columns          groups of columns, one for each of datasets × metrics × classes × fractions
blocks           the body: rows under a heading
================ ======================================================================================

A group of columns has a task and a protocol as the papers name them, ``accepts`` (our protocols that may fill it), and
may have ``backbone`` (of the reported cell), ``any_fraction`` (ablations: whichever one fraction was run), ``decimals``
and ``scale``. A block may set ``where`` (dataset, metric, class or fraction of all its columns), and, by task,
``protocols`` and ``accepts``. A row is a printed method, or its ``method`` with ``label``, ``backbone``, ``facts``
and ``benchmark`` (names in a grid that may fill it, the first that has results does).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import product
from typing import Any

import pandas as pd
import yaml

from medvlp.benchmark.tables.model import CANNOT, LOST, NOT_RUN, Reported
from medvlp.errors import ConfigError, DataError

FRACTIONS = {"1%": 0.01, "10%": 0.1, "100%": 1.0, "zero-shot": None}
"""Printed fractions to shares of the training part."""

_ABLATION = "ablation: "
_PRINTED = ("task", "dataset", "protocol", "metric", "fraction", "class")


@cache
def reported() -> pd.DataFrame:
    """Return all numbers of the papers' tables, in the papers' order; do not change the frame.

    The columns are those of ``reported.csv``, as strings except ``value`` and ``std`` (float, NaN if none is printed),
    and also ``printed`` and ``printed_std`` (as printed; "-", "/" or "?" instead of a value) and ``flags`` (tuples).
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


@cache
def _reported_cells() -> Mapping[tuple[str, ...], list[tuple[str, Reported]]]:
    """Return paper, table, method and :data:`_PRINTED` of each cell, to its backbones and what is printed."""
    cells: dict[tuple[str, ...], list[tuple[str, Reported]]] = {}
    for row in reported().to_dict("records"):
        key = tuple(row[name] for name in ("source_paper", "table", "method", *_PRINTED))
        cell = Reported(row["printed"], row["printed_std"] or None, row["note"], row["flags"])
        cells.setdefault(key, []).append((row["backbone"], cell))
    return cells


@dataclass(frozen=True)
class Spec:
    """One column of one block; the module describes what is not here.

    Attributes:
        labels: header, outermost first.
        printed: task, dataset, protocol, metric, fraction and class in the paper's words; the others are ours.
        metrics: our metrics that may fill it, the preferred first.
        fraction: share of the training part; None for zero-shot.
    """

    labels: tuple[str, ...]
    printed: Mapping[str, str]
    backbone: str | None
    task: str
    dataset: str
    accepts: tuple[str, ...]
    metrics: tuple[str, ...]
    fraction: float | None
    any_fraction: bool
    decimals: int
    scale: float


@dataclass(frozen=True)
class LayoutRow:
    """One row: ``method`` as in reported.csv, ``label`` as printed; the module describes the others."""

    method: str
    label: str
    backbone: str | None
    benchmark: tuple[str, ...]
    facts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names under which it looks for our results, in order."""
        return (*self.benchmark, self.label, self.method)


@dataclass(frozen=True)
class LayoutBlock:
    """Rows under a heading, and their columns."""

    title: str
    columns: tuple[Spec, ...]
    rows: tuple[LayoutRow, ...]


@dataclass(frozen=True)
class Layout:
    """One table of a paper; the module describes the fields."""

    name: str
    paper: str
    table: str
    caption: str
    blocks: tuple[LayoutBlock, ...]
    row_header: str = "Method"
    fact_names: tuple[str, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Such as "G2D, Table 1"."""
        return f"{self.paper}, Table {self.table}"

    @property
    def columns(self) -> list[Spec]:
        """The columns of all blocks."""
        return [spec for block in self.blocks for spec in block.columns]

    @property
    def ablation(self) -> bool:
        """Whether its rows are variants of one method."""
        return any(spec.printed["task"].startswith(_ABLATION) for spec in self.columns)

    def reported_cell(self, row: LayoutRow, spec: Spec) -> Reported | None:
        """Return the paper's cell at a row and column; None if there is none."""
        backbones = {backbone for backbone in (row.backbone, spec.backbone) if backbone is not None}
        key = (self.paper, self.table, row.method, *(spec.printed[name] for name in _PRINTED))
        matches = [cell for backbone, cell in _reported_cells().get(key, ()) if backbones <= {backbone}]
        if len(matches) > 1:
            raise DataError(
                f"{self.title}: {len(matches)} reported cells match row {row.label!r}, column "
                f"{' '.join(spec.labels)!r}; give the row or column a backbone in layouts.yaml"
            )
        return matches[0] if matches else None


def layout(name: str) -> Layout:
    """Return a layout by its name, such as ``g2d-2a``."""
    if name not in layouts():
        raise ConfigError(f"unknown layout {name!r}; expected one of: {', '.join(layouts())}")
    return layouts()[name]


@cache
def layouts() -> dict[str, Layout]:
    """Return all layouts by name, in the papers' order."""
    data = yaml.safe_load(resources.files(__package__).joinpath("layouts.yaml").read_text("utf-8"))
    keys = ("paper", "table", "caption", "row_header", "marks")
    return {
        name: Layout(
            name=name,
            blocks=tuple(_block(block, table, data) for block in table["blocks"]),
            fact_names=tuple(table.get("fact_names", ())),
            remarks=tuple(table.get("remarks", ())),
            **{key: table[key] for key in keys if key in table},
        )
        for name, table in data["tables"].items()
    }


def _block(block: Mapping[str, Any], table: Mapping[str, Any], data: Mapping[str, Any]) -> LayoutBlock:
    columns = [spec for group in table["columns"] for spec in _specs(group, block, table, data)]
    rows = []
    for entry in block["rows"]:
        row: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"method": entry}
        method = row["method"]
        benchmark = tuple(row.get("benchmark", data["methods"].get(method, ())))
        facts = tuple(row.get("facts", ()))
        rows.append(LayoutRow(method, row.get("label", method), row.get("backbone"), benchmark, facts))
    return LayoutBlock(block.get("title", ""), tuple(columns), tuple(rows))


def _specs(
    group: Mapping[str, Any], block: Mapping[str, Any], table: Mapping[str, Any], data: Mapping[str, Any]
) -> list[Spec]:
    where, task = block.get("where", {}), group["task"]
    ours = data["tasks"][task.removeprefix(_ABLATION)]
    levels = {"dataset": "datasets", "metric": "metrics", "class": "classes", "fraction": "fractions"}
    values = {one: [where[one]] if one in where else group.get(many, [""]) for one, many in levels.items()}
    protocol = block.get("protocols", {}).get(task, group["protocol"])
    specs = []
    for combination in product(*values.values()):
        printed = {"task": task, "protocol": protocol, **dict(zip(values, combination, strict=True))}
        label = printed["class"]
        words = {**printed, "title": group.get("title", task), "class": "Mean" if label == "mean" else label}
        metrics = ours["metrics"][printed["metric"]]
        if label not in ("", "mean", "macro average"):
            metrics = [f"{name}/{data['classes'].get(label, label)}" for name in metrics]
        specs.append(
            Spec(
                labels=tuple(line.format(**words) for line in table["header"]),
                printed=printed,
                backbone=group.get("backbone"),
                task=ours["task"],
                dataset=data["datasets"][printed["dataset"]],
                accepts=tuple(block.get("accepts", {}).get(task) or group["accepts"]),
                metrics=tuple(metrics),
                fraction=FRACTIONS[printed["fraction"]],
                any_fraction=group.get("any_fraction", False),
                decimals=group.get("decimals", table["decimals"]),
                scale=group.get("scale", table.get("scale", 100.0)),
            )
        )
    return specs
