"""Writes a phantom in the layout of Object-CXR: foreign objects, annotated with rectangles, ellipses and polygons.

``train/00001.jpg`` …, ``dev/08001.jpg`` … and ``test/09001.jpg`` … hold the images of the phantom's train, validate
and test patients, in no order that tells anything; the numbers are the release's, and go further in a larger phantom.
``train.csv`` and ``dev.csv`` have the columns ``image_name,annotation``, ``test.csv`` has ``image_path,annotation``
with the folder in the path, as the later mirror.

An annotation joins shapes by ``;``. A shape is its type and integers: ``0 x1 y1 x2 y2`` is a rectangle, ``1 x1 y1 x2
y2`` an ellipse between these corners, ``2 x y x y …`` a polygon. Coordinates are pixel edges of the saved image, so x2
and y2 lie just beyond the last pixel. A reader draws around an object: every shape covers the centres of all pixels of
its part of the truth mask. Only the finding Foreign Object is annotated; support devices are not, as in the release.

From three studies with a foreign object on, each shape type occurs; from one on, an image with several shapes.
``size`` is that of the drawn image; 60 % of the images are then cropped or padded by up to 6 % at each side. A crop
never cuts a foreign object.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medvlp.phantom import cases, render
from medvlp.phantom.fields import parts
from medvlp.phantom.layouts import common
from medvlp.phantom.layouts.common import Rows, lines_of, save_file, save_truth, write_lines
from medvlp.phantom.model import Finding, PhantomSpec, RenderedView, Study

LAYOUT = "object_cxr"
_FOLDERS = {"train": "train", "validate": "dev", "test": "test"}
_FIRST = {"train": 1, "dev": 8001, "test": 9001}  # first image number of the released folders
ENTRIES: tuple[str, ...] = ("train", "dev", "test", "truth", "train.csv", "dev.csv", "test.csv")
"""Everything in the root of a tree, but for the manifest."""

Box = tuple[int, int, int, int]
Kind = Literal[0, 1, 2]
RECTANGLE: Kind = 0
ELLIPSE: Kind = 1
POLYGON: Kind = 2

_IMAGE, _ORDER = 7_501, 7_502  # purposes of the random streams
_OBJECT = "Foreign Object"
_NATURAL: dict[str, Kind] = {
    "coin": ELLIPSE,
    "button": ELLIPSE,
    "safety pin": POLYGON,
    "necklace": POLYGON,
    "bullet fragment": RECTANGLE,
}
_SCATTERED = "bullet fragment"  # annotated piece by piece
_LENGTH = ("necklace", "safety pin", "coin", "button", _SCATTERED)  # the longest first
_CHANGE = 0.06  # each side gains or loses up to this share of the image


@dataclass(frozen=True)
class _Job:
    study: Study
    folder: str
    number: int
    kind: Kind = RECTANGLE
    halves: bool = False  # the object is annotated in two pieces
    rgb: bool = False
    margins: Box = (0, 0, 0, 0)  # pixels put on (or, where negative, cut off) at the left, top, right, bottom

    @property
    def name(self) -> str:
        return f"{self.number:05d}.jpg"


def _numbers(spec: PhantomSpec, folders: list[str]) -> list[int]:
    """The image number of each study: the studies of a folder shuffled; folders follow each other."""
    rng = np.random.default_rng([spec.seed, _ORDER])
    numbers = np.zeros(len(folders), dtype=np.int64)
    end = 0
    for folder in _FOLDERS.values():
        at = np.flatnonzero([name == folder for name in folders])
        start = max(_FIRST[folder], end + 1)
        numbers[at] = start + rng.permutation(len(at))
        end = start + len(at) - 1
    return numbers.tolist()


def _jobs(spec: PhantomSpec) -> list[_Job]:
    """All studies with their image numbers and the shape type of their object."""
    studies = list(cases.sample_studies(spec))
    folders = [_FOLDERS[cases.split_of(spec, study.patient.index)] for study in studies]
    objects = [(study.index, f.subtype) for study in studies for f in study.findings if f.name == _OBJECT]
    kinds = _kinds(objects)
    # One long object is annotated in two pieces, for fragments may merge in a small image.
    long = sorted(objects, key=lambda pair: _LENGTH.index(pair[1]))
    split = long[0][0] if long else None
    jobs = []
    for study, folder, number in zip(studies, folders, _numbers(spec, folders), strict=True):
        dice = np.random.default_rng([study.seed, _IMAGE]).random(6)
        change = np.rint((2 * dice[2:] - 1) * _CHANGE * spec.size).astype(int) if dice[0] < 0.6 else np.zeros(4, int)
        left, top, right, bottom = change.tolist()
        jobs.append(
            _Job(
                study=study,
                folder=folder,
                number=number,
                kind=kinds.get(study.index, RECTANGLE),
                halves=study.index == split,
                rgb=bool(dice[1] < 0.5),
                margins=(left, top, right, bottom),
            )
        )
    return jobs


def _kinds(objects: list[tuple[int, str]]) -> dict[int, Kind]:
    """Shape type by study: what suits the object, and each type at least once where there are three objects."""
    kinds = {index: _NATURAL[subtype] for index, subtype in objects}
    for kind in (RECTANGLE, POLYGON, ELLIPSE):
        counts = Counter(kinds.values())
        spare = next((index for index, other in kinds.items() if counts[other] > 1), None)
        if spare is not None and not counts[kind]:
            kinds[spare] = kind
    return kinds


def _write_study(root: Path, spec: PhantomSpec, job: _Job) -> Rows:
    """Writes one image and its row."""
    study = job.study
    rows = Rows(key=(job.number,))
    view = render.render_view(study, study.views[0], spec.size, spec.difficulty)
    objects = [(f, mask) for f, mask in zip(study.findings, view.masks, strict=True) if f.name == _OBJECT]
    view = _reframe(view, _spared(job.margins, view, [mask for _, mask in objects]))
    annotation = ";".join(
        shape
        for finding, mask, boxes in zip(study.findings, view.masks, view.boxes, strict=True)
        if finding.name == _OBJECT
        for shape in _shapes(finding, mask, boxes, job)
    )
    save_file(root, f"{job.folder}/{job.name}", common.encode_jpeg(view.image, rgb=job.rgb), rows)
    split = next(split for split, folder in _FOLDERS.items() if folder == job.folder)
    save_truth(root, rows, job.name[:-4], study, view, split=split)
    path = f"test/{job.name}" if job.folder == "test" else job.name
    rows.add(job.folder, f"{path},{annotation}")
    if annotation:
        rows.add("shapes", *annotation.split(";"))
        rows.add("annotated", job.name)
    return rows


def _spared(margins: Box, view: RenderedView, masks: list[np.ndarray]) -> Box:
    """Margins that leave all pixels of some masks in the image."""
    cover = np.zeros(view.image.shape, dtype=bool)
    for mask in masks:
        cover |= mask
    if not cover.any():
        return margins
    height, width = view.image.shape
    x, y = np.flatnonzero(cover.any(axis=0)), np.flatnonzero(cover.any(axis=1))
    room = (int(x[0]), int(y[0]), width - 1 - int(x[-1]), height - 1 - int(y[-1]))
    left, top, right, bottom = (max(margin, -free) for margin, free in zip(margins, room, strict=True))
    return left, top, right, bottom


def _reframe(view: RenderedView, margins: Box) -> RenderedView:
    """A view with black margins put on, or its edges cut off."""
    if not any(margins):
        return view
    left, top, right, bottom = margins
    height, width = view.image.shape
    rows, columns = slice(max(-top, 0), height - max(-bottom, 0)), slice(max(-left, 0), width - max(-right, 0))
    pads = ((max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))

    def frame(array: np.ndarray) -> np.ndarray:
        return np.pad(array[rows, columns], pads)

    cleaned = [parts(frame(mask)) for mask in view.masks]
    return dataclasses.replace(
        view,
        image=frame(view.image),
        masks=tuple(mask for mask, _ in cleaned),
        boxes=tuple(boxes for _, boxes in cleaned),
        lungs=frame(view.lungs),
        heart=frame(view.heart),
    )


def _shapes(finding: Finding, mask: np.ndarray, boxes: tuple[Box, ...], job: _Job) -> list[str]:
    """The shapes that a reader would draw around one object; together they cover its mask."""
    if not boxes:
        return []
    if finding.subtype == _SCATTERED:
        pieces = [_within(mask, box) for box in boxes]
    elif job.halves:
        pieces = _halves(mask)
    else:
        pieces = [mask]
    return [shape_of(piece, job.kind) for piece in pieces]


def _within(mask: np.ndarray, box: Box) -> np.ndarray:
    left, top, right, bottom = box
    out = np.zeros_like(mask)
    out[top:bottom, left:right] = mask[top:bottom, left:right]
    return out


def _halves(mask: np.ndarray) -> list[np.ndarray]:
    """A mask parted at the middle of its pixels' columns; whole where it is a single column wide."""
    columns = np.flatnonzero(mask.any(axis=0))
    if len(columns) < 2:
        return [mask]
    left, right = mask.copy(), mask.copy()
    middle = columns[len(columns) // 2]
    left[:, middle:] = False
    right[:, :middle] = False
    return [left, right]


def shape_of(mask: np.ndarray, kind: Kind) -> str:
    """One shape, in the grammar of the release, that covers all pixel centres of a mask.

    Args:
        mask: (H, W) bool, not empty.
        kind: 0 for the bounding rectangle, 1 for an ellipse, 2 for the convex hull as a polygon.

    Returns:
        The type and its integers. The ellipse starts from the one within the bounding box and grows, pixel by pixel,
        until it covers the mask; where it would leave the image, the rectangle is given instead.
    """
    y, x = np.nonzero(mask)
    left, top, right, bottom = int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1
    if kind == POLYGON:
        return "2 " + " ".join(f"{px} {py}" for px, py in _hull(x, y))
    if kind == ELLIPSE:
        height, width = mask.shape
        room = min(left, top, width - right, height - bottom)
        for grow in range(room + 1):
            a, b = 0.5 * (right - left) + grow, 0.5 * (bottom - top) + grow
            u, v = (x + 0.5 - 0.5 * (left + right)) / a, (y + 0.5 - 0.5 * (top + bottom)) / b
            if float(np.max(u * u + v * v)) <= 1:
                return f"1 {left - grow} {top - grow} {right + grow} {bottom + grow}"
    return f"0 {left} {top} {right} {bottom}"


def _hull(x: np.ndarray, y: np.ndarray) -> list[tuple[int, int]]:
    """Convex hull of pixels with their corners, clockwise on the screen, without points on its edges."""
    # In each row of corners only the outermost can lie on the hull.
    rows, first = np.unique(y, return_index=True)  # np.nonzero goes row by row
    last = np.append(first[1:], len(y)) - 1
    ends = [(int(x[i]), int(x[j]) + 1, int(row)) for row, i, j in zip(rows, first, last, strict=True)]
    points = sorted({(px, row + below) for left, right, row in ends for px in (left, right) for below in (0, 1)})

    def chain(ordered: list[tuple[int, int]]) -> list[tuple[int, int]]:
        out: list[tuple[int, int]] = []
        for p in ordered:
            while len(out) > 1 and _turn(out[-2], out[-1], p) <= 0:
                out.pop()
            out.append(p)
        return out[:-1]

    return chain(points) + chain(points[::-1])


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _write_tables(root: Path, spec: PhantomSpec, rows: list[Rows]) -> dict[str, Any]:
    for folder in _FOLDERS.values():
        column = "image_path" if folder == "test" else "image_name"
        write_lines(root, f"{folder}.csv", f"{column},annotation", lines_of(rows, folder))
    common.write_truth_tables(root, rows)
    shapes = lines_of(rows, "shapes")
    names = {"0": "rectangles", "1": "ellipses", "2": "polygons"}
    return {
        "studies": len(rows),
        "images": len(rows),
        "annotated": len(lines_of(rows, "annotated")),
        "shapes": {name: sum(shape[0] == kind for shape in shapes) for kind, name in names.items()},
    }


TREE = common.Layout(LAYOUT, ENTRIES, tuple(_FOLDERS.values()), _jobs, _write_study, _write_tables)
is_complete, write = TREE.is_complete, TREE.write
