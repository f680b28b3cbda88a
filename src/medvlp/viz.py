"""Figures from arrays. Nothing here knows a model or a dataset."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def _gray(image: np.ndarray) -> np.ndarray:
    """One grey plane in [0, 1]: (H, W), (1, H, W) or (3, H, W), any affine intensity range."""
    plane = np.asarray(image, dtype=np.float32)
    plane = plane.mean(0) if plane.ndim == 3 else plane
    low, high = float(plane.min()), float(plane.max())
    return (plane - low) / (high - low) if high > low else np.zeros_like(plane)


def study_figure(
    images: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    texts: Sequence[str],
    titles: Sequence[str] = (),
    max_chars: int = 600,
) -> Figure:
    """One row per study: the radiograph, each map laid over it, and the report.

    Args:
        images: n arrays (H, W) or (C, H, W), bright = dense.
        maps: title to n arrays (H, W) or (1, H, W) in [0, 1].
        texts: n reports, cut after ``max_chars``.
        titles: n short titles, ids for example.
        max_chars: length at which a report is cut.

    Returns:
        A matplotlib figure, not shown; save it with :func:`save`.
    """
    rows, columns = len(images), 2 + len(maps)
    figure = Figure(figsize=(2.6 * (columns + 0.6), 2.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, width_ratios=[1] * (columns - 1) + [1.6])
    for row, image in enumerate(images):
        gray = _gray(image)
        for column, (title, values) in enumerate([("radiograph", None), *maps.items()]):
            axis = grid[row, column]
            axis.imshow(gray, cmap="gray", vmin=0, vmax=1)
            if values is not None:
                overlay = np.asarray(values[row], dtype=np.float32).reshape(gray.shape)
                axis.imshow(overlay, cmap="inferno", alpha=0.45, vmin=0, vmax=1)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=9)
        axis = grid[row, -1]
        axis.set_axis_off()
        text = texts[row] if len(texts[row]) <= max_chars else texts[row][:max_chars] + " …"
        wrapped = "\n".join(textwrap.wrap(text, 52))
        heading = f"{titles[row]}\n" if titles else ""
        # Reports are not mathematics: two dollar signs in one would be parsed as such.
        style = {"va": "top", "fontsize": 7, "family": "sans-serif", "parse_math": False}
        axis.text(0, 1, heading + wrapped, transform=axis.transAxes, **style)
    return figure


def save(figure: Figure, path: str | Path, dpi: int = 110) -> Path:
    """Writes a figure, making its folder.

    Args:
        figure: what to write.
        path: file whose suffix names the format.
        dpi: dots per inch.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path
