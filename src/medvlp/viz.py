"""Figures from arrays. Nothing here knows a model or a dataset."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from medvlp.store import atomic_write

_MARK = (255, 176, 0)  # orange of the colour-blind-safe palette of IBM, bright on grey and on black
_OUTLINE = (100, 143, 255)  # its blue


def grey(image: np.ndarray) -> np.ndarray:
    """Average the channels of (H, W) or (C, H, W) and stretch the result to [0, 1], whatever the intensity range."""
    plane = np.asarray(image, dtype=np.float32)
    plane = plane.mean(0) if plane.ndim == 3 else plane
    low, high = float(plane.min()), float(plane.max())
    return (plane - low) / (high - low) if high > low else np.zeros_like(plane)


def panels(rows: int, columns: int, size: tuple[float, float], **layout: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure of ``size`` inches that opens no window, and its (rows, columns) axes, all switched off."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **layout)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _caption(axis: Axes, text: str, y: float, size: float = 6.5) -> Any:
    # Reports are not mathematics: two dollar signs in one would be parsed as such.
    style: dict[str, Any] = {"va": "top", "fontsize": size, "family": "sans-serif", "parse_math": False}
    return axis.text(0, y, text, transform=axis.transAxes, **style)


def study_figure(
    images: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    texts: Sequence[str],
    titles: Sequence[str] = (),
    max_chars: int = 600,
) -> Figure:
    """Draw one row per study: the radiograph, each map laid over it, and the report.

    Args:
        images: n arrays (H, W) or (C, H, W), bright = dense.
        maps: title to n arrays (H, W) or (1, H, W) in [0, 1].
        texts: n reports, cut after ``max_chars``.
        titles: n short titles, ids for example.
        max_chars: length at which a report is cut.
    """
    rows, columns = len(images), 2 + len(maps)
    widths = [1] * (columns - 1) + [1.6]
    figure, grid = panels(rows, columns, (2.6 * (columns + 0.6), 2.7 * rows), width_ratios=widths)
    for row, image in enumerate(images):
        gray = grey(image)
        for axis, (title, values) in zip(grid[row], [("radiograph", None), *maps.items()], strict=False):
            axis.imshow(gray, cmap="gray", vmin=0, vmax=1)
            if values is not None:
                overlay = np.asarray(values[row], dtype=np.float32).reshape(gray.shape)
                axis.imshow(overlay, cmap="inferno", alpha=0.45, vmin=0, vmax=1)
            if row == 0:
                axis.set_title(title, fontsize=9)
        text = texts[row] if len(texts[row]) <= max_chars else texts[row][:max_chars] + " …"
        heading = f"{titles[row]}\n" if titles else ""
        _caption(grid[row, -1], heading + "\n".join(textwrap.wrap(text, 52)), 1, size=7)
    return figure


def grounding_figure(
    images: Sequence[np.ndarray],
    heatmaps: Mapping[str, Sequence[np.ndarray]],
    masks: Sequence[np.ndarray],
    phrases: Sequence[str],
    titles: Sequence[str] = (),
    columns: int = 3,
) -> Figure:
    """Draw radiographs with the outline of what a phrase means, beside heatmaps of where a model looks for it.

    Args:
        images: n arrays (H, W) or (C, H, W), bright = dense.
        heatmaps: title to n arrays (H, W), any range, NaN where nothing is known; each stretched over its own range.
        masks: n arrays (H, W), the truth.
        phrases: n phrases.
        titles: n short titles, ids for example.
        columns: samples in a row.
    """
    per_sample = 1 + len(heatmaps)
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    figure, grid = panels(rows, columns * per_sample, (1.9 * columns * per_sample, 2.4 * rows))
    for number, (image, mask, phrase) in enumerate(zip(images, masks, phrases, strict=True)):
        row, first = number // columns, number % columns * per_sample
        gray, truth = grey(image), np.asarray(mask, dtype=np.float32).reshape(np.shape(image)[-2:])
        for axis, (title, maps) in zip(grid[row, first:], [("", None), *heatmaps.items()], strict=False):
            axis.imshow(gray, cmap="gray", vmin=0, vmax=1)
            if maps is not None:
                heat = np.asarray(maps[number], dtype=np.float32)
                low, high = (np.nanmin(heat), np.nanmax(heat)) if np.isfinite(heat).any() else (0.0, 1.0)
                axis.imshow(heat, cmap="inferno", alpha=0.5, vmin=low, vmax=high if high > low else low + 1)
                axis.set_title(title, fontsize=7)
            if 0 < truth.mean() < 1:
                axis.contour(truth, levels=[0.5], colors="cyan", linewidths=0.8)
        wide = 26 * per_sample
        lines = [textwrap.shorten(titles[number], wide, placeholder=" …")[-wide:]] if titles else []
        text = _caption(grid[row, first], "\n".join(lines + textwrap.wrap(phrase, wide)[:2]), -0.03)
        # below both pictures: counted into the layout it would widen the first one's column
        text.set_in_layout(False)
    figure.get_layout_engine().set(h_pad=0.25)  # type: ignore[union-attr, call-arg]  # room for the texts, in inches
    return figure


def contact_sheet(pictures: Sequence[np.ndarray | None], captions: Sequence[str], columns: int = 4) -> Figure:
    """Draw uint8 pictures (h, w, 3) in rows, each above its wrapped caption; None is one that cannot be shown."""
    columns = max(1, min(columns, len(pictures)))
    rows = max(1, -(-len(pictures) // columns))
    wrapped = ["\n".join(line for part in c.split("\n") for line in textwrap.wrap(part, 38)) for c in captions]
    lines = max((caption.count("\n") + 1 for caption in wrapped if caption), default=0)
    figure, grid = panels(rows, columns, (2.6 * columns, (2.7 + 0.16 * lines) * rows))
    for axis, picture, caption in zip(grid.flat, pictures, wrapped, strict=False):
        if picture is None:
            axis.text(0.5, 0.5, "unreadable", ha="center", va="center", color="firebrick", transform=axis.transAxes)
        else:
            axis.imshow(picture, interpolation="nearest")
        _caption(axis, caption, -0.02)
    return figure


def save(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Write a figure to a file whose suffix names the format; make its folder.

    The file is readable by its owner alone, since figures show images and reports.
    """
    path = Path(path)
    with atomic_write(path, private=True) as file:
        figure.savefig(file, dpi=dpi, format=path.suffix[1:] or None)
    return path


def annotated(
    image: np.ndarray,
    *,
    size: int,
    mask: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> np.ndarray:
    """Resize a radiograph and draw the outline of its mask and its boxes.

    Args:
        image: uint8 (H, W).
        size: longer side of the result, in pixels.
        mask: bool (H, W).
        boxes: (n, 4) x0, y0, x1, y1 in pixels of ``image``.
        names: n names of the boxes, or none.

    Returns:
        uint8 (h, w, 3).
    """
    height, width = image.shape
    scale = size / max(height, width)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(image).resize(small, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    pixels = np.array(picture.convert("RGB"))
    if mask is not None and mask.any():
        # as areas, so that a mask of one pixel does not vanish
        inside = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(small, Image.Resampling.BOX)) > 0
        padded = np.pad(inside, 1)
        core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        pixels[inside & ~core] = _OUTLINE
    if boxes is not None and len(boxes):
        picture = Image.fromarray(pixels)
        pen = ImageDraw.Draw(picture)
        for number, (x0, y0, x1, y1) in enumerate(np.asarray(boxes, dtype=float) * scale):
            # x1 and y1 are exclusive
            corners = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
            pen.rectangle(corners, outline=_MARK, width=max(1, size // 160))
            if names:
                pen.text((x0 + 3, y0 + 1), names[number], fill=_MARK)
        pixels = np.array(picture)
    return pixels
