"""The shipped numbers of the papers: whole, typed, with their inconsistencies flagged; damage is refused."""

from importlib import resources

import pytest

from medvlp.benchmark.tables.reported import as_reported, parse, reported
from medvlp.errors import DataError

HEAD = "source_paper,table,task,dataset,protocol,method,backbone,metric,fraction,class,value,std,note,flag\n"
LINE = "G2D,1,seg,SIIM,frozen,MGCA,,Dice,1%,,49.7,,,\n"


def cell(**wanted):
    frame = reported()
    for key, value in wanted.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_values_are_numbers_and_stay_as_printed():
    row = cell(source_paper="G2D", table="1", method="GLoRIA-MIMIC", dataset="Object-CXR", fraction="10%")
    assert (row["value"], row["printed"], row["share"]) == (8.9, "8.90", 0.1)
    row = cell(source_paper="MGCA", table="6", dataset="COVIDx", fraction="1%")
    assert (row["std"], as_reported(row).text) == (0.64, "73.9 ± 0.64")


@pytest.mark.parametrize(
    ("wanted", "mark"),
    [
        ({"table": "1", "method": "MGCA", "dataset": "Object-CXR", "fraction": "1%"}, "-"),
        ({"table": "2b", "method": "KAD*", "dataset": "RSNA", "metric": "AUC"}, "/"),
    ],
)
def test_an_empty_cell_keeps_its_mark(wanted, mark):
    assert as_reported(cell(source_paper="G2D", **wanted)).status == mark


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


def test_the_copy_does_not_change_the_original():
    copy = reported()
    copy["value"] = 0.0
    assert reported()["value"].max() > 90


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (HEAD.replace(",flag", "") + LINE.removesuffix(",\n") + "\n", "no column flag"),
        (HEAD + LINE.replace("49.7", "4x"), "line 2: value is no number"),
        (HEAD + LINE + LINE, "line 3: a cell comes twice"),
        (HEAD + LINE.replace("49.7", ""), "line 2: there is neither a value nor a note"),
        (HEAD + LINE.replace("49.7", "497"), "line 2: value is outside 0 to 100"),
        (HEAD + LINE.replace("1%", "2%"), "line 2: fraction is none of"),
        (HEAD + LINE.replace("G2D", "G3D"), "line 2: source_paper is none of"),
    ],
)
def test_damage_is_refused_with_its_line(text, what):
    with pytest.raises(DataError, match=what):
        parse(text)


def test_the_file_itself_has_no_stray_columns():
    head = resources.files("medvlp.benchmark.tables").joinpath("reported.csv").read_text("utf-8").splitlines()[0]
    assert head + "\n" == HEAD
