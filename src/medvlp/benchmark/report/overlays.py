"""Draws masks, boxes and heatmaps over a radiograph.

Truth is sky blue, predictions are orange (Okabe and Ito's colours, which colour-blind readers tell apart). On one
picture they also differ without colour: truth is a dashed line, a predicted mask a filled area, a predicted box a
solid line with its score.
"""

import base64
import io

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Line = tuple[tuple[float, float], tuple[float, float]]

TRUTH: Colour = (86, 180, 233)
PREDICTED: Colour = (230, 159, 0)

_SIDE = 256  # pixels of a picture at least
_DASH = 6.0
_FONT = ImageFont.load_default(size=15)
_HEAT = colormaps["cividis"]


def enlarged(image: np.ndarray) -> tuple[Image.Image, int]:
    """A small radiograph enlarged by a whole number, so that lines over it stay thin.

    Args:
        image: (S, S) uint8.

    Returns:
        The picture, and the factor.
    """
    factor = max(1, -(-_SIDE // max(image.shape)))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).convert("RGB"), factor


def heated(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """The heatmap over the picture, the more opaque the hotter, so that the radiograph stays readable.

    Args:
        picture: the radiograph.
        heat: (S, S) float32 in [0, 1], enlarged with it.
    """
    wide = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BILINEAR))
    alpha = (0.15 + 0.55 * wide)[..., None]
    mixed = np.asarray(picture, np.float32) * (1 - alpha) + _HEAT(wide)[..., :3] * 255 * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))


def filled(picture: Image.Image, mask: np.ndarray, factor: int) -> Image.Image:
    """A predicted mask (S, S) bool as a half transparent area."""
    pixels = np.asarray(picture, np.float32).copy()
    area = _wide(mask, factor)
    pixels[area] = 0.5 * pixels[area] + 0.5 * np.array(PREDICTED, np.float32)
    return Image.fromarray(pixels.round().astype(np.uint8))


def outlined(picture: Image.Image, mask: np.ndarray, factor: int, dashed: bool) -> Image.Image:
    """The border of a true mask (S, S) bool, on a dark seam that sets it off from bright lungs."""
    area = _wide(mask, factor)
    edge = _grown(_grown(area)) & ~area
    seam = _grown(edge) & ~edge
    if dashed:
        rows, columns = np.indices(area.shape)
        edge &= (rows + columns) % (2 * _DASH) < 1.2 * _DASH
    pixels = np.asarray(picture).copy()
    pixels[seam] //= 3
    pixels[edge] = TRUTH
    return Image.fromarray(pixels)


def boxed(
    picture: Image.Image, boxes: np.ndarray, colour: Colour, scores: np.ndarray | None = None, dashed: bool = False
) -> Image.Image:
    """Boxes as lines on a dark seam.

    Args:
        picture: the radiograph.
        boxes: (m, 4) xyxy in pixels of the picture.
        colour: of the lines.
        scores: (m,) to write into the boxes' corners.
        dashed: interrupt the lines.
    """
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in boxes:
        for line in _sides(x0, y0, x1, y1, dashed):
            draw.line(line, fill=(0, 0, 0), width=4)
            draw.line(line, fill=colour, width=2)
    for score, (x0, y0, *_) in zip(() if scores is None else scores, boxes, strict=False):
        text = f"{score:.2f}"
        where = (min(max(x0 + 4, 0), picture.width - 34), min(max(y0 + 3, 0), picture.height - 18))
        left, top, right, bottom = draw.textbbox(where, text, font=_FONT)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=(0, 0, 0))
        draw.text(where, text, fill=colour, font=_FONT)
    return picture


def data_uri(picture: Image.Image) -> str:
    """The picture as JPEG without subsampling of colour: a fifth of a PNG's size, and lines stay clean."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _wide(mask: np.ndarray, factor: int) -> np.ndarray:
    return np.kron(mask, np.ones((factor, factor), bool))


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and the pixels next to it."""
    wide = np.pad(mask, 1)
    return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def _sides(x0: float, y0: float, x1: float, y1: float, dashed: bool) -> list[Line]:
    """The sides of a box, whole or as dashes with gaps of half their length."""
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    lines: list[Line] = []
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(bx - ax, by - ay))
        if not dashed or length == 0:
            lines.append(((ax, ay), (bx, by)))
            continue
        ux, uy = (bx - ax) / length, (by - ay) / length
        for start in np.arange(0, length, 1.5 * _DASH):
            end = min(start + _DASH, length)
            lines.append(((ax + ux * start, ay + uy * start), (ax + ux * end, ay + uy * end)))
    return lines
