"""Tables in LaTeX, with booktabs and multirow."""

from medvlp.benchmark.tables.model import Block, Cell, Table, letter_of
from medvlp.benchmark.tables.writing import Span, header, one_line, source_of, sources, text_of

_WIDE = 6
"""Columns above which a table is shrunk to the width of the page."""

_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
}


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_SPECIAL.get(sign, sign) for sign in one_line(text))


def latex(table: Table) -> str:
    """A floating table with its caption, footnotes, and, as comments, the result rows of each cell.

    The document needs the packages booktabs, multirow and, for wide tables, graphicx.
    """
    stubs = 1 + len(table.fact_names)
    columns = len(table.columns)
    tabular = [
        f"\\begin{{tabular}}{{{'l' * stubs}{'r' * columns}}}",
        r"\toprule",
        *_header(table, stubs),
        *(line for b, block in enumerate(table.blocks) for line in _block(table, block, b, stubs + columns)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if columns > _WIDE:
        tabular = [r"\resizebox{\linewidth}{!}{%", *tabular[:-1], r"\end{tabular}}"]
    notes = [escaped(note) for note in table.footnotes]
    notes += [f"\\textsuperscript{{{letter_of(i)}}} {escaped(flag)}" for i, flag in enumerate(table.flags)]
    lines = [
        r"% \usepackage{booktabs,multirow,graphicx}",
        r"\begin{table*}[t]",
        r"\centering",
        f"\\caption{{{escaped(f'{table.title}. {table.caption}.')}}}",
        f"\\label{{tab:{table.name}}}",
        *tabular,
    ]
    if notes:
        body = " \\\\\n".join(notes)
        lines.append(
            f"\\par\\smallskip\\begin{{minipage}}{{\\linewidth}}\\footnotesize\\raggedright\n{body}\n\\end{{minipage}}"
        )
    lines.append(r"\end{table*}")
    lines += [one_line(f"% {name}: {source_of(table, cell)}") for _, name, cell in sources(table)]
    return "\n".join(lines) + "\n"


def _header(table: Table, stubs: int) -> list[str]:
    levels = header(table)
    names = [escaped(name) for name in (table.row_header, *table.fact_names)]
    lines = []
    for level, spans in enumerate(levels):
        first = [
            f"\\multirow{{{len(levels)}}}{{*}}{{{name}}}" if not level and len(levels) > 1 else name for name in names
        ]
        own = first if not level else [""] * stubs
        lines.append(" & ".join([*own, *map(_span, spans)]) + r" \\")
        rules = [f"\\cmidrule(lr){{{s.start + stubs + 1}-{s.start + stubs + s.width}}}" for s in spans if s.width > 1]
        if rules and level < len(levels) - 1:
            lines.append(" ".join(rules))
    return lines


def _span(span: Span) -> str:
    return f"\\multicolumn{{{span.width}}}{{c}}{{{escaped(span.label)}}}"


def _block(table: Table, block: Block, number: int, width: int) -> list[str]:
    lines = [r"\midrule"]
    if block.title:
        lines.append(f"\\multicolumn{{{width}}}{{l}}{{\\textit{{{escaped(block.title)}}}}} \\\\")
    for row in block.rows:
        cells = [_cell(table, cell) for cell in row.cells]
        lines.append(" & ".join([escaped(row.label), *map(escaped, row.facts), *cells]) + r" \\")
    return lines


def _cell(table: Table, cell: Cell) -> str:
    text = text_of(table, cell)
    parts = [f"\\textbf{{{escaped(text.main)}}}" if cell.best else escaped(text.main)]
    parts += [f"{{\\scriptsize {escaped(text.spread)}}}"] if text.spread else []
    parts += [f"({escaped(text.paper)})"] if text.paper else []
    return " ".join(parts) + (f"\\textsuperscript{{{text.marks}}}" if text.marks else "")
