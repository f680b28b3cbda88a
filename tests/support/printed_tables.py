"""The papers' numbers as if they were results, and printed tables read back into cells."""

import csv
import re
from io import StringIO

from medvlp.benchmark.tables.layouts import Layout, LayoutRow, Spec
from medvlp.benchmark.tables.model import NUMBER


def result_row(method, metric, value, *, task="segmentation", protocol="g2d", dataset="siim", fraction=0.01, **changes):
    """A collected result row without predictions; ``changes`` may also set keys of ``benchmark``."""
    own = {"grid": "g", "method": method, "title": method, "task": f"{task}_{dataset}", "run": "run0", "job": "j0"}
    own |= {key: changes.pop(key) for key in list(changes) if key in own and key != "task"}
    if "bm_task" in changes:
        own["task"] = changes.pop("bm_task")
    row = {
        "method": method,
        "checkpoint": "c",
        "task": task,
        "protocol": protocol,
        "dataset": dataset,
        "part": "test",
        "split": "official",
        "split_sha256": "s",
        "fraction": fraction,
        "seed": 0,
        "metric": metric,
        "value": value,
        "predictions": None,
        "config_sha256": f"{method} {own['run']} {protocol}",
        "notes": {},
        "benchmark": own,
    }
    return row | changes


def as_results(layout: Layout) -> list[dict]:
    """Result rows with the values of the reported cells: one run, or three of the printed mean and deviation."""
    rows = []
    for b, block in enumerate(layout.blocks):
        for r, row in enumerate(block.rows):
            for c, spec in enumerate(block.columns):
                found = layout.reported_cell(row, spec)
                if found is not None and found.status == NUMBER:
                    rows += _runs(row, spec, float(found.printed), found.std and float(found.std), f"{b}{r}{c}")
    return rows


def _runs(row: LayoutRow, spec: Spec, value: float, std: float | None, job: str) -> list[dict]:
    values = [value] if std is None else [value - std, value, value + std]
    return [
        result_row(
            row.benchmark[0] if row.benchmark else row.label,
            spec.metrics[0],
            one / spec.scale,
            task=spec.task,
            protocol=spec.accepts[0],
            dataset=spec.dataset,
            fraction=spec.fraction,
            run=f"run{i}",
            job=f"job{job}",
            bm_task=f"{spec.task}-{spec.dataset}-{spec.accepts[0]}",
        )
        for i, one in enumerate(values)
    ]


def from_markdown(text: str, stubs: int) -> list[str]:
    """Texts of the cells of a Markdown table, row by row, without marks of flags, links, and emphasis."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    found = []
    for line in lines:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if any(cells[1:]):
            found += cells[stubs:]
    return [_plain_markdown(cell) for cell in found]


def _plain_markdown(cell: str) -> str:
    cell = re.sub(r"<sup>[a-z,]+</sup>", "", cell)
    cell = re.sub(r"^\[(.*?)\]\(#[\w-]+\)", r"\1", cell).replace("**", "")
    return re.sub(r"\\(.)", r"\1", cell)


def from_latex(text: str, stubs: int) -> list[str]:
    """Texts of the cells of a LaTeX table, row by row."""
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    found = []
    for line in body.splitlines():
        if line.endswith(r" \\") and not line.startswith(r"\multicolumn"):
            found += re.split(r"(?<!\\) & ", line.removesuffix(r" \\"))[stubs:]
    return [_plain_latex(cell) for cell in found]


def _plain_latex(cell: str) -> str:
    cell = re.sub(r"\\textsuperscript\{[a-z,]+\}", "", cell)
    cell = re.sub(r"\{\\scriptsize ([^}]*)\}", r"\1", cell)
    return re.sub(r"\\textbf\{([^}]*)\}", r"\1", cell).replace(r"$\pm$", "±")


def from_csv(text: str) -> list[dict[str, str]]:
    """Lines of a CSV file."""
    return list(csv.DictReader(StringIO(text)))


def parts(cell: str) -> tuple[str, str]:
    """Our value and the paper's of a printed cell; a lone mark is both."""
    match = re.fullmatch(r"(.*?)(?: \((.*)\))?", cell)
    assert match is not None
    ours, paper = match.groups()
    return ours, ours if paper is None and ours in "-/?" else paper or ""
