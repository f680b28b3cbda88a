"""Noun phrases for findings, with place, size, severity and kind, from the templates in ``phrases.json``.

A phrase names only its own finding, so that a report mentions exactly what was put into it. Template fields: ``{sev}``
severity, ``{sub}`` kind, ``{adj}`` place before the noun ("left basilar"), ``{loc}`` place after it ("at the left lung
base"), ``{side}``, ``{size}`` ("2.1 cm"), ``{rib}`` and ``{arc}`` for fractures. A template starts with its number:
``a`` countable singular, ``s`` uncountable, ``p`` plural.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from medvlp.phantom.model import Finding, read_table


class Phrase(NamedTuple):
    """A noun phrase."""

    text: str  # without an article and not capitalised
    kind: str  # "a" (countable singular), "s" (uncountable) or "p" (plural)

    @property
    def verb(self) -> str:
        """The form of "to be" that agrees with the phrase."""
        return "are" if self.kind == "p" else "is"

    @property
    def article(self) -> str:
        """The phrase with its indefinite article where it takes one."""
        if self.kind != "a":
            return self.text
        return ("an " if self.text[:1].lower() in "aeiou" or self.text.startswith("NG ") else "a ") + self.text


Pick = Callable[[Sequence[str]], str]
"""Draws one item of a sequence."""

TEXTS: dict[str, Any] = read_table("phrases.json")
"""Everything the phantom's radiologists say: templates, synonyms, stock sentences."""


def _place(side: str | None, zone: str, pick: Pick) -> tuple[str, str]:
    # A finding's place as words before and after the noun, either possibly empty.
    places = TEXTS["places"]
    if side == "bilateral":
        default = [form.format(s="bilateral") for form in places["before"][zone]]
        return pick(places["before_bilateral"].get(zone, default)), pick(places["after_bilateral"][zone])
    if side in ("left", "right"):
        return pick(places["before"][zone]).format(s=side), pick(places["after"][zone]).format(s=side)
    return pick(places["before"][zone]).format(s="").replace("lobe", "lung").strip(), places["after_no_side"][zone]


def _measure(size_mm: float, pick: Pick) -> str:
    # Millimetres below 10 mm, else mostly centimetres with one decimal.
    if size_mm <= 0:
        return ""
    if size_mm < 10:
        return f"{max(round(size_mm), 1)} mm"
    return pick((f"{size_mm / 10:.1f} cm", f"{size_mm / 10:.1f} cm", f"{size_mm:.0f} mm"))


def describe(finding: Finding, pick: Pick) -> Phrase:
    """Word one finding: severity, kind, side, place and size, as far as they are known; ``pick`` chooses synonyms."""
    name, side = finding.name, finding.side
    exact = f"{name}:{finding.subtype}"
    phrases, bilateral = TEXTS["phrases"], TEXTS["phrases_bilateral"]
    if side == "bilateral" and (exact in bilateral or name in bilateral):
        choices = bilateral.get(exact) or bilateral[name]
    else:
        choices = phrases.get(exact) or phrases.get(name) or [f"s {{sev}} {{adj}} {name.lower()}"]
    if name == "Atelectasis" and side in ("left", "right"):
        # Said of one side only: a raised hemidiaphragm accompanies collapse.
        choices = choices + TEXTS["phrases_elevated"]
    if name == "COVID-19" and side != "bilateral":
        choices = choices[1:]
    if finding.size_mm <= 0:
        choices = [c for c in choices if "{size}" not in c] or choices
    template = pick(choices)
    adj, loc = _place(side, finding.zone, pick)
    ribs = TEXTS["ribs"].get(finding.zone, ("fifth", "sixth", "seventh", "eighth"))
    arcs, subtype = TEXTS["rib_arcs"], finding.subtype or TEXTS["subtype_default"].get(name, "")
    # Numbers and arcs come from the lesion's own seed: the same rib in FINDINGS, in IMPRESSION and in later studies.
    text = template[2:].format(
        sev=pick(TEXTS["severity"][TEXTS["severity_scale"].get(name, "degree")][finding.severity]),
        sub=pick(TEXTS["subtypes"].get(finding.subtype, (subtype,))),
        adj=adj,
        loc=loc,
        side=side if side in ("left", "right", "bilateral") else "",
        size=_measure(finding.size_mm, pick),
        rib=ribs[finding.seed % len(ribs)],
        arc=arcs[finding.seed // 7 % len(arcs)],
    )
    return Phrase(_tidy(text), template[0])


def _tidy(text: str) -> str:
    # Removes what empty fields leave behind: double blanks, blanks before commas, words without their partner.
    text = " ".join(text.split())
    for wrong, right in TEXTS["repairs"]:
        if wrong in text:
            text = text.replace(wrong, right)
    return text.strip().removeprefix("-sided ")
