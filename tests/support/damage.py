"""Damages to a phantom tree, as disks, downloads, spreadsheet programs and scripts do them.

A damage is a function ``(rng, tree) -> Damage | None``: it changes files below ``tree.root`` and says what it did, or
returns None where it does not apply. Which apply to a layout stands in :data:`DAMAGES`.
"""

import csv
import gzip
import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Rows = list[list[str]]


@dataclass(frozen=True)
class Damage:
    """What was done.

    Args:
        text: for the message of a failing test.
        harmful: something that is needed was lost or made wrong: the doctor's exit status is 1.
        noticed: the doctor must say something; False for what every reader puts up with in silence.
        read: whether it is in what the readers read.
    """

    text: str
    harmful: bool = True
    noticed: bool = True
    read: bool = True

    @property
    def raises(self) -> bool:
        """Whether reading everything with on_error: raise must fail."""
        return self.harmful and self.read


@dataclass(frozen=True)
class Tree:
    """A corpus that may be damaged.

    Args:
        name: its layout.
        root: its folder.
        images: paths below the root of the images that records name.
        options: what its reader is given.
    """

    name: str
    root: Path
    images: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


Apply = Callable[[np.random.Generator, Tree], Damage | None]

# ---------------------------------------------------------------------- images


def _image(rng: np.random.Generator, tree: Tree) -> Path:
    return tree.root / tree.images[rng.integers(len(tree.images))]


def truncate_image(rng: np.random.Generator, tree: Tree) -> Damage:
    path = _image(rng, tree)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * rng.uniform(0.05, 0.7))])
    return Damage(f"truncated {path.name}")


def empty_image(rng: np.random.Generator, tree: Tree) -> Damage:
    path = _image(rng, tree)
    path.write_bytes(b"")
    return Damage(f"emptied {path.name}")


def delete_image(rng: np.random.Generator, tree: Tree) -> Damage:
    path = _image(rng, tree)
    path.unlink()
    return Damage(f"deleted {path.name}")


def delete_all_images(rng: np.random.Generator, tree: Tree) -> Damage:
    for image in tree.images:
        (tree.root / image).unlink()
    return Damage("deleted all images")


def image_to_text(rng: np.random.Generator, tree: Tree) -> Damage:
    path = _image(rng, tree)
    path.write_text("<html><body>404 Not Found</body></html>\n" * 20)
    return Damage(f"{path.name} is a web page")


def image_to_folder(rng: np.random.Generator, tree: Tree) -> Damage:
    path = _image(rng, tree)
    path.unlink()
    path.mkdir()
    return Damage(f"{path.name} is a folder")


def delete_boxed_images(rng: np.random.Generator, tree: Tree) -> Damage | None:
    names = {row[0] for row in read_rows(tree.root / _BBOX)[1:]}
    paths = [tree.root / image for image in tree.images if Path(image).name in names]
    for path in paths:
        path.unlink()
    return Damage("deleted all images with boxes") if paths else None


def bomb(rng: np.random.Generator, tree: Tree) -> Damage:
    path = _image(rng, tree)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return Damage(f"{path.name} claims 60000 x 60000 pixels")


def link_out(rng: np.random.Generator, tree: Tree) -> Damage:
    path = _image(rng, tree)
    outside = tree.root.parent / f"outside_{tree.root.name}"
    outside.mkdir(exist_ok=True)
    shutil.move(path, outside / path.name)
    path.symlink_to(outside / path.name)
    return Damage(f"{path.name} is a link out of the root", harmful=False)


def link_to_nothing(rng: np.random.Generator, tree: Tree) -> Damage:
    path = _image(rng, tree)
    path.unlink()
    path.symlink_to(path.with_name("gone"))
    return Damage(f"{path.name} is a link to nothing")


def dicom_without_pixels(rng: np.random.Generator, tree: Tree) -> Damage:
    from pydicom import dcmread

    path = _image(rng, tree)
    data = dcmread(path)
    del data.PixelData
    data.save_as(path)
    return Damage(f"{path.name} has no pixel data")


def all_bombs(rng: np.random.Generator, tree: Tree) -> Damage:
    for image in tree.images:
        bomb(rng, Tree(tree.name, tree.root, (image,)))
    return Damage("all images claim 60000 x 60000 pixels")


def stray_image(rng: np.random.Generator, tree: Tree) -> Damage:
    path = _image(rng, tree)
    shutil.copy(path, path.with_name(f"copy_of_{path.name}"))
    return Damage(f"a copy beside {path.name}", harmful=False)


# ---------------------------------------------------------------------- tables


def read_rows(path: Path) -> Rows:
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def write_rows(path: Path, rows: Rows) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def _pick(rng: np.random.Generator, rows: Rows, wanted: Callable[[list[str]], bool] = lambda row: True) -> int | None:
    places = [n for n, row in enumerate(rows) if n and wanted(row)]
    return places[rng.integers(len(places))] if places else None


def _cell(
    table: str,
    column: str,
    value: str | Callable[[str], str],
    rng: np.random.Generator,
    tree: Tree,
    *,
    where: Callable[[dict[str, str]], bool] | None = None,
    unique: str = "",
    **judged: bool,
) -> Damage | None:
    """Change one cell of a row.

    Args:
        where: which rows may be chosen.
        unique: only rows whose value of this column occurs once: elsewhere nobody could tell that a row was lost.
    """
    path = tree.root / table
    rows = read_rows(path)
    head = [name.strip() for name in rows[0]]
    at = head.index(column)
    keys = [row[head.index(unique)] for row in rows] if unique else []

    def fits(row: list[str]) -> bool:
        if unique and keys.count(row[head.index(unique)]) > 1:
            return False
        return where is None or where(dict(zip(head, row, strict=False)))

    row = _pick(rng, rows, fits)
    if row is None:
        return None
    rows[row][at] = value(rows[row][at]) if callable(value) else value
    write_rows(path, rows)
    shown = value(".") if callable(value) else value
    return Damage(f"{table}, row {row - 1}, {column}: {shown[:30]!r}", **judged)


def cell(table: str, column: str, value: str | Callable[[str], str], **options: Any) -> Apply:
    return partial(_cell, table, column, value, **options)


def _delete_file(name: str, judged: dict[str, bool], rng: np.random.Generator, tree: Tree) -> Damage:
    (tree.root / name).unlink()
    return Damage(f"deleted {name}", **judged)


def delete_file(name: str, **judged: bool) -> Apply:
    return partial(_delete_file, name, judged)


def _cut_file(name: str, rng: np.random.Generator, tree: Tree) -> Damage:
    """Lose the end of a file that is compressed, or structured like XML and JSON."""
    path = tree.root / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * rng.uniform(0.1, 0.9))])
    return Damage(f"cut {name}")


def cut_file(name: str) -> Apply:
    return partial(_cut_file, name)


def _cut_row(name: str, rng: np.random.Generator, tree: Tree) -> Damage | None:
    """Lose the end of a table in the middle of a row, with some of its fields."""
    path = tree.root / name
    rows = read_rows(path)
    row = _pick(rng, rows, lambda row: len(row) > 1)
    if row is None:
        return None
    keep = int(rng.integers(1, min(len(rows[row]), 4)))
    write_rows(path, [*rows[:row], rows[row][:keep]])
    return Damage(f"{name} ends in row {row - 1} after {keep} fields")


def cut_row(name: str) -> Apply:
    return partial(_cut_row, name)


def _empty_file(name: str, rng: np.random.Generator, tree: Tree) -> Damage:
    (tree.root / name).write_bytes(b"")
    return Damage(f"emptied {name}")


def empty_file(name: str) -> Apply:
    return partial(_empty_file, name)


def _bad_bytes(name: str, rng: np.random.Generator, tree: Tree) -> Damage | None:
    path = tree.root / name
    data = path.read_bytes()
    if not data:
        return None
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    at = int(rng.integers(len(data) // 2, len(data)))
    data = data[:at] + b"\xff\xfe\x80" + data[at:]
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    return Damage(f"bytes of another encoding in {name}")


def bad_bytes(name: str) -> Apply:
    return partial(_bad_bytes, name)


def _broken_zip(name: str, rng: np.random.Generator, tree: Tree) -> Damage:
    path = tree.root / name
    packed = path.with_name(path.name + ".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, path.name)
    path.unlink()
    packed.write_bytes(packed.read_bytes()[: int(packed.stat().st_size * rng.uniform(0.3, 0.9))])
    return Damage(f"{name} is a truncated zip")


def broken_zip(name: str) -> Apply:
    return partial(_broken_zip, name)


def _bom(name: str, noticed: bool, rng: np.random.Generator, tree: Tree) -> Damage:
    path = tree.root / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return Damage(f"byte order mark before {name}", harmful=False, noticed=noticed)


def bom(name: str, noticed: bool = True) -> Apply:
    return partial(_bom, name, noticed)


def _drop_column(name: str, columns: Sequence[str], rng: np.random.Generator, tree: Tree) -> Damage:
    path = tree.root / name
    rows = read_rows(path)
    column = columns[rng.integers(len(columns))]
    at = [c.strip() for c in rows[0]].index(column)
    write_rows(path, [row[:at] + row[at + 1 :] for row in rows])
    return Damage(f"{name} without the column {column}")


def drop_column(name: str, *columns: str) -> Apply:
    return partial(_drop_column, name, columns)


def _swap_columns(name: str, columns: Sequence[str], rng: np.random.Generator, tree: Tree) -> Damage:
    path = tree.root / name
    rows = read_rows(path)
    head = [c.strip() for c in rows[0]]
    one, two = (head.index(columns[i]) for i in rng.choice(len(columns), 2, replace=False))
    for row in rows:
        row[one], row[two] = row[two], row[one]
    write_rows(path, rows)
    return Damage(f"{name} with the columns {head[one]} and {head[two]} swapped", harmful=False)


def swap_columns(name: str, *columns: str) -> Apply:
    return partial(_swap_columns, name, columns)


def _spaced_header(name: str, rng: np.random.Generator, tree: Tree) -> Damage:
    path = tree.root / name
    rows = read_rows(path)
    rows[0] = [f" {c} " for c in rows[0]]
    write_rows(path, rows)
    return Damage(f"{name} with spaces around its column names", harmful=False)


def spaced_header(name: str) -> Apply:
    return partial(_spaced_header, name)


def _empty_column(name: str, rng: np.random.Generator, tree: Tree) -> Damage:
    path = tree.root / name
    write_rows(path, [[*row, ""] for row in read_rows(path)])
    return Damage(f"{name} with an empty last column", harmful=False)


def empty_column(name: str) -> Apply:
    return partial(_empty_column, name)


def _duplicate_row(name: str, noticed: bool, rng: np.random.Generator, tree: Tree) -> Damage | None:
    path = tree.root / name
    rows = read_rows(path)
    row = _pick(rng, rows)
    if row is None:
        return None
    rows.insert(int(rng.integers(row + 1, len(rows) + 1)), list(rows[row]))
    write_rows(path, rows)
    return Damage(f"row {row - 1} of {name} twice", harmful=False, noticed=noticed)


def duplicate_row(name: str, noticed: bool = True) -> Apply:
    return partial(_duplicate_row, name, noticed)


def _contradict(name: str, column: str, value: Any, rng: np.random.Generator, tree: Tree) -> Damage | None:
    path = tree.root / name
    rows = read_rows(path)
    at = [c.strip() for c in rows[0]].index(column)
    row = _pick(rng, rows, lambda row: row[at] != (value(row[at]) if callable(value) else value))
    if row is None:
        return None
    other = list(rows[row])
    other[at] = value(other[at]) if callable(value) else value
    rows.insert(int(rng.integers(row + 1, len(rows) + 1)), other)
    write_rows(path, rows)
    return Damage(f"a second row for that of row {row - 1} of {name}, with another {column}")


def contradict(name: str, column: str, value: str | Callable[[str], str]) -> Apply:
    """A second row of the same key that says something else."""
    return partial(_contradict, name, column, value)


def of_table(
    name: str,
    columns: Sequence[str],
    *,
    harmful: bool = True,
    read: bool = True,
    keyed: bool = True,
    compressed: bool = False,
) -> list[Apply]:
    """What can happen to any table.

    Args:
        name: the file below the root.
        columns: columns that it must have.
        harmful: whether a folder without the table lacks something needed.
        read: whether the reader then says so, too.
        keyed: whether a row that repeats another is counted.
        compressed: whether it is a gzip file.
    """
    some: list[Apply] = [
        delete_file(name, harmful=harmful, read=read),
        empty_file(name),
        bad_bytes(name),
        cut_row(name),
    ]
    some += [drop_column(name, *columns), duplicate_row(name, keyed), spaced_header(name)]
    some += [cut_file(name)] if compressed else [broken_zip(name), bom(name)]
    return some + ([swap_columns(name, *columns)] if len(columns) > 1 else [])


# ---------------------------------------------------------------------- lists, reports, JSON


def _line(
    name: str, change: Callable[[list[str], int], None], text: str, judged: dict[str, bool], rng: Any, tree: Tree
) -> Damage | None:
    path = tree.root / name
    lines = path.read_text().splitlines()
    if not lines:
        return None
    row = int(rng.integers(len(lines)))
    change(lines, row)
    path.write_text("".join(f"{line}\n" for line in lines))
    return Damage(f"{name}, line {row}: {text}", **judged)


def line(name: str, text: str, change: Callable[[list[str], int], None], **judged: bool) -> Apply:
    """Change one line of a list; ``change`` gets all lines and the number of one."""
    return partial(_line, name, change, text, judged)


def replace_line(make: Callable[[str], str]) -> Callable[[list[str], int], None]:
    def change(lines: list[str], row: int) -> None:
        lines[row] = make(lines[row])

    return change


def add_line(make: Callable[[str], str]) -> Callable[[list[str], int], None]:
    def change(lines: list[str], row: int) -> None:
        lines.append(make(lines[row]))

    return change


def _file_like(
    pattern: str, change: Callable[[Path], None], text: str, judged: dict[str, bool], rng: Any, tree: Tree
) -> Damage | None:
    paths = sorted(tree.root.glob(pattern))
    if not paths:
        return None
    path = paths[rng.integers(len(paths))]
    change(path)
    return Damage(f"{path.name}: {text}", **judged)


def any_file(pattern: str, text: str, change: Callable[[Path], None], **judged: bool) -> Apply:
    """Change one of the files that a pattern finds."""
    return partial(_file_like, pattern, change, text, judged)


def _doctype(path: Path) -> None:
    head = '<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;">]>\n'
    body = path.read_text().partition("?>")[2]
    path.write_text(head + body.replace("</AbstractText>", "&b;</AbstractText>"))


def _annotation(change: Callable[[dict], None], text: str, rng: np.random.Generator, tree: Tree) -> Damage:
    path = next(tree.root.glob("*.json"))
    if path.name == "phantom.json":
        path = next(p for p in tree.root.glob("*.json") if p.name != "phantom.json")
    content = json.loads(path.read_text())
    change(content["annotations"][rng.integers(len(content["annotations"]))])
    path.write_text(json.dumps(content))
    return Damage(f"an annotation of {path.name}: {text}")


def annotation(text: str, **keys: Any) -> Apply:
    return partial(_annotation, lambda entry: entry.update(keys), text)


# ---------------------------------------------------------------------- the tree


def half_written(rng: np.random.Generator, tree: Tree) -> Damage:
    (tree.root / "phantom.json").rename(tree.root / "phantom.json.partial")
    return Damage("a half-written tree", read=False)


def no_manifest(rng: np.random.Generator, tree: Tree) -> Damage:
    (tree.root / "phantom.json").unlink()
    return Damage("no manifest: passes for the release", harmful=False, noticed=False)


def other_layout(rng: np.random.Generator, tree: Tree) -> Damage:
    path = tree.root / "phantom.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"layout": "siim" if tree.name != "siim" else "rsna"}))
    return Damage("the manifest names another layout", read=False)


TREE: list[Apply] = [half_written, no_manifest, other_layout]
IMAGE: list[Apply] = [
    truncate_image,
    empty_image,
    delete_image,
    delete_all_images,
    image_to_text,
    image_to_folder,
    bomb,
    all_bombs,
    link_out,
    link_to_nothing,
]

_WORDS = "not a number"
_SPLIT, _META = "mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.0.0-metadata.csv.gz"
_CHEXPERT = "mimic-cxr-2.0.0-chexpert.csv.gz"
_PLUS = "df_chexpert_plus_240401.csv"
_RSNA, _CLASS = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
_SUBMISSION = "stage_2_sample_submission.csv"
_SIIM = "stage_2_train.csv"
_ENTRY, _BBOX = "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"
_MS = "MS_CXR_Local_Alignment_v1.1.0.csv"
_TRAIN9A, _TEST9A = "train_COVIDx9A.txt", "test_COVIDx9A.txt"


def _positive(row: dict[str, str]) -> bool:
    return row["Target"] == "1"


def _mask(row: dict[str, str]) -> bool:
    return row["EncodedPixels"].strip() != "-1"


def _boxes(table: str, columns: Sequence[str], **options: Any) -> list[Apply]:
    """What can be wrong with a box of corner, width and height."""
    x, y, width, height = columns
    return [
        cell(table, x, _WORDS, **options),
        cell(table, y, "nan", **options),
        cell(table, y, "-7", **options),
        cell(table, x, "5000", **options),
        cell(table, width, "", **options),
        cell(table, width, "0", **options),
        cell(table, height, "1e9", **options),
        cell(table, height, "inf", **options),
    ]


DAMAGES: dict[str, list[Apply]] = {
    "mimic_cxr": [
        *TREE,
        *IMAGE,
        stray_image,
        *of_table(_SPLIT, ("dicom_id", "study_id", "subject_id", "split"), compressed=True),
        *of_table(_META, ("dicom_id", "ViewPosition"), compressed=True),
        *of_table(_CHEXPERT, ("study_id",), compressed=True),
        contradict(_SPLIT, "split", lambda s: "test" if s == "train" else "train"),
        contradict(_META, "ViewPosition", lambda v: "PA" if v == "AP" else "AP"),
        contradict(_CHEXPERT, "Edema", lambda v: "0.0" if v == "1.0" else "1.0"),
        cell(_SPLIT, "dicom_id", ""),
        cell(_SPLIT, "dicom_id", "00000000-nothing"),
        cell(_SPLIT, "study_id", "59999999"),
        cell(_SPLIT, "subject_id", ""),
        cell(_SPLIT, "split", "tarin"),
        cell(_META, "dicom_id", "00000000-nothing"),
        cell(_META, "dicom_id", ""),
        cell(_CHEXPERT, "Edema", _WORDS),
        cell(_CHEXPERT, "Edema", "7"),
        cell(_CHEXPERT, "study_id", ""),
        any_file("files/*/*/*.txt", "emptied", lambda p: p.write_bytes(b"")),
        any_file("files/*/*/*.txt", "blank", lambda p: p.write_bytes(b" \n \n")),
        any_file("files/*/*/*.txt", "not UTF-8", lambda p: p.write_bytes(b"FINDINGS: \xff\xfe\x80 lungs.\n" * 4)),
        any_file("files/*/*/*.txt", "deleted", lambda p: p.unlink()),
    ],
    "chexpert": [
        *TREE,
        *IMAGE,
        stray_image,
        # the reader takes what parts there are; a split then misses its part
        *of_table("train.csv", ("Path", "Frontal/Lateral", "AP/PA", "Edema"), read=False),
        delete_file("valid.csv", harmful=False),
        cut_row("valid.csv"),
        *of_table("groundtruth.csv", ("Study", "Edema", "Fracture"), harmful=False),
        *of_table(_PLUS, ("path_to_image", "report", "section_findings", "section_impression"), harmful=False),
        contradict("train.csv", "Edema", lambda v: "0.0" if v == "1.0" else "1.0"),
        contradict("groundtruth.csv", "Edema", lambda v: "0" if v == "1" else "1"),
        contradict(_PLUS, "section_impression", "Another impression than before."),
        cell("train.csv", "Path", ""),
        cell("train.csv", "Path", "CheXpert-v1.0/train/patient99999/study1/view1_frontal.jpg"),
        cell("train.csv", "Path", "CheXpert-v1.0/train/../../secret.jpg"),
        cell("train.csv", "Path", lambda p: p.replace("/", "\\"), harmful=False, noticed=False),
        cell("train.csv", "Edema", _WORDS),
        cell("train.csv", "Edema", "7"),
        cell("train.csv", "Frontal/Lateral", "Sideways"),
        cell("valid.csv", "Fracture", "yes"),
        cell("groundtruth.csv", "Study", ""),
        cell("groundtruth.csv", "Study", "CheXpert-v1.0/test/patient99999/study1"),
        cell("groundtruth.csv", "Edema", "-"),
        cell(_PLUS, "path_to_image", "", harmful=False),
        cell(_PLUS, "path_to_image", "train/patient99999/study1/view1_frontal.jpg", harmful=False),
    ],
    "rsna": [
        *TREE,
        *IMAGE,
        stray_image,
        dicom_without_pixels,
        *of_table(_RSNA, ("patientId", "x", "y", "width", "height", "Target")),
        *of_table(_CLASS, ("patientId", "class"), keyed=False),
        *of_table(_SUBMISSION, ("patientId",), harmful=False),
        *_boxes(_RSNA, ("x", "y", "width", "height"), where=_positive),
        contradict(_RSNA, "Target", lambda t: "0" if t == "1" else "1"),
        contradict(_CLASS, "class", lambda c: "Normal" if c != "Normal" else "Lung Opacity"),
        cell(_RSNA, "patientId", "", unique="patientId"),
        cell(_RSNA, "patientId", "00000000-0000", unique="patientId"),
        cell(_RSNA, "Target", "2"),
        cell(_RSNA, "Target", ""),
        cell(_RSNA, "Target", _WORDS),
        cell(_CLASS, "class", "Banana"),
        cell(_CLASS, "patientId", ""),
        cell(_SUBMISSION, "patientId", ""),
        cell(_SUBMISSION, "patientId", "00000000-0000"),
    ],
    "siim": [
        *TREE,
        *IMAGE,
        stray_image,
        dicom_without_pixels,
        *of_table(_SIIM, ("ImageId", "EncodedPixels")),
        contradict(_SIIM, "EncodedPixels", lambda e: "1 5 8 2" if e.strip() == "-1" else "-1"),
        cell(_SIIM, "ImageId", "", unique="ImageId"),
        cell(_SIIM, "ImageId", "1.2.3.4.5", unique="ImageId"),
        cell(_SIIM, "EncodedPixels", "2300 10", where=_mask),
        cell(_SIIM, "EncodedPixels", "99999999999999 5", where=_mask),
        cell(_SIIM, "EncodedPixels", lambda e: e + " 3", where=_mask),
        cell(_SIIM, "EncodedPixels", "5 -3", where=_mask),
        cell(_SIIM, "EncodedPixels", "5 0", where=_mask),
        cell(_SIIM, "EncodedPixels", "five 3", where=_mask),
        cell(_SIIM, "EncodedPixels", ""),
        cell(_SIIM, "EncodedPixels", "1.5 2"),
    ],
    "covidx": [
        *TREE,
        *IMAGE,
        stray_image,
        *(f(name) for name in (_TRAIN9A, _TEST9A) for f in (delete_file, empty_file, bad_bytes)),
        bom(_TRAIN9A, noticed=False),
        line(_TRAIN9A, "unknown class", replace_line(lambda w: w.replace(w.split()[-2], "flu"))),
        line(_TRAIN9A, "no class", replace_line(lambda w: " ".join(w.split()[:-2]))),
        line(_TRAIN9A, "blank patient", replace_line(lambda w: w.split(" ", 1)[1])),
        line(_TRAIN9A, "too many words", replace_line(lambda w: w + " more words")),
        line(_TRAIN9A, "unknown file", replace_line(lambda w: "nobody nothing.png normal rsna")),
        line(_TRAIN9A, "twice", add_line(lambda w: w), harmful=False),
        line(_TRAIN9A, "binary class", replace_line(lambda w: w.replace(w.split()[-2], "positive"))),
        line(
            _TRAIN9A,
            "contradiction",
            add_line(lambda w: w.replace(w.split()[-2], "pneumonia" if "normal" in w else "normal")),
        ),
        line(
            _TEST9A,
            "windows path",
            replace_line(lambda w: w.replace(w.split()[-3], f"test\\{w.split()[-3]}")),
            harmful=False,
            noticed=False,
        ),
        line(_TEST9A, "of the other list", add_line(lambda w: "COVID_9 COVID(4).png COVID-19 sirm")),
    ],
    "cxr14": [
        *TREE,
        *IMAGE,
        stray_image,
        delete_boxed_images,
        *of_table(_ENTRY, ("Image Index", "Finding Labels", "Patient ID", "View Position")),
        empty_column(_ENTRY),
        delete_file(_BBOX, harmful=False),
        empty_file(_BBOX),
        duplicate_row(_BBOX),
        *_boxes(_BBOX, ("Bbox [x", "y", "w", "h]")),
        cell(_BBOX, "Image Index", "", unique="Image Index"),
        cell(_BBOX, "Image Index", "00099999_000.png", unique="Image Index"),
        cell(_BBOX, "Finding Label", "Banana"),
        contradict(_ENTRY, "Finding Labels", lambda f: "Hernia" if f != "Hernia" else "Mass"),
        cell(_ENTRY, "Image Index", ""),
        cell(_ENTRY, "Image Index", "00099999_000.png"),
        cell(_ENTRY, "Finding Labels", ""),
        cell(_ENTRY, "Finding Labels", "Banana"),
        cell(_ENTRY, "Finding Labels", "No Finding|Mass"),
        cell(_ENTRY, "Patient ID", _WORDS),
        cell(_ENTRY, "Patient ID", "99999"),
        *(f(name) for name in ("train_val_list.txt", "test_list.txt") for f in (delete_file, bad_bytes)),
        line("test_list.txt", "unknown image", add_line(lambda w: "00099999_000.png")),
        line("test_list.txt", "twice", add_line(lambda w: w), harmful=False),
        line("test_list.txt", "of the other list", add_line(lambda w: "00000002_000.png")),
    ],
    "object_cxr": [
        *TREE,
        *IMAGE,
        stray_image,
        *of_table("train.csv", ("image_name", "annotation")),
        *of_table("dev.csv", ("image_name", "annotation")),
        contradict("train.csv", "annotation", lambda a: "" if a else "0 1 1 9 9"),
        cell("train.csv", "image_name", ""),
        cell("train.csv", "image_name", "99999.jpg"),
        cell("train.csv", "image_name", "../../etc/passwd.jpg"),
        cell("train.csv", "image_name", lambda n: f"train\\{n}", harmful=False, noticed=False),
        cell("train.csv", "annotation", "9 1 1 5 5"),
        cell("train.csv", "annotation", "0 1 1 5"),
        cell("train.csv", "annotation", "0 1 1 x 5"),
        cell("train.csv", "annotation", "0 1 1 900 900"),
        cell("train.csv", "annotation", "1 -4 1 8 8"),
        cell("train.csv", "annotation", "2 1 1 5 5"),
        cell("train.csv", "annotation", "2 1 1 5 5 7"),
        cell("train.csv", "annotation", "0 5 5 5 9"),
        cell("train.csv", "annotation", "0 9 9 5 5"),
        cell("train.csv", "annotation", "0 1 1 5 5;;0 2 2 4 4"),
        cell("dev.csv", "annotation", _WORDS),
        delete_file("test.csv", harmful=False),
    ],
    "ms_cxr": [
        *TREE,
        *IMAGE,
        stray_image,
        *of_table(_MS, ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width")),
        *_boxes(_MS, ("x", "y", "w", "h")),
        cell(_MS, "dicom_id", ""),
        cell(_MS, "dicom_id", "00000000-nothing"),
        cell(_MS, "category_name", "Banana"),
        cell(_MS, "label_text", ""),
        cell(_MS, "path", ""),
        cell(_MS, "path", "/etc/passwd"),
        cell(_MS, "path", lambda p: f"../{p}"),
        cell(_MS, "path", lambda p: p.replace("/", "\\"), harmful=False, noticed=False),
        cell(_MS, "image_width", _WORDS),
        cell(_MS, "image_height", "5000"),
        cell(_MS, "split", lambda s: "test" if s == "train" else "train"),
    ],
    "ms_cxr_json": [
        *(f("MS_CXR_Local_Alignment_v1.1.0.json") for f in (delete_file, empty_file, bad_bytes, cut_file)),
        annotation("no box", bbox=None),
        annotation("box of three numbers", bbox=[1, 2, 3]),
        annotation("box outside", bbox=[1, 2, 3000, 3]),
        annotation("box of words", bbox=["a", "b", "c", "d"]),
        annotation("box of lists", bbox=[[1], 2, 3, 4]),
        annotation("unknown image", image_id=99999),
        annotation("unknown category", category_id=99999),
        annotation("no phrase", label_text=""),
    ],
    "open_i": [
        *TREE,
        *IMAGE,
        stray_image,
        any_file("ecgen-radiology/*.xml", "cut", lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])),
        any_file("ecgen-radiology/*.xml", "emptied", lambda p: p.write_bytes(b"")),
        any_file("ecgen-radiology/*.xml", "entities", _doctype),
        any_file("ecgen-radiology/*.xml", "not UTF-8", lambda p: p.write_bytes(p.read_bytes()[:200] + b"\xff\x80" * 9)),
        any_file("ecgen-radiology/*.xml", "a copy", lambda p: shutil.copy(p, p.with_name("9999.xml"))),
        any_file("ecgen-radiology/*.xml", "a folder", lambda p: (p.unlink(), p.mkdir())[1], harmful=False),
        any_file("ecgen-radiology/*.xml", "other XML", lambda p: p.write_text("<html><body>404</body></html>")),
    ],
}
"""Layout to the damages that apply to it; for some a tree may hold nothing to be damaged."""
