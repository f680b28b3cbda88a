"""The same images across methods: one row per image, truth first, then every method, each with a text alternative."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvlp.benchmark.gridfile import PanelRecord
from medvlp.benchmark.report import overlays
from medvlp.benchmark.report.panelfile import PanelData, read_panel
from medvlp.benchmark.report.summary import Method
from medvlp.errors import DataError

MIN_SCORE = 0.3
"""Boxes below are drawn only where an image has none above: then its best one."""

MAX_BOXES = 5
"""At most so many boxes of a method on an image, the best."""


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Attributes:
        source: data URI.
        alt: what it shows.
        side: width and height in pixels.
        caption: a short text under it.
    """

    source: str
    alt: str
    side: int
    caption: str


@dataclass(frozen=True)
class PanelRow:
    """One image.

    Attributes:
        label: its identifier.
        phrase: what was looked for; empty where the task has no phrases.
        truth: the radiograph with the truth.
        cells: one picture per method; None where the method has none of this image.
    """

    label: str
    phrase: str
    truth: Picture
    cells: tuple[Picture | None, ...]

    @property
    def short(self) -> str:
        """The identifier where it is short; of long ones (SIIM's have 60 characters) both ends."""
        return self.label if len(self.label) <= 20 else f"{self.label[:8]}…{self.label[-8:]}"


@dataclass(frozen=True)
class Panel:
    """The images of one task.

    Attributes:
        task: name of the task's column in the grid.
        kind: "grounding", "segmentation" or "detection".
        methods: the columns after the truth.
        rows: the images.
    """

    task: str
    kind: str
    methods: tuple[Method, ...]
    rows: tuple[PanelRow, ...]


def panels(files: Sequence[PanelRecord], folder: Path, methods: Sequence[Method]) -> tuple[list[Panel], list[str]]:
    """Draws the panels of a grid.

    Args:
        files: as ``grid.json`` lists them.
        folder: of ``grid.json``.
        methods: all methods of the page, which fixes the order of columns.

    Returns:
        A panel per task and kind; and the names of files that are not there, of which the page tells and a warning
        speaks (results are often handed on without their pictures).

    Raises:
        DataError: a file is broken, or a method has two for one task.
    """
    lost = [Path(file.file).name for file in files if not (folder / file.file).is_file()]
    if lost:
        warnings.warn(f"pictures that grid.json names are not there and are left out: {', '.join(lost)}", stacklevel=2)
    groups: dict[tuple[str, str], dict[str, PanelData]] = {}
    for file in files:
        path = folder / file.file
        if path.is_file():
            own = groups.setdefault((file.task, file.kind), {})
            if file.method in own:
                raise DataError(f"{path}: grid.json has two panels of {file.method} for {file.task}; keep one")
            own[file.method] = read_panel(path, file.kind)
    found = []
    for (task, kind), own in groups.items():
        columns = tuple(method for method in methods if method.name in own)
        found.append(Panel(task, kind, columns, _rows(columns, own)))
    return found, lost


def _rows(columns: Sequence[Method], own: dict[str, PanelData]) -> tuple[PanelRow, ...]:
    first: dict[tuple[str, str, int], tuple[PanelData, int]] = {}
    for method in columns:
        data = own[method.name]
        for place, key in enumerate(data.keys):
            first.setdefault(key, (data, place))
    rows = []
    for key, (data, place) in first.items():
        cells = []
        for method in columns:
            other = own[method.name]
            at = other.keys.index(key) if key in other.keys else None
            cells.append(None if at is None else _predicted(other, at, method.title))
        rows.append(PanelRow(key[0], key[1], _truth(data, place), tuple(cells)))
    return tuple(rows)


# ---------------------------------------------------------------- one picture


def _truth(data: PanelData, place: int) -> Picture:
    picture, factor = overlays.enlarged(data.images[place])
    name = f"Radiograph {data.ids[place]}"
    words = []
    if data.truth_masks is not None:
        mask = data.truth_masks[place].astype(bool)
        picture = overlays.outlined(picture, mask, factor, dashed=False)
        words.append(f"truth outlined, {_share(mask)} of the image" if mask.any() else "truth: nothing to find")
    if data.truth_boxes is not None:
        boxes = _boxes(data.truth_boxes[place])
        picture = overlays.boxed(picture, boxes * factor, overlays.TRUTH)
        words.append(_plural(len(boxes), "true box", "true boxes") if len(boxes) else "truth: nothing to find")
    phrase = f", phrase “{data.phrases[place]}”" if data.phrases[place] else ""
    caption = words[-1].removeprefix("truth: ").removeprefix("truth outlined, ")
    return Picture(overlays.data_uri(picture), f"{name}{phrase}: {'; '.join(words)}", picture.width, caption)


def _predicted(data: PanelData, place: int, title: str) -> Picture:
    picture, factor = overlays.enlarged(data.images[place])
    mask = None if data.truth_masks is None else data.truth_masks[place].astype(bool)
    words, caption = "", ""
    if data.kind == "grounding" and data.heatmaps is not None:
        heat = np.clip(np.nan_to_num(data.heatmaps[place].astype(np.float32)), 0, 1)
        picture = overlays.heated(picture, heat)
        words, caption = _heat_words(heat, mask, data, place)
    elif data.kind == "segmentation" and data.masks is not None:
        own = data.masks[place].astype(bool)
        picture = overlays.filled(picture, own, factor)
        words, caption = _mask_words(own, mask)
    elif data.boxes is not None and data.scores is not None:
        boxes, scores = _best(data.boxes[place], data.scores[place])
        picture = overlays.boxed(picture, boxes * factor, overlays.PREDICTED, scores)
        listed = ", ".join(f"{score:.2f}" for score in scores)
        words = f"{_plural(len(boxes), 'box', 'boxes')}, scores {listed}" if len(boxes) else "no box"
        caption = f"scores {listed}" if len(boxes) else "no box"
    if mask is not None:
        picture = overlays.outlined(picture, mask, factor, dashed=True)
    if data.truth_boxes is not None:
        picture = overlays.boxed(picture, _boxes(data.truth_boxes[place]) * factor, overlays.TRUTH, dashed=True)
    alt = f"{title} on {data.ids[place]}: {words}; truth dashed"
    return Picture(overlays.data_uri(picture), alt, picture.width, caption)


def _heat_words(heat: np.ndarray, mask: np.ndarray | None, data: PanelData, place: int) -> tuple[str, str]:
    if mask is None and data.truth_boxes is not None:
        mask = np.zeros(heat.shape, bool)
        for x0, y0, x1, y1 in _boxes(data.truth_boxes[place]).round().astype(int):
            mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    if mask is None or not mask.any() or mask.all():
        return f"heatmap, mean {heat.mean():.2f}", f"mean {heat.mean():.2f}"
    inside, outside = heat[mask].mean(), heat[~mask].mean()
    peak = "inside" if mask.flat[int(heat.argmax())] else "outside"
    return (
        f"heatmap, mean {inside:.2f} inside and {outside:.2f} outside the truth, its peak {peak}",
        f"{inside:.2f} inside, {outside:.2f} outside",
    )


def _mask_words(own: np.ndarray, mask: np.ndarray | None) -> tuple[str, str]:
    words = f"predicted {_share(own)} of the image" if own.any() else "nothing predicted"
    if mask is None or not (mask.any() or own.any()):
        return words, "nothing predicted" if not own.any() else words
    dice = 2 * (mask & own).sum() / (mask.sum() + own.sum())
    return f"{words}, Dice {dice:.2f}", f"Dice {dice:.2f}"


def _share(mask: np.ndarray) -> str:
    return f"{100 * mask.mean():.1f} %"


def _plural(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _boxes(boxes: np.ndarray) -> np.ndarray:
    """(m, 4) without the rows of padding."""
    return boxes[~np.isnan(boxes).any(1)].astype(np.float64)


def _best(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The boxes to draw, the best first."""
    there = ~np.isnan(boxes).any(1) & ~np.isnan(scores)
    boxes, scores = boxes[there].astype(np.float64), scores[there].astype(np.float64)
    order = np.argsort(-scores, kind="stable")[:MAX_BOXES]
    above = order[scores[order] >= MIN_SCORE]
    chosen = above if len(above) else order[:1]
    return boxes[chosen], scores[chosen]
