import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp.io.reports import CLEANINGS, POLICIES, clean_text, parse_report, report_text, select_text, split_sentences

# texts that look like reports often enough, and any other text
HEADERS = ("FINDINGS:", "IMPRESSION:", "IMPRESSION: ", "COMPARISON: ", "CHEST, PA:", "WET READ: ", "NOTIFICATION:")
OTHERS = ("\n ", "\n \n ", "\r\n ", " ", ".", "Clear. ", "No 2.5 cm nodule.", "___", "none.", "A\ufffd\ufffdB")
piece = st.sampled_from((*HEADERS, *OTHERS))
reports = st.one_of(st.text(max_size=60), st.lists(piece, max_size=14).map("".join))


@settings(max_examples=200, deadline=None)
@given(reports)
def test_sections_are_pieces_of_the_report_in_order(text):
    sections = parse_report(text)
    assert sections.report == text
    place = 0
    for _, body in sections.named:
        place = text.index(body, place) + len(body)
    for policy in POLICIES:
        select_text(sections, policy)
    assert "findings" not in [n for n, t in sections.named if not t]


@settings(max_examples=200, deadline=None)
@given(reports)
def test_cleaning_gives_one_line_and_is_idempotent_where_it_should_be(text):
    for cleaning in CLEANINGS:
        cleaned = clean_text(text, cleaning)
        assert cleaned == " ".join(cleaned.split())
        # a second pass of these two may drop what the first has left as a single word
        settled = cleaning in ("none", "maco") or (cleaning in ("mgca", "gloria") and len(cleaned.split()) > 1)
        if settled:
            assert clean_text(cleaned, cleaning) == cleaned
    for sentence in split_sentences(text):
        assert sentence == " ".join(sentence.split())


@settings(max_examples=100, deadline=None)
@given(reports)
def test_gloria_is_a_beginning_of_mgca(text):
    assert clean_text(text, "mgca").startswith(clean_text(text, "gloria"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No effusion. Clear lungs bilaterally. Normal heart.", "no effusion clear lungs bilaterally"),  # 2 + 3 = 5
        ("No effusion. Lungs are clear bilaterally. Normal heart.", None),  # 2, 6, 8: never exactly 5
        ("There is no pleural effusion. Normal heart.", "there is no pleural effusion"),
    ],
)
def test_gloria_stops_at_exactly_five_words(text, expected):
    assert clean_text(text, "gloria") == (expected or clean_text(text, "mgca"))


def test_maco():
    text = "FINAL REPORT\n COMPARISON: ___. None. Lungs  are\n clear..\n none.  Heart normal"
    assert clean_text(text, "maco") == "final report comparison: ___. lungs are clear. heart normal."
    assert clean_text("None. .", "maco") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" IMPRESSION: \n \n No acute\n process.\n", "No acute process."),
        ("Impression: Clear.", "NO IMPRESSION"),
        ("IMPRESSION:Clear.", "NO IMPRESSION"),
        ("", "NO IMPRESSION"),
        (" IMPRESSION: One. IMPRESSION: Two.", "Two."),  # anywhere in a line
        (" IMPRESSION: One. RECOMMENDATION(S): Repeat. NOTIFICATION: Called.", "One."),
        (" IMPRESSION: One. NOTIFICATIONS: Called. RECOMMENDATION: Repeat.", "One."),
        (" FINDINGS: A. NOTIFICATION: Called. IMPRESSION: One.", ""),  # such a word before the impression
        (" IMPRESSION: One. NOTIFICATION: a. IMPRESSION: Two.", ""),
        ("NOTIFICATION: a. IMPRESSION: One.", "One."),  # as the first word it is overlooked
        (" IMPRESSION: One. RECOMMENDATIONS: b RECOMMENDATION(S): c", "One. RECOMMENDATIONS: b"),
    ],
)
def test_chexzero(text, expected):
    sections = parse_report(text)
    assert select_text(sections, "chexzero") == expected
    assert report_text(sections, "chexzero", "none") == expected
