"""Printed tables: escaped, linked to their rows, and read by the programs that they are for."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from printed_tables import from_csv

from medvlp.benchmark.tables import (
    Block,
    Cell,
    Column,
    Reported,
    Row,
    Table,
    csv_text,
    html_fragment,
    latex,
    markdown,
    reported_tables,
)
from medvlp.benchmark.tables.model import letter_of


@pytest.fixture
def table():
    value = Cell(
        "number", 0.5, 0.01, 0.4, 0.6, 3, True, Reported("49.7", "0.5", flags=("A & B differ.",)), ("j1", "j2"), (4, 7)
    )
    rows = (Row("a_b & <c>", (value, Cell("/")), "ab"), Row("d|e", (Cell("-", reported=Reported("1.0")), Cell("-"))))
    columns = (Column(("Dice_x", "1%"), "dice", fraction=0.01), Column(("Dice_x", "10%"), "dice", fraction=0.1))
    return Table(
        "t-1", "T 100%", "About #1", columns, (Block("Group_1", rows),), ("Costs ~5 $.",), source="results.jsonl"
    )


class Reader(HTMLParser):
    """Collects tags, and refuses those that are not closed in their order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, tag):
        return [attrs for name, attrs in self.seen if name == tag]


def test_markdown_links_each_value_to_its_rows(table):
    text = markdown(table)
    assert "[**50.0**](#t-1-1-1-1) ± 1.0 \\[40.0, 60.0\\] (49.7 ± 0.5)<sup>a</sup>" in text
    assert (
        '<a id="t-1-1-1-1"></a>Group\\_1, a\\_b & \\<c\\>, Dice\\_x 1%: results.jsonl, lines 4, 7; jobs j1, j2' in text
    )
    assert "| d\\|e | - (1.0) | - |" in text
    assert "<sup>a</sup> A & B differ." in text


def test_latex_escapes_and_spans(table):
    text = latex(table)
    assert r"\caption{T 100\%. About \#1.}" in text
    assert r"\multirow{2}{*}{Method} & \multicolumn{2}{c}{Dice\_x} \\" in text
    assert r"\cmidrule(lr){2-3}" in text
    assert r"\multicolumn{3}{l}{\textit{Group\_1}} \\" in text
    best = r"\textbf{50.0} {\scriptsize $\pm$ 1.0 [40.0, 60.0]} (49.7 $\pm$ 0.5)\textsuperscript{a}"
    assert rf"a\_b \& \textless{{}}c\textgreater{{}} & {best} & / \\" in text
    assert r"Costs \textasciitilde{}5 \$." in text
    assert "% Group_1, a_b & <c>, Dice_x 1%: results.jsonl, lines 4, 7; jobs j1, j2" in text
    assert text.count(r"\begin") == text.count(r"\end")


def test_csv_has_a_line_per_cell(table):
    first, cannot, second, _ = from_csv(csv_text([table]))
    assert (first["value"], first["std"], first["low"], first["high"]) == ("50.0", "1.0", "40.0", "60.0")
    assert (first["paper"], first["paper_std"], first["jobs"], first["lines"]) == ("49.7", "0.5", "j1 j2", "4 7")
    assert (first["row"], first["method"], first["best"], first["runs"]) == ("a_b & <c>", "ab", "1", "3")
    assert (cannot["value"], second["value"], second["paper"]) == ("/", "-", "1.0")


def test_html_is_well_formed_scoped_and_linked(table):
    reader = Reader()
    reader.feed(html_fragment(table))
    assert reader.open == []
    assert [th.get("scope") for th in reader.of("th")] == ["col", "colgroup", "col", "col", "rowgroup", "row", "row"]
    assert len(reader.of("caption")) == 1
    targets = {attrs.get("id") for _, attrs in reader.seen}
    assert [a["href"] for a in reader.of("a")] == ["#t-1-1-1-1"]
    assert "t-1-1-1-1" in targets
    assert [td.get("data-sort") for td in reader.of("td")] == ["50", None, "1.0", None]
    assert "a_b &amp; &lt;c&gt;" in html_fragment(table)
    assert "<details" not in html_fragment(table, rows=False)


@pytest.mark.parametrize("one", reported_tables(), ids=lambda one: one.name)
def test_every_paper_table_is_well_formed_html(one):
    reader = Reader()
    reader.feed(html_fragment(one))
    assert reader.open == []
    width = 1 + len(one.fact_names) + len(one.columns)
    for block in one.blocks:
        assert all(1 + len(row.facts) + len(row.cells) == width for row in block.rows)


def test_letters_go_on_after_z():
    assert [letter_of(number) for number in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


BREAKS = "\n\r\t\x0b\x0c\x1c\x85\u2028\u2029"


@pytest.mark.parametrize("sign", BREAKS, ids=ascii)
def test_no_text_begins_a_line_of_its_own(table, sign):
    """A title is what a user writes, and LaTeX reads the file of a table."""
    title = f"x{sign}\\input{{secret}}{sign}| y"
    row, other = table.blocks[0].rows

    def titled(text):
        block = Block(text, (replace(row, label=text, facts=(text,)), replace(other, facts=("",))))
        columns = tuple(replace(column, labels=(text, text)) for column in table.columns)
        texts = {"title": text, "caption": text, "source": text, "footnotes": (text,), "fact_names": (text,)}
        return replace(table, blocks=(block,), columns=columns, **texts)

    made, same = titled(title), titled("x \\input{secret} | y")
    for write in (markdown, latex, html_fragment, lambda table: csv_text([table])):
        assert write(made) == write(same)
    assert not [line for line in latex(made).splitlines() if line.lstrip().startswith("\\input")]
    assert all(part.startswith("%") for part in latex(made).splitlines() if "\\input" in part)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r@", " ="])
def test_no_text_of_a_csv_file_is_a_formula(table, start):
    text = f"{start}cmd|' /C calc'!A0"
    (row, _) = table.blocks[0].rows
    made = replace(
        *(table,),
        blocks=(Block(text, (replace(row, label=text, method=text),)),),
        columns=tuple(replace(column, labels=(text,), metric=text) for column in table.columns),
        title=text,
        source=text,
    )
    first, second = from_csv(csv_text([made]))
    for key in ("block", "row", "method", "column", "metric", "caption", "source"):
        assert first[key].startswith("'"), key
    assert (first["value"], second["value"]) == ("50.0", "/"), "numbers and marks stay what they are"
