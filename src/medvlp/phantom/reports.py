"""Words a study as one of the phantom's radiologists would, and lays the report out as MIMIC-CXR stores it.

What a report mentions is recorded sentence by sentence while it is worded, so ``PhantomReport.mentions`` is what the
text says and not what there is to see: a finding may be left out or hedged.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from medvlp.phantom.model import Difficulty, Finding, PhantomReport, Study
from medvlp.phantom.readers import READERS, Reader
from medvlp.phantom.typesetting import BODY, LAYOUT_QUIRKS, format_report
from medvlp.phantom.wording import TEXTS, Phrase, describe

__all__ = ["BODY", "LAYOUT_QUIRKS", "STRUCTURES", "format_report", "write_report"]

STRUCTURES: tuple[str, ...] = (
    "usual",
    "combined",
    "impression_only",
    "empty_findings",
    "view_title",
    "findings_only",
    "no_header",
    "comparison_only",
    "all_sections",
)
"""What sections a report has: FINDINGS and IMPRESSION (70 %); "FINDINGS AND IMPRESSION" (5 %); IMPRESSION alone (5 %)
or after a FINDINGS header without text (3 %); findings under "AP VIEW OF THE CHEST" (3 %) or FINDINGS alone (9 %); no
header (2 %); a body after COMPARISON (3 %). "all_sections" is the usual one with each rare section, only on demand."""

_SHARES = (0.70, 0.75, 0.80, 0.83, 0.86, 0.95, 0.97, 1.0, 1.0)

_PURPOSE = 7_001  # keeps the words' random stream apart from the renderer's
# Absence of one of these cannot be stated beside another one: an infiltrate is never "no consolidation".
_AIRSPACE = frozenset({"Consolidation", "Pneumonia", "Infiltration", "COVID-19"})
_SOLID = frozenset({"Mass", "Nodule"})
_COMMON = frozenset({"Consolidation", "Edema", "Pleural Effusion", "Pneumothorax"})
_SEVERITY_RANK = {"large": 0, "moderate": 1, "small": 2}
_URGENT = ("Pneumothorax", "Edema", "Pneumonia", "COVID-19", "Consolidation", "Mass")


class _Draw:
    """Cheap random choices: one call of the generator for hundreds of them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._numbers: list[float] = []

    def number(self) -> float:
        if not self._numbers:
            self._numbers = self._rng.random(128).tolist()
        return self._numbers.pop()

    def chance(self, probability: float) -> bool:
        return self.number() < probability

    def pick(self, items: Sequence) -> str:
        return items[int(self.number() * len(items))]


class _Writer:
    """The state of one report while it is worded."""

    def __init__(self, study: Study, difficulty: Difficulty) -> None:
        self.study = study
        self.draw = _Draw(np.random.default_rng([study.seed, _PURPOSE]))
        self.reader: Reader = READERS[study.reader % len(READERS)]
        self.mentions: dict[str, float] = {}
        self.present = {f.name for f in study.findings}
        names = list(dict.fromkeys(f.name for f in study.findings))
        self.omitted = {n for n in names if self.draw.chance(difficulty.omission)}
        self.hedged = {n for n in names if self.draw.chance(difficulty.uncertainty)}
        self.positives = tuple(f for f in study.findings if f.name not in self.omitted)
        self.change = {f.name: self._comparison(f) for f in self.positives}

    def _comparison(self, finding: Finding) -> tuple[str, str]:
        """The words before and after a phrase that compare it with the prior study; empty in a first study."""
        draw = self.draw
        if self.study.number == 0 or finding.name in self.hedged or not draw.chance(0.6):
            return "", ""
        if draw.chance(0.5):
            word = draw.pick(TEXTS["comparison_before"])
            still = finding.name in {"Support Devices", "Foreign Object", "Fracture", "Hernia"}
            return ("unchanged" if still and word in TEXTS["not_compared"] else word) + " ", ""
        words = TEXTS["comparison_after"]
        word = draw.pick(
            words[:3] if TEXTS["organ_of_finding"].get(finding.name) in {"devices", "other", "bones"} else words
        )
        return "", word

    def positive(self, finding: Finding, *, point: bool = False, brief: bool = False) -> str:
        """A sentence that states or hedges a finding; records the mention.

        Args:
            finding: what is worded.
            point: a bare noun phrase, as in an impression.
            brief: leave out what goes without saying after FINDINGS.
        """
        hedged = finding.name in self.hedged
        self.mentions[finding.name] = -1.0 if hedged else 1.0
        before, after = self.change[finding.name]
        phrase = describe(finding, self.draw.pick)
        text = phrase.text
        if brief:
            for joint in (" with ", ", up to", ", approximately", " obscuring ", " coursing ", " along the "):
                text = _shorter(text, joint, finding)
        phrase = Phrase(before + text, phrase.kind)
        if hedged:
            return _sentence(self.draw.pick(TEXTS["hedges"]), phrase)
        shape = "{Np}." if point or self.reader.clipped else self.draw.pick(self.reader.shapes)
        return _sentence(shape, phrase)[:-1] + after + "."

    def denied(self, names: Iterable[str]) -> bool:
        """Whether the absence of all names may be stated; records the mentions if so."""
        names = tuple(names)
        for name in names:
            rivals = _AIRSPACE if name in _AIRSPACE else _SOLID if name in _SOLID else {name}
            if self.present & rivals or self.mentions.get(name) is not None:
                return False
        self.mentions.update(dict.fromkeys(names, 0.0))
        return True

    def negatives(self, group: str, share: float) -> list[str]:
        """Sentences about what a group of organs does not show."""
        draw = self.draw
        wanted = [
            negative["words"]
            for negative in TEXTS["negatives"].get(group, ())
            if draw.chance(share if _COMMON.issuperset(negative["findings"]) else share * 0.22)
            and self.denied(negative["findings"])
        ]
        if not wanted:
            return []
        if self.reader.clipped and len(wanted) == 2 and draw.chance(0.4):
            listing = "/".join(wanted)
        else:
            listing = wanted[0] if len(wanted) == 1 else ", ".join(wanted[:-1]) + " or " + wanted[-1]
        shape = draw.pick(self.reader.none)
        return [shape.format(list=listing)]

    def group(self, group: str) -> list[str]:
        """The sentences about one group of organs."""
        draw, reader = self.draw, self.reader
        found = [self.positive(f) for f in self.positives if TEXTS["organ_of_finding"].get(f.name, "lungs") == group]
        share = reader.negatives
        if group == "heart":
            # The normal heart is a statement about cardiomegaly; an overlooked one is passed over in silence.
            if not found and draw.chance(0.85) and self.denied(("Cardiomegaly",)):
                found.append(draw.pick(reader.heart))
        elif group == "lungs":
            negatives = self.negatives(group, share)
            clear = not found and draw.chance(0.8)
            found = ([draw.pick(reader.lungs)] if clear else found) + negatives
        elif group == "mediastinum":
            if "Hernia" not in self.present and "Cardiomegaly" not in self.present and draw.chance(0.55):
                found.append(draw.pick(reader.mediastinum))
        elif group == "bones":
            negatives = self.negatives(group, share * 0.5)
            if not found and not negatives and draw.chance(0.5):
                found.append(draw.pick(reader.bones))
            found += negatives
        else:
            found += self.negatives(group, share if group == "pleura" else share * 0.3)
            if group == "other":
                found += self.extras()
        if reader.labelled and found:
            found[0] = f"{TEXTS['organs'][group]}: {found[0]}"
        return found

    def extras(self) -> list[str]:
        """Sentences that no label depends on."""
        draw = self.draw
        count = int(self.reader.extras + draw.number())
        chosen = dict.fromkeys(draw.pick(TEXTS["extras"]) for _ in range(count))
        # What would contradict a finding, stated or not.
        wrong = {"Atelectasis": "diaphragm", "Emphysema": "volumes", "Hernia": "abdomen"}
        return [s for s in chosen if not any(word in s and name in self.present for name, word in wrong.items())]

    def findings(self) -> str:
        """The text of the FINDINGS section."""
        sentences = [sentence for group in self.reader.order for sentence in self.group(group)]
        return " ".join(sentences or [self.draw.pick(self.reader.normal)])

    def impression(self, *, complete: bool) -> str:
        """The text of the IMPRESSION section.

        Args:
            complete: word every positive finding and some negatives, since no other section does.
        """
        draw, reader = self.draw, self.reader
        ranked = sorted(
            self.positives,
            key=lambda f: (_SEVERITY_RANK[f.severity], f.name not in _URGENT, f.name == "Support Devices"),
        )
        if not complete and len(ranked) > 3:
            ranked = ranked[: 3 + draw.chance(0.5)]
        points = [self.positive(f, point=True, brief=not complete) for f in ranked]
        if not points or {f.name for f in ranked} <= {"Support Devices"}:
            # Beside a tube the chest is free of acute disease, but not "normal".
            points.append(draw.pick([s for s in reader.normal if not points or s.startswith("No ")]))
        elif complete and draw.chance(0.3):
            points.append("No other significant abnormality.")
        if complete:
            for group in ("pleura", "lungs"):
                points += self.negatives(group, 0.5)
        if reader.numbered and len(points) > 1:
            return "\n".join(f"{i}. {point}" for i, point in enumerate(points, 1))
        return " ".join(points)

    def indication(self) -> str:
        draw, patient = self.draw, self.study.patient
        questions = [q for q, name in TEXTS["questions"].items() if name not in self.omitted]
        who = (
            ("___F" if patient.sex == "F" else "___M")
            if draw.chance(0.6)
            else "___ year old " + ("woman" if patient.sex == "F" else "man")
        )
        background = f" with {draw.pick(TEXTS['background'])} and" if draw.chance(0.35) else " with"
        joint = "  // " if draw.chance(0.4) else ", "
        return f"{who}{background} {draw.pick(TEXTS['symptoms'])}{joint}{draw.pick(questions)}."

    def comparison(self) -> str:
        if self.study.number == 0:
            return self.draw.pick(("None.", "None available.", "No prior studies available for comparison."))
        return self.draw.pick(
            ("___.", "Chest radiograph from ___.", "Chest radiographs dated ___ and ___.", "Prior study of ___.")
        )


def _shorter(text: str, joint: str, finding: Finding) -> str:
    """The part before a joint if it names the finding and its side on its own."""
    head = text.partition(joint)[0]
    if head.endswith(("consistent", "compatible", "keeping")) or (finding.side or "") not in head:
        return text
    return head if any(word in head for word in TEXTS["naming"].get(finding.name, (finding.name.lower(),))) else text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(shape: str, phrase: Phrase) -> str:
    return _capital(
        shape.format(
            np=phrase.text, Np=_capital(phrase.text), a_np=phrase.article, be=phrase.verb, cap_be=phrase.verb.title()
        )
    )


def _examination(study: Study, draw: _Draw) -> str:
    if "LATERAL" in study.views:
        both = f"CHEST ({study.views[0]} AND LAT)"
        return draw.pick((both, both, "Chest, frontal and lateral views"))
    if study.views[0] == "AP":
        return draw.pick(("CHEST (PORTABLE AP)", "CHEST (PORTABLE AP)", "Chest, single AP portable view"))
    return draw.pick(("CHEST (PA)", "Chest radiograph, PA view", "CHEST (SINGLE VIEW)"))


def _technique(study: Study, draw: _Draw) -> str:
    if "LATERAL" in study.views:
        both = f"Chest {study.views[0]} and lateral views were obtained."
        return draw.pick((both, "Upright frontal and lateral radiographs."))
    if study.views[0] == "AP":
        return draw.pick(("Single frontal portable view of the chest.", "Semi-upright AP portable chest radiograph."))
    return draw.pick(("Frontal chest radiograph, upright.", "Single PA view of the chest was acquired."))


def _title(study: Study) -> str:
    if "LATERAL" in study.views:
        return f"CHEST, {study.views[0]} AND LATERAL"
    return "PORTABLE AP CHEST" if study.views[0] == "AP" else "CHEST, SINGLE VIEW"


def write_report(study: Study, difficulty: Difficulty, structure: str | None = None) -> PhantomReport:
    """Words a study; the same arguments always give the same text.

    Args:
        study: what there is to see, and who reports it (``reader`` counts through the readers and wraps around).
        difficulty: ``omission`` is the probability that a present finding is left out, and ``uncertainty`` that a
            stated one is hedged.
        structure: a member of :data:`STRUCTURES`, or None to draw one at the rates given there.

    Returns:
        The report. Section names are as printed: besides FINDINGS and IMPRESSION there are EXAMINATION, INDICATION (or
        HISTORY and the like), COMPARISON(S), TECHNIQUE, "FINDINGS AND IMPRESSION", a title such as
        "CHEST, PA AND LATERAL" with empty text, "AP VIEW OF THE CHEST" with the findings, WET READ (before the
        banner), RECOMMENDATION(S), NOTIFICATION and ADDENDUM; an empty name holds a body without header. About 83 % of
        the reports have an impression, 12 % findings only, 5 % neither.
        ``mentions`` covers FINDINGS, IMPRESSION and such a body, not the INDICATION, which never names a finding that
        was left out.
    """
    writer = _Writer(study, difficulty)
    draw, reader = writer.draw, writer.reader
    wet, where, shape = draw.chance(0.015), draw.number(), draw.number()
    if structure is None:
        structure = next(name for name, most in zip(STRUCTURES, _SHARES, strict=True) if shape < most)
    every = structure == "all_sections"
    sections: dict[str, str] = {}
    if wet or every:
        sections["WET READ"] = draw.pick(TEXTS["wet_reads"])
    if where < 0.006:
        sections["ADDENDUM"] = draw.pick(TEXTS["addenda"])
    if structure == "no_header":
        return PhantomReport({BODY: _bare_title(study) + "\n\n" + writer.findings()}, writer.mentions)
    if reader.title:
        sections[_title(study)] = ""
    else:
        sections["EXAMINATION"] = _examination(study, draw)
    if structure == "comparison_only":
        sections[reader.comparison] = writer.comparison()
        sections[BODY] = writer.findings()
        return PhantomReport(sections, writer.mentions)
    sections[reader.history] = writer.indication()
    if draw.chance(0.25):
        sections["TECHNIQUE"] = _technique(study, draw)
    sections[reader.comparison] = writer.comparison()
    if structure == "combined":
        sections["FINDINGS AND IMPRESSION"] = writer.findings()
    elif structure == "view_title":
        sections["AP VIEW OF THE CHEST" if study.views[0] == "AP" else "PA VIEW OF THE CHEST"] = writer.findings()
    elif structure in ("impression_only", "empty_findings"):
        if structure == "empty_findings":
            sections["FINDINGS"] = ""
        sections["IMPRESSION"] = writer.impression(complete=True)
    else:
        sections["FINDINGS"] = writer.findings()
        if structure != "findings_only":
            sections["IMPRESSION"] = writer.impression(complete=False)
    if (writer.positives and draw.chance(0.04)) or every:
        sections["RECOMMENDATION(S)"] = draw.pick(TEXTS["recommendations"])
    if draw.chance(0.05) or every:
        sections["NOTIFICATION"] = draw.pick(TEXTS["notifications"])
    if 0.006 <= where < 0.015 or every:
        sections["ADDENDUM"] = draw.pick(TEXTS["addenda"])
    return PhantomReport(sections, writer.mentions)


def _bare_title(study: Study) -> str:
    return _title(study) + " RADIOGRAPH OF ___."
