"""Lays out reports as the text files of MIMIC-CXR are, blanks and line ends included."""

import numpy as np

from medvlp.phantom.model import PhantomReport

BODY = ""
"""Name of a section that has no header: the report's body in reports without FINDINGS and IMPRESSION."""

LAYOUT_QUIRKS = ("crlf", "mixed_case", "flush_left", "two_impressions", "digit_title")
"""Rare physical layouts that a parser meets in the released files; see :func:`format_report`."""

_WIDTH = 78
_BLOCKS = frozenset({"FINDINGS", "IMPRESSION", "FINDINGS AND IMPRESSION"})


def _wrap(text: str, *, wide: bool, first: int = 0) -> list[str]:
    # Hard-wraps at _WIDTH columns, the leading blank and what the first line already holds included. Line breaks are
    # kept; wide text has two blanks after a sentence.
    lines: list[str] = []
    for part in text.split("\n"):
        line = ""
        taken = first if not lines else 0
        for word in part.split(" "):
            gap = ("  " if wide and line.endswith(".") else " ") if line else ""
            if line and 1 + taken + len(line) + len(gap) + len(word) > _WIDTH:
                lines.append(line)
                line, taken = word, 0
            else:
                line += gap + word
        lines.append(line)
    return lines


def format_report(report: PhantomReport, rng: np.random.Generator, quirk: str | None = None) -> str:
    r"""Lay a report out as the files of MIMIC-CXR are.

    Every line starts with one blank, "blank" lines are a single blank, lines are wrapped at 78 columns, and only the
    banner FINAL REPORT is centred.

    Args:
        report: the sections.
        rng: decides on block or running-in headers, the blanks after sentences, and rarely (1 %) a quirk.
        quirk: a member of :data:`LAYOUT_QUIRKS`, or None to leave it to ``rng``: "crlf" line ends; "mixed_case" headers
            ("Impression:"), "flush_left" headers and "digit_title" (a title such as "CHEST, 1/1:"), all three not
            recognised by the common parser; "two_impressions", of which the last counts.
    """
    wide, block, chance, which = rng.random(4).tolist()
    if quirk is None and chance < 0.01:
        quirk = LAYOUT_QUIRKS[int(which * len(LAYOUT_QUIRKS))]
    sections: list[tuple[str, str]] = []
    for name, text in report.sections.items():
        if quirk == "two_impressions" and name == "IMPRESSION":
            sections.append((name, "Pending."))
        sections.append((name, text))
    lines: list[str] = []
    if sections and sections[0][0] == "WET READ":
        lines += ["WET READ: ___ ___ ___ PM", *(" " + s for s in _wrap(sections[0][1], wide=False)), "", "_" * 77]
        sections = sections[1:]
    lines.append(" " * 32 + "FINAL REPORT")
    if quirk == "digit_title":
        lines += ["CHEST, 1/1:", ""]
    for name, text in sections:
        header = name.title() if quirk == "mixed_case" else name
        if name == BODY:
            lines += _wrap(text, wide=wide < 0.7)
        elif not text:
            lines.append(header + ": ")
        elif (block < 0.6 and name in _BLOCKS) or "\n" in text:
            lines += [header + ": ", "", *_wrap(text, wide=wide < 0.7)]
        else:
            body = _wrap(text, wide=wide < 0.7, first=len(header) + 3)
            lines += [f"{header}:  {body[0]}", *body[1:]]
        lines.append("")
    flush = {name + ":" for name, _ in sections} if quirk == "flush_left" else set()
    marked = [line if flush and line.split(":")[0] + ":" in flush else " " + line for line in lines[:-1]]
    end = "\r\n" if quirk == "crlf" else "\n"
    return end.join(marked) + end
