"""Draws the normal chest from the left side: the front is on the left of the image."""

import numpy as np

from medvlp.phantom.fields import Stroke, axes, bump, contour, ellipse, ramp, strokes, texture, uniform
from medvlp.phantom.scene import Anatomy, Scene


def _body(a: Anatomy, x: np.ndarray, rows: np.ndarray, thick: float) -> np.ndarray:
    coat = 0.055 + 0.05 * a.habitus
    front = contour(rows, "lateral outline front", apex=a.apex) * thick + coat - 0.02
    chest = bump(np.clip(np.abs(rows - 0.55) * (1 / 0.17), 0, 1)) * (0.07 if a.female else 0.015)
    front = (front + chest).astype(np.float32)
    back = contour(rows, "lateral outline back", apex=a.apex) * thick + coat
    rim = np.clip(np.minimum(x + front[:, None], back[:, None] - x) * (1 / 0.06), 0, 1)
    return rim * (2 - rim)


def _heart_and_hila(a: Anatomy, x: np.ndarray, y: np.ndarray, air: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Add heart, aortic arch and hila to the density; return the ellipse of the heart, bool."""
    # Heart: a leaning ellipse in the lower front; its width follows the frontal factor.
    below = y - (a.base - 0.085)
    off = ellipse((x + 0.115) + 0.35 * below, below, (0, 0), (0.115 * a.heart, 0.155 * (0.75 + 0.25 * a.heart)))
    density += 0.30 * ramp(1.05 - off, 0.5) * air
    arch = ellipse(x, y - a.apex, (0.02, 0.22), (0.11, 0.085))
    density += 0.10 * bump(np.minimum(np.abs(arch - 0.8), 1)) * ramp(a.apex + 0.24 - y, 0.04) * air
    hila = ellipse(x, y - a.apex, (0.01, 0.31), (0.055, 0.06))
    density += 0.17 * np.maximum(1 - hila, 0) * air
    return off < 1.0


def _skeleton(
    scene: Scene, traits: list[float], body: np.ndarray, inner: np.ndarray, lower: np.ndarray, back: np.ndarray
) -> None:
    """Add spine, sternum and ribs to the density, and take the trachea from it."""
    x, y, apex, density, rows = scene.x, scene.y, scene.anatomy.apex, scene.density, scene.y[:, 0]
    # Spine along the back border, darker downwards as the lungs widen; vertebrae with disc spaces.
    column = ramp(0.036 - np.abs((back - 0.055)[:, None] - x), 0.012) * body
    disc = (0.15 - 0.08 * rows + 0.05 * np.cos(2 * np.pi * (rows + 0.02 * traits[1]) / 0.05)).astype(np.float32)
    density += column * disc[:, None]
    ahead = x + scene.costal[-1][:, None]
    sternum = ramp(0.011 - np.abs(ahead + 0.012), 0.008) * ramp(y - apex - 0.1, 0.04) * ramp(0.62 - y, 0.05)
    density += 0.12 * sternum * body
    pipe = ramp(0.016 - np.abs(x + 0.035 - 0.18 * (y - apex)), 0.009) * ramp(apex + 0.27 - y, 0.02)
    density -= 0.12 * pipe

    # Ribs of both sides cross the lungs obliquely.
    phase = (y - 0.55 * x - 0.35 * x * np.abs(x)) * (1 / 0.068) + traits[2]
    phase -= np.floor(phase)
    stripes = ramp(0.19 - np.abs(phase - 0.5), 0.14)
    density += 0.045 * stripes * ramp(inner + 0.02, 0.02) * ramp(y - apex, 0.05) * (1 - 0.6 * ramp(-lower, 0.05))


def _vessels(scene: Scene, noise: np.random.Generator) -> np.ndarray:
    """Return pulmonary vessels around the hilum, (size, size) float32 in [0, 1]."""
    lines: list[Stroke] = []
    hilum = scene.anatomy.apex + 0.31
    t = np.linspace(0, 1, 4)
    for _ in range(34):
        angle, bend, length, wide = noise.uniform(-1, 1, 4).tolist()
        way = np.pi * angle + 0.5 * bend * t
        # They leave the hilum from all around its outline, not from one point.
        reach = 0.035 + 0.015 * wide + (0.09 + 0.06 * length) * t
        points = scene.image_points(0.01 + reach * np.cos(way), hilum + 1.2 * reach * np.sin(way))
        lines.append((points[:3], 0.0055 + 0.002 * wide, 190))
        lines.append((points[2:], 0.0035, 150))
    return strokes(scene.size, lines)


def draw_lateral(a: Anatomy, size: int) -> Scene:
    """Draw the chest in left lateral projection, ready for findings.

    Args:
        a: the proportions; the same as for the frontal view of the study.
        size: side in pixels, at least 32.

    Returns:
        The scene: ``costal[-1]`` is the distance of the front border of the lungs from x = 0, ``costal[1]`` that of the
        back border, ``medial`` is 0.
    """
    traits, day = uniform([a.seed, 12], 12), uniform([a.study_seed, 12], 4)
    noise = np.random.default_rng([a.seed, 13])
    columns, y = axes(size)
    rows = y[:, 0]
    centre = (0.5 + 0.015 * day[0] + 0.02 * day[1] * (rows - 0.5)).astype(np.float32)
    x = columns - centre[:, None]
    thick = 1 + 0.06 * traits[0]
    front, back = (contour(rows, f"lateral {name}", apex=a.apex, thickness=thick) for name in ("front", "back"))
    slope = np.clip(columns[0] - 0.5 + 0.08, -0.2, 0.4)
    bend = (1 - 0.55 * a.flatness) * (1.55 * np.maximum(slope, 0) ** 2 + 0.5 * np.minimum(slope, 0) ** 2)
    domes = {side: (a.dome(side) + 0.015 * side + bend).astype(np.float32) for side in (1, -1)}
    ahead, lower = x + front[:, None], np.maximum(domes[1], domes[-1])[None, :] - y
    inner = np.minimum(ahead, back[:, None] - x)
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
    medial = {side: np.zeros(size, dtype=np.float32) for side in (-1, 1)}
    costal = {-1: front, 1: back}
    scene = Scene(a, size, x, y, centre, density, air, lungs, heart, costal, medial, domes, np.zeros_like(x))
    _skeleton(scene, traits, body, inner, lower, back)
    detail = _vessels(scene, noise)
    detail *= 0.10
    detail += 0.014 * cloud
    detail += 0.010 * texture(noise, size, 44)
    detail *= air
    scene.detail = detail
    return scene
