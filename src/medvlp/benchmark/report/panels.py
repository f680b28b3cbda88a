"""The same images across methods: one row per image, truth first, then every method, each with a text alternative."""

import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.benchmark.gridfile import PanelRecord
from medvlp.benchmark.report import overlays
from medvlp.benchmark.report.summary import Method
from medvlp.errors import DataError

MIN_SCORE = 0.3
"""Boxes below are drawn only if an image has none above: then its best one."""

_MAX_BOXES = 5
_REMEDY = "let medvlp benchmark run write it again"

_NEEDED = {
    "grounding": ("heatmaps", "phrases"),
    "segmentation": ("truth_masks", "masks"),
    "detection": ("truth_boxes", "boxes", "scores"),
}
"""Arrays of each kind of panel, besides ``ids``, ``images``, and for grounding ``truth_masks`` or ``truth_boxes``."""

_Key = tuple[str, str, int]
"""What is one image for all methods: its id, its phrase, and how many before it in the file have the same."""

_Sample = dict[str, np.ndarray]


def panels(
    files: Sequence[PanelRecord], folder: Path, methods: Sequence[Method]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Draw the panels of a grid.

    Args:
        files: as ``grid.json`` lists them.
        folder: of ``grid.json``.
        methods: all methods of the page, in the order of columns.

    Returns:
        A panel per task and kind, and the names of files that do not exist (results are often passed on without their
        pictures); the page names them, and a warning does.

    Raises:
        DataError: a file is damaged, or a method has two for one task.
    """
    lost = []
    groups: dict[tuple[str, str], dict[str, dict[_Key, _Sample]]] = {}
    for file in files:
        path = folder / file.file
        if not path.is_file():
            lost.append(path.name)
            continue
        by_method = groups.setdefault((file.task, file.kind), {})
        if file.method in by_method:
            raise DataError(f"{path}: grid.json has two panels of {file.method} for {file.task}; keep one")
        by_method[file.method] = _read(path, file.kind)
    if lost:
        warnings.warn(f"pictures that grid.json names do not exist and are skipped: {', '.join(lost)}", stacklevel=2)
    drawn = []
    for (task, kind), by_method in groups.items():
        columns = [method for method in methods if method.name in by_method]
        rows = _rows(kind, columns, [by_method[method.name] for method in columns])
        drawn.append({"task": task, "kind": kind, "methods": columns, "rows": rows})
    return drawn, lost


def _rows(kind: str, columns: Sequence[Method], samples: Sequence[dict[_Key, _Sample]]) -> list[dict[str, Any]]:
    rows = []
    for key in dict.fromkeys(key for by_key in samples for key in by_key):
        label, phrase, _ = key
        matches = [by_key.get(key) for by_key in samples]
        rows.append(
            {
                "label": label,
                "phrase": phrase,
                "truth": _truth(label, phrase, next(filter(None, matches))),
                "cells": [
                    sample and _predicted(kind, f"{method.title} on {label}", sample)
                    for method, sample in zip(columns, matches, strict=True)
                ],
            }
        )
    return rows


def _read(path: Path, kind: str) -> dict[_Key, _Sample]:
    """Read and check a file of :func:`medvlp.benchmark.panels.write_panels`, and return its arrays image by image."""
    if kind not in _NEEDED:
        raise DataError(f"{path}: unknown kind {kind!r} in grid.json; expected one of: {', '.join(_NEEDED)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not readable as arrays ({error}); {_REMEDY}") from error
    if missing := [name for name in ("ids", "images", *_NEEDED[kind]) if name not in arrays]:
        raise DataError(f"{path}: has no {', '.join(missing)}, which panels of {kind} need; {_REMEDY}")
    if kind == "grounding" and "truth_masks" not in arrays and "truth_boxes" not in arrays:
        raise DataError(f"{path}: has neither truth_masks nor truth_boxes; {_REMEDY}")
    known = _checked(path, arrays)
    samples: dict[_Key, _Sample] = {}
    count: Counter[tuple[str, str]] = Counter()
    for index, label in enumerate(map(str, arrays["ids"])):
        phrase = str(arrays["phrases"][index]) if "phrases" in arrays else ""
        samples[label, phrase, count[label, phrase]] = {name: array[index] for name, array in known.items()}
        count[label, phrase] += 1
    return samples


def _checked(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a file that are known, with the shapes that they must have."""
    images = arrays["images"]
    if images.ndim != 3 or images.dtype != np.uint8 or min(images.shape[1:], default=0) < 1:
        raise DataError(f"{path}: images are {images.dtype} {images.shape}, not uint8 (n, S, S); {_REMEDY}")
    n = len(images)
    shapes: dict[str, tuple[int | str, ...]] = {
        "images": images.shape,
        **dict.fromkeys(("ids", "phrases"), (n,)),
        **dict.fromkeys(("truth_masks", "masks", "heatmaps"), images.shape),
        **dict.fromkeys(("truth_boxes", "boxes"), (n, "k", 4)),
        "scores": arrays["boxes"].shape[:2] if "boxes" in arrays else (n, "k"),
    }
    known = {name: arrays[name] for name in shapes if name in arrays}
    for name, array in known.items():
        expected = shapes[name]
        sizes = zip(array.shape, expected, strict=False)
        if array.ndim != len(expected) or any(size not in ("k", actual) for actual, size in sizes):
            shape = ", ".join(map(str, expected))
            raise DataError(f"{path}: {name} has the shape {array.shape}, not ({shape}); {_REMEDY}")
    return known


def _picture(picture: overlays.Picture, alt: str, caption: str) -> dict[str, Any]:
    return {"source": overlays.data_uri(picture), "alt": alt, "side": picture.width, "caption": caption}


def _truth(label: str, phrase: str, sample: _Sample) -> dict[str, Any]:
    picture, factor = overlays.enlarged(sample["images"])
    words = []
    if "truth_masks" in sample:
        mask = sample["truth_masks"].astype(bool)
        picture = overlays.outlined(picture, mask, factor, dashed=False)
        words.append(f"truth outlined, {_share(mask)} of the image" if mask.any() else "truth: nothing to find")
    if "truth_boxes" in sample:
        boxes = _boxes(sample["truth_boxes"])
        picture = overlays.boxed(picture, boxes * factor, overlays.TRUTH)
        words.append(_plural(len(boxes), "true box", "true boxes") if len(boxes) else "truth: nothing to find")
    name = f"Radiograph {label}" + (f", phrase “{phrase}”" if phrase else "")
    caption = words[-1].removeprefix("truth: ").removeprefix("truth outlined, ")
    return _picture(picture, f"{name}: {'; '.join(words)}", caption)


def _predicted(kind: str, name: str, sample: _Sample) -> dict[str, Any]:
    picture, factor = overlays.enlarged(sample["images"])
    truth = sample["truth_masks"].astype(bool) if "truth_masks" in sample else None
    boxes = _boxes(sample["truth_boxes"]) if "truth_boxes" in sample else None
    if kind == "grounding":
        heat = np.clip(np.nan_to_num(sample["heatmaps"].astype(np.float32)), 0, 1)
        picture = overlays.heated(picture, heat)
        words, caption = _heat_words(heat, truth, boxes)
    elif kind == "segmentation":
        mask = sample["masks"].astype(bool)
        picture = overlays.filled(picture, mask, factor)
        words, caption = _mask_words(mask, sample["truth_masks"].astype(bool))
    else:
        best, scores = _best(sample["boxes"], sample["scores"])
        picture = overlays.boxed(picture, best * factor, overlays.PREDICTED, scores)
        listed = ", ".join(f"{score:.2f}" for score in scores)
        words = f"{_plural(len(best), 'box', 'boxes')}, scores {listed}" if len(best) else "no box"
        caption = f"scores {listed}" if len(best) else "no box"
    if truth is not None:
        picture = overlays.outlined(picture, truth, factor, dashed=True)
    if boxes is not None:
        picture = overlays.boxed(picture, boxes * factor, overlays.TRUTH, dashed=True)
    return _picture(picture, f"{name}: {words}; truth dashed", caption)


def _heat_words(heat: np.ndarray, mask: np.ndarray | None, boxes: np.ndarray | None) -> tuple[str, str]:
    if mask is None:
        mask = np.zeros(heat.shape, bool)
        for x0, y0, x1, y1 in [] if boxes is None else boxes.round().astype(int):
            mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
    if not mask.any() or mask.all():
        return f"heatmap, mean {heat.mean():.2f}", f"mean {heat.mean():.2f}"
    inside, outside = heat[mask].mean(), heat[~mask].mean()
    peak = "inside" if mask.flat[int(heat.argmax())] else "outside"
    return (
        f"heatmap, mean {inside:.2f} inside and {outside:.2f} outside the truth, its peak {peak}",
        f"{inside:.2f} inside, {outside:.2f} outside",
    )


def _mask_words(mask: np.ndarray, truth: np.ndarray) -> tuple[str, str]:
    words = f"predicted {_share(mask)} of the image" if mask.any() else "nothing predicted"
    if not (truth.any() or mask.any()):
        return words, words
    dice = 2 * (truth & mask).sum() / (truth.sum() + mask.sum())
    return f"{words}, Dice {dice:.2f}", f"Dice {dice:.2f}"


def _share(mask: np.ndarray) -> str:
    return f"{100 * mask.mean():.1f} %"


def _plural(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _boxes(boxes: np.ndarray) -> np.ndarray:
    """Return the (m, 4) boxes without the rows of padding."""
    return boxes[~np.isnan(boxes).any(1)].astype(np.float64)


def _best(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes to draw and their scores, the best first."""
    valid = ~np.isnan(boxes).any(1) & ~np.isnan(scores)
    boxes, scores = boxes[valid].astype(np.float64), scores[valid].astype(np.float64)
    order = np.argsort(-scores, kind="stable")[:_MAX_BOXES]
    above = order[scores[order] >= MIN_SCORE]
    chosen = above if len(above) else order[:1]
    return boxes[chosen], scores[chosen]
