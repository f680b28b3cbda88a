"""Mutated tables: users' own through ``read_pairs``, released ones through each corpus, and run lengths of masks.

The files of this folder mutate what medvlp reads, 300 times in the suite and as often as is asked for elsewhere::

    pytest tests/fuzz --mutations 10000        # shared among the kinds
    pytest tests/fuzz --mutation pairs-4711    # one again, by the kind and seed that a failing test prints

Whatever comes of a mutation, no error but a ``MedVLPError`` of one line leaves the library, nothing hangs or takes
gigabytes (see ``support/mutations.py``), and what is read is right. What is right is known without the library: rows
that were not touched, Python's strict ``csv`` parser for those that were, the standard's formula for a grey level.
"""

import gzip
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutations import Kind, Trial, attempt, gzip_bytes, mutate_bytes, refused
from rle_encoding import encode_siim
from table_mutations import Rows, mutate_table, number_in, same_number, strict_rows

from medvlp.datasets.base import RadiographDataset
from medvlp.datasets.pairs import read_pairs
from medvlp.io.shapes import decode_siim, siim_extent

# ---------------------------------------------------------------------- users' tables


class Pairs(Kind):
    """A user's CSV or TSV file, packed or not."""

    name, share = "pairs", 32
    header = ("image", "text", "who", "Edema", "extra")
    texts = ("Clear lungs.", 'Says "so",\nin two lines.', "Small, left effusion", "Ödem – hier", "x; y\tz", "No change")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows = [list(self.header)]
        for n, text in enumerate(self.texts):
            self.rows.append([f"im/{n}.png", text, f"p{n}", ["0", "1", "", "-1"][n % 4], str(n)])

    def trial(self, trial: Trial) -> None:
        packed, sep = trial.one([False, False, True]), trial.one([",", ",", "\t"])
        name = ("t.tsv" if sep == "\t" else "t.csv") + (".gz" if packed else "")
        data = mutate_table(trial, self.rows, sep)
        path = trial.folder / name
        broken = packed and trial.often(0.4)
        whole = gzip_bytes(data) if packed else data
        path.write_bytes(mutate_bytes(trial, whole) if broken else whole)
        if broken:
            try:
                data = gzip.decompress(path.read_bytes())
            except Exception:
                data = None  # must be refused
        on_error = trial.one(["raise", "skip"])
        found = attempt(
            read_pairs, path, image_column="image", text_column="text", id_column="who", group_column="who",
            label_columns=["Edema"], on_error=on_error,
        )  # fmt: skip
        trial.note(f"{name} {on_error}")
        rows = None if data is None else strict_rows(data, sep=sep)
        self.judge(found, rows, on_error, path.parent)

    def judge(self, found: Any, rows: Rows | None, on_error: str, root: Path) -> None:
        if refused(found):
            return
        given = samples_of(found, root)
        if rows is None:
            sound = [(r[2], f"im/{n}.png", " ".join(r[1].split())) for n, r in enumerate(self.rows[1:])]
            assert all(sample[:3] in sound for sample in given), f"read from what is no table: {given}"
            return
        names = [name.strip() for name in rows[0]]
        used = [c for c in self.header if c != "extra"]
        assert all(names.count(c) == 1 for c in used), f"read from columns {names}"
        expected = []
        for row in rows[1:]:
            surplus = [cell for cell in row[len(names) :] if cell.strip()]
            assert len(row) >= len(names), f"a row that is cut short was read: {row}"
            assert not surplus, f"a row that is too long was read: {row}"
            cells = dict(zip(names, (cell.strip() for cell in row), strict=False))
            image = os.path.relpath(os.path.join(root, cells["image"]), root)
            expected.append((cells["who"], image, " ".join(cells["text"].split()), cells["Edema"]))
        dropped = len(found.dropped)
        assert len(given) + dropped == len(expected), f"{len(given)} + {dropped} samples of {len(expected)} rows"
        assert on_error == "skip" or not dropped or all(found.dropped["broken"] == False)  # noqa: E712
        left = iter(expected)
        for sample in given:
            match = next((e for e in left if e[:3] == sample[:3]), None)
            assert match is not None, f"no row says {sample}"
            number = number_in(match[3])
            assert number is not None, f"the label {match[3]!r} was read as {sample[3]}"
            assert same_number(number, sample[3]), f"{match} was read as {sample}"


def samples_of(dataset: RadiographDataset, root: Path) -> list[tuple[str, str, str, float]]:
    """Id, image below the root, text and label of each record."""
    images = [os.path.relpath(p, root) for p in dataset.table.column("image").to_pylist()]
    return list(zip(dataset.ids, images, dataset.texts, dataset.labels[:, 0].tolist(), strict=True))


class PairsParquet(Pairs):
    """A user's Parquet file: cells of other types, other columns, other bytes."""

    name, share = "parquet", 12

    def trial(self, trial: Trial) -> None:
        path = trial.folder / "t.parquet"
        rows: list[list[Any]] = [list(row) for row in self.rows]
        columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
        name = trial.one(self.header)
        what = trial.pick("type type cell drop rename rows bytes bytes plain")
        trial.note(f"{what} {name}")
        arrays = {key: pa.array(values) for key, values in columns.items()}
        if what == "type":
            kinds = [range(6), [0.5] * 6, [b"x"] * 6, [["a"]] * 6, [None] * 6, [True] * 6, [{"a": 1}] * 6]
            kinds += [[math.nan, math.inf, 1.0, 2.0, None, 0.0], [2**62 + n for n in range(6)], [3, None, 1, 2, 5, 4]]
            kinds += [arrays[name].dictionary_encode(), pa.array([1 << 50] * 6, pa.timestamp("us")), columns[name]]
            kinds = [pa.array(values) for values in kinds]
            arrays[name] = trial.one(kinds)
            trial.note(str(arrays[name].type))
        elif what == "cell":
            value = trial.one([None, "", " ", "\0", "nan", "x" * 999, "inf", "1e999"])
            columns[name][int(trial.rng.integers(6))] = value
            arrays[name] = pa.array(columns[name])
        elif what == "drop":
            del arrays[name]
        elif what == "rename":
            arrays[trial.one(["", " text", "TEXT", "x"])] = arrays.pop(name)
        table = pa.table(arrays)
        if what == "rows":
            table = table.take(pa.array(trial.rng.integers(6, size=int(trial.one([0, 1, 9])))))
        pq.write_table(table, path, compression=trial.one(["none", "snappy", "zstd"]), write_page_checksum=True)
        if what == "bytes":
            path.write_bytes(mutate_bytes(trial, path.read_bytes()))
        on_error = trial.one(["raise", "skip"])
        found = attempt(
            read_pairs, path, on_error=on_error, image_column="image", text_column="text", id_column="who",
            label_columns=["Edema"],
        )  # fmt: skip
        if refused(found):
            return
        # bytes with a checksum are what they were, or are refused
        cells: Rows = [list(self.header)]
        if what != "bytes":
            table = table.rename_columns([name.strip() for name in table.column_names])
            names = [n for n in self.header if n in table.column_names]
            cells = [names, *([_cell(row[n]) for n in names] for row in table.to_pylist())]
            values = [row[column] for row in table.to_pylist() for column in ("image", "text", "who")]
            wrong = [value for value in values if isinstance(value, list | dict)]
            assert not wrong, f"text was read from {wrong[0]!r}"
        else:
            cells = self.rows
        self.judge(found, cells, on_error, path.parent)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    value = int(value) if isinstance(value, bool) else value
    return value.decode() if isinstance(value, bytes) else str(value)


# ---------------------------------------------------------------------- run lengths


class RunLengths(Kind):
    """Masks of SIIM: gaps and lengths, checked with whole numbers of any size."""

    name, share = "rle", 8

    def trial(self, trial: Trial) -> None:
        height, width = (int(n) for n in trial.rng.integers(1, 12, size=2))
        mask = trial.rng.random((height, width)) < trial.rng.random()
        words: list[str] = encode_siim(mask).split(" ")
        for _ in range(int(trial.rng.integers(3))):
            at = int(trial.rng.integers(len(words) + 1))
            what = trial.pick("insert drop replace swap scale")
            odd_word = trial.pick(f"0 -0 -1 +3 1.0 1e2 ９ 1_0 {2**63} {10**18} {'9' * 40} nan 0x1 1,2 \u00b2")
            if what == "insert":
                words.insert(at, odd_word)
            elif words and at < len(words):
                if what == "drop":
                    del words[at]
                elif what == "replace":
                    words[at] = odd_word
                elif what == "swap":
                    words[0], words[at] = words[at], words[0]
                else:
                    words[at] += trial.one(["0", "000000"])
        text = trial.one([" ", " ", "  ", "\t", "\n", "\u00a0", ","]).join(words)
        text = trial.one(["", "", " ", "\ufeff"]) + text
        trial.note(f"{text[:80]!r} in {height} x {width}")
        expected = _drawn(text, height, width)
        given = attempt(decode_siim, text, height, width)
        extent = attempt(siim_extent, text)
        if refused(given):
            assert expected is None or re.search(r"[^0-9 \t\n-]", text), "a sound mask is refused"
            return
        assert expected is not None, "nonsense was drawn"
        assert np.array_equal(given, expected)
        assert not refused(extent)
        assert extent <= height * width


def _drawn(text: str, height: int, width: int) -> np.ndarray | None:
    """The mask of a string by its definition, None if it is none."""
    words = text.split()
    flat = [False] * (height * width)
    if words in ([], ["-1"]):
        return np.zeros((height, width), bool)
    if len(words) % 2 or not all(re.fullmatch("[0-9]+", word) for word in words):
        return None
    at = 0
    for gap, length in zip(map(int, words[::2]), map(int, words[1::2]), strict=True):
        if not length or at + gap + length > len(flat):
            return None
        flat[at + gap : at + gap + length] = [True] * length
        at += gap + length
    return np.array(flat).reshape(width, height).T


@pytest.mark.parametrize("kind", [Pairs, PairsParquet, RunLengths], ids=lambda kind: kind.name)
def test_mutated_tables(kind, mutations):
    mutations(kind)
