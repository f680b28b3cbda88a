"""Mutated tables of every corpus.

How to run them: ``test_tables.py``.
"""

import csv
import gzip
import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from mutations import Kind, Trial, attempt, gzip_bytes, mutate_bytes, refused
from table_mutations import Rows, mutate_table, number_in, same_number, strict_rows

from medvlp.datasets import corpus_class
from medvlp.errors import DataError
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.model import Difficulty

LAYOUTS: dict[str, dict[str, Any]] = {
    "mimic_cxr": {},
    "chexpert": {"classes": None, "label_policy": "keep"},
    "rsna": {},
    "siim": {"stage": 2},
    "covidx": {"version": "COVIDx9A"},
    "cxr14": {"labels_version": "v2020"},
    "object_cxr": {},
    "ms_cxr": {"annotations": "csv"},
    "open_i": {},
}


class Corpora(Kind):
    """The tables of every corpus: records whose rows were not touched stay, the others are what the cells say."""

    name, share = "corpus", 30

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tables: list[tuple[str, Path]] = []
        self.sound: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        for layout in LAYOUTS:
            spec = PhantomSpec(studies=8, size=32, seed=5, difficulty=Difficulty(prevalence=4.0))
            write_phantom(layout, folder / layout, spec)
            self.sound[layout], error, _ = self.records(layout, "raise")
            assert error is None
            spec_names = [s.name for s in corpus_class(layout).tables]
            names = [n for s in spec_names for n in (s, f"{s}.gz") if (folder / layout / n).is_file()]
            if layout == "covidx":
                names = [p.name for p in (folder / layout).glob("*COVIDx9A*.txt")]
            if layout == "cxr14":
                names += ["train_val_list.txt", "test_list.txt"]
            self.tables += [(layout, folder / layout / n) for n in names]

    def records(
        self, layout: str, on_error: str
    ) -> tuple[dict[tuple[str, str], dict[str, Any]], DataError | None, int]:
        corpus = corpus_class(layout)(self.folder / layout, on_error=on_error, **LAYOUTS[layout])
        found, dropped = {}, 0
        for task in corpus.tasks:
            records = attempt(corpus.records, task)
            if refused(records):
                return found, records, dropped
            dropped += len(records.dropped)
            rows = records.table.to_pylist()
            assert len({row["id"] for row in rows}) == len(rows), "an id twice"
            found |= {(task, row["id"]): row for row in rows}
            listing = attempt(corpus.listing)
            assert refused(listing) or len(set(listing.ids)) == len(listing.ids)
        return found, None, dropped

    def trial(self, trial: Trial) -> None:
        layout, path = trial.one(self.tables)
        trial.note(f"{layout}/{path.name}")
        before = path.read_bytes()
        plain = gzip.decompress(before) if path.suffix == ".gz" else before
        if path.suffix == ".txt":
            sep, old = " ", [line.split(" ") for line in plain.decode().splitlines()]
        else:
            sep, old = ",", list(csv.reader(io.StringIO(plain.decode("utf-8-sig"), newline="")))
        data = mutate_table(trial, old, sep)
        changed = gzip_bytes(data) if path.suffix == ".gz" else data
        if path.suffix == ".gz" and trial.often(0.2):
            changed, data = mutate_bytes(trial, changed), plain
        other = path
        if sep == "," and path.suffix != ".gz" and trial.often(0.1):  # as mirrors pack tables
            other = path.with_name(path.name + ".zip")
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr(path.name, data)
            changed = packed.getvalue()
        on_error = trial.one(["raise", "skip"])
        try:
            path.unlink()
            other.write_bytes(changed)
            found, _, _ = self.records(layout, on_error)
        finally:
            other.unlink()
            path.write_bytes(before)
        new = (
            strict_rows(data, sep=sep)
            if sep == ","
            else [line.split(" ") for line in data.decode("utf-8", "replace").splitlines()]
        )
        self.judge(layout, path.name, old, new, found)

    def judge(self, layout: str, table: str, old: Rows, new: Rows | None, found: dict[tuple[str, str], dict]) -> None:
        sound = self.sound[layout]
        if not found:
            return
        if new is None:
            wrong = [key for key, row in found.items() if not _alike(row, sound.get(key))]
            assert not wrong, f"read from what is no table: {wrong[:3]}"
            return
        width = len(new[0]) if new else 0
        names = [name.strip() for name in new[0]] if new else []
        bent = [row for row in new if len(row) < width or any(cell.strip() for cell in row[width:])]
        before, after = _counted(old, old[0]), _counted(new, old[0], names)
        touched = [row for row in {*before, *after} if before.get(row) != after.get(row)]
        ids = [{cell.rpartition("/")[2].partition(".")[0] for cell in row} | set(row) for row in touched]
        marks = {mark for cells in ids for mark in cells if len(mark) > 3}
        for key, row in found.items():
            if _alike(row, sound.get(key)):
                continue
            about = {str(row.get(c, "")) for c in ("id", "image", "patient", "study")}
            hit = any(mark in text for mark in marks for text in about)
            hit |= before.keys() == after.keys() and _ordered(table)
            hit |= bool(names) and sorted(names) != sorted(cell.strip() for cell in old[0])  # other classes, for all
            assert hit or not table.endswith((".csv", ".gz")) or not old, (
                f"no row of {key} changed, but it did: {_difference(row, sound.get(key))}"
            )
            torn = [r for r in bent if any(mark in text for mark in _names(r) for text in about)]
            assert not torn or table == "BBox_List_2017.csv" or sep_list(table), (
                f"{key} from a row of {len(torn[0])} fields, not {width}"
            )
            self.cells(layout, table, names, new, row)

    def cells(self, layout: str, table: str, names: list[str], rows: Rows, record: dict[str, Any]) -> None:
        """A changed record against the cells of its own row, for the tables whose cells are the labels."""
        key = {"train.csv": "Path", "valid.csv": "Path", "mimic-cxr-2.0.0-chexpert.csv.gz": "study_id"}.get(table)
        if layout not in ("chexpert", "mimic_cxr") or key not in names:
            return
        at = names.index(key)
        paths = {row[at].strip().partition("/")[2] or row[at].strip(): row for row in rows[1:] if len(row) > at}
        own = [
            row for end, row in paths.items() if end and (end == record.get("study") or record["image"].endswith(end))
        ]
        if len(own) != 1:
            return
        for name, cell in zip(names, own[0], strict=False):
            if name in record and isinstance(record[name], float):
                number = number_in(cell)
                assert number is not None, f"{name}: {cell!r} was read as {record[name]}"
                assert same_number(number, record[name]), f"{name}: {cell!r} was read as {record[name]}"


def _names(row: list[str]) -> set[str]:
    """What in a row may name its record: ids, and paths below the corpus's folder."""
    cells = {cell.strip() for cell in row}
    return {name for cell in cells for name in (cell, cell.partition("/")[2]) if len(name) > 3}


def sep_list(table: str) -> bool:
    """Whether a table is a list of lines without fields."""
    return table.endswith(".txt")


def _counted(rows: Rows, header: list[str], names: list[str] | None = None) -> Counter[tuple[str, ...]]:
    """How often each row is there, its cells in the order of a header and without blanks around them."""
    found: Counter[tuple[str, ...]] = Counter()
    wanted = [name.strip() for name in header]
    order = [names.index(name) for name in wanted] if names and sorted(names) == sorted(set(wanted)) else None
    for row in rows:
        cells = [cell.strip() for cell in row]
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        found[tuple(cells[i] for i in order) if order and len(cells) == len(order) else tuple(cells)] += 1
    return found


def _alike(a: dict | None, b: dict | None) -> bool:
    """The same values; labels are found by name, whatever the order of a table's columns."""
    return a is not None and b is not None and repr(sorted(a.items())) == repr(sorted(b.items()))


def _ordered(table: str) -> bool:
    """Whether the order of rows counts: a record has several, as boxes or in the number that ends its id."""
    return table in ("BBox_List_2017.csv", "stage_2_train_labels.csv", "MS_CXR_Local_Alignment_v1.1.0.csv")


def _difference(a: dict, b: dict | None) -> str:
    return (
        "it is new"
        if b is None
        else ", ".join(f"{k}: {b.get(k)} became {a.get(k)}" for k in a if repr(a[k]) != repr(b.get(k)))[:300]
    )


def test_mutated_tables_of_corpora(mutations):
    mutations(Corpora)
