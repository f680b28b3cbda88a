"""Reads the predictions on the images that a report shows for all methods (``panels/*.npz``)."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medvlp.errors import DataError

KINDS = ("grounding", "segmentation", "detection")

_REMEDY = "let medvlp benchmark run write it again"

_NEEDED = {
    "grounding": ("heatmaps", "phrases"),
    "segmentation": ("truth_masks", "masks"),
    "detection": ("truth_boxes", "boxes", "scores"),
}


@dataclass(frozen=True)
class PanelData:
    """Images, truth, and one method's predictions on them.

    Attributes:
        kind: "grounding", "segmentation" or "detection".
        ids: n identifiers.
        images: (n, S, S) uint8.
        phrases: n phrases; empty strings where the task has none.
        truth_masks: (n, S, S) bool; None where the truth is boxes.
        truth_boxes: (n, k, 4) xyxy in pixels of the image, NaN where an image has fewer.
        masks: (n, S, S) bool, predicted.
        boxes: (n, k, 4), predicted.
        scores: (n, k) of the boxes.
        heatmaps: (n, S, S) in [0, 1].
    """

    kind: str
    ids: tuple[str, ...]
    images: np.ndarray
    phrases: tuple[str, ...]
    truth_masks: np.ndarray | None = None
    truth_boxes: np.ndarray | None = None
    masks: np.ndarray | None = None
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    heatmaps: np.ndarray | None = None
    keys: tuple[tuple[str, str, int], ...] = field(init=False)
    """What is one picture for all methods: id, phrase, and how many before it have the same."""

    def __post_init__(self) -> None:
        pairs = list(zip(self.ids, self.phrases, strict=True))
        object.__setattr__(self, "keys", tuple((*pair, pairs[:n].count(pair)) for n, pair in enumerate(pairs)))


def read_panel(path: Path, kind: str) -> PanelData:
    """Reads and checks a file.

    Args:
        path: the ``.npz`` file.
        kind: what it holds; one of :data:`KINDS`.

    Raises:
        DataError: unknown kind, unreadable file, or an array that is missing or has a shape that does not fit.
    """
    if kind not in KINDS:
        raise DataError(f"{path}: kind {kind!r} is none of {', '.join(KINDS)}; correct it in grid.json")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not readable as arrays ({error}); {_REMEDY}") from error
    needed = ("ids", "images", *_NEEDED[kind])
    if lost := [name for name in needed if name not in arrays]:
        raise DataError(f"{path}: has no {', '.join(lost)}, which panels of {kind} need; {_REMEDY}")
    if kind == "grounding" and "truth_masks" not in arrays and "truth_boxes" not in arrays:
        raise DataError(f"{path}: has neither truth_masks nor truth_boxes; {_REMEDY}")
    _check(path, arrays)
    ids = tuple(str(name) for name in arrays["ids"])
    phrases = tuple(str(text) for text in arrays["phrases"]) if "phrases" in arrays else ("",) * len(ids)
    names = ("truth_masks", "truth_boxes", "masks", "boxes", "scores", "heatmaps")
    return PanelData(kind, ids, arrays["images"], phrases, **{name: arrays.get(name) for name in names})


def _check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    images = arrays["images"]
    if images.ndim != 3 or images.dtype != np.uint8 or min(images.shape[1:], default=0) < 1:
        raise DataError(f"{path}: images are {images.dtype} {images.shape}, not uint8 (n, S, S); {_REMEDY}")
    n = len(images)
    shapes: dict[str, tuple[int | None, ...]] = {
        "ids": (n,),
        "phrases": (n,),
        **dict.fromkeys(("truth_masks", "masks", "heatmaps"), images.shape),
        **dict.fromkeys(("truth_boxes", "boxes"), (n, None, 4)),
    }
    if "boxes" in arrays and arrays["boxes"].ndim == 3:
        shapes["scores"] = arrays["boxes"].shape[:2]
    for name, shape in shapes.items():
        if name in arrays and not _fits(arrays[name].shape, shape):
            wanted = ", ".join("k" if side is None else str(side) for side in shape)
            raise DataError(f"{path}: {name} has the shape {arrays[name].shape}, not ({wanted}); {_REMEDY}")


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, side) for side, want in zip(shape, wanted, strict=True))
