"""Writes a phantom in the layout of Object-CXR (see docs/datasets/object_cxr.md).

A reader draws around an object: every shape covers the centres of all pixels of its part of the truth mask. Support
devices are not annotated, as in the release. From three studies with a foreign object on, each shape type occurs; from
one on, an image with several shapes. 60 % of the drawn images are cropped or padded by up to 6 % at each side; a crop
never cuts a foreign object.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medvlp.phantom.fields import split_parts
from medvlp.phantom.layouts.common import Job, Layout, Output, encode_image, frontal, lines_of, mask_of
from medvlp.phantom.model import Box, Finding, PhantomSpec, RenderedView, Study

_FOLDERS = {"train": "train", "validate": "dev", "test": "test"}
_FIRST = {"train": 1, "dev": 8001, "test": 9001}  # first image number of the released folders

RECTANGLE, ELLIPSE, POLYGON = range(3)
_IMAGE, _ORDER = 7_501, 7_502  # purposes of the random streams
_OBJECT = "Foreign Object"
_SCATTERED = "bullet fragment"  # annotated piece by piece
_NATURAL = {  # the longest first
    "necklace": POLYGON,
    "safety pin": POLYGON,
    "coin": ELLIPSE,
    "button": ELLIPSE,
    _SCATTERED: RECTANGLE,
}
_CHANGE = 0.06  # each side gains or loses up to this share of the image


@dataclass(frozen=True)
class _Job(Job):
    number: int
    kind: int
    halves: bool  # the object is annotated in two pieces
    rgb: bool
    margins: Box  # pixels put on (or, if negative, cut off) at the left, top, right, bottom


class _ObjectCXRLayout(Layout[_Job]):
    name = "object_cxr"

    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[_Job]:
        numbers = _numbers(spec.seed, [_FOLDERS[split] for _, split in studies])
        objects = [(study.index, f.subtype) for study, _ in studies for f in study.findings if f.name == _OBJECT]
        kinds = _kinds(objects)
        # One long object is annotated in two pieces, for fragments may merge in a small image.
        longest = min(objects, key=lambda pair: list(_NATURAL).index(pair[1]), default=(None, ""))[0]
        jobs = []
        for (study, split), number in zip(studies, numbers, strict=True):
            draws = np.random.default_rng([study.seed, _IMAGE]).random(6)
            change = np.rint((2 * draws[2:] - 1) * _CHANGE * spec.size).astype(int) * (draws[0] < 0.6)
            left, top, right, bottom = change.tolist()
            kind, halves, rgb = kinds.get(study.index, RECTANGLE), study.index == longest, bool(draws[1] < 0.5)
            jobs.append(_Job(study, split, number, kind, halves, rgb, (left, top, right, bottom)))
        return jobs

    def write_job(self, spec: PhantomSpec, job: _Job, out: Output) -> None:
        study, folder = job.study, _FOLDERS[job.split]
        out.key = (job.number,)
        view = frontal(spec, study)
        view = _reframe(view, _spared(job.margins, mask_of(study, view, {_OBJECT})))
        shapes = [
            shape
            for finding, mask, boxes in zip(study.findings, view.masks, view.boxes, strict=True)
            if finding.name == _OBJECT
            for shape in _shapes(finding, mask, boxes, job)
        ]
        image_id = f"{job.number:05d}"
        out.save(f"{folder}/{image_id}.jpg", encode_image(view.image, "JPEG", "RGB" if job.rgb else "L"))
        out.save_truth(image_id, job, view)
        start = "test/" if folder == "test" else ""
        out.add(f"{folder}.csv", f"{start}{image_id}.jpg,{';'.join(shapes)}")
        out.add("shapes", *shapes)
        out.add("annotated", *([image_id] if shapes else []))

    def facts(self, spec: PhantomSpec, outputs: Sequence[Output]) -> dict[str, Any]:
        kinds = Counter(shape[0] for shape in lines_of(outputs, "shapes"))
        shapes = {name: kinds[kind] for kind, name in (("0", "rectangles"), ("1", "ellipses"), ("2", "polygons"))}
        annotated = len(lines_of(outputs, "annotated"))
        return {"studies": len(outputs), "images": len(outputs), "annotated": annotated, "shapes": shapes}


LAYOUT = _ObjectCXRLayout()


def _numbers(seed: int, folders: list[str]) -> list[int]:
    """Return the image number of each study: the studies of a folder shuffled; folders follow each other."""
    rng = np.random.default_rng([seed, _ORDER])
    numbers = np.zeros(len(folders), dtype=np.int64)
    end = 0
    for folder in _FOLDERS.values():
        at = np.flatnonzero([name == folder for name in folders])
        start = max(_FIRST[folder], end + 1)
        numbers[at] = start + rng.permutation(len(at))
        end = start + len(at) - 1
    return numbers.tolist()


def _kinds(objects: list[tuple[int, str]]) -> dict[int, int]:
    """Return the shape type by study: what suits the object, and each type if there are three objects."""
    kinds = {index: _NATURAL[subtype] for index, subtype in objects}
    for kind in (RECTANGLE, POLYGON, ELLIPSE):
        counts = Counter(kinds.values())
        spare = next((index for index, other in kinds.items() if counts[other] > 1), None)
        if spare is not None and not counts[kind]:
            kinds[spare] = kind
    return kinds


def _spared(margins: Box, cover: np.ndarray) -> Box:
    y, x = np.nonzero(cover)
    if not y.size:
        return margins
    height, width = cover.shape
    room = (x.min(), y.min(), width - 1 - x.max(), height - 1 - y.max())
    left, top, right, bottom = (max(margin, -int(free)) for margin, free in zip(margins, room, strict=True))
    return left, top, right, bottom


def _reframe(view: RenderedView, margins: Box) -> RenderedView:
    if not any(margins):
        return view
    left, top, right, bottom = margins
    height, width = view.image.shape
    rows, columns = slice(max(-top, 0), height - max(-bottom, 0)), slice(max(-left, 0), width - max(-right, 0))
    pads = ((max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))

    def frame(array: np.ndarray) -> np.ndarray:
        return np.pad(array[rows, columns], pads)

    masks, boxes = split_parts(map(frame, view.masks))
    return RenderedView(view.view, frame(view.image), masks, boxes, frame(view.lungs), frame(view.heart))


def _shapes(finding: Finding, mask: np.ndarray, boxes: tuple[Box, ...], job: _Job) -> list[str]:
    if not boxes:
        return []
    pieces, columns = [mask], np.flatnonzero(mask.any(axis=0))
    if finding.subtype == _SCATTERED:
        pieces = [np.zeros_like(mask) for _ in boxes]
        for piece, (left, top, right, bottom) in zip(pieces, boxes, strict=True):
            piece[top:bottom, left:right] = mask[top:bottom, left:right]
    elif job.halves and len(columns) > 1:
        half = np.arange(mask.shape[1]) < columns[len(columns) // 2]
        pieces = [mask & half, mask & ~half]
    return [shape_of(piece, job.kind) for piece in pieces]


def shape_of(mask: np.ndarray, kind: int) -> str:
    """Return one shape, in the grammar of the release, that covers all pixel centres of a non-empty mask (H, W).

    ``kind`` is 0 for the bounding rectangle, 2 for the convex hull as a polygon, 1 for an ellipse: it grows from the
    one within the bounding box, pixel by pixel, until it covers the mask; if it would leave the image, the rectangle is
    returned instead.
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
    """Return the convex hull of pixels with their corners, clockwise on the screen, without points on its edges."""
    # In each row of corners only the outermost can lie on the hull.
    rows, first = np.unique(y, return_index=True)  # np.nonzero goes row by row
    last = np.append(first[1:], len(y)) - 1
    ends = [(int(x[i]), int(x[j]) + 1, int(row)) for row, i, j in zip(rows, first, last, strict=True)]
    points = sorted({(px, row + below) for left, right, row in ends for px in (left, right) for below in (0, 1)})

    def turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    def chain(ordered: list[tuple[int, int]]) -> list[tuple[int, int]]:
        out: list[tuple[int, int]] = []
        for p in ordered:
            while len(out) > 1 and turn(out[-2], out[-1], p) <= 0:
                out.pop()
            out.append(p)
        return out[:-1]

    return chain(points) + chain(points[::-1])
