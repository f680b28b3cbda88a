import re
from collections import defaultdict

import numpy as np
import pytest

from medvlp.phantom.cases import sample_studies
from medvlp.phantom.model import CATALOGUE, FINDINGS, Difficulty, Finding, Patient, PhantomSpec, Study
from medvlp.phantom.reports import BODY, LAYOUT_QUIRKS, READERS, STRUCTURES, format_report, write_report

# An independent reading of the text: words that name a finding, whichever way.
NAMES = {
    "Atelectasis": r"atelecta",
    "Cardiomegaly": r"cardiomegaly|enlargement of the (?:cardi|heart)|heart|cardiac (?:size|silhouette|enlargement)"
    r"|cardiomediastinal silhouette",
    "Consolidation": r"consolidat",
    "Edema": r"edema",
    "Pleural Effusion": r"effusion",
    "Emphysema": r"emphysem",
    "Fibrosis": r"fibro",
    "Hernia": r"hernia",
    "Infiltration": r"infiltrat",
    "Mass": r"\bmass(?:es)?\b",
    "Nodule": r"nodul",
    "Pleural Thickening": r"pleural thickening",
    "Pneumonia": r"pneumonia",
    "Pneumothorax": r"pneumothora",
    "Fracture": r"fracture",
    "Support Devices": r"\btubes?\b|catheter|central (?:venous )?line|pacemaker|\bwires\b|\bline or tube",
    "Foreign Object": r"foreign",
    "COVID-19": r"covid",
}
NOT_A_NAME = re.compile(r"behind the heart|over the heart|heart failure|lines and tubes:", re.IGNORECASE)
HEDGE = re.compile(r"\b(?:possible|questionable|may|could|suspected)\b|cannot be excluded", re.IGNORECASE)
DENIAL = re.compile(r"\b(?:no|neg|negative|without|not)\b", re.IGNORECASE)
NORMAL_HEART = re.compile(r"normal|not enlarged|WNL", re.IGNORECASE)
SAID = ("FINDINGS", "IMPRESSION", "FINDINGS AND IMPRESSION", "AP VIEW OF THE CHEST", "PA VIEW OF THE CHEST", BODY)

SPEC = PhantomSpec(studies=3000, seed=5, difficulty=Difficulty(omission=0.15, uncertainty=0.2))


@pytest.fixture(scope="module")
def written():
    return [(study, write_report(study, SPEC.difficulty)) for study in sample_studies(SPEC)]


def said(report):
    return "\n".join(text for name, text in report.sections.items() if name in SAID)


def read_mentions(text):
    values = defaultdict(set)
    text = re.sub(r"\b\d\. ", "", text).replace("\n", " ")
    for sentence in re.split(r"(?<=\.) ", text):
        plain = NOT_A_NAME.sub("", sentence)
        for name, pattern in NAMES.items():
            if re.search(pattern, plain, re.IGNORECASE):
                denied = bool(DENIAL.search(sentence)) and "not significantly changed" not in sentence
                if name == "Cardiomegaly":
                    denied = bool(NORMAL_HEART.search(sentence))
                values[name].add(-1.0 if HEDGE.search(sentence) else 0.0 if denied else 1.0)
    return dict(values)


def make_study(*findings, reader=0, number=0, seed=1, views=("PA",)):
    patient = Patient(index=0, seed=3, sex="F", age=60, habitus=0.4)
    return Study(patient, 0, number, views, tuple(findings), reader, seed)


def test_mentions_are_what_the_text_says(written):
    for study, report in written:
        read = read_mentions(said(report))
        assert read == {name: {value} for name, value in report.mentions.items()}, (study.index, said(report))


def test_mentions_never_deny_what_is_there_nor_state_what_is_not(written):
    for study, report in written:
        present = {f.name for f in study.findings}
        for name, value in report.mentions.items():
            assert (value == 0.0) == (name not in present)


def test_an_omitted_finding_is_named_nowhere(written):
    omitted = 0
    for study, report in written:
        text = NOT_A_NAME.sub("", " ".join(report.sections.values()))
        for name in {f.name for f in study.findings} - set(report.mentions):
            omitted += 1
            assert not re.search(NAMES[name], text, re.IGNORECASE), (name, text)
    total = sum(len(study.findings) for study, _ in written)
    assert 0.12 < omitted / total < 0.18


def test_hedging_follows_the_setting(written):
    values = [v for _, report in written for v in report.mentions.values() if v != 0]
    assert 0.17 < np.mean(np.equal(values, -1)) < 0.23


def test_no_omission_and_no_doubt_gives_the_exact_labels():
    for study in sample_studies(PhantomSpec(studies=200, seed=2)):
        report = write_report(study, Difficulty(omission=0.0, uncertainty=0.0))
        assert {n for n, v in report.mentions.items() if v == 1.0} == {f.name for f in study.findings}
        assert -1.0 not in report.mentions.values()
        everything = write_report(study, Difficulty(omission=1.0))
        assert not {n for n in everything.mentions if everything.mentions[n] != 0.0}


def test_section_rates(written):
    n = len(written)
    impression = sum(any("IMPRESSION" in name for name in r.sections) for _, r in written) / n
    neither = sum(BODY in r.sections for _, r in written) / n
    assert 0.79 < impression < 0.86
    assert 0.03 < neither < 0.07
    assert 0.10 < 1 - impression - neither < 0.16


def test_texts_are_diverse(written):
    findings = [r.sections["FINDINGS"] for _, r in written if r.sections.get("FINDINGS")]
    assert len(set(findings)) >= 0.6 * len(findings)
    words = re.findall(r"[a-z]+", " ".join(" ".join(r.sections.values()) for _, r in written).lower())
    assert len(set(words)) >= 600


def test_readers_differ():
    assert len(READERS) >= 8
    finding = Finding("Pleural Effusion", "left", "basal", "moderate")
    texts = {
        r: [said(write_report(make_study(finding, reader=r, seed=s), Difficulty())) for s in range(40)]
        for r in range(8)
    }
    openings = {r: frozenset(t.split(" ")[0] for t in ts) for r, ts in texts.items()}
    assert len(set(openings.values())) >= 6
    lengths = {r: np.mean([len(t) for t in ts]) for r, ts in texts.items()}
    assert max(lengths.values()) > 1.5 * min(lengths.values())
    assert len({str(sorted(ts)) for ts in texts.values()}) == 8


@pytest.mark.parametrize("name", FINDINGS)
@pytest.mark.parametrize("side", ["left", "right", "bilateral", "midline", None])
def test_every_place_severity_and_kind_is_worded(name, side):
    kinds = {
        "Support Devices": (
            *CATALOGUE["findings"]["Support Devices"]["subtypes"],
            "tracheostomy tube",
            "infusion pump tube",
            "",
        ),
        "Foreign Object": (*CATALOGUE["findings"]["Foreign Object"]["subtypes"], "key", ""),
    }
    kinds["Fracture"] = ("rib", "clavicle", "scapula", "")
    kinds["Atelectasis"] = ("plate-like", "lobar", "round", "")
    exact = Difficulty(omission=0, uncertainty=0)
    zones = ("apical", "upper", "mid", "lower", "basal", "perihilar", "peripheral", "diffuse", "retrocardiac", "none")
    for seed, zone in enumerate(zones):
        for severity in ("small", "moderate", "large"):
            for kind in kinds.get(name, ("",)):
                finding = Finding(name, side, zone, severity, 21.0 if seed % 2 else 0.0, kind, seed)
                study = make_study(finding, reader=seed, number=seed % 3, seed=seed * 31 + len(kind))
                report = write_report(study, exact)
                text = said(report)
                assert report.mentions[name] == 1.0
                if kind != "" or name != "Support Devices":
                    assert 1.0 in read_mentions(text)[name], text
                assert "{" not in text
                assert "  " not in text
                assert " ," not in text
                assert " ." not in text
                if side in ("left", "right") and name not in (
                    "Cardiomegaly",
                    "Edema",
                    "Emphysema",
                    "Hernia",
                    "Support Devices",
                ):
                    assert side in text.lower(), text


def test_a_measured_nodule_states_its_size():
    finding = Finding("Nodule", "right", "upper", "moderate", 21.0)
    texts = [said(write_report(make_study(finding, seed=s), Difficulty(omission=0, uncertainty=0))) for s in range(30)]
    assert all("2.1 cm" in t or "21 mm" in t for t in texts)


def test_first_studies_are_not_compared(written):
    changed = re.compile(
        r"unchanged|prior|interval|\bnew\b|stable|improved|previous|persistent|worsened", re.IGNORECASE
    )
    first = [said(r) for s, r in written if s.number == 0]
    later = [said(r) for s, r in written if s.number > 0]
    assert not [t for t in first if changed.search(t.replace("from prior cardiac surgery", ""))]
    assert sum(bool(changed.search(t)) for t in later) > 0.3 * len(later)


def test_same_study_same_text(written):
    for study, report in written[:50]:
        again = write_report(study, SPEC.difficulty)
        assert again == report
        assert list(again.sections) == list(report.sections)
        a, b = (format_report(report, np.random.default_rng(1)) for _ in range(2))
        assert a == b


def test_structures_can_be_asked_for():
    study = make_study(Finding("Edema", "bilateral", "perihilar", "moderate"))
    exact = Difficulty(omission=0, uncertainty=0)
    reports = {name: write_report(study, exact, name) for name in STRUCTURES}
    assert len({tuple((n, bool(s)) for n, s in r.sections.items()) for r in reports.values()}) == len(STRUCTURES)
    assert all(r.mentions["Edema"] == 1.0 for r in reports.values())
    assert {"WET READ", "RECOMMENDATION(S)", "NOTIFICATION", "ADDENDUM"} < set(reports["all_sections"].sections)


# The reference parser's header rule, from its description.
HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")


def parse(text):
    """Header names to bodies; the last of a name wins."""
    sections, name, start, position = {}, "preamble", 0, 0
    while found := HEADER.search(text, position):
        sections[name] = text[start : found.start()]
        name, start = found[1], found.end()
        position = text.find("\n", start - 1)
        position = len(text) if position < 0 else position
    sections[name] = text[start:]
    return {k: " ".join(v.split()) for k, v in sections.items()}


def test_every_line_starts_with_a_blank_and_is_short(written):
    for study, report in written[:600]:
        text = format_report(report, np.random.default_rng(study.seed), quirk="")
        assert text.endswith("\n")
        lines = text[:-1].split("\n")
        assert all(line.startswith(" ") for line in lines)
        assert all(line == " " or line.strip() for line in lines)
        assert max(map(len, lines)) <= 78
        assert sum("FINAL REPORT" in line for line in lines) == 1
        banner = next(line for line in lines if "FINAL REPORT" in line)
        assert banner == " " * 33 + "FINAL REPORT"
        assert all(not line.startswith("  ") for line in lines if line != banner and "WET READ" not in report.sections)


def test_sections_survive_the_reference_parser(written):
    for study, report in written:
        text = format_report(report, np.random.default_rng(study.seed), quirk="")
        parsed = parse(text)
        for name, body in report.sections.items():
            if name in (BODY, "WET READ"):
                continue
            want = " ".join(body.split())
            if list(report.sections)[-1] != name or BODY not in report.sections:
                follower = list(report.sections)[list(report.sections).index(name) + 1 :][:1]
                if follower != [BODY]:
                    assert parsed[name] == want, (name, text)
        if BODY in report.sections:
            last = text.split("\n \n", 1)[1] if len(report.sections) == 1 else text.split("\n \n")[-1]
            assert " ".join(last.split()) in " ".join(report.sections[BODY].split())


def test_wet_read_is_lost_in_the_preamble(written):
    report = next(r for _, r in written if "WET READ" in r.sections)
    text = format_report(report, np.random.default_rng(0), quirk="")
    assert text.startswith(" WET READ: ")
    assert report.sections["WET READ"].split(".")[0] in parse(text)["preamble"]


@pytest.mark.parametrize("quirk", LAYOUT_QUIRKS)
def test_quirks(written, quirk):
    report = next(
        r for _, r in written if {"EXAMINATION", "FINDINGS", "IMPRESSION"} <= set(r.sections) and r.sections["FINDINGS"]
    )
    text = format_report(report, np.random.default_rng(0), quirk=quirk)
    usual = format_report(report, np.random.default_rng(0), quirk="")
    assert text != usual
    parsed = parse(text)
    impression = " ".join(report.sections["IMPRESSION"].split())
    if quirk == "crlf":
        assert text.replace("\r\n", "\n") == usual
        assert parsed["IMPRESSION"] == impression
    if quirk in ("mixed_case", "flush_left"):
        assert "IMPRESSION" not in parsed
    if quirk == "two_impressions":
        assert text.count("\n IMPRESSION:") == 2
        assert parsed["IMPRESSION"] == impression
    if quirk == "digit_title":
        assert "CHEST, 1/1:" in parsed["preamble"]
        assert parsed["IMPRESSION"] == impression
