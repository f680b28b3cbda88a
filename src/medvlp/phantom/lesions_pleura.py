"""Findings of the pleura, mediastinum and chest wall."""

import numpy as np

from medvlp.phantom.fields import bump, ellipse, ramp, strokes, texture
from medvlp.phantom.scene import Lesion, millimetres


def effusion(lesion: Lesion) -> np.ndarray:
    """Draw fluid at the base with a meniscus that climbs the chest wall; the costophrenic angle is lost."""
    scene, a, size = lesion.scene, lesion.anatomy, lesion.size
    contrast = min(1.15, lesion.contrast)
    for side in lesion.sides:
        curl, more = lesion.uniform(2)
        amount = (0.20 * lesion.grade + 0.02 * more) * size
        level = a.dome(side) + 0.045 * (1 - size) - 0.012 - amount
        climb = (0.13 + 0.025 * curl) * (0.8 + 0.4 * lesion.grade) * min(1.2, size)
        if scene.frontal:
            share = np.clip(side * scene.x * (1 / max(a.width, 0.2)), 0, 1)
            surface = level + 0.045 - climb * (0.25 * share**2 + share**7) - 0.03 * (1 - share) ** 4
        else:
            share = np.clip((scene.x + 0.3) * (1 / 0.6), 0, 1)
            surface = level + 0.06 - 1.3 * climb * share**3
        under = scene.y - surface
        fluid = ramp(under, 0.022)
        fluid *= (scene.x * side > 0) if scene.frontal else 1.0
        region = fluid * np.minimum(scene.air * 3, 1)
        depth = np.clip(0.75 + under * 2.0, 0, 1.1)
        scene.density += fluid * depth * scene.air * (0.50 * contrast)
        scene.density += region * (0.05 * contrast)
        scene.detail *= 1 - min(1.0, lesion.contrast) * fluid
        lesion.mask |= (under > 0) & lesion.lung(side)
        if not scene.frontal:
            break  # both sides project onto the same place
    return lesion.mask


def thickening(lesion: Lesion) -> np.ndarray:
    """Draw a bright, uneven rind between lung and chest wall: along the side or as an apical cap."""
    scene, a, span = lesion.scene, lesion.anatomy, lesion.span
    if not scene.frontal:
        return lesion.mask  # lies face on, and is lost in the projection
    uneven = texture(lesion.rng, scene.size, 14)
    for side in lesion.sides:
        middle, shift = lesion.uniform(2)
        border = scene.costal[side][:, None] - side * scene.x
        if lesion.finding.zone == "apical":
            # Distance from the apical dome, roughly: rows below the border at this column.
            rows = np.clip((a.apex + 0.10 - scene.y) * (1 / 0.10), 0, 1)
            thick = 0.055 * span * rows
        else:
            centre = a.apex + (0.55 + 0.08 * middle) * (a.dome_right - a.apex)
            half = 0.20 * (0.7 + 0.3 * span) + 0.02 * shift
            rows = bump(np.clip(np.abs(scene.y - centre) * (1 / half), 0, 1) ** 2)
            thick = 0.036 * span * rows
        depth = thick * (1 + 0.25 * uneven) - border
        rind = ramp(depth, 0.008) * ramp(border + 0.002, 0.004) * (rows > 0)
        rind *= scene.x * side > 0
        scene.density += rind * (0.29 * lesion.strength) * np.minimum(0.45 + scene.air, 1)
        lesion.mask |= (depth > 0) & (border > 0) & lesion.lung(side)
    return lesion.mask


def pneumothorax(lesion: Lesion) -> np.ndarray:
    """Draw black air without vessels outside a thin pleural line, widest at the apex."""
    scene, a, contrast = lesion.scene, lesion.anatomy, lesion.contrast
    if not scene.frontal:
        return lesion.mask
    taper, wave = lesion.uniform(2)
    side = lesion.sides[-1]
    costal = scene.costal[side]
    depth = millimetres(lesion.finding.size_mm or 25.0) * lesion.size
    fall = np.clip((scene.y - a.apex) * (1 / (a.dome(side) - a.apex)), 0, 1)
    # The collapsed lung: the chest's own outline moved down by the depth, and inwards by a share that tapers off.
    inward = depth * (0.62 + 0.08 * taper) * (1 - (0.75 - 0.5 * lesion.grade) * fall) + 0.004 * wave * fall
    down = min(scene.size - 1, max(1, round(depth * scene.size)))
    moved = np.concatenate([np.zeros(down, dtype=np.float32), costal[:-down]])
    # Low down the outline is steep, so the downward move must fade or the lung would leave the diaphragm.
    blend = np.clip(fall[:, 0] * 2.2, 0, 1)
    outline = np.minimum(moved, costal) * (1 - blend) + costal * blend
    off = side * scene.x - (outline[:, None] - inward)
    inside = (scene.x * side > 0) * np.minimum(scene.air * 4, 1)
    gas = ramp(off, 0.006) * inside
    scene.detail *= 1 - min(1.0, contrast) * gas
    scene.density -= gas * (0.13 * contrast)
    line = np.maximum(1 - np.abs(off + 0.002) * (1 / 0.0042), 0) * inside
    scene.density += line * (0.20 * contrast)
    lung = ramp(-off, 0.03) * inside
    scene.density += lung * scene.air * (0.03 * contrast * (1 + 2 * lesion.grade))
    return (off > 0) & lesion.lung(side)


def hernia(lesion: Lesion) -> np.ndarray:
    """Draw a round pouch of stomach behind the heart with an air-fluid level."""
    scene = lesion.scene
    right, high, squeeze = lesion.uniform(3)
    radius = 0.085 * lesion.span
    x = 0.035 + 0.03 * right if scene.frontal else 0.12
    y = lesion.anatomy.base - 0.45 * radius - 0.005 + 0.01 * high
    off = ellipse(scene.x, scene.y, (x, y), (radius, radius * (0.88 + 0.06 * squeeze)))
    np.sqrt(off, out=off)
    level = scene.y - (y - 0.05 * radius)
    inside = ramp(1 - off, 0.06)
    wall = np.maximum(1 - np.abs(off - 0.95) * (radius / 0.007), 0)
    change = inside * np.where(level < 0, -0.15, 0.04).astype(np.float32)
    change += inside * np.minimum(scene.air, 1) * 0.20
    change += 0.07 * wall
    change *= lesion.contrast
    scene.density += change
    return off < 1.0


def fracture(lesion: Lesion) -> np.ndarray:
    """Draw a broken rib with a displaced outer end, or a clavicle broken in the middle (see ``lesions.adapt``)."""
    if not lesion.scene.frontal:
        return lesion.mask
    return _broken_clavicle(lesion) if lesion.finding.subtype == "clavicle" else _broken_rib(lesion)


def _broken_clavicle(lesion: Lesion) -> np.ndarray:
    scene, a, side = lesion.scene, lesion.anatomy, lesion.sides[-1]
    x = 0.026 + 0.335 * 0.5
    y = a.apex + 0.098 - 0.0525 + 0.5 * a.drop(side)
    points = scene.image_points(side * np.array([x - 0.006, x + 0.008]), np.array([y - 0.026, y + 0.026]))
    gap = strokes(scene.size, [(points, millimetres(4.0), 255)])
    scene.density -= gap * (0.12 * lesion.contrast)
    return ellipse(scene.x, scene.y, (side * x, y), (0.062, 0.045)) < 1.0


def _broken_rib(lesion: Lesion) -> np.ndarray:
    scene, a, side = lesion.scene, lesion.anatomy, lesion.sides[-1]
    along, which, lean = lesion.random(3)
    low = 0.35 if lesion.finding.zone == "mid" else 0.62
    y = a.apex + (low + 0.22 * which) * (a.dome_right - a.apex)
    x = scene.edge(side, y)[1] * (0.66 + 0.2 * along)
    long, half, jump = 0.055 * lesion.span, millimetres(6.0), millimetres(8.0) * lesion.span
    slope = 0.35 + 0.35 * lean
    t = np.array([0.0, 1.0])
    across = 2 * t - 1
    ends = [  # the two pieces, then their broken ends
        (x - long * (1 - t), y - long * slope * (1 - t), 2 * half, 150),
        (x + 0.006 + long * 0.85 * t, y + jump + long * (slope + 0.25) * 0.85 * t, 2 * half, 150),
        (np.full(2, x), y + half * across, millimetres(2.5), 255),
        (np.full(2, x + 0.006), y + jump + half * across, millimetres(2.5), 255),
    ]
    gap = (x + 0.003 + 0.004 * across, y + 0.5 * jump + 2 * half * across, millimetres(4), 255)
    pieces, rift = (
        strokes(scene.size, [(scene.image_points(side * px, py), width, grey) for px, py, width, grey in lines])
        for lines in (ends, [gap])
    )
    scene.density += pieces * (0.28 * lesion.contrast)
    scene.density -= rift * (0.13 * lesion.contrast)
    reach = 0.9 * long + 0.01
    return ellipse(scene.x, scene.y - y, (side * x, 0.5 * jump), (reach, reach * 0.9)) < 1.0
