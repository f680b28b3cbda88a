"""Findings of the lung itself: opacities, nodules, and air where tissue should be."""

import numpy as np

from medvlp.phantom.fields import Stroke, bump, ramp, strokes, texture
from medvlp.phantom.scene import Lesion, millimetres


def ball(lesion: Lesion) -> np.ndarray:
    """Draw a nodule, a dense round spot of 8 to 30 mm, or a mass, a lobulated ball of more than 30 mm."""
    scene, side = lesion.scene, lesion.sides[-1]
    across, down, squeeze = lesion.random(3)
    radius = millimetres(lesion.finding.size_mm or 20.0) / 2 * lesion.size
    radius = max(radius, 0.9 / scene.size)  # at least one pixel's centre lies inside
    x, y = scene.place(side, lesion.finding.zone, across, down)
    if scene.frontal:
        # Wholly inside the lung, so that heart or diaphragm do not hide it.
        near, far = scene.edge(side, y)
        inset = 0.85 * radius
        x = side * min(max(abs(x), near + inset), max(far - inset, near + 0.5 * (far - near)))
        y = min(y, scene.floor(side, x) - inset)
    noise, rough = texture(lesion.rng, scene.size, 20), 0.05 if lesion.finding.name == "Mass" else 0.02
    off = lesion.blob((x, y), (radius, radius * (0.85 + 0.15 * squeeze)), noise, rough)
    soft = ramp(1 - off, 0.3)
    soft *= 0.75 + 0.25 * np.maximum(1 - off, 0)
    scene.density += soft * (0.42 * lesion.contrast * (0.55 + 0.45 * scene.air))
    scene.detail *= 1 - 0.7 * soft
    return off < 1.0


def pneumonia(lesion: Lesion) -> np.ndarray:
    """Draw a patchy, ill-defined segmental opacity, crossed by air bronchograms."""
    scene = lesion.scene
    for side in lesion.sides:
        x, y = scene.place(side, lesion.finding.zone, *lesion.random(2))
        reach = 0.088 * lesion.span
        clumps = texture(lesion.rng, scene.size, 16)
        off = lesion.blob((x, y), (reach, reach * 1.1), texture(lesion.rng, scene.size, 8), 0.16)
        dense = bump(np.minimum(np.maximum(off, 0) * 0.72, 1)) * np.clip(0.85 + 0.32 * clumps, 0.25, 1.3)
        tubes: list[Stroke] = []
        root = 0.06 if scene.frontal else 0.0
        t = np.linspace(-0.35, 1.0, 5)
        for angle in (-0.45, -0.1, 0.25, 0.6):
            lean = np.arctan2(y - 0.43, abs(x) - root) + angle
            tube_x = x + side * reach * (t - 0.4) * np.cos(lean)
            tube_y = y + reach * (t - 0.4) * np.sin(lean) + 0.01 * t * t
            tubes.append((scene.image_points(tube_x, tube_y), millimetres(2.6), 255))
        dense *= 1 - 0.5 * strokes(scene.size, tubes)
        dense *= lesion.fade(side)
        scene.opacify(dense, 0.34 * lesion.strength)
        lesion.mask |= (off < 1.0) & lesion.lung(side)
    return lesion.mask


def consolidation(lesion: Lesion) -> np.ndarray:
    """Draw a dense, even opacity that fills part of a lobe up to a sharp fissure."""
    scene, a, zone, side = lesion.scene, lesion.anatomy, lesion.finding.zone, lesion.sides[-1]
    jitter, slope = lesion.uniform(2)
    cloud = texture(lesion.rng, scene.size, 7)
    height = a.dome(side) - a.apex
    x = scene.x * side
    if zone == "upper":  # above the minor fissure
        fissure = a.apex + (0.47 + 0.03 * jitter) * height - 0.05 * (1 + 0.5 * slope) * (x - 0.15)
        sharp, depth = fissure - scene.y, 0.34 * height * lesion.span
    else:  # below it, or at the base with the major fissure as upper border
        start, lean, share = (0.46, 0.10, 0.27) if zone == "mid" else (0.66, 0.35, 0.5)
        fissure = a.apex + (start + 0.03 * jitter) * height + lean * (1 + 0.4 * slope) * (x - 0.16)
        sharp, depth = scene.y - fissure, share * height * lesion.span
    soft = depth + 0.02 * cloud - sharp
    filled = ramp(sharp, 0.007) * ramp(soft, 0.06) * lesion.fade(side)
    if not scene.frontal:
        filled *= ramp(0.15 - np.abs(scene.x - 0.05 * jitter), 0.05)
    filled *= 0.95 + 0.05 * cloud
    scene.opacify(filled, 0.44 * lesion.strength)
    mask = (sharp > 0) & (soft > 0) & lesion.lung(side)
    return mask if scene.frontal else mask & (np.abs(scene.x - 0.05 * jitter) < 0.15)


def infiltration(lesion: Lesion) -> np.ndarray:
    """Draw a faint haze with streaks that run away from the hilum."""
    scene = lesion.scene
    t = np.linspace(-0.45, 0.45, 4)
    for side in lesion.sides:
        x, y = scene.place(side, lesion.finding.zone, *lesion.random(2))
        reach = 0.125 * lesion.span
        off = lesion.blob((x, y), (reach, reach * 0.95), texture(lesion.rng, scene.size, 7), 0.12)
        envelope = bump(np.minimum(np.maximum(off, 0) * 0.75, 1))
        lines: list[Stroke] = []
        for _ in range(16):
            start, turn, length = lesion.uniform(3)
            way = np.arctan2(y - 0.42, abs(x) - 0.02) + 0.45 * turn
            along = reach * (0.8 + 0.5 * length) * t
            px = x + side * (along * np.cos(way) - 0.8 * reach * start * np.sin(way))
            py = y + along * np.sin(way) + 0.8 * reach * start * np.cos(way)
            lines.append((scene.image_points(px, py + 0.004 * np.sin(9 * t)), millimetres(2.4), 200))
        streaks = strokes(scene.size, lines)
        envelope *= lesion.fade(side)
        scene.density += envelope * scene.air * (lesion.strength * (0.105 + 0.17 * streaks))
        lesion.mask |= (off < 1.0) & lesion.lung(side)
    return lesion.mask


def covid(lesion: Lesion) -> np.ndarray:
    """Draw several rounded ground-glass patches along the outer borders of both lungs, mostly below."""
    scene = lesion.scene
    count = 2 + round(2 * lesion.grade)
    haze, outline = texture(lesion.rng, scene.size, 30), texture(lesion.rng, scene.size, 9)
    total = np.zeros_like(scene.x)
    for side in lesion.sides:
        for number in range(count):
            across, down, big = lesion.random(3)
            at = scene.place(side, "peripheral", across, (number + 0.2 + 0.6 * down) / count * 1.15)
            reach = 0.058 * (0.8 + 0.4 * big) * lesion.span
            off = lesion.blob(at, (reach * 0.8, reach * 1.15), outline, 0.12)
            np.maximum(total, ramp(1.05 - off, 0.55), out=total)
            lesion.mask |= (off < 1.0) & lesion.lung(side)
    total *= 0.9 + 0.12 * haze
    # Near the chest wall the lung is thin: without this the patches would fade where they matter.
    scene.density += total * np.sqrt(scene.air) * (0.20 * lesion.strength)
    return lesion.mask


def edema(lesion: Lesion) -> np.ndarray:
    """Draw haze spreading from both hila like wings, with short septal lines at the lateral bases."""
    scene, a = lesion.scene, lesion.anatomy
    cloud, fluff = texture(lesion.rng, scene.size, 9), texture(lesion.rng, scene.size, 26)
    y = a.apex + 0.52 * (a.base - a.apex)
    lines: list[Stroke] = []
    for side in lesion.sides:
        x = side * 0.115 if scene.frontal else 0.0
        off = lesion.blob((x, y), (0.125 * lesion.span, 0.20 * lesion.span), cloud, 0.10)
        dense = bump(np.minimum(np.maximum(off, 0) * 0.7, 1)) * np.clip(0.9 + 0.2 * fluff, 0.3, 1.4)
        dense *= lesion.fade(side)
        scene.density += dense * scene.air * (0.24 * lesion.strength)
        lesion.mask |= (off < 1.0) & lesion.lung(side)
        if not scene.frontal:
            break
        for _ in range(7):
            rise, long = lesion.random(2)
            row = a.base - 0.02 - 0.11 * rise
            far = scene.edge(side, row)[1]
            ends = side * np.array([far - 0.004, far - 0.025 - 0.02 * long])
            lines.append((scene.image_points(ends, np.array([row, row + 0.004])), millimetres(1.8), 255))
    if lines:
        scene.density += strokes(scene.size, lines) * (0.13 * lesion.strength)
    return lesion.mask


def fibrosis(lesion: Lesion) -> np.ndarray:
    """Draw a net of fine lines, at the outer bases or at the apices."""
    scene, span = lesion.scene, lesion.span
    first, second, outline = (texture(lesion.rng, scene.size, cells) for cells in (30, 26, 8))
    net = np.maximum(1 - 2.6 * np.abs(first), 0)
    np.maximum(net, np.maximum(1 - 2.6 * np.abs(second), 0), out=net)
    total = np.zeros_like(scene.x)
    for side in lesion.sides:
        if lesion.finding.zone == "apical":
            at = (side * 0.15 if scene.frontal else 0.0, lesion.anatomy.apex + 0.08)
            radius = (0.14 * span, 0.13 * span)
        else:
            at = (side * 0.235 if scene.frontal else 0.16, lesion.anatomy.dome(side) - 0.02)
            radius = (0.15 * span, 0.17 * span)
        off = lesion.blob(at, radius, outline, 0.10)
        np.maximum(total, ramp(1.1 - off, 0.5) * lesion.fade(side), out=total)
        lesion.mask |= (off < 1.0) & lesion.lung(side)
    net *= 0.26
    net += 0.03
    scene.density += total * np.sqrt(scene.air) * net * lesion.strength
    return lesion.mask


def emphysema(lesion: Lesion) -> np.ndarray:
    """Draw darker, emptier lungs with few vessels and thin-walled bullae; ``lesions.adapt`` flattens the domes."""
    scene, a, strength = lesion.scene, lesion.anatomy, lesion.strength
    reach = 1.0 if lesion.finding.zone == "diffuse" else 0.6
    low = a.apex + reach * (a.base - a.apex) - scene.y
    weight = scene.air * ramp(low, 0.10)
    scene.detail *= 1 - min(0.8, 0.55 * strength) * weight
    weight *= 0.115 * strength
    scene.density -= weight
    for side in (-1, -1, 1, 1):
        across, down, big = lesion.random(3)
        x, y = scene.place(side, "upper", across, down * 0.9)
        radius = (0.024 + 0.022 * big) * lesion.size
        off = (scene.x - x) ** 2 + (scene.y - y) ** 2
        np.sqrt(off, out=off)
        wall = np.maximum(1 - np.abs(off - radius) * (1 / 0.0045), 0)
        wall *= 0.10 * strength
        wall -= ramp(radius - off, 0.006) * (0.05 * strength)
        scene.density += wall * scene.air
        scene.detail *= 1 - 0.7 * ramp(radius - off, 0.006)
    return scene.lungs & (low > 0)


def atelectasis(lesion: Lesion) -> np.ndarray:
    """Draw plate-like bands over the diaphragm, or a collapsed lower lobe; ``lesions.adapt`` raises the dome."""
    for side in lesion.sides:
        lift, lean, wide = lesion.uniform(3)
        if lesion.finding.subtype == "lobar":
            _collapsed_lobe(lesion, side, lift, lean)
        else:
            _plates(lesion, side, lift, lean, wide)
    return lesion.mask


def _collapsed_lobe(lesion: Lesion, side: int, lift: float, lean: float) -> None:
    # The lobe folds towards the spine: a triangle with a straight outer border, apex at the hilum.
    scene, span = lesion.scene, lesion.span
    dome = lesion.anatomy.dome(side)
    top = dome - 0.20 - 0.03 * lift
    if scene.frontal:
        border = side * scene.x - (0.05 + (0.55 + 0.1 * lean) * span * (scene.y - top) + 0.03)
    else:
        border = (0.21 - 0.7 * span * (scene.y - top)) - scene.x
    wedge = ramp(-border, 0.008) * ramp(scene.y - top, 0.03) * lesion.fade(side)
    wedge *= ramp(dome + 0.06 - scene.y, 0.05)
    if scene.frontal:
        wedge *= ramp(side * scene.x - 0.03, 0.02)
    scene.opacify(wedge, 0.36 * lesion.strength)
    shade = wedge * (1 - np.minimum(scene.air * 1.5, 1))
    scene.density += shade * (0.10 * lesion.strength)  # also seen through the heart
    lesion.mask |= (wedge > 0.5) & (scene.lungs | scene.heart)


def _plates(lesion: Lesion, side: int, lift: float, lean: float, wide: float) -> None:
    scene, span = lesion.scene, lesion.span
    t = np.linspace(-1, 1, 7)
    lines: list[Stroke] = []
    for number in range(2 + round(lesion.grade * 1.4)):
        shift, tip = lesion.uniform(2)
        row = lesion.anatomy.dome(side) - 0.035 - 0.042 * number - 0.012 * (1 + lift)
        half = (0.058 + 0.012 * wide) * (0.75 + 0.35 * span)
        if scene.frontal:
            near, far = scene.edge(side, row)
            px = side * np.clip(near + (0.5 + 0.14 * shift) * (far - near) + half * t, near, far)
        else:
            px = 0.02 + 0.08 * shift + half * t
        slope = (0.16 * lean + 0.12 * tip) * half
        points = scene.image_points(px, row + slope * t + 0.006 * t * t)
        lines.append((points, millimetres(5.5) * (0.7 + 0.3 * span), 255))
    bands = strokes(scene.size, lines)
    scene.density += bands * (0.22 * lesion.strength * (0.35 + 0.65 * np.minimum(scene.air * 1.3, 1)))
    lesion.mask |= (bands > 0.4) & lesion.lung(side)
