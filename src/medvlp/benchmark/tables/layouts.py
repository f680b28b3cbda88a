"""The papers' tables as data: their columns, their rows, and what of ours belongs in them.

``layouts.yaml`` holds, beside the mapping of printed names to ours, one entry per table:

================ ======================================================================================
key              meaning
================ ======================================================================================
paper, table     where it stands
caption          what it shows
header           one template per header line, over title, task, dataset, metric, class and fraction
row_header       heading of the rows; fact_names those of further row headers
decimals, scale  digits after the point; factor from our unit (100: per cent)
marks            what the paper's "-", "/" and "?" mean
remarks          what a reader must know of the whole table
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

from medvlp.benchmark.tables.reported import fraction_of, reported
from medvlp.errors import ConfigError, DataError

_ABLATION = "ablation: "
_PER_CENT = 100.0
_PRINTED = ("task", "dataset", "protocol", "metric", "fraction", "class")


@dataclass(frozen=True)
class Spec:
    """One column of one block: what the paper has there, and what of ours may stand there.

    Attributes:
        labels: header, outermost first.
        printed: task, dataset, protocol, metric, fraction and class as the papers name them.
        backbone: of the reported cell, where the table mixes backbones.
        task: ours.
        dataset: ours.
        accepts: our protocols that may fill it.
        metrics: our metrics that may fill it, the preferred first.
        fraction: share of the training part; None for zero-shot.
        any_fraction: whichever one fraction was run.
        decimals: digits after the point.
        scale: factor from our unit to what is printed.
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
    """One row: the paper's method, and ours that fills it.

    Attributes:
        method: as reported.csv has it.
        label: as printed.
        backbone: of the reported cells, where the method stands there with several.
        benchmark: names in a grid that may fill it; the first with results does.
        facts: further row headers.
    """

    method: str
    label: str
    backbone: str | None
    benchmark: tuple[str, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True)
class LayoutBlock:
    """Rows under a heading, and the columns as they are there."""

    title: str
    columns: tuple[Spec, ...]
    rows: tuple[LayoutRow, ...]


@dataclass(frozen=True)
class Layout:
    """One table of a paper; see the module for the fields."""

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
    def ablation(self) -> bool:
        """Whether its rows are variants of one method."""
        return any(spec.printed["task"].startswith(_ABLATION) for block in self.blocks for spec in block.columns)

    @cached_property
    def reported(self) -> Mapping[tuple[str, ...], list[Mapping[str, Any]]]:
        """The reported cells of this table by method, and by task, dataset, protocol, metric, fraction and class."""
        frame = reported()
        own = frame[(frame["source_paper"] == self.paper) & (frame["table"] == self.table)]
        found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for cell in own.to_dict("records"):
            plain = {str(key): value for key, value in cell.items()}
            found.setdefault((plain["method"], *(plain[key] for key in _PRINTED)), []).append(plain)
        return found

    def reported_cell(self, row: LayoutRow, spec: Spec) -> Mapping[str, Any] | None:
        """The paper's cell at a row and column.

        Args:
            row: of this layout.
            spec: a column of the row's block.

        Returns:
            A row of :func:`~medvlp.benchmark.tables.reported.reported`; None where the paper has none.

        Raises:
            DataError: several cells match, so that the layout does not tell them apart.
        """
        wanted = {backbone for backbone in (row.backbone, spec.backbone) if backbone is not None}
        key = (row.method, *(spec.printed[name] for name in _PRINTED))
        found = [cell for cell in self.reported.get(key, ()) if wanted <= {cell["backbone"]}]
        if len(found) > 1:
            raise DataError(
                f"{self.title}: {len(found)} reported cells match row {row.label!r}, column {' '.join(spec.labels)!r}; "
                "give the row or column a backbone in layouts.yaml"
            )
        return found[0] if found else None


def layout(name: str) -> Layout:
    """A layout by its name, such as ``g2d-2a``.

    Raises:
        ConfigError: there is no such layout.
    """
    if name not in layouts():
        raise ConfigError(f"no layout {name!r}; there are {', '.join(layouts())}")
    return layouts()[name]


@cache
def layouts() -> dict[str, Layout]:
    """All layouts by name, in the papers' order.

    Raises:
        DataError: the shipped file does not fit together.
    """
    text = resources.files(__package__).joinpath("layouts.yaml").read_text("utf-8")
    return parse(yaml.safe_load(text))


def parse(data: Mapping[str, Any]) -> dict[str, Layout]:
    """Layouts from what ``layouts.yaml`` holds.

    Raises:
        DataError: a key is missing, or a name is not mapped to ours.
    """
    found = {}
    for name, table in data["tables"].items():
        try:
            found[name] = _layout(name, table, data)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"layouts.yaml, table {name}: {error} is missing or misplaced; complete the entry"
            ) from error
    return found


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
        words = {**printed, "title": group.get("title", task)}
        words["class"] = "Mean" if printed["class"] == "mean" else printed["class"]
        specs.append(
            Spec(
                labels=tuple(line.format(**words) for line in table["header"]),
                printed=printed,
                backbone=group.get("backbone"),
                task=ours["task"],
                dataset=data["datasets"][printed["dataset"]],
                accepts=tuple(block.get("accepts", {}).get(task) or group["accepts"]),
                metrics=_metrics(ours["metrics"][printed["metric"]], printed["class"], data["classes"]),
                fraction=fraction_of(printed["fraction"]),
                any_fraction=group.get("any_fraction", False),
                decimals=group.get("decimals", table["decimals"]),
                scale=group.get("scale", table.get("scale", _PER_CENT)),
            )
        )
    return specs


def _metrics(names: list[str], label: str, classes: Mapping[str, str]) -> tuple[str, ...]:
    """Our metrics: of a class where the column is one's, else the mean over classes."""
    if label in ("", "mean", "macro average"):
        return tuple(names)
    return tuple(f"{name}/{classes.get(label, label)}" for name in names)
