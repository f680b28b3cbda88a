import os
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from medvlp.errors import ConfigError
from medvlp.io.reports import clean_text, count_tokens, parse_report, report_text, select_text, split_sentences

ROOT = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
BANNER = "                                 FINAL REPORT\n"
USUAL = (
    BANNER + " EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___F with cough  // pneumonia?\n \n FINDINGS: \n \n"
    " Lungs are clear.  Heart size is\n normal.\n \n IMPRESSION: \n \n No acute process.\n"
)


def _flat(text):
    return " ".join(text.split())


def test_usual_report():
    s = parse_report(USUAL)
    assert _flat(s.findings) == "Lungs are clear. Heart size is normal."
    assert s.impression == "No acute process."
    assert [n for n, _ in s.named] == ["preamble", "examination", "indication", "findings", "impression"]
    assert s.get("last_paragraph") == ""


def test_crlf():
    s = parse_report(USUAL.replace("\n", "\r\n"))
    assert s.impression == "No acute process."
    assert _flat(s.findings) == "Lungs are clear. Heart size is normal."


@pytest.mark.parametrize("gap", ["\n", " \n", "  \n"])
def test_empty_findings_are_removed(gap):
    s = parse_report(f"{BANNER} FINDINGS:{gap} IMPRESSION: \n No change.\n")
    assert (s.findings, s.impression) == ("", "No change.")
    assert "findings" not in dict(s.named)


@pytest.mark.parametrize(
    ("header", "section"),
    [
        ("FINDINGS AND IMPRESSION", "impression"),
        ("AP VIEW OF THE CHEST", "findings"),
        ("PORTABLE AP CHEST RADIOGRAPH", "findings"),
        ("PA AND LATERAL VIEWS", "findings"),
        ("CHEST, TWO VIEWS", "findings"),
        ("CONCLUSION", "impression"),
        ("IMPRESSON", "impression"),
        ("NDICATION", "impression"),  # sic
        ("PFI", "history"),
        ("CLINICAL HISTORY", "history"),
        ("COMPARISONS", "comparison"),
        ("WET READ", "wet read"),
        ("ADDENDUM", "addendum"),
        ("RECOMMENDATION(S)", "recommendation(s)"),
        ("NOTIFICATION", "notification"),
    ],
)
def test_names(header, section):
    s = parse_report(f"{BANNER} {header}: Clear lungs here.\n")
    assert s.get(section) == "Clear lungs here."


def test_title_line_followed_by_sections():
    s = parse_report(f"{BANNER} CHEST, PA AND LATERAL:\n \n HISTORY:  Cough.\n \n IMPRESSION:  Clear.\n")
    assert (s.findings, s.impression) == ("", "Clear.")


@pytest.mark.parametrize(
    "line", [" CHEST, 1/1: Clear.", " Impression: Clear.", "IMPRESSION: Clear.", " IMPRESSION:Clear."]
)
def test_not_headers(line):
    s = parse_report(f"{BANNER}{line}\n \n Second paragraph.\n")
    assert (s.findings, s.impression) == ("", "")
    assert [n for n, _ in s.named] == ["full report", "last_paragraph"]
    assert s.get("last_paragraph") == "Second paragraph."


def test_only_comparison_then_paragraphs():
    s = parse_report(f"{BANNER} COMPARISON:  ___.\n \n The lungs are clear.\n \n No effusion.\n")
    assert s.get("comparison") == "___."
    assert _flat(s.get("last_paragraph")) == "The lungs are clear. No effusion."
    assert _flat(select_text(s, "last_paragraph")) == "The lungs are clear. No effusion."
    assert select_text(s, "both") == ""


def test_the_last_section_of_a_name_wins():
    assert parse_report(f"{BANNER} IMPRESSION: One.\n IMPRESSION: Two.\n").impression == "Two."


@pytest.mark.parametrize("first", [True, False])
def test_addendum_stays_apart(first):
    addendum = " ADDENDUM:  Also a nodule.\n"
    body = " IMPRESSION:  Clear.\n"
    s = parse_report(BANNER + (addendum + body if first else body + addendum))
    assert s.impression == "Clear."
    assert s.get("addendum") == "Also a nodule."


def test_wet_read_in_the_first_line_is_lost():
    s = parse_report(" WET READ: Fine.\n IMPRESSION: Clear.\n")
    assert s.get("wet read") == ""
    assert s.named[0] == ("preamble", "WET READ: Fine.")


def test_second_header_in_a_line_is_text():
    s = parse_report(f"{BANNER} IMPRESSION: Clear. FINDINGS: none\n COMPARISON: ___\n")
    assert s.impression == "Clear. FINDINGS: none"


def test_recommendations_do_not_leak():
    s = parse_report(f"{BANNER} IMPRESSION: Clear.\n RECOMMENDATION(S): Repeat.\n NOTIFICATION: Called.\n")
    assert s.impression == "Clear."


def test_empty_report():
    assert select_text(parse_report(""), "all") == ""


def test_policies():
    s = parse_report(USUAL)
    assert select_text(s, "impression") == "No acute process."
    assert _flat(select_text(s, "findings")) == "Lungs are clear. Heart size is normal."
    assert _flat(select_text(s, "both")) == "No acute process. Lungs are clear. Heart size is normal."
    assert _flat(select_text(s, "longest")) == "Lungs are clear. Heart size is normal."
    assert select_text(s, "last_paragraph") == "No acute process."
    assert _flat(select_text(s, "all")).startswith("FINAL REPORT EXAMINATION:")
    with pytest.raises(ConfigError, match="impression"):
        select_text(s, "summary")


def test_cleaning_none():
    assert clean_text(" a\r\n b\t c ", "none") == "a b c"
    with pytest.raises(ConfigError, match="mgca"):
        clean_text("a", "mcga")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A nodule of 2.5 cm.", "a nodule of 5 cm"),
        ("A nodule of 3.2\n cm.", "a nodule of 2 cm"),
        ("Seen by Dr. Smith yesterday.", "seen by dr smith yesterday"),
        ("Normal. No change.", "no change"),
        ("1. No effusion. 2. Clear lungs.", "no effusion clear lungs"),
        ("Compared to ___ study.", "compared to ___ study"),
        ("Café au lait spots.", "caf au lait spots"),
        ("Normal.", ""),
    ],
)
def test_cleaning_mgca(text, expected):
    assert clean_text(text, "mgca") == expected


def test_mgca_drops_an_abbreviation_alone():
    assert clean_text("Dr. was called today.", "mgca") == "was called today"
    assert count_tokens(clean_text("No change.", "mgca")) == 2
    assert count_tokens("___ is clear") == 3


def test_cleaning_g2d_official():
    text = "1. No effusion. 2. Clear. FINDINGS: Heart\n normal. IMPRESSION: none COMPARISON: old."
    assert clean_text(text, "g2d_official") == "No effusion. Clear. Heart normal. IMPRESSION: none old."
    assert report_text(parse_report(USUAL), "both", "g2d_official") == (
        "No acute process. Lungs are clear. Heart size is normal."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Lungs are clear.  Heart is\n normal.", ["Lungs are clear.", "Heart is normal."]),
        ("A 2.5 cm nodule. Stable.", ["A 2.5 cm nodule.", "Stable."]),
        ("Discussed with Dr. Smith at 3 p.m. by phone.", ["Discussed with Dr. Smith at 3 p.m. by phone."]),
        ("1. No effusion. 2. Clear lungs.", ["No effusion.", "Clear lungs."]),
        ("1) No effusion.\n 2) Edema?  Likely!", ["No effusion.", "Edema?", "Likely!"]),
        ("Clear lungs.Normal heart.", ["Clear lungs.", "Normal heart."]),
        ("Atelectasis vs. pneumonia", ["Atelectasis vs. pneumonia"]),
        ("Is it pneumonia? No. It is not.", ["Is it pneumonia?", "No.", "It is not."]),
        ("Seen by J. Doe.", ["Seen by J. Doe."]),
        ("... 5.", []),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


def test_sentences_of_real_reports():
    archive = ROOT / "openi_NLMCXR_reports.tgz"
    if not archive.is_file():
        pytest.skip("shared/data/openi_NLMCXR_reports.tgz is not here")
    counts = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".xml") and len(counts) < 200:
                root = ElementTree.parse(tar.extractfile(member)).getroot()
                text = " ".join(e.text or "" for e in root.iter("AbstractText") if e.get("Label") == "FINDINGS")
                sentences = split_sentences(text)
                # nothing but list numbers and pieces without letters is lost
                assert sum(map(len, sentences)) >= 0.95 * len("".join(text.split())) or len(text) < 40
                counts.append(len(sentences))
    assert 3 < sum(counts) / len(counts) < 8
