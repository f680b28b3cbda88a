"""The papers' tables as data: their columns, their rows, and the results of ours that belong in them.

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
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import product
from typing import Any

import yaml

from medvlp.benchmark.tables.reported import FRACTIONS, reported
from medvlp.errors import ConfigError, DataError

_ABLATION = "ablation: "
_PER_CENT = 100.0
_PRINTED = ("task", "dataset", "protocol", "metric", "fraction", "class")


@dataclass(frozen=True)
class Spec:
    """One column of one block.

    Attributes:
        labels: header, outermost first.
        printed: task, dataset, protocol, metric, fraction and class in the paper's words.
        backbone: of the reported cell, where the table mixes backbones.
        task: ours.
        dataset: ours.
        accepts: our protocols that may fill it.
        metrics: our metrics that may fill it, the preferred first.
        fraction: share of the training part; None for zero-shot.
        any_fraction: take whichever one fraction was run.
        decimals: digits after the point.
        scale: factor from our unit to the printed one.
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
    """One row.

    Attributes:
        method: as in reported.csv.
        label: as printed.
        backbone: of the reported cells, where the method is reported with several.
        benchmark: names in a grid that may fill it; the first with results does.
        facts: further row headers.
    """

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
    row_header: str
    fact_names: tuple[str, ...]
    marks: Mapping[str, str]
    remarks: tuple[str, ...]
    blocks: tuple[LayoutBlock, ...]

    @property
    def title(self) -> str:
        """``G2D, Table 1``."""
        return f"{self.paper}, Table {self.table}"

    @property
    def columns(self) -> list[Spec]:
        """The columns of all blocks."""
        return [spec for block in self.blocks for spec in block.columns]

    @property
    def ablation(self) -> bool:
        """Whether its rows are variants of one method."""
        return any(spec.printed["task"].startswith(_ABLATION) for spec in self.columns)

    @cached_property
    def _reported(self) -> Mapping[tuple[str, ...], list[dict[str, Any]]]:
        frame = reported()
        cells: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for cell in frame[(frame["source_paper"] == self.paper) & (frame["table"] == self.table)].to_dict("records"):
            key = (cell["method"], *(cell[name] for name in _PRINTED))
            cells.setdefault(key, []).append({str(name): value for name, value in cell.items()})
        return cells

    def reported_cell(self, row: LayoutRow, spec: Spec) -> Mapping[str, Any] | None:
        """Return the paper's cell at a row and column, as a row of ``reported.csv``; None if there is none.

        Raises:
            DataError: several cells match.
        """
        backbones = {backbone for backbone in (row.backbone, spec.backbone) if backbone is not None}
        key = (row.method, *(spec.printed[name] for name in _PRINTED))
        matches = [cell for cell in self._reported.get(key, ()) if backbones <= {cell["backbone"]}]
        if len(matches) > 1:
            raise DataError(
                f"{self.title}: {len(matches)} reported cells match row {row.label!r}, column "
                f"{' '.join(spec.labels)!r}; give the row or column a backbone in layouts.yaml"
            )
        return matches[0] if matches else None


def layout(name: str) -> Layout:
    """Return a layout by its name, such as ``g2d-2a``.

    Raises:
        ConfigError: unknown name.
    """
    if name not in layouts():
        raise ConfigError(f"unknown layout {name!r}; expected one of: {', '.join(layouts())}")
    return layouts()[name]


@cache
def layouts() -> dict[str, Layout]:
    """Return all layouts by name, in the papers' order."""
    data = yaml.safe_load(resources.files(__package__).joinpath("layouts.yaml").read_text("utf-8"))
    return {name: _layout(name, table, data) for name, table in data["tables"].items()}


def _layout(name: str, table: Mapping[str, Any], data: Mapping[str, Any]) -> Layout:
    return Layout(
        name=name,
        paper=table["paper"],
        table=table["table"],
        caption=table["caption"],
        row_header=table.get("row_header", "Method"),
        fact_names=tuple(table.get("fact_names", ())),
        marks=table.get("marks", {}),
        remarks=tuple(remark.strip() for remark in table.get("remarks", ())),
        blocks=tuple(_block(block, table, data) for block in table["blocks"]),
    )


def _block(block: Mapping[str, Any], table: Mapping[str, Any], data: Mapping[str, Any]) -> LayoutBlock:
    columns = [spec for group in table["columns"] for spec in _specs(group, block, table, data)]
    rows = [_row(row if isinstance(row, Mapping) else {"method": row}, data) for row in block["rows"]]
    return LayoutBlock(block.get("title", ""), tuple(columns), tuple(rows))


def _row(row: Mapping[str, Any], data: Mapping[str, Any]) -> LayoutRow:
    method = row["method"]
    return LayoutRow(
        method=method,
        label=row.get("label", method),
        backbone=row.get("backbone"),
        benchmark=tuple(row.get("benchmark", data["methods"].get(method, ()))),
        facts=tuple(row.get("facts", ())),
    )


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
                scale=group.get("scale", table.get("scale", _PER_CENT)),
            )
        )
    return specs
