"""Draw masks, boxes and heatmaps over a radiograph.

Truth is sky blue, predictions are orange (colours of Okabe and Ito, which colour-blind readers tell apart). They also
differ without colour: truth is a dashed line, a predicted mask a filled area, a predicted box a solid line with its
score.
"""

import base64
import io
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

Picture = Image.Image
_Colour = tuple[int, int, int]

TRUTH: _Colour = (86, 180, 233)
PREDICTED: _Colour = (230, 159, 0)

_SIDE = 256  # pixels of a picture at least
_DASH = 6.0
_FONT = ImageFont.load_default(size=15)
_HEAT = colormaps["cividis"]


def enlarged(image: np.ndarray) -> tuple[Picture, int]:
    """Enlarge (S, S) uint8 by a whole number, so that lines over it stay thin; return the picture and the factor."""
    factor = max(1, -(-_SIDE // max(image.shape)))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).convert("RGB"), factor


def heated(picture: Picture, heat: np.ndarray) -> Picture:
    """Blend a heatmap, (S, S) float32 in [0, 1], over the picture; the hotter, the more opaque."""
    wide = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BILINEAR))
    alpha = (0.15 + 0.55 * wide)[..., None]
    mixed = np.asarray(picture, np.float32) * (1 - alpha) + _HEAT(wide)[..., :3] * 255 * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))


def filled(picture: Picture, mask: np.ndarray, factor: int) -> Picture:
    """Lay a predicted mask (S, S) bool over the picture, half transparent."""
    pixels = np.asarray(picture, np.float32).copy()
    area = _wide(mask, factor)
    pixels[area] = 0.5 * pixels[area] + 0.5 * np.array(PREDICTED, np.float32)
    return Image.fromarray(pixels.round().astype(np.uint8))


def outlined(picture: Picture, mask: np.ndarray, factor: int, dashed: bool) -> Picture:
    """Draw the border of a true mask (S, S) bool, on a dark seam that sets it off from bright lungs."""
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
    picture: Picture, boxes: np.ndarray, colour: _Colour, scores: np.ndarray | None = None, dashed: bool = False
) -> Picture:
    """Draw boxes as lines on a dark seam.

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
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
        for start, end in pairwise(corners):
            for line in _dashes(start, end) if dashed else [(*start, *end)]:
                draw.line(line, fill=(0, 0, 0), width=4)
                draw.line(line, fill=colour, width=2)
    for score, (x0, y0, *_) in zip(() if scores is None else scores, boxes, strict=False):
        text = f"{score:.2f}"
        where = (min(max(x0 + 4, 0), picture.width - 34), min(max(y0 + 3, 0), picture.height - 18))
        left, top, right, bottom = draw.textbbox(where, text, font=_FONT)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=(0, 0, 0))
        draw.text(where, text, fill=colour, font=_FONT)
    return picture


def data_uri(picture: Picture) -> str:
    """Return the picture as JPEG without subsampling of colour: a fifth of a PNG's size, and lines stay clean."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _wide(mask: np.ndarray, factor: int) -> np.ndarray:
    return np.kron(mask, np.ones((factor, factor), bool))


def _grown(mask: np.ndarray) -> np.ndarray:
    """Return the mask and the pixels next to it."""
    wide = np.pad(mask, 1)
    return wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]


def _dashes(start: np.ndarray, end: np.ndarray) -> list[tuple[float, ...]]:
    """Return dashes with gaps of half their length; a side without length is one."""
    length = float(np.hypot(*(end - start)))
    step = (end - start) / (length or 1.0)
    begins = np.arange(0, length, 1.5 * _DASH) if length else [0.0]
    return [(*(start + step * at), *(start + step * min(at + _DASH, length))) for at in begins]
