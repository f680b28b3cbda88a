"""Radiology reports in the layout of MIMIC-CXR: sections, text policies, cleaning recipes, sentences.

docs/datasets/reports.md describes policies and recipes, and says which method uses which.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medvlp.errors import check_choice

POLICIES = ("findings", "impression", "both", "longest", "last_paragraph", "all", "chexzero")
"""Names that :func:`select_text` knows."""

_GLORIA_WORDS = 5  # captions_per_image of GLoRIA's configuration, which its code compares with a count of words

# A header opens a line that starts with exactly one space: capitals, spaces and ( ) / , - up to a colon that white
# space follows. "Impression:" in mixed case, flush-left headers, headers with digits, and "IMPRESSION:text" are none.
_HEADER = re.compile(r"\n ([A-Z ()/,\-]+):(?=\s)")
_BLANK_LINE = re.compile(r"\r?\n[ \t]*\r?\n")

_EXACT_NAMES: dict[str, str] = {
    **dict.fromkeys(("addendum", "addenda", "wet read", "wet reading"), ""),  # "": keeps its own name
    **dict.fromkeys(("conclusion", "conclusions", "findings and impression", "findings/impression"), "impression"),
    **dict.fromkeys(("impresson", "impresion", "impressio", "imression", "imprssion", "impession"), "impression"),
    **dict.fromkeys(("imprression", "imperssion", "impresssion", "mpression"), "impression"),
    # no slip here: the shared parser reads a clipped "INDICATION" as an impression
    "ndication": "impression",
    **dict.fromkeys(("finding", "findigs", "findngs", "findins", "fiindings", "chest, two views"), "findings"),
    **dict.fromkeys(("pfi", "reason for exam", "reason for examination", "clinical information"), "history"),
}
_NAME_PARTS = ("impression", "findings", "history", "comparison", "addendum")
# title lines such as "CHEST, PA AND LATERAL:" or "AP VIEW OF THE CHEST:" are followed by what was seen
_TITLE_WORDS = re.compile(
    r"chest|portable|\b(?:ap|pa|lateral|frontal|single|two|three) (?:and lateral )?views?\b|pa and lateral|radiograph"
)


@dataclass(frozen=True)
class Sections:
    """A report and its sections in order: names are mapped, texts stripped of outer white space."""

    report: str
    named: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """Return the text of the **last** section of that name, or ""."""
        return next((text for n, text in reversed(self.named) if n == name), "")

    @property
    def impression(self) -> str:
        """The last impression, or ""."""
        return self.get("impression")

    @property
    def findings(self) -> str:
        """The last findings, or ""."""
        return self.get("findings")


def _map_name(header: str) -> str:
    name = " ".join(header.lower().split())
    if name in _EXACT_NAMES:
        return _EXACT_NAMES[name] or name
    for part in _NAME_PARTS:
        if part in name:
            return part
    return "findings" if _TITLE_WORDS.search(name) else name


def parse_report(text: str) -> Sections:
    """Split a report, with LF or CRLF line ends, into its sections in order.

    It behaves as the section parser that the field shares (MIT-LCP; MGCA, PRIOR and others carry copies), quirks
    included, because published pair counts follow from it. Its 54 hand-corrected study ids are omitted: those studies
    never reach the table that the copies read.

    Text before the first header is "preamble"; without any header the whole is "full report". A second header in the
    same line is text. Empty findings and impressions are removed. If neither remains, the last section is cut at its
    first blank line, and the rest becomes "last_paragraph".
    """
    headers: list[tuple[str, int, int]] = []  # name, start of the header's line end, start of the body
    match = _HEADER.search(text)
    while match:
        headers.append((_map_name(match[1]), match.start(), match.end()))
        line_end = text.find("\n", match.end())
        match = _HEADER.search(text, line_end) if line_end >= 0 else None
    starts = [start for _, start, _ in headers] + [len(text)]
    named = [("preamble" if headers else "full report", text[: starts[0]])]
    named += [(name, text[body:end]) for (name, _, body), end in zip(headers, starts[1:], strict=True)]
    named = [(n, t) for n, t in named if n not in ("findings", "impression") or t.strip()]
    if named and not any(n in ("findings", "impression") for n, _ in named):
        name, body = named[-1]
        # the blank line right after "IMPRESSION:" does not separate anything
        head, *rest = _BLANK_LINE.split(body.lstrip(), maxsplit=1)
        if rest:
            named[-1:] = [(name, head), ("last_paragraph", rest[0])]
    return Sections(text, tuple((n, t.strip()) for n, t in named))


def select_text(sections: Sections, policy: str, separator: str = " ") -> str:
    """Choose the text of a study by one of :data:`POLICIES`; ``separator`` joins the two sections of "both".

    Returns:
        The text, line breaks as in the file; "" if the report has nothing under the policy.

    Raises:
        ConfigError: an unknown policy.
    """
    check_choice("report policy", policy, POLICIES)
    if policy == "all":
        return sections.report.strip()
    if policy == "chexzero":
        return _chexzero(sections.report)
    texts = [sections.get(name) for name in ("impression", "findings", "last_paragraph", "comparison")]
    if policy == "both":
        return separator.join(t for t in texts[:2] if t)
    if policy == "longest":
        return max(texts[:3], key=lambda t: len(t.split()))
    if policy == "last_paragraph":
        return next((t for t in texts if t), "")
    return sections.get(policy)


def _chexzero(report: str) -> str:
    words = report.split()
    if "IMPRESSION:" not in words:
        return "NO IMPRESSION"
    begin = len(words) - words[::-1].index("IMPRESSION:")
    spellings = (
        ("RECOMMENDATION(S):", "RECOMMENDATION:", "RECOMMENDATIONS:"),
        ("NOTIFICATION:", "NOTIFICATIONS:"),
    )
    # the first spelling that occurs decides, even if another one precedes it
    ends = [next((words.index(s) for s in group if s in words), 0) for group in spellings]
    # the first word of a report is never taken for the end
    return " ".join(words[begin : min(filter(None, ends), default=len(words))])


def _word_sentences(text: str) -> Iterator[list[str]]:
    """The splitter of MGCA and GLoRIA; decimals lose their integer part, since "2." looks like a list number to it."""
    for piece in re.split(r"[0-9]+\.", text.replace("\n", " ")):
        for sentence in piece.split("."):
            words = re.findall(r"\w+", sentence.replace("\ufffd\ufffd", " ").lower())
            if len(words) > 1:
                # counted first, cut to ASCII then, so that a sentence of one word or of none may remain
                words = [w.encode("ascii", "ignore").decode("ascii") for w in words]
                yield [w for w in words if w]


def gloria_sentences(text: str) -> list[str]:
    """Split a text into the sentences, lower-case words without punctuation, from which GLoRIA's code draws.

    Sentences of one word are dropped, and so is what follows a sentence with which the number of words is exactly 5.
    """
    kept, count = [], 0
    for words in _word_sentences(text):
        kept += [" ".join(words)] if words else []
        count += len(words)
        if count == _GLORIA_WORDS:
            break
    return kept


def _clean_maco(text: str) -> str:
    pieces = (" ".join(piece.split()) for piece in text.lower().split("."))
    return " ".join(f"{piece}." for piece in pieces if piece not in ("", "none"))


def _clean_g2d_official(text: str) -> str:
    """The released G2D code's; it means to remove the impression header too, but spells it with three S."""
    for header in ("IMPRESSSION:", "IMPRESSSION", "FINDINGS:", "FINDINGS", "COMPARISON:", "COMPARISON"):
        text = text.replace(header, "")
    pieces = [" ".join(piece.split()) for piece in text.split(".")]
    return ". ".join(piece for piece in pieces if not piece.isdigit()).strip()


_RECIPES: dict[str, Callable[[str], str]] = {
    "none": lambda text: " ".join(text.split()),
    "mgca": lambda text: " ".join(" ".join(words) for words in _word_sentences(text) if words),
    "gloria": lambda text: " ".join(gloria_sentences(text)),
    "g2d_official": _clean_g2d_official,
    "maco": _clean_maco,
}
CLEANINGS: tuple[str, ...] = tuple(_RECIPES)
"""Names that :func:`clean_text` knows."""


def clean_text(text: str, cleaning: str) -> str:
    """Apply one of :data:`CLEANINGS`; return the text in one line.

    Raises:
        ConfigError: an unknown recipe.
    """
    check_choice("cleaning", cleaning, CLEANINGS)
    return _RECIPES[cleaning](text)


def report_text(sections: Sections, policy: str, cleaning: str) -> str:
    """Select and clean; under "g2d_official" the findings follow the impression without a space, as released."""
    return clean_text(select_text(sections, policy, "" if cleaning == "g2d_official" else " "), cleaning)


def count_tokens(text: str) -> int:
    """Count runs of word characters, as the papers' "fewer than 3 tokens" rule does; ``___`` counts as one."""
    return len(re.findall(r"\w+", text))


_TITLES = ("dr", "mr", "mrs", "ms", "prof", "st", "sr", "jr", "m.d", "r.n")
_SHORT = ("a.m", "p.m", "e.g", "i.e", "etc", "vs", "approx", "resp", "cf", "incl", "ca", "fig", "figs")
_BOUNDARY = re.compile(r"[.!?]+[\"')\]]*(?=\s|$)|(?<=[a-z)])\.(?=[A-Z][a-z])")
_LIST_NUMBER = re.compile(r"^(?:\(?\d{1,2}[.)]|[-*•])\s+")


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences with their full stop, in one line each.

    Decimals ("2.5 cm"), abbreviations ("Dr.", "vs.", "a.m.") and initials do not end a sentence; a full stop without
    a following space does when a capitalised word follows. Numbers and bullets of lists, and pieces without a letter,
    are dropped.
    """
    text = " ".join(text.split())
    sentences, start = [], 0
    for match in _BOUNDARY.finditer(text):
        if match[0].startswith("."):
            word = text[start : match.start()].rsplit(" ", 1)[-1].lstrip("(\"'").lower()
            initial = len(word) == 1 and word.isalpha() and text[match.start() - 1].isupper()
            # "No." ends a sentence unless a number follows
            numbered = word == "no" and re.match(r"\s\d", text[match.end() :])
            if numbered or ((initial or word in (*_TITLES, *_SHORT)) and match.end() < len(text)):
                continue
        sentences.append(text[start : match.end()])
        start = match.end()
    sentences.append(text[start:])
    cleaned = (_LIST_NUMBER.sub("", s.strip()).strip() for s in sentences)
    return [s for s in cleaned if any(c.isalpha() for c in s)]
