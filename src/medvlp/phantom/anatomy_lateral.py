"""Draws the normal chest from the left side: the front is on the left of the image."""

import numpy as np

from medvlp.phantom.fields import axes, bump, contour, ramp, strokes, texture
from medvlp.phantom.scene import Anatomy, Scene


def _body(a: Anatomy, x: np.ndarray, rows: np.ndarray, thick: float) -> np.ndarray:
    """Soft tissue of neck and trunk, (size, size) float32 in [0, 1]."""
    coat = 0.055 + 0.05 * a.habitus
    front = contour(rows, "lateral outline front", apex=a.apex) * thick + coat - 0.02
    chest = bump(np.clip(np.abs(rows - 0.55) * (1 / 0.17), 0, 1)) * (0.07 if a.female else 0.015)
    front = (front + chest).astype(np.float32)
    back = contour(rows, "lateral outline back", apex=a.apex) * thick + coat
    rim = np.clip(np.minimum(x + front[:, None], back[:, None] - x) * (1 / 0.06), 0, 1)
    return rim * (2 - rim)


def _heart_and_hila(a: Anatomy, x: np.ndarray, y: np.ndarray, air: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Adds heart, aortic arch and hila to the density; returns the ellipse of the heart, bool."""
    # Heart: a leaning ellipse in the lower front; its width follows the frontal factor.
    base = min(a.dome_left, a.dome_right)
    cy, cx, wide = base - 0.085, -0.115, a.heart
    lean = (x - cx) + 0.35 * (y - cy)
    off = (lean * (1 / (0.115 * wide))) ** 2 + ((y - cy) * (1 / (0.155 * (0.75 + 0.25 * wide)))) ** 2
    density += 0.30 * ramp(1.05 - off, 0.5) * air
    heart = off < 1.0
    arch = ((x - 0.02) * (1 / 0.11)) ** 2 + ((y - a.apex - 0.22) * (1 / 0.085)) ** 2
    density += 0.10 * bump(np.minimum(np.abs(arch - 0.8), 1)) * ramp(a.apex + 0.24 - y, 0.04) * air
    hila = ((x - 0.01) * (1 / 0.055)) ** 2 + ((y - a.apex - 0.31) * (1 / 0.06)) ** 2
    density += 0.17 * np.maximum(1 - hila, 0) * air
    return heart


def _skeleton(
    a: Anatomy,
    x: np.ndarray,
    y: np.ndarray,
    body: np.ndarray,
    density: np.ndarray,
    own: list[float],
    ahead: np.ndarray,
    to_spine: np.ndarray,
    inner: np.ndarray,
    lower: np.ndarray,
) -> None:
    """Adds spine, sternum and ribs to the density, and takes the trachea from it.

    ``ahead``, ``inner`` and ``lower`` are distances from the lungs' front, nearest and lower border, ``to_spine`` from
    the middle of the vertebrae.
    """
    rows = y[:, 0]
    # Spine along the back border, darker downwards as the lungs widen; vertebrae with disc spaces.
    column = ramp(0.036 - np.abs(to_spine), 0.012) * body
    disc = (0.15 - 0.08 * rows + 0.05 * np.cos(2 * np.pi * (rows + 0.02 * own[1]) / 0.05)).astype(np.float32)
    density += column * disc[:, None]
    sternum = ramp(0.011 - np.abs(ahead + 0.012), 0.008) * ramp(y - a.apex - 0.1, 0.04) * ramp(0.62 - y, 0.05)
    density += 0.12 * sternum * body
    pipe = ramp(0.016 - np.abs(x + 0.035 - 0.18 * (y - a.apex)), 0.009) * ramp(a.apex + 0.27 - y, 0.02)
    density -= 0.12 * pipe

    # Ribs of both sides cross the lungs obliquely.
    phase = (y - 0.55 * x - 0.35 * x * np.abs(x)) * (1 / 0.068) + own[2]
    phase -= np.floor(phase)
    stripes = ramp(0.19 - np.abs(phase - 0.5), 0.14)
    density += 0.045 * stripes * ramp(inner + 0.02, 0.02) * ramp(y - a.apex, 0.05) * (1 - 0.6 * ramp(-lower, 0.05))


def _vessels(scene: Scene, noise: np.random.Generator) -> np.ndarray:
    """Pulmonary vessels around the hilum, (size, size) float32 in [0, 1]."""
    lines: list[tuple[np.ndarray, float, int]] = []
    t = np.linspace(0, 1, 4)
    for _ in range(34):
        angle, bend, length, wide = noise.uniform(-1, 1, 4).tolist()
        way = np.pi * angle + 0.5 * bend * t
        reach = 0.09 + 0.06 * length
        # They leave the hilum from all around its outline, not from one point.
        reach_in = 0.035 + 0.015 * wide + reach * t
        points = scene.image_points(
            0.01 + reach_in * np.cos(way), scene.anatomy.apex + 0.31 + 1.2 * reach_in * np.sin(way)
        )
        lines.append((points[:3], 0.0055 + 0.002 * wide, 190))
        lines.append((points[2:], 0.0035, 150))
    return strokes(scene.size, lines)


def draw_lateral(a: Anatomy, size: int) -> Scene:
    """Draws the chest in left lateral projection.

    Args:
        a: the proportions; the same as for the frontal view of the study.
        size: side in pixels, at least 32.

    Returns:
        The scene, ready for findings: ``costal[-1]`` is the distance of the front border of the lungs from x = 0,
        ``costal[1]`` of the back border, ``medial`` is 0.
    """
    own = np.random.default_rng([a.seed, 12]).uniform(-1, 1, 12).tolist()
    day = np.random.default_rng([a.study_seed, 12]).uniform(-1, 1, 4).tolist()
    noise = np.random.default_rng([a.seed, 13])
    columns, y = axes(size)
    rows = y[:, 0]
    centre = (0.5 + 0.015 * day[0] + 0.02 * day[1] * (rows - 0.5)).astype(np.float32)
    x = columns - centre[:, None]
    thick = 1 + 0.06 * own[0]
    front = contour(rows, "lateral front", apex=a.apex, thickness=thick)
    back = contour(rows, "lateral back", apex=a.apex, thickness=thick)
    round_ = 1 - 0.55 * a.flatness
    line = columns[0] - 0.5
    slope = np.clip(line + 0.08, -0.2, 0.4)
    domes = {
        side: (
            height + 0.015 * side + round_ * (1.55 * np.maximum(slope, 0) ** 2 + 0.5 * np.minimum(slope, 0) ** 2)
        ).astype(np.float32)
        for side, height in ((1, a.dome_left), (-1, a.dome_right))
    }
    floor = np.maximum(domes[1], domes[-1])[None, :]
    ahead, behind, lower = x + front[:, None], back[:, None] - x, floor - y
    inner = np.minimum(ahead, behind)
    air = ramp(inner, 0.010) * (0.55 + 0.45 * np.clip(inner * (1 / 0.09), 0, 1))
    air *= ramp(lower, 0.012)
    # The other lung ends at its own dome: between the two only half the air is left.
    air *= 0.5 + 0.5 * ramp(np.minimum(domes[1], domes[-1])[None, :] - y, 0.012)
    air *= ramp(y - a.apex + 0.01, 0.05)
    lungs = (inner > 0) & (lower > 0) & (y > a.apex)

    body = _body(a, x, rows, thick)
    density = body * (0.60 + 0.05 * a.habitus)
    density += body * (0.22 * ramp(a.apex + 0.10 - y, 0.20) + 0.10 * ramp(-lower, 0.16))
    density -= 0.50 * air
    cloud = texture(noise, size, 12)
    density += 0.012 * cloud * body

    heart = _heart_and_hila(a, x, y, air, density) & (ahead > 0) & (lower > -0.02)
    _skeleton(a, x, y, body, density, own, ahead, (back - 0.055)[:, None] - x, inner, lower)
    scene = Scene(
        a,
        size,
        x,
        y,
        centre,
        density,
        np.zeros_like(x),
        air,
        lungs,
        heart,
        {-1: front, 1: back},
        {side: np.zeros(size, dtype=np.float32) for side in (-1, 1)},
        domes,
    )
    detail = _vessels(scene, noise)
    detail *= 0.10
    detail += 0.014 * cloud
    detail += 0.010 * texture(noise, size, 44)
    detail *= air
    scene.detail = detail
    return scene
