"""Checks of the image files: headers always, every pixel and every mask on request; in threads."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvlp.datasets.folders import IMAGE_SUFFIXES
from medvlp.doctor.findings import Case, Finding, refusal
from medvlp.errors import DataError, MedVLPError, UnreadableItemError
from medvlp.io.headers import ImageHeader, read_header
from medvlp.io.images import read_image
from medvlp.io.shapes import check, draw

_AT_ONCE = 512  # files handed to the threads before the first answer is taken
_FLAT = 0.05  # share of the rows
_SLACK = 0.01  # pixels; boxes are stored as float32

Box = tuple[float, ...]


@dataclass(frozen=True)
class Annotations:
    """Shapes and boxes (x0, y0, x1, y1) in pixels that the records give one image file, each once."""

    shapes: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Look:
    """One image file as seen.

    ``problem`` says why it is unusable, ``marks`` what is wrong with its annotations, ``suspicion`` what is odd about
    its pixels; ``linked`` whether a link leads to it out of the corpus.
    """

    header: ImageHeader
    problem: str = ""
    linked: bool = False
    marks: tuple[str, ...] = ()
    suspicion: str = ""


def look_at(path: str, annotations: Annotations, within: Path, deep: bool) -> Look:
    """Read the header of a file that should lie in the folder ``within``; decode it and draw its masks if ``deep``."""
    header = read_header(path, within=within)
    linked = header.problem.startswith("symbolic link out")
    if linked:
        header = read_header(path)
    problem, size, suspicion = header.problem, (header.height, header.width), ""
    if deep and not problem:
        try:
            pixels = read_image(path)
        except UnreadableItemError as error:
            problem = error.reason
        else:
            size, suspicion = (pixels.shape[0], pixels.shape[1]), _suspicion(pixels)
            if size != (header.height, header.width):
                problem, suspicion = "the header names another size than the pixels have", ""
    marks = () if problem or not all(size) else tuple(_wrong_marks(annotations, size, deep))
    return Look(header, problem, linked, marks, suspicion)


def _suspicion(pixels: np.ndarray) -> str:
    """A constant picture, or what decoders make of a file that lost its end: rows of one value, not black or white."""
    last = pixels[-1, -1]
    other = np.flatnonzero((pixels != last).any(axis=1))
    if not len(other):
        return f"constant: every pixel is {last}"
    rows = len(pixels) - 1 - int(other[-1])
    return f"the last {rows} rows are {last} throughout" if rows > _FLAT * len(pixels) and 0 < last < 255 else ""


def _wrong_marks(annotations: Annotations, size: tuple[int, int], deep: bool) -> Iterator[str]:
    height, width = size
    for shape in annotations.shapes:
        reason = check(shape, height, width)
        if not reason and deep:
            try:
                reason = "" if draw([shape], height, width).any() else "a mask without a pixel"
            except DataError as error:
                reason = str(error)
        if reason:
            yield reason
    for x0, y0, x1, y1 in annotations.boxes:
        if not (x0 < x1 and y0 < y1):
            yield "empty box"
        elif x0 < -_SLACK or y0 < -_SLACK or x1 > width + _SLACK or y1 > height + _SLACK:
            yield "box outside the image"


def _annotations(case: Case) -> dict[str, Annotations]:
    """Annotations by image file, over all tasks."""
    shapes: dict[str, dict[str, None]] = {}
    boxes: dict[str, dict[Box, None]] = {}
    for records in case.records.values():
        marks = [n for n in ("image", "shapes", "boxes") if n in records.table.column_names]
        for row in records.table.select(marks).to_pylist():
            shapes.setdefault(row["image"], {}).update(dict.fromkeys(row.get("shapes", ())))
            flat = row.get("boxes", ())
            boxes.setdefault(row["image"], {}).update((tuple(flat[i : i + 4]), None) for i in range(0, len(flat), 4))
    return {path: Annotations(tuple(shapes[path]), tuple(boxes[path])) for path in sorted(shapes)}


def _look_at_all(case: Case) -> dict[str, Look]:
    """Look at all files in threads; the decoders and the disk release the interpreter."""
    annotations, cores = _annotations(case), os.cpu_count() or 1
    stage, paths = ("decoding images" if case.deep else "reading image headers"), list(annotations)
    looks: dict[str, Look] = {}
    # one thread per core decodes; headers wait for the disk
    with ThreadPoolExecutor(case.workers or (cores if case.deep else min(16, 4 * cores))) as pool:
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            results = pool.map(lambda p: look_at(p, annotations[p], case.corpus.image_root, case.deep), some)
            for path, look in zip(some, results, strict=True):
                looks[path] = look
                if case.progress is not None:
                    case.progress(stage, len(looks), len(paths))
    return looks


def _alike(remarks: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """Group (path, remark) pairs by remark; remarks that differ in numbers alone are one, with N for them."""
    groups: dict[str, dict[str, list[str]]] = {}
    for path, remark in remarks:
        groups.setdefault(re.sub(r"\d+", "N", remark), {}).setdefault(remark, []).append(path)
    return sorted(
        (next(iter(group)) if len(group) == 1 else kind, tuple(path for paths in group.values() for path in paths))
        for kind, group in groups.items()
    )


def check_images(case: Case) -> Iterator[Finding]:
    """Look at every image that records name, and at the folders for those that none does."""
    corpus, shortened, source = case.corpus, case.shortened, case.corpus.source
    looks = _look_at_all(case)
    yield from _overview(case, looks)
    short = {shortened(path): look for path, look in looks.items()}
    for problem, paths in _alike((path, look.problem) for path, look in short.items() if look.problem):
        remedy = f"get the files again from {source}, or set on_error: skip to go on without them"
        if "damaged inside" in problem:
            remedy += ", or damaged: accept to take them as they are"
        yield Finding("images broken", "error", f"{len(paths):,}: {problem}", remedy=remedy, items=paths)
    if corpus.substituted:
        paths = tuple(shortened(path) for path in corpus.substituted.values())
        text = f"{len(paths):,} images have another ending than the tables name, and are taken"
        yield Finding("image endings", "note", text, items=paths)
    remedy = f"get labels and images of one release from {source}"
    for reason, paths in _alike((path, mark) for path, look in short.items() for mark in sorted(set(look.marks))):
        yield Finding("annotations", "error", f"{len(paths):,} images: {reason}", remedy=remedy, items=paths)
    remedy = "look at some; if they are damaged, get them again, or leave them out of the table"
    for suspicion, paths in _alike((path, look.suspicion) for path, look in short.items() if look.suspicion):
        yield Finding("images suspicious", "warning", f"{len(paths):,}: {suspicion}", remedy=remedy, items=paths)
    if linked := tuple(path for path, look in short.items() if look.linked):
        text = f"{len(linked):,} are reached by a symbolic link out of {corpus.image_root}"
        remedy = "fine if you made the link; replace it by the files otherwise"
        yield Finding("images linked", "warning", text, remedy=remedy, items=linked)
    yield from _sizes(case, looks)
    yield from _folders(case, looks)


def _overview(case: Case, looks: dict[str, Look]) -> Iterator[Finding]:
    headers = [look.header for look in looks.values() if not look.problem]
    images = case.diagnosis.images
    images.files, images.decoded = len(looks), case.deep
    images.sizes = dict(Counter(f"{h.width} x {h.height}" for h in headers).most_common())
    kinds = (" ".join(filter(None, (h.format, h.mode, f"{h.bits} bit", h.photometric))) for h in headers)
    images.kinds = dict(Counter(kinds).most_common())
    images.monochrome1 = sum(h.photometric == "MONOCHROME1" for h in headers)
    if headers:
        state = "decoded" if case.deep else "with a sound header"
        sizes = ", ".join(f"{size} ({count:,})" for size, count in list(images.sizes.items())[:3])
        more = f" and {len(images.sizes) - 3:,} other sizes" if len(images.sizes) > 3 else ""
        yield Finding("images", "ok", f"{len(headers):,} {state}; {sizes}{more}")


def _sizes(case: Case, looks: dict[str, Look]) -> Iterator[Finding]:
    """Compare the sizes of the images with those that the released tables give."""
    try:
        released = case.corpus.released_sizes()
    except MedVLPError:
        return  # the table's own check has said it
    except Exception as error:
        yield refusal("image sizes", "error", error)
        return
    same: dict[str, bool] = {}
    for records in case.records.values():
        for path, item in zip(records.column("image"), records.column("id"), strict=True):
            if item in released and not looks[path].problem:
                same[path] = (looks[path].header.height, looks[path].header.width) == released[item]
    other = tuple(case.shortened(path) for path, equal in same.items() if not equal)
    text = f"{len(other):,} of {len(same):,} differ from the table"
    if 2 * len(other) > len(same):
        yield Finding("image sizes", "note", f"{text}: this looks like a resized copy")
    elif other:
        yield Finding("image sizes", "warning", text, remedy="get these files again", items=other)
    elif same:
        yield Finding("image sizes", "ok", f"{len(same):,} are as the table says")


def _folders(case: Case, looks: dict[str, Look]) -> Iterator[Finding]:
    """Count the files of the image folders, and list those that no record names."""
    corpus, files = case.corpus, dict[str, None]()
    for folder in corpus.image_folders:
        top = os.path.abspath(corpus.root / folder)
        if not os.path.isdir(top):
            continue
        walked = (os.path.join(where, name) for where, _, names in os.walk(top) for name in names)
        paths = sorted(path for path in walked if path.lower().endswith(IMAGE_SUFFIXES))
        files.update(dict.fromkeys(paths))
        expected = corpus.image_counts.get(folder)
        if expected is None or case.diagnosis.phantom or len(paths) == expected:
            continue
        text, count = f"{len(paths):,} images: ", f"{expected:,}"
        if len(paths) < expected:
            text += f"{expected - len(paths):,} are missing"
            yield Finding(f"folder {folder}", "warning", text, count, f"get them from {corpus.source}")
        else:
            yield Finding(f"folder {folder}", "note", f"{text}{len(paths) - expected:,} too many", count)
    named, root, unnamed = {os.path.abspath(path) for path in looks}, corpus.root.absolute(), []
    for path in files:
        relative = Path(path).relative_to(root)
        if path not in named and not {relative.stem, relative.name, relative.as_posix()} & case.left_out:
            unnamed.append(relative.as_posix())
    case.diagnosis.images.unnamed = len(unnamed)
    if unnamed and case.records:
        text = f"{len(unnamed):,} files that no record names"
        yield Finding("images unnamed", "note", text, items=tuple(unnamed))
