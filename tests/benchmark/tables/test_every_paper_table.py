"""The papers' numbers, given as results, come out of every writer cell for cell as reported.csv has them.

The cells of a printed table, read from left to right and from top to bottom, are compared with the file's rows in the
file's order, so that layouts are not checked by themselves.
"""

from pathlib import Path

import pandas as pd
import pytest
from made_results import write
from printed_tables import as_results, from_csv, from_latex, from_markdown, parts

from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.rows import collected
from medvlp.benchmark.tables import Statistics, csv_text, latex, markdown, paper_tables, reported, reported_tables
from medvlp.benchmark.tables.layouts import layouts

FACTS = Path(__file__).parents[4] / "shared/facts/reported_results.csv"
PAPERS = {"g2d": "G2D", "mgca": "MGCA", "maco": "MaCo"}


def in_order(name):
    paper, _, number = name.partition("-")
    frame = reported()
    return frame[(frame["source_paper"] == PAPERS[paper]) & (frame["table"] == number)]


def expected(name):
    rows = in_order(name)
    return [f"{row.printed} ± {row.printed_std}" if row.printed_std else row.printed for row in rows.itertuples()]


@pytest.fixture(scope="module", params=list(layouts()))
def filled(request, tmp_path_factory):
    """A layout's name and its table, filled with the paper's numbers as results."""
    layout, folder = layouts()[request.param], tmp_path_factory.mktemp("results")
    path = write(folder / "results.jsonl", as_results(layout))
    frame = collected(path)
    grid = GridFile.read(folder, frame)
    return request.param, *paper_tables(frame, grid, Statistics(folder, resamples=0), [layout.name])


@pytest.mark.parametrize("read", ["markdown", "latex"])
def test_results_that_equal_the_papers_print_the_papers_table(filled, read):
    name, table = filled
    stubs = 1 + len(table.fact_names)
    cells = from_markdown(markdown(table), stubs) if read == "markdown" else from_latex(latex(table), stubs)
    found = [parts(cell) for cell in cells]
    assert [ours for ours, _ in found] == expected(name)
    assert [paper for _, paper in found] == expected(name)


def test_csv_too(filled):
    name, table = filled
    lines = from_csv(csv_text([table]))
    rows = in_order(name)
    assert [line["value"] for line in lines] == list(rows["printed"])
    assert [line["std"] for line in lines] == list(rows["printed_std"])
    assert [line["paper"] for line in lines] == list(rows["printed"])
    assert [line["paper_std"] for line in lines] == list(rows["printed_std"])


@pytest.mark.parametrize("name", list(layouts()))
def test_the_papers_alone(name):
    (table,) = reported_tables([name])
    stubs = 1 + len(table.fact_names)
    assert from_markdown(markdown(table), stubs) == expected(name)
    assert from_latex(latex(table), stubs) == expected(name)
    assert [line["paper"] for line in from_csv(csv_text([table]))] == list(in_order(name)["printed"])


def test_every_reported_number_has_its_cell_and_none_is_printed_twice():
    cells = [cell for table in reported_tables() for *_, cell in table.cells()]
    assert len(cells) == len(reported()) == 1471
    assert all(cell.reported for cell in cells)


@pytest.mark.skipif(not FACTS.is_file(), reason="the facts that reported.csv was made of are not here")
def test_the_shipped_numbers_are_the_facts():
    facts = pd.read_csv(FACTS, dtype=str, keep_default_na=False)
    own = reported()
    for column in ("source_paper", "table", "task", "dataset", "protocol", "method", "backbone", "metric", "fraction"):
        assert list(own[column]) == list(facts[column])
    assert list(own["class"]) == list(facts["class"])
    assert list(own["printed"].where(own["value"].notna(), "")) == list(facts["value"])
    assert list(own["printed_std"]) == list(facts["std"])
