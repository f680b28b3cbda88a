"""Looking at image files in threads: headers always, every pixel and every mask on request."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from medvlp.errors import DataError, UnreadableItemError
from medvlp.io.headers import ImageHeader, read_header
from medvlp.io.images import read_image
from medvlp.io.shapes import check, draw

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and how many there are."""

IMAGE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".dcm")

_AT_ONCE = 512  # files handed to the threads before the first answer is taken
_LINK = "symbolic link out"
_FLAT = 0.05  # share of the rows
_SLACK = 0.01  # pixels; boxes are stored as float32


@dataclass(frozen=True)
class Annotations:
    """What the records say about one image file.

    Args:
        shapes: shapes of :mod:`medvlp.io.shapes`, each once.
        boxes: (x0, y0, x1, y1) in pixels of the file, each once.
    """

    shapes: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Look:
    """What was seen of one image file.

    Args:
        header: by :func:`~medvlp.io.headers.read_header`.
        problem: why it cannot be used, "" if it can.
        linked: whether a link leads to it out of the corpus.
        marks: what is wrong with its annotations.
        suspicion: what is odd about its pixels, "" if nothing is.
    """

    header: ImageHeader
    problem: str = ""
    linked: bool = False
    marks: tuple[str, ...] = field(default=())
    suspicion: str = ""


def look_at(path: str, annotations: Annotations, within: Path, deep: bool) -> Look:
    """Look at one file.

    Args:
        path: the file.
        annotations: held against its size.
        within: folder that it must lie in.
        deep: decode it and draw the masks.
    """
    header = read_header(path, within=within)
    linked = header.problem.startswith(_LINK)
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
                problem = "the header names another size than the pixels have"
    marks = () if problem or not all(size) else tuple(_marks(annotations, size, deep))
    return Look(header, problem, linked, marks, "" if problem else suspicion)


def _suspicion(pixels: np.ndarray) -> str:
    """A constant picture, or what decoders make of a file that lost its end: rows of one value, not black or white."""
    last = pixels[-1, -1]
    other = np.flatnonzero((pixels != last).any(axis=1))
    if not len(other):
        return f"constant: every pixel is {last}"
    rows = len(pixels) - 1 - int(other[-1])
    return f"the last {rows} rows are {last} throughout" if rows > _FLAT * len(pixels) and 0 < last < 255 else ""


def _marks(annotations: Annotations, size: tuple[int, int], deep: bool) -> Iterator[str]:
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


def look_at_all(
    annotations: Mapping[str, Annotations],
    within: Path,
    *,
    deep: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Look]:
    """Look at many files in threads; the decoders and the disk release the interpreter.

    Args:
        annotations: file to what is known about it.
        within: folder that all must lie in.
        deep: decode every pixel.
        workers: threads; None takes one per core for decoding, more for headers, for which the disk is waited for.
        progress: see :data:`Progress`.

    Returns:
        In the order of ``annotations``.
    """
    cores = os.cpu_count() or 1
    stage, done = ("decoding images" if deep else "reading image headers"), 0
    looks: dict[str, Look] = {}
    with ThreadPoolExecutor(workers or (cores if deep else min(16, 4 * cores))) as pool:
        for some in _chunks(annotations, _AT_ONCE):
            seen = pool.map(lambda path: look_at(path, annotations[path], within, deep), some)
            for path, look in zip(some, seen, strict=True):
                looks[path] = look
                done += 1
                if progress is not None:
                    progress(stage, done, len(annotations))
    return looks


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def images_below(root: Path, folders: Sequence[str]) -> dict[str, list[str]]:
    """Image files below each folder that exists; links to folders are not followed.

    Args:
        root: folder of the corpus.
        folders: below it.

    Returns:
        Folder to absolute paths, sorted.
    """
    found: dict[str, list[str]] = {}
    for folder in folders:
        if not (root / folder).is_dir():
            continue
        paths = [
            os.path.join(place, name)
            for place, _, names in os.walk(os.path.abspath(root / folder))
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES)
        ]
        found[folder] = sorted(paths)
    return found
