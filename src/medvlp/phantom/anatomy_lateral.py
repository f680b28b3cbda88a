"""Draws the normal chest from the left side: the front is on the left of the image."""

import numpy as np

from medvlp.phantom.fields import axes, bump, curve, ramp, strokes, texture
from medvlp.phantom.scene import Anatomy, Scene


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
    front = curve(
        rows,
        [
            (a.apex - 0.02, 0.02),
            (a.apex + 0.05, 0.10),
            (a.apex + 0.16, 0.175 * thick),
            (0.45, 0.245 * thick),
            (0.62, 0.285 * thick),
            (0.85, 0.29 * thick),
        ],
    )
    back = curve(
        rows,
        [
            (a.apex - 0.02, 0.09),
            (a.apex + 0.05, 0.18),
            (a.apex + 0.20, 0.265 * thick),
            (0.48, 0.305 * thick),
            (0.70, 0.30 * thick),
            (0.90, 0.27 * thick),
        ],
    )
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

    coat = 0.055 + 0.05 * a.habitus
    outside_front = curve(
        rows, [(0, 0.06), (a.apex - 0.03, 0.07), (a.apex + 0.08, 0.17), (0.30, 0.26), (0.55, 0.31), (1, 0.33)]
    )
    outside_front = outside_front * thick + coat - 0.02
    chest = bump(np.clip(np.abs(rows - 0.55) * (1 / 0.17), 0, 1)) * (0.07 if a.female else 0.015)
    outside_front = (outside_front + chest).astype(np.float32)
    outside_back = (
        curve(rows, [(0, 0.12), (a.apex, 0.20), (0.3, 0.30), (0.5, 0.335), (0.8, 0.33), (1, 0.31)]) * thick + coat
    )
    rim = np.clip(np.minimum(x + outside_front[:, None], outside_back[:, None] - x) * (1 / 0.06), 0, 1)
    body = rim * (2 - rim)
    density = body * (0.60 + 0.05 * a.habitus)
    density += body * (0.22 * ramp(a.apex + 0.10 - y, 0.20) + 0.10 * ramp(-lower, 0.16))
    density -= 0.50 * air
    cloud = texture(noise, size, 12)
    density += 0.012 * cloud * body

    # Heart: a leaning ellipse in the lower front; its width follows the frontal factor.
    base = min(a.dome_left, a.dome_right)
    cy, cx, wide = base - 0.085, -0.115, a.heart
    lean = (x - cx) + 0.35 * (y - cy)
    off = (lean * (1 / (0.115 * wide))) ** 2 + ((y - cy) * (1 / (0.155 * (0.75 + 0.25 * wide)))) ** 2
    density += 0.30 * ramp(1.05 - off, 0.5) * air
    heart = (off < 1.0) & (ahead > 0) & (lower > -0.02)
    arch = ((x - 0.02) * (1 / 0.11)) ** 2 + ((y - a.apex - 0.22) * (1 / 0.085)) ** 2
    density += 0.10 * bump(np.minimum(np.abs(arch - 0.8), 1)) * ramp(a.apex + 0.24 - y, 0.04) * air
    hila = ((x - 0.01) * (1 / 0.055)) ** 2 + ((y - a.apex - 0.31) * (1 / 0.06)) ** 2
    density += 0.17 * np.maximum(1 - hila, 0) * air

    # Spine along the back border, darker downwards as the lungs widen; vertebrae with disc spaces.
    spine = np.abs(x - (back - 0.055)[:, None])
    column = ramp(0.036 - spine, 0.012) * body
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
    lines: list[tuple[np.ndarray, float, int]] = []
    t = np.linspace(0, 1, 4)
    for _ in range(34):
        angle, bend, length, wide = noise.uniform(-1, 1, 4).tolist()
        way = np.pi * angle + 0.5 * bend * t
        reach = 0.09 + 0.06 * length
        # They leave the hilum from all around its outline, not from one point.
        reach_in = 0.035 + 0.015 * wide + reach * t
        points = scene.image_points(0.01 + reach_in * np.cos(way), a.apex + 0.31 + 1.2 * reach_in * np.sin(way))
        lines.append((points[:3], 0.0055 + 0.002 * wide, 190))
        lines.append((points[2:], 0.0035, 150))
    detail = strokes(size, lines)
    detail *= 0.10
    detail += 0.014 * cloud
    detail += 0.010 * texture(noise, size, 44)
    detail *= air
    scene.detail = detail
    return scene
