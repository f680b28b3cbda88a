"""The shipped numbers of the papers: whole, typed, with their inconsistencies flagged."""

import pytest

from medvlp.benchmark.tables.layouts import FRACTIONS, reported

COLUMNS = [
    *("source_paper", "table", "task", "dataset", "protocol", "method", "backbone", "metric", "fraction", "class"),
    *("value", "std", "note", "flag"),
]


def cell(**wanted):
    frame = reported()
    for key, value in wanted.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_values_are_numbers_and_stay_as_printed():
    row = cell(source_paper="G2D", table="1", method="GLoRIA-MIMIC", dataset="Object-CXR", fraction="10%")
    assert (row["value"], row["printed"]) == (8.9, "8.90")
    row = cell(source_paper="MGCA", table="6", dataset="COVIDx", fraction="1%")
    assert (row["std"], row["printed"], row["printed_std"]) == (0.64, "73.9", "0.64")


@pytest.mark.parametrize(
    ("wanted", "mark"),
    [
        ({"table": "1", "method": "MGCA", "dataset": "Object-CXR", "fraction": "1%"}, "-"),
        ({"table": "2b", "method": "KAD*", "dataset": "RSNA", "metric": "AUC"}, "/"),
    ],
)
def test_an_empty_cell_keeps_its_mark(wanted, mark):
    assert cell(source_paper="G2D", **wanted)["printed"] == mark


def test_lost_cells_are_marked_as_such():
    assert set(reported().query("printed == '?'")["class"]) == {"Nodule", "Pleural Thickening", "Pneumonia"}


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ({"source_paper": "G2D", "table": "2b", "method": "BioViL", "dataset": "CXR14", "metric": "F1"}, "AUROC"),
        ({"source_paper": "MaCo", "table": "1", "method": "MaCo", "dataset": "NIH", "fraction": "1%"}, "79.4"),
        ({"source_paper": "MaCo", "table": "4", "method": "MaCo", "dataset": "NIH", "fraction": "1%"}, "79.0"),
        (
            {"source_paper": "MGCA", "table": "4", "method": "MGCA / ITA", "dataset": "SIIM", "fraction": "1%"},
            "Table 3",
        ),
        ({"source_paper": "G2D", "table": "4", "method": "MRM", "dataset": "RSNA", "fraction": "1%"}, "linear probe"),
        ({"source_paper": "G2D", "table": "4", "method": "MGCA", "dataset": "RSNA", "fraction": "1%"}, "copied"),
        ({"source_paper": "MGCA", "table": "6", "dataset": "COVIDx", "fraction": "1%"}, "74.8"),
    ],
)
def test_inconsistencies_are_flagged(wanted, word):
    assert any(word in flag for flag in cell(**wanted)["flags"])


def test_the_shipped_file_is_sound():
    frame = reported()
    assert list(frame)[: len(COLUMNS)] == COLUMNS, "no stray columns"
    assert not frame.duplicated(COLUMNS[:10]).any(), "a cell is given once"
    for column in ("value", "std"):
        assert frame[column].dropna().between(0, 100).all()
    assert set(frame["source_paper"]) == {"G2D", "MGCA", "MaCo"}
    assert set(frame["fraction"]) <= set(FRACTIONS)
    assert (frame["printed"] != "").all(), "an empty cell has a note that says what is printed"
