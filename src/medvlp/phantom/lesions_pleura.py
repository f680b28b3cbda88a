"""Findings of the pleura, heart, mediastinum and chest wall."""

import numpy as np

from medvlp.phantom.fields import bump, ramp, strokes, texture
from medvlp.phantom.lesions_lung import grade, sides, span, strength
from medvlp.phantom.model import Difficulty, Finding
from medvlp.phantom.scene import Scene, millimetres


def cardiomegaly(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """The heart was drawn wide (see ADAPT); its mask is the whole heart, as a reader would box it."""
    del finding, difficulty
    return scene.heart.copy()


def effusion(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """Fluid at the base with a meniscus that climbs the chest wall; the costophrenic angle is lost."""
    rng = np.random.default_rng(finding.seed)
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    a = scene.anatomy
    for side in sides(finding):
        curl, more = rng.uniform(-1, 1, 2).tolist()
        dome = a.dome_left if side > 0 else a.dome_right
        amount = (0.20 * grade(finding) + 0.02 * more) * difficulty.lesion_size
        level = dome + 0.045 * (1 - difficulty.lesion_size) - 0.012 - amount
        climb = (0.13 + 0.025 * curl) * (0.8 + 0.4 * grade(finding)) * min(1.2, difficulty.lesion_size)
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
        contrast = min(1.15, difficulty.contrast)
        scene.density += fluid * depth * scene.air * (0.50 * contrast)
        scene.density += region * (0.05 * contrast)
        scene.detail *= 1 - min(1.0, contrast) * fluid
        lung = scene.lungs & (scene.x * side > 0) if scene.frontal else scene.lungs
        mask |= (under > 0) & lung
        if not scene.frontal:
            break  # both sides project onto the same place
    return mask


def thickening(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A bright, uneven rind between lung and chest wall: along the side or as an apical cap."""
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    if not scene.frontal:
        return mask  # lies face on, and is lost in the projection
    rng = np.random.default_rng(finding.seed)
    uneven = texture(rng, scene.size, 14)
    amount, extent = strength(finding, difficulty), span(finding, difficulty)
    a = scene.anatomy
    for side in sides(finding):
        middle, shift = rng.uniform(-1, 1, 2).tolist()
        border = scene.costal[side][:, None] - side * scene.x
        if finding.zone == "apical":
            # Distance from the apical dome, roughly: rows below the border at this column.
            rows = np.clip((a.apex + 0.10 - scene.y) * (1 / 0.10), 0, 1)
            thick = 0.055 * extent * rows
        else:
            centre = a.apex + (0.55 + 0.08 * middle) * (a.dome_right - a.apex)
            half = 0.20 * (0.7 + 0.3 * extent) + 0.02 * shift
            rows = bump(np.clip(np.abs(scene.y - centre) * (1 / half), 0, 1) ** 2)
            thick = 0.036 * extent * rows
        depth = thick * (1 + 0.25 * uneven) - border
        rind = ramp(depth, 0.008) * ramp(border + 0.002, 0.004) * (rows > 0)
        rind *= scene.x * side > 0
        scene.density += rind * (0.29 * amount) * np.minimum(0.45 + scene.air, 1)
        mask |= (depth > 0) & (border > 0) & scene.lungs & (scene.x * side > 0)
    return mask


def pneumothorax(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """Black air without vessels outside a thin pleural line, widest at the apex."""
    if not scene.frontal:
        return np.zeros((scene.size, scene.size), dtype=bool)
    rng = np.random.default_rng(finding.seed)
    taper, wave = rng.uniform(-1, 1, 2).tolist()
    side = sides(finding)[-1]
    contrast = difficulty.contrast
    a = scene.anatomy
    depth = millimetres(finding.size_mm or 25.0) * difficulty.lesion_size
    dome = a.dome_left if side > 0 else a.dome_right
    fall = np.clip((scene.y - a.apex) * (1 / (dome - a.apex)), 0, 1)
    # The collapsed lung: the chest's own outline moved down by the depth, and inwards by a share that tapers off.
    inward = depth * (0.62 + 0.08 * taper) * (1 - (0.75 - 0.5 * grade(finding)) * fall) + 0.004 * wave * fall
    down = min(scene.size - 1, max(1, round(depth * scene.size)))
    moved = np.concatenate([np.zeros(down, dtype=np.float32), scene.costal[side][:-down]])
    # Low down the outline is steep, so the downward move must fade or the lung would leave the diaphragm.
    blend = np.clip(fall[:, 0] * 2.2, 0, 1)
    outline = np.minimum(moved, scene.costal[side]) * (1 - blend) + scene.costal[side] * blend
    off = side * scene.x - (outline[:, None] - inward)
    inside = (scene.x * side > 0) * np.minimum(scene.air * 4, 1)
    gas = ramp(off, 0.006) * inside
    scene.detail *= 1 - min(1.0, contrast) * gas
    scene.density -= gas * (0.13 * contrast)
    line = np.maximum(1 - np.abs(off + 0.002) * (1 / 0.0042), 0) * inside
    scene.density += line * (0.20 * contrast)
    lung = ramp(-off, 0.03) * inside
    scene.density += lung * scene.air * (0.03 * contrast * (1 + 2 * grade(finding)))
    return (off > 0) & scene.lungs & (scene.x * side > 0)


def hernia(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A round pouch of stomach behind the heart with an air-fluid level."""
    rng = np.random.default_rng(finding.seed)
    right, high, squeeze = rng.uniform(-1, 1, 3).tolist()
    radius = 0.085 * span(finding, difficulty)
    a = scene.anatomy
    x = 0.035 + 0.03 * right if scene.frontal else 0.12
    y = min(a.dome_left, a.dome_right) - 0.45 * radius - 0.005 + 0.01 * high
    off = ((scene.x - x) * (1 / radius)) ** 2 + ((scene.y - y) * (1 / (radius * (0.88 + 0.06 * squeeze)))) ** 2
    np.sqrt(off, out=off)
    level = scene.y - (y - 0.05 * radius)
    inside = ramp(1 - off, 0.06)
    wall = np.maximum(1 - np.abs(off - 0.95) * (radius / 0.007), 0)
    contrast = difficulty.contrast
    change = inside * np.where(level < 0, -0.15, 0.04).astype(np.float32)
    change += inside * np.minimum(scene.air, 1) * 0.20
    change += 0.07 * wall
    change *= contrast
    scene.density += change
    return off < 1.0


def fracture(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A broken rib, its outer end displaced over a dark gap, or a clavicle broken in the middle (see ADAPT)."""
    if not scene.frontal:
        return np.zeros((scene.size, scene.size), dtype=bool)
    rng = np.random.default_rng(finding.seed)
    along, which, lean = rng.random(3).tolist()
    side = sides(finding)[-1]
    contrast, size = difficulty.contrast, scene.size
    a = scene.anatomy
    if finding.subtype == "clavicle":
        x = 0.026 + 0.335 * 0.5
        y = a.apex + 0.098 - 0.0525 + 0.5 * (a.drop_left if side > 0 else a.drop_right)
        points = scene.image_points(side * np.array([x - 0.006, x + 0.008]), np.array([y - 0.026, y + 0.026]))
        gap = strokes(size, [(points, millimetres(4.0), 255)])
        scene.density -= gap * (0.12 * contrast)
        off = ((scene.x - side * x) * (1 / 0.062)) ** 2 + ((scene.y - y) * (1 / 0.045)) ** 2
        return off < 1.0
    low = 0.35 if finding.zone == "mid" else 0.62
    y = a.apex + (low + 0.22 * which) * (a.dome_right - a.apex)
    far = scene.edge(side, y)[1]
    x = far * (0.66 + 0.2 * along)
    scale = span(finding, difficulty)
    long, half, jump = 0.055 * scale, millimetres(6.0), millimetres(8.0) * scale
    slope = 0.35 + 0.35 * lean
    t = np.array([0.0, 1.0])
    inner = (x - long * (1 - t), y - long * slope * (1 - t))
    outer = (x + 0.006 + long * 0.85 * t, y + jump + long * (slope + 0.25) * 0.85 * t)
    ends = [
        (scene.image_points(side * inner[0], inner[1]), 2 * half, 150),
        (scene.image_points(side * outer[0], outer[1]), 2 * half, 150),
        (scene.image_points(side * np.full(2, x), y + half * (2 * t - 1)), millimetres(2.5), 255),
        (scene.image_points(side * np.full(2, x + 0.006), y + jump + half * (2 * t - 1)), millimetres(2.5), 255),
    ]
    rift = [
        (
            scene.image_points(side * (x + 0.003 + 0.004 * (2 * t - 1)), y + 0.5 * jump + 2 * half * (2 * t - 1)),
            millimetres(4),
            255,
        )
    ]
    scene.density += strokes(size, ends) * (0.28 * contrast)
    scene.density -= strokes(size, rift) * (0.13 * contrast)
    reach = 0.9 * long + 0.01
    off = ((scene.x - side * x) * (1 / reach)) ** 2 + ((scene.y - y - 0.5 * jump) * (1 / (reach * 0.9))) ** 2
    return off < 1.0
