"""Words a study as one of the phantom's radiologists would, and lays the report out as the files of MIMIC-CXR are.

What a report mentions is recorded sentence by sentence while it is worded, so ``PhantomReport.mentions`` is what the
text says and not what there is to see: a finding may be omitted or hedged. A phrase names only its own finding. The
templates are in ``phrases.json``, with the fields ``{sev}`` severity, ``{sub}`` kind, ``{adj}`` place before the noun
("left basilar"), ``{loc}`` place after it ("at the left lung base"), ``{side}``, ``{size}`` ("2.1 cm"), ``{rib}`` and
``{arc}``. A template starts with its number: ``a`` countable singular, ``s`` uncountable, ``p`` plural.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from medvlp.phantom.model import Difficulty, Finding, PhantomReport, Study, read_table

TEXTS: dict[str, Any] = read_table("phrases.json")
"""Everything the phantom's radiologists say: templates, synonyms, stock sentences."""

BODY = ""  # name of a section that has no header: the report's body in reports without FINDINGS and IMPRESSION

LAYOUT_QUIRKS = ("crlf", "mixed_case", "flush_left", "two_impressions", "digit_title")
"""Rare physical layouts that a parser meets in the released files: "crlf" line ends; "mixed_case" headers
("Impression:"), "flush_left" headers and "digit_title" (a title such as "CHEST, 1/1:"), all three not recognised by the
common parser; "two_impressions", of which the last counts."""

STRUCTURES: tuple[str, ...] = tuple(TEXTS["structures"])
"""What sections a report has: FINDINGS and IMPRESSION (70 %); "FINDINGS AND IMPRESSION" (5 %); IMPRESSION alone (5 %)
or after a FINDINGS header without text (3 %); findings under "AP VIEW OF THE CHEST" (3 %) or FINDINGS alone (9 %); no
header (2 %); a body after COMPARISON (3 %). "all_sections" is the usual one with each rare section, only on demand."""

READERS: list[dict[str, Any]] = [TEXTS["usual_reader"] | reader for reader in TEXTS["readers"]]
"""The radiologists; a study's ``reader`` counts through them and wraps around.

Each has an order of organs, sentence forms for positive ("shapes") and negative findings ("none"), ways of saying that
an organ or the chest is normal, headers of indication and comparison, the mean number of sentences about incidental
things ("extras") and the share of the possible negatives that are stated. ``numbered`` impressions have numbers;
``labelled`` sentences start with the organ; ``clipped`` ones lack articles and verbs; ``title`` replaces EXAMINATION.
"""

_PURPOSE = 7_001  # keeps the words' random stream apart from the renderer's
# Absence of one of these cannot be stated beside another one: an infiltrate is never "no consolidation".
_RIVALS = ({"Consolidation", "Pneumonia", "Infiltration", "COVID-19"}, {"Mass", "Nodule"})
_COMMON = frozenset({"Consolidation", "Edema", "Pleural Effusion", "Pneumothorax"})
_SEVERITIES = ("large", "moderate", "small")
_URGENT = ("Pneumothorax", "Edema", "Pneumonia", "COVID-19", "Consolidation", "Mass")
_WIDTH = 78
_BLOCKS = frozenset({"FINDINGS", "IMPRESSION", "FINDINGS AND IMPRESSION"})


class Phrase(NamedTuple):
    """A noun phrase."""

    text: str  # without an article and not capitalised
    kind: str  # "a" (countable singular), "s" (uncountable) or "p" (plural)


Pick = Callable[[Sequence[str]], str]  # draws one item


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
    if size_mm < 10:
        return f"{max(round(size_mm), 1)} mm" if size_mm > 0 else ""
    return pick((f"{size_mm / 10:.1f} cm", f"{size_mm / 10:.1f} cm", f"{size_mm:.0f} mm"))


def describe(finding: Finding, pick: Pick) -> Phrase:
    """Word one finding: severity, kind, side, place and size, as far as they are known; ``pick`` chooses synonyms."""
    name, side = finding.name, finding.side
    tables = (TEXTS["phrases_bilateral"] if side == "bilateral" else {}, TEXTS["phrases"])
    matches = (table.get(key) for table in tables for key in (f"{name}:{finding.subtype}", name))
    choices = next(filter(None, matches), [f"s {{sev}} {{adj}} {name.lower()}"])
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
    # Remove what empty fields leave behind: double blanks, blanks before commas, words without their partner.
    text = " ".join(text.split())
    for wrong, right in TEXTS["repairs"]:
        text = text.replace(wrong, right)
    return Phrase(text.strip().removeprefix("-sided "), template[0])


class _Draw:
    """Random choices, with one call of the generator for many of them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._numbers: list[float] = []

    def number(self) -> float:
        if not self._numbers:
            self._numbers = self._rng.random(128).tolist()
        return self._numbers.pop()

    def chance(self, probability: float) -> bool:
        return self.number() < probability

    def pick(self, items: Sequence[str]) -> str:
        return items[int(self.number() * len(items))]


class _Writer:
    def __init__(self, study: Study, difficulty: Difficulty) -> None:
        self.study = study
        self.draw = _Draw(np.random.default_rng([study.seed, _PURPOSE]))
        self.reader = READERS[study.reader % len(READERS)]
        self.mentions: dict[str, float] = {}
        self.present = {f.name for f in study.findings}
        names = list(dict.fromkeys(f.name for f in study.findings))
        self.omitted = {n for n in names if self.draw.chance(difficulty.omission)}
        self.hedged = {n for n in names if self.draw.chance(difficulty.uncertainty)}
        self.positives = tuple(f for f in study.findings if f.name not in self.omitted)
        self.change = {f.name: self._comparison(f) for f in self.positives}

    def _comparison(self, finding: Finding) -> tuple[str, str]:
        """Return the words before and after a phrase that compare it with the prior study."""
        draw = self.draw
        if self.study.number == 0 or finding.name in self.hedged or not draw.chance(0.6):
            return "", ""
        if draw.chance(0.5):
            word = draw.pick(TEXTS["comparison_before"])
            still = finding.name in {"Support Devices", "Foreign Object", "Fracture", "Hernia"}
            return ("unchanged" if still and word in TEXTS["not_compared"] else word) + " ", ""
        lasting = TEXTS["organ_of_finding"].get(finding.name) in {"devices", "other", "bones"}
        return "", draw.pick(TEXTS["comparison_after"][:3] if lasting else TEXTS["comparison_after"])

    def positive(self, finding: Finding, *, point: bool = False, brief: bool = False) -> str:
        """Word a finding (``point``: a bare noun phrase; ``brief``: as after FINDINGS), and record the mention."""
        hedged = finding.name in self.hedged
        self.mentions[finding.name] = -1.0 if hedged else 1.0
        before, after = self.change[finding.name]
        phrase = describe(finding, self.draw.pick)
        text = phrase.text
        for joint in TEXTS["brief_joints"] if brief else ():
            text = _shorter(text, joint, finding)
        phrase = Phrase(before + text, phrase.kind)
        if hedged:
            return _sentence(self.draw.pick(TEXTS["hedges"]), phrase)
        shape = "{Np}." if point or self.reader["clipped"] else self.draw.pick(self.reader["shapes"])
        return _sentence(shape, phrase)[:-1] + after + "."

    def denied(self, names: Sequence[str]) -> bool:
        """Return whether the absence of all names may be stated, and record the mentions if so."""
        for name in names:
            rivals = next((rivals for rivals in _RIVALS if name in rivals), {name})
            if self.present & rivals or name in self.mentions:
                return False
        self.mentions.update(dict.fromkeys(names, 0.0))
        return True

    def negatives(self, group: str, share: float) -> list[str]:
        draw = self.draw
        absent = [
            negative["words"]
            for negative in TEXTS["negatives"].get(group, ())
            if draw.chance(share if _COMMON.issuperset(negative["findings"]) else share * 0.22)
            and self.denied(negative["findings"])
        ]
        if not absent:
            return []
        if self.reader["clipped"] and len(absent) == 2 and draw.chance(0.4):
            listing = "/".join(absent)
        else:
            listing = absent[0] if len(absent) == 1 else ", ".join(absent[:-1]) + " or " + absent[-1]
        return [draw.pick(self.reader["none"]).format(list=listing)]

    def group(self, group: str) -> list[str]:
        draw, reader = self.draw, self.reader
        sentences = [
            self.positive(f) for f in self.positives if TEXTS["organ_of_finding"].get(f.name, "lungs") == group
        ]
        share = reader["negatives"]
        if group == "heart":
            # The normal heart is a statement about cardiomegaly; an overlooked one is passed over in silence.
            if not sentences and draw.chance(0.85) and self.denied(("Cardiomegaly",)):
                sentences.append(draw.pick(reader["heart"]))
        elif group == "lungs":
            negatives = self.negatives(group, share)
            clear = not sentences and draw.chance(0.8)
            sentences = ([draw.pick(reader["lungs"])] if clear else sentences) + negatives
        elif group == "mediastinum":
            if "Hernia" not in self.present and "Cardiomegaly" not in self.present and draw.chance(0.55):
                sentences.append(draw.pick(reader["mediastinum"]))
        elif group == "bones":
            negatives = self.negatives(group, share * 0.5)
            if not sentences and not negatives and draw.chance(0.5):
                sentences.append(draw.pick(reader["bones"]))
            sentences += negatives
        else:
            sentences += self.negatives(group, share if group == "pleura" else share * 0.3)
            if group == "other":
                sentences += self.extras()
        if reader["labelled"] and sentences:
            sentences[0] = f"{TEXTS['organs'][group]}: {sentences[0]}"
        return sentences

    def extras(self) -> list[str]:
        """Return sentences that no label depends on and no finding contradicts."""
        draw = self.draw
        count = int(self.reader["extras"] + draw.number())
        chosen = dict.fromkeys(draw.pick(TEXTS["extras"]) for _ in range(count))
        wrong = [word for name, word in TEXTS["contradicted_extras"].items() if name in self.present]
        return [sentence for sentence in chosen if not any(word in sentence for word in wrong)]

    def findings(self) -> str:
        sentences = [sentence for group in self.reader["order"] for sentence in self.group(group)]
        return " ".join(sentences or [self.draw.pick(self.reader["normal"])])

    def impression(self, *, complete: bool) -> str:
        """Return the IMPRESSION; ``complete`` if no other section words the findings."""
        draw, reader = self.draw, self.reader
        ranked = sorted(
            self.positives,
            key=lambda f: (_SEVERITIES.index(f.severity), f.name not in _URGENT, f.name == "Support Devices"),
        )
        if not complete and len(ranked) > 3:
            ranked = ranked[: 3 + draw.chance(0.5)]
        points = [self.positive(f, point=True, brief=not complete) for f in ranked]
        if not points or {f.name for f in ranked} <= {"Support Devices"}:
            # Beside a tube the chest is free of acute disease, but not "normal".
            points.append(draw.pick([s for s in reader["normal"] if not points or s.startswith("No ")]))
        elif complete and draw.chance(0.3):
            points.append("No other significant abnormality.")
        if complete:
            for group in ("pleura", "lungs"):
                points += self.negatives(group, 0.5)
        if reader["numbered"] and len(points) > 1:
            return "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))
        return " ".join(points)

    def indication(self) -> str:
        draw, patient = self.draw, self.study.patient
        questions = [q for q, name in TEXTS["questions"].items() if name not in self.omitted]
        who = f"___{patient.sex}" if draw.chance(0.6) else f"___ year old {'woman' if patient.sex == 'F' else 'man'}"
        background = f" with {draw.pick(TEXTS['background'])} and" if draw.chance(0.35) else " with"
        joint = "  // " if draw.chance(0.4) else ", "
        return f"{who}{background} {draw.pick(TEXTS['symptoms'])}{joint}{draw.pick(questions)}."

    def comparison(self) -> str:
        return self.draw.pick(TEXTS["prior"] if self.study.number else TEXTS["no_prior"])


def _shorter(text: str, joint: str, finding: Finding) -> str:
    """Return the part before a joint if it names the finding and its side on its own."""
    head = text.partition(joint)[0]
    if head.endswith(("consistent", "compatible", "keeping")) or (finding.side or "") not in head:
        return text
    return head if any(word in head for word in TEXTS["naming"].get(finding.name, (finding.name.lower(),))) else text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(shape: str, phrase: Phrase) -> str:
    np, be = phrase.text, "are" if phrase.kind == "p" else "is"
    article = "an " if np[:1].lower() in "aeiou" or np.startswith("NG ") else "a "
    a_np = article + np if phrase.kind == "a" else np
    return _capital(shape.format(np=np, Np=_capital(np), a_np=a_np, be=be, cap_be=be.title()))


def _by_views(texts: dict[str, Any], study: Study) -> Any:
    return texts["LATERAL" if "LATERAL" in study.views else study.views[0]]


def _body(writer: _Writer, structure: str) -> dict[str, str]:
    titles = {"combined": "FINDINGS AND IMPRESSION", "view_title": f"{writer.study.views[0]} VIEW OF THE CHEST"}
    if structure in {"impression_only", "empty_findings"}:
        empty = {} if structure == "impression_only" else {"FINDINGS": ""}
        return empty | {"IMPRESSION": writer.impression(complete=True)}
    sections = {titles.get(structure, "FINDINGS"): writer.findings()}
    if structure in {"usual", "all_sections"}:
        sections["IMPRESSION"] = writer.impression(complete=False)
    return sections


def write_report(study: Study, difficulty: Difficulty, structure: str | None = None) -> PhantomReport:
    """Word a study; the same arguments give the same text.

    Args:
        study: what there is to see, and who reports it.
        difficulty: ``omission`` and ``uncertainty`` are probabilities that a finding is omitted or hedged.
        structure: a member of :data:`STRUCTURES`, or None to draw one at the rates given there.

    Returns:
        The report, with section names as printed; a title such as "CHEST, PA AND LATERAL" has empty text, and WET READ
        stands before the banner. ``mentions`` covers FINDINGS, IMPRESSION and a body without header, not the
        INDICATION, which never names a finding that was omitted.
    """
    writer = _Writer(study, difficulty)
    draw, reader = writer.draw, writer.reader
    wet, where, shape = draw.chance(0.015), draw.number(), draw.number()
    if structure is None:
        structure = next(name for name, most in TEXTS["structures"].items() if shape < most)
    every = structure == "all_sections"
    title = _by_views(TEXTS["title"], study).format(view=study.views[0])
    sections: dict[str, str] = {}
    if wet or every:
        sections["WET READ"] = draw.pick(TEXTS["wet_reads"])
    if where < 0.006:
        sections["ADDENDUM"] = draw.pick(TEXTS["addenda"])
    if structure == "no_header":
        return PhantomReport({BODY: f"{title} RADIOGRAPH OF ___.\n\n{writer.findings()}"}, writer.mentions)
    examination = "" if reader["title"] else draw.pick(_by_views(TEXTS["examination"], study))
    sections[title if reader["title"] else "EXAMINATION"] = examination.format(view=study.views[0])
    if structure == "comparison_only":
        sections |= {reader["comparison"]: writer.comparison(), BODY: writer.findings()}
        return PhantomReport(sections, writer.mentions)
    sections[reader["history"]] = writer.indication()
    if draw.chance(0.25):
        sections["TECHNIQUE"] = draw.pick(_by_views(TEXTS["technique"], study)).format(view=study.views[0])
    sections[reader["comparison"]] = writer.comparison()
    sections |= _body(writer, structure)
    if (writer.positives and draw.chance(0.04)) or every:
        sections["RECOMMENDATION(S)"] = draw.pick(TEXTS["recommendations"])
    if draw.chance(0.05) or every:
        sections["NOTIFICATION"] = draw.pick(TEXTS["notifications"])
    if 0.006 <= where < 0.015 or every:
        sections["ADDENDUM"] = draw.pick(TEXTS["addenda"])
    return PhantomReport(sections, writer.mentions)


def _wrap(text: str, *, wide: bool, first: int = 0) -> list[str]:
    # Wraps at _WIDTH columns, the leading blank and what the first line already holds included. Line breaks are kept;
    # wide text has two blanks after a sentence.
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
    """Lay a report out as the files of MIMIC-CXR are.

    Every line starts with one blank, "blank" lines are a single blank, lines are wrapped at 78 columns, and only the
    banner FINAL REPORT is centred. ``rng`` decides on block or running-in headers, the blanks after sentences, and
    rarely (1 %) a quirk of :data:`LAYOUT_QUIRKS`, unless one is given.
    """
    wide, block, chance, which = rng.random(4).tolist()
    if quirk is None and chance < 0.01:
        quirk = LAYOUT_QUIRKS[int(which * len(LAYOUT_QUIRKS))]
    sections = list(report.sections.items())
    if quirk == "two_impressions" and "IMPRESSION" in report.sections:
        sections.insert(list(report.sections).index("IMPRESSION"), ("IMPRESSION", "Pending."))
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
