"""Findings of the lung itself: opacities, nodules, and air where tissue should be."""

import numpy as np

from medvlp.phantom.fields import bump, ramp, strokes, texture
from medvlp.phantom.model import Difficulty, Finding
from medvlp.phantom.scene import Scene, millimetres

_GRADE = {"small": 0.0, "moderate": 0.5, "large": 1.0}


def sides(finding: Finding) -> tuple[int, ...]:
    """The signs of a finding's sides: −1 right, 1 left, both if bilateral or unsaid."""
    return {"left": (1,), "right": (-1,)}.get(finding.side or "", (-1, 1))


def grade(finding: Finding) -> float:
    """Severity as 0 (small), 0.5 (moderate) or 1 (large)."""
    return _GRADE[finding.severity]


def strength(finding: Finding, difficulty: Difficulty) -> float:
    """Factor on the contrast of a finding: the knob, and a fainter drawing of small findings."""
    return difficulty.contrast * (0.82 + 0.36 * grade(finding))


def span(finding: Finding, difficulty: Difficulty) -> float:
    """Factor on the linear size of a finding that is not measured in millimetres."""
    return difficulty.lesion_size * (0.78 + 0.5 * grade(finding))


def _blob(
    scene: Scene, at: tuple[float, float], radius: tuple[float, float], noise: np.ndarray, rough: float
) -> np.ndarray:
    """Distance from a centre over the radius, 1 at an outline that noise makes irregular."""
    off = ((scene.x - at[0]) * (1 / radius[0])) ** 2 + ((scene.y - at[1]) * (1 / radius[1])) ** 2
    np.sqrt(off, out=off)
    off += rough * noise
    return off


def _lung(scene: Scene, side: int) -> np.ndarray:
    """The lung field of a side, bool; in a lateral view both lungs lie over each other."""
    return scene.lungs & (scene.x * side > 0) if scene.frontal else scene.lungs


def mass(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A dense lobulated ball of more than 30 mm."""
    return _ball(scene, finding, difficulty, 0.42, 0.05)


def nodule(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A dense round spot of 8 to 30 mm."""
    return _ball(scene, finding, difficulty, 0.42, 0.02)


def _ball(scene: Scene, finding: Finding, difficulty: Difficulty, amount: float, rough: float) -> np.ndarray:
    rng = np.random.default_rng(finding.seed)
    across, down, squeeze = rng.random(3).tolist()
    radius = millimetres(finding.size_mm or 20.0) / 2 * difficulty.lesion_size
    radius = max(radius, 0.9 / scene.size)  # at least one pixel's centre lies inside
    side = sides(finding)[-1]
    x, y = scene.place(side, finding.zone, across, down)
    if scene.frontal:
        # Wholly inside the lung, so that heart or diaphragm do not hide it.
        near, far = scene.edge(side, y)
        inset = 0.85 * radius
        x = side * min(max(abs(x), near + inset), max(far - inset, near + 0.5 * (far - near)))
        y = min(y, scene.floor(side, x) - inset)
    off = _blob(scene, (x, y), (radius, radius * (0.85 + 0.15 * squeeze)), texture(rng, scene.size, 20), rough)
    soft = ramp(1 - off, 0.3)
    soft *= 0.75 + 0.25 * np.maximum(1 - off, 0)
    scene.density += soft * (amount * difficulty.contrast * (0.55 + 0.45 * scene.air))
    scene.detail *= 1 - 0.7 * soft
    return off < 1.0


def pneumonia(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """Patchy, ill-defined segmental opacity, crossed by air bronchograms."""
    rng = np.random.default_rng(finding.seed)
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    for side in sides(finding):
        x, y = scene.place(side, finding.zone, *rng.random(2).tolist())
        reach = 0.088 * span(finding, difficulty)
        clumps = texture(rng, scene.size, 16)
        off = _blob(scene, (x, y), (reach, reach * 1.1), texture(rng, scene.size, 8), 0.16)
        dense = bump(np.minimum(np.maximum(off, 0) * 0.72, 1)) * np.clip(0.85 + 0.32 * clumps, 0.25, 1.3)
        tubes = []
        root = 0.06 if scene.frontal else 0.0
        for angle in (-0.45, -0.1, 0.25, 0.6):
            t = np.linspace(-0.35, 1.0, 5)
            lean = np.arctan2(y - 0.43, abs(x) - root) + angle
            tubes.append(
                (
                    scene.image_points(
                        x + side * reach * (t - 0.4) * np.cos(lean), y + reach * (t - 0.4) * np.sin(lean) + 0.01 * t * t
                    ),
                    millimetres(2.6),
                    255,
                )
            )
        dense *= 1 - 0.5 * strokes(scene.size, tubes)
        dense *= _fade(scene, side)
        scene.opacify(dense, 0.34 * strength(finding, difficulty))
        mask |= (off < 1.0) & _lung(scene, side)
    return mask


def _fade(scene: Scene, side: int) -> np.ndarray | float:
    """1 on a side of the midline and 0 beyond, so that a soft opacity does not cross it."""
    return ramp(scene.x * side, 0.02) if scene.frontal else 1.0


def consolidation(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A dense, even opacity that fills part of a lobe up to a sharp fissure."""
    rng = np.random.default_rng(finding.seed)
    side = sides(finding)[-1]
    jitter, slope = rng.uniform(-1, 1, 2).tolist()
    cloud = texture(rng, scene.size, 7)
    extent = span(finding, difficulty)
    a = scene.anatomy
    dome = a.dome_left if side > 0 else a.dome_right
    height = dome - a.apex
    x = scene.x * side
    if finding.zone == "upper":  # above the minor fissure
        fissure = a.apex + (0.47 + 0.03 * jitter) * height - 0.05 * (1 + 0.5 * slope) * (x - 0.15)
        sharp, depth = fissure - scene.y, 0.34 * height * extent
    else:  # below it, or at the base with the major fissure as upper border
        start = 0.46 if finding.zone == "mid" else 0.66
        lean = 0.10 if finding.zone == "mid" else 0.35
        fissure = a.apex + (start + 0.03 * jitter) * height + lean * (1 + 0.4 * slope) * (x - 0.16)
        sharp, depth = scene.y - fissure, (0.27 if finding.zone == "mid" else 0.5) * height * extent
    soft = depth + 0.02 * cloud - sharp
    filled = ramp(sharp, 0.007) * ramp(soft, 0.06) * _fade(scene, side)
    if not scene.frontal:
        filled *= ramp(0.15 - np.abs(scene.x - 0.05 * jitter), 0.05)
    filled *= 0.95 + 0.05 * cloud
    scene.opacify(filled, 0.44 * strength(finding, difficulty))
    mask = (sharp > 0) & (soft > 0) & _lung(scene, side)
    return mask if scene.frontal else mask & (np.abs(scene.x - 0.05 * jitter) < 0.15)


def infiltration(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A faint haze with streaks that run away from the hilum."""
    rng = np.random.default_rng(finding.seed)
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    for side in sides(finding):
        x, y = scene.place(side, finding.zone, *rng.random(2).tolist())
        reach = 0.125 * span(finding, difficulty)
        off = _blob(scene, (x, y), (reach, reach * 0.95), texture(rng, scene.size, 7), 0.12)
        envelope = bump(np.minimum(np.maximum(off, 0) * 0.75, 1))
        lines = []
        for _ in range(16):
            start, turn, length = rng.uniform(-1, 1, 3).tolist()
            way = np.arctan2(y - 0.42, abs(x) - 0.02) + 0.45 * turn
            t = np.linspace(-0.45, 0.45, 4)
            along = reach * (0.8 + 0.5 * length) * t
            px = x + side * (along * np.cos(way) - 0.8 * reach * start * np.sin(way))
            py = y + along * np.sin(way) + 0.8 * reach * start * np.cos(way)
            lines.append((scene.image_points(px, py + 0.004 * np.sin(9 * t)), millimetres(2.4), 200))
        streaks = strokes(scene.size, lines)
        amount = strength(finding, difficulty)
        envelope *= _fade(scene, side)
        scene.density += envelope * scene.air * (amount * (0.105 + 0.17 * streaks))
        mask |= (off < 1.0) & _lung(scene, side)
    return mask


def covid(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """Several rounded ground-glass patches along the outer borders of both lungs, mostly below."""
    rng = np.random.default_rng(finding.seed)
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    count = 2 + round(2 * grade(finding))
    haze = texture(rng, scene.size, 30)
    outline = texture(rng, scene.size, 9)
    total = np.zeros_like(scene.x)
    for side in sides(finding):
        for number in range(count):
            across, down, big = rng.random(3).tolist()
            x, y = scene.place(side, "peripheral", across, (number + 0.2 + 0.6 * down) / count * 1.15)
            reach = 0.058 * (0.8 + 0.4 * big) * span(finding, difficulty)
            off = _blob(scene, (x, y), (reach * 0.8, reach * 1.15), outline, 0.12)
            np.maximum(total, ramp(1.05 - off, 0.55), out=total)
            mask |= (off < 1.0) & _lung(scene, side)
    total *= 0.9 + 0.12 * haze
    # Near the chest wall the lung is thin: without this the patches would fade where they matter.
    scene.density += total * np.sqrt(scene.air) * (0.20 * strength(finding, difficulty))
    return mask


def edema(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """Haze spreading from both hila like wings, with short septal lines at the lateral bases."""
    rng = np.random.default_rng(finding.seed)
    cloud = texture(rng, scene.size, 9)
    fluff = texture(rng, scene.size, 26)
    extent = span(finding, difficulty)
    a = scene.anatomy
    base = min(a.dome_left, a.dome_right)
    y = a.apex + 0.52 * (base - a.apex)
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    lines = []
    amount = strength(finding, difficulty)
    for side in sides(finding):
        x = side * 0.115 if scene.frontal else 0.0
        off = _blob(scene, (x, y), (0.125 * extent, 0.20 * extent), cloud, 0.10)
        dense = bump(np.minimum(np.maximum(off, 0) * 0.7, 1)) * np.clip(0.9 + 0.2 * fluff, 0.3, 1.4)
        dense *= _fade(scene, side)
        scene.density += dense * scene.air * (0.24 * amount)
        mask |= (off < 1.0) & _lung(scene, side)
        if not scene.frontal:
            break
        for _ in range(7):
            rise, long = rng.random(2).tolist()
            row = base - 0.02 - 0.11 * rise
            far = scene.edge(side, row)[1]
            points = scene.image_points(
                side * np.array([far - 0.004, far - 0.025 - 0.02 * long]), np.array([row, row + 0.004])
            )
            lines.append((points, millimetres(1.8), 255))
    if lines:
        scene.density += strokes(scene.size, lines) * (0.13 * amount)
    return mask


def fibrosis(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A net of fine lines, at the outer bases or at the apices."""
    rng = np.random.default_rng(finding.seed)
    first, second = texture(rng, scene.size, 30), texture(rng, scene.size, 26)
    outline = texture(rng, scene.size, 8)
    net = np.maximum(1 - 2.6 * np.abs(first), 0)
    np.maximum(net, np.maximum(1 - 2.6 * np.abs(second), 0), out=net)
    extent = span(finding, difficulty)
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    total = np.zeros_like(scene.x)
    for side in sides(finding):
        dome = scene.anatomy.dome_left if side > 0 else scene.anatomy.dome_right
        if finding.zone == "apical":
            y = scene.anatomy.apex + 0.08
            x = side * 0.15 if scene.frontal else 0.0
            radius = (0.14 * extent, 0.13 * extent)
        else:
            y = dome - 0.02
            x = side * 0.235 if scene.frontal else 0.16
            radius = (0.15 * extent, 0.17 * extent)
        off = _blob(scene, (x, y), radius, outline, 0.10)
        np.maximum(total, ramp(1.1 - off, 0.5) * _fade(scene, side), out=total)
        mask |= (off < 1.0) & _lung(scene, side)
    net *= 0.26
    net += 0.03
    scene.density += total * np.sqrt(scene.air) * net * strength(finding, difficulty)
    return mask


def emphysema(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """Darker, emptier lungs with few vessels and thin-walled bullae; the domes are low and flat (see ADAPT)."""
    rng = np.random.default_rng(finding.seed)
    amount = strength(finding, difficulty)
    a = scene.anatomy
    height = min(a.dome_left, a.dome_right) - a.apex
    reach = 1.0 if finding.zone == "diffuse" else 0.6
    low = a.apex + reach * height - scene.y
    weight = scene.air * ramp(low, 0.10)
    scene.detail *= 1 - min(0.8, 0.55 * amount) * weight
    weight *= 0.115 * amount
    scene.density -= weight
    for side in (-1, 1):
        for _ in range(2):
            across, down, big = rng.random(3).tolist()
            x, y = scene.place(side, "upper", across, down * 0.9)
            radius = (0.024 + 0.022 * big) * difficulty.lesion_size
            off = (scene.x - x) ** 2 + (scene.y - y) ** 2
            np.sqrt(off, out=off)
            wall = np.maximum(1 - np.abs(off - radius) * (1 / 0.0045), 0)
            wall *= 0.10 * amount
            wall -= ramp(radius - off, 0.006) * (0.05 * amount)
            scene.density += wall * scene.air
            scene.detail *= 1 - 0.7 * ramp(radius - off, 0.006)
    return scene.lungs & (low > 0)


def atelectasis(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """Plate-like bands over the diaphragm, or a collapsed lower lobe as a wedge; the dome is raised (see ADAPT)."""
    rng = np.random.default_rng(finding.seed)
    amount, extent = strength(finding, difficulty), span(finding, difficulty)
    mask = np.zeros((scene.size, scene.size), dtype=bool)
    for side in sides(finding):
        lift, lean, wide = rng.uniform(-1, 1, 3).tolist()
        a = scene.anatomy
        dome = a.dome_left if side > 0 else a.dome_right
        if finding.subtype == "lobar":
            # The lobe folds towards the spine: a triangle with a straight outer border, apex at the hilum.
            top = dome - 0.20 - 0.03 * lift
            if scene.frontal:
                border = side * scene.x - (0.05 + (0.55 + 0.1 * lean) * extent * (scene.y - top) + 0.03)
            else:
                border = (0.21 - 0.7 * extent * (scene.y - top)) - scene.x
            wedge = ramp(-border, 0.008) * ramp(scene.y - top, 0.03) * _fade(scene, side)
            wedge *= ramp(dome + 0.06 - scene.y, 0.05)
            if scene.frontal:
                wedge *= ramp(side * scene.x - 0.03, 0.02)
            scene.opacify(wedge, 0.36 * amount)
            shade = wedge * (1 - np.minimum(scene.air * 1.5, 1))
            scene.density += shade * (0.10 * amount)  # also seen through the heart
            mask |= (wedge > 0.5) & (scene.lungs | scene.heart)
            continue
        lines = []
        count = 2 + round(grade(finding) * 1.4)
        for number in range(count):
            shift, tip = rng.uniform(-1, 1, 2).tolist()
            row = dome - 0.035 - 0.042 * number - 0.012 * (1 + lift)
            if scene.frontal:
                near, far = scene.edge(side, row)
                middle = near + (0.5 + 0.14 * shift) * (far - near)
            else:
                middle, near, far = 0.02 + 0.08 * shift, -0.25, 0.25
            half = (0.058 + 0.012 * wide) * (0.75 + 0.35 * extent)
            t = np.linspace(-1, 1, 7)
            px = np.clip(middle + half * t, near, far) if scene.frontal else middle + half * t
            slope = (0.16 * lean + 0.12 * tip) * half
            points = scene.image_points(side * px if scene.frontal else px, row + slope * t + 0.006 * t * t)
            lines.append((points, millimetres(5.5) * (0.7 + 0.3 * extent), 255))
        bands = strokes(scene.size, lines)
        scene.density += bands * (0.22 * amount * (0.35 + 0.65 * np.minimum(scene.air * 1.3, 1)))
        mask |= (bands > 0.4) & (scene.lungs if not scene.frontal else _lung(scene, side))
    return mask
