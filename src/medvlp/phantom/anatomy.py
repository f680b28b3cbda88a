"""Draws the normal chest that the findings are then added to, from the front (PA or AP) or from the left side."""

import numpy as np

from medvlp.phantom.fields import Shape, Stroke, axes, bump, contour, ellipse, paths, ramp, strokes, texture, uniform
from medvlp.phantom.scene import Anatomy, Scene


def _mediastinum(rows: np.ndarray, a: Anatomy, traits: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return the inner lung borders left and right by row, the heart's rows (soft) and the heart's top row."""
    base = a.base
    top = a.apex + 0.45 * (base - a.apex)
    aorta = 1 + 0.25 * traits[0] + 0.35 * (a.age - 50) / 50
    knob = a.apex + 0.24 * (base - a.apex)
    proportions = {"apex": a.apex, "knob": knob, "heart_top": top, "heart_height": base - top, "heart": a.heart}
    left = contour(rows, "mediastinum left", aorta=aorta, **proportions)
    right = contour(rows, "mediastinum right", vena_cava=traits[1], **proportions)
    return left, right, ramp(rows - top, 0.03) * ramp(base + 0.055 - rows, 0.03), top


def _dome(x: np.ndarray, side: int, a: Anatomy) -> np.ndarray:
    """Return the row of the diaphragm by body coordinate: a dome that falls to the angles on both sides."""
    off = (side * x - 0.47 * a.width) / (0.53 * a.width)
    lateral, medial = np.clip(off, 0, 1.2), np.clip(-off, 0, 1.2)
    depth = 1 - 0.55 * a.flatness
    return (a.dome(side) + depth * (0.085 * lateral**2.2 + 0.025 * lateral**6 + 0.03 * medial**2)).astype(np.float32)


def _ribs(x: np.ndarray, y: np.ndarray, costal: np.ndarray, a: Anatomy, traits: list[float]) -> np.ndarray:
    """Return posterior and anterior ribs as two families of warped stripes, float32 of the shape of ``x``."""
    pitch = 0.071 + 0.004 * traits[0]
    s = np.minimum(np.abs(x) / costal, 1.1)
    s2 = s * s
    out = np.zeros_like(s)
    for start, slope, bend, count, weight in (
        (a.apex - 0.03, -0.02, 0.115 + 0.02 * traits[1], 11, 1.0),
        (a.apex + 0.205 + 0.02 * traits[2], -0.15 - 0.02 * traits[3], 0.03, 6, 0.55),
    ):
        phase = s2 * s
        phase *= -bend / pitch
        phase -= s * (slope / pitch)
        phase += (y - start) / pitch
        number = np.floor(phase)
        phase -= number
        phase -= 0.5
        np.abs(phase, out=phase)
        # Half the thickness of a rib is 0.2 of the pitch; the cortex is brighter than the marrow.
        rib = ramp(0.2 - phase, 0.14)
        rib *= 0.55 + 1.6 * np.maximum(phase - 0.06, 0)
        rib *= (number >= 0) & (number < count)
        if weight < 1:  # the anterior ones end in cartilage, which casts no shadow
            rib *= ramp(s - 0.42, 0.3)
        rib *= weight
        out += rib
    out *= ramp(1.03 - s, 0.05)
    return out


def _vessels(scene: Scene, hilum: float, rng: np.random.Generator) -> np.ndarray:
    """Return branching pulmonary vessels, brightest and widest at the hila, (size, size) float32 in [0, 1]."""
    count = 14  # stems, half of them on each side
    side = np.repeat([-1.0, 1.0], count // 2)
    angle = np.tile(np.linspace(-1.35, 1.3, count // 2), 2) + rng.normal(0, 0.12, count)
    x = side * (0.050 + 0.012 * np.cos(angle) + 0.008 * (side > 0))
    y = hilum + 0.038 * np.sin(angle) - 0.008 * side
    wide = 0.0080 * rng.uniform(0.75, 1.25, count)
    length = 0.103 + 0.03 * np.abs(angle) + rng.uniform(-0.015, 0.015, count)
    along = np.linspace(0, 1, 5)[None, :]
    lines: list[Stroke] = []
    for level, grey in enumerate((215, 190, 160, 125)):
        bend = rng.uniform(-0.55, 0.55, (len(x), 1)) * along
        way = angle[:, None] + bend
        xs = x[:, None] + side[:, None] * length[:, None] * along * np.cos(way)
        ys = y[:, None] + length[:, None] * along * np.sin(way)
        points = scene.image_points(xs.ravel(), ys.ravel()).reshape(len(x), 5, 2)
        lines += [(line, caliber, grey) for line, caliber in zip(points, wide.tolist(), strict=True)]
        # Each ends in two branches, and the thick ones give off a third half way.
        mid = slice(None) if level < 2 else slice(0, 0)
        x, y = np.concatenate([xs[:, 4], xs[:, 4], xs[mid, 2]]), np.concatenate([ys[:, 4], ys[:, 4], ys[mid, 2]])
        fork = rng.uniform(0.2, 0.6, (3, len(side)))
        turn = np.where(rng.random(len(side)) < 0.5, -1.0, 1.0)
        angle = np.concatenate([way[:, 4] + fork[0], way[:, 4] - fork[1], way[mid, 2] + (turn * 2.0 * fork[2])[mid]])
        wide = np.concatenate([0.72 * wide, 0.68 * wide, 0.5 * wide[mid]])
        length = np.concatenate([0.72 * length, 0.68 * length, 0.7 * length[mid]])
        side = np.concatenate([side, side, side[mid]])
        length *= rng.uniform(0.75, 1.25, len(length))
    lines.reverse()  # the stems last, on top of their branches
    return strokes(scene.size, lines)


def _bones(scene: Scene, traits: list[float], angle: float) -> np.ndarray:
    a = scene.anatomy
    t, turn = np.linspace(0, 1, 25), np.linspace(0, 2 * np.pi, 20)
    shapes: list[Shape] = []
    for side in (-1, 1):
        bones = paths("bones", "frontal", {"side": side, "apex": a.apex, "bend": traits[2]})
        scapula, humerus = ((scene.image_points(*corners.T), grey) for corners, _, grey in bones.values())
        head = scene.image_points(side * (0.445 + 0.045 * np.cos(turn)), a.apex + 0.075 + 0.05 * np.sin(turn))
        shapes += [scapula, (head, 110), humerus]
        x = 0.026 + (0.335 + 0.012 * traits[1]) * t
        y = a.apex + 0.098 + side * 0.012 * angle - (0.105 + 0.02 * traits[0]) * t
        y = y + 0.022 * np.sin(2 * np.pi * t + 0.4)
        # A broken clavicle: the outer part hangs from the shoulder, lowest at the break in the middle.
        y = y + a.drop(side) * np.clip((t - 0.5) * 25, 0, 1) * np.clip((0.95 - t) * 2.2, 0, 1)
        half = 0.0115 - 0.003 * np.sin(np.pi * t)
        outline_x = side * np.concatenate([x, x[::-1]])
        for grow, grey in ((1.0, 205), (0.5, 150)):
            outline_y = np.concatenate([y - grow * half, (y + grow * half)[::-1]])
            shapes.append((scene.image_points(outline_x, outline_y), grey))
    return strokes(scene.size, shapes=shapes)


def _hila_and_breasts(scene: Scene, hilum: float, inner: np.ndarray, traits: list[float]) -> None:
    a, x, y = scene.anatomy, scene.x, scene.y
    for side in (-1, 1):
        off = ellipse(x, y, (side * 0.070, hilum), (0.05, 0.075))
        scene.density += (0.15 + 0.03 * traits[0]) * np.maximum(1 - off, 0) * ramp(inner + 0.005, 0.02)
    for side in (-1, 1) if a.female else ():
        cy, cx = 0.60 + 0.04 * traits[1] + 0.05 * (a.age > 60), side * (0.20 + 0.015 * traits[2])
        reach = 0.12 + 0.05 * a.habitus
        off = ((x - cx) * (1 / reach)) ** 2 + ((y - cy) * (0.9 / reach)) ** 2
        scene.density += (0.06 + 0.05 * a.habitus) * np.clip(1.15 - off, 0, 0.55) * ramp(y - cy + 0.08, 0.16)


def _spine_and_airways(scene: Scene, traits: list[float], turn: float) -> None:
    x, y, density, rows = scene.x, scene.y, scene.density, scene.y[:, 0]
    disc = (0.042 + 0.014 * np.cos(2 * np.pi * (rows + 0.02 * traits[0]) / 0.049)).astype(np.float32)
    density += ramp(0.043 - np.abs(x), 0.022) * disc[:, None]
    carina = scene.anatomy.apex + 0.25 + 0.01 * traits[1]
    pipe = ramp(0.0175 - np.abs(x - turn - 0.004 * traits[2]), 0.008)
    density -= pipe * (ramp(carina - rows, 0.02) * 0.13)[:, None]
    fork = slice(int((carina - 0.01) * scene.size), int((carina + 0.06) * scene.size))
    for side, slant in ((-1, 0.75), (1, 1.05)):
        offset = side * x[fork] - slant * (y[fork] - carina + 0.01)
        density[fork] -= 0.07 * ramp(0.011 - np.abs(offset), 0.008) * ramp(carina + 0.045 - rows[fork], 0.03)[:, None]


def _stomach(
    scene: Scene, noise: np.random.Generator, traits: list[float], filling: float, abdomen: np.ndarray
) -> None:
    bubble = 0.03 * traits[1], scene.anatomy.dome_left + 0.055 + 0.012 * traits[0]
    off = ellipse(scene.x - 0.15, scene.y, bubble, (0.065, 0.028))
    gas = texture(noise, scene.size, 9)
    scene.density -= (0.15 + 0.08 * filling) * np.clip(1.3 - off + 0.35 * gas, 0, 1) * abdomen
    scene.density -= 0.03 * np.clip(gas - 0.6, 0, 1) * abdomen


def _air(lateral: np.ndarray, inner: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return the share of the lung's depth by the distances from its outer, inner and lower border."""
    air = ramp(lateral, 0.008)
    depth = np.clip(lateral * (1 / 0.11), 0, 1)
    air *= 0.5 + depth * (1.0 - 0.5 * depth)
    air *= ramp(inner, 0.010)
    air *= 0.88 + 0.12 * np.clip(inner * (1 / 0.06), 0, 1)
    air *= 0.94 * ramp(lower, 0.010) + 0.06 * ramp(lower + 0.05, 0.06)
    return air


def _soft_tissue(
    a: Anatomy, x: np.ndarray, rows: np.ndarray, lower: np.ndarray, arm: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return neck, shoulders, trunk and arms, the abdomen's share of them, and their density."""
    girth = a.width + 0.07 + 0.07 * a.habitus
    outline = contour(rows, "frontal outline", apex=a.apex, habitus=a.habitus, girth=girth)
    away = np.abs(x)
    rim = np.clip((outline[:, None] - away) * (1 / 0.07), 0, 1)
    body = rim * (2 - rim)
    arms = 0.45 * ramp(away - (girth + 0.07 + 0.03 * arm), 0.02) * ramp(rows - 0.35, 0.2)[:, None]
    np.maximum(body, arms, out=body)
    middle = bump(np.minimum(away * (1 / 0.30), 1))
    abdomen = ramp(-lower, 0.16) * ramp(girth - away, 0.06)
    density = 0.46 + 0.05 * a.habitus + 0.14 * middle
    density += 0.21 * abdomen
    density *= body
    return body, abdomen, density


def draw_frontal(a: Anatomy, size: int) -> Scene:
    """Draw the chest from the front, ready for findings, as an image of at least 32 pixels a side."""
    traits, day = uniform([a.seed, 2], 24), uniform([a.study_seed, 2], 8)
    noise = np.random.default_rng([a.seed, 3])
    bedside = 2.0 if a.view == "AP" else 1.0
    columns, y = axes(size)
    rows = y[:, 0]
    tilt, shift, angle = 0.03 * day[0] * bedside, 0.02 * day[1] * bedside, day[2] * bedside
    centre = (0.5 + shift + tilt * (rows - 0.5) + 0.006 * traits[0] * np.sin(5 * rows)).astype(np.float32)
    x = columns - centre[:, None]

    # The two lungs: superellipse outside, mediastinum and heart inside, domes below.
    span = np.clip((0.86 - rows) / (0.86 - a.apex + 0.012), 0, 1.4)
    shape = np.maximum(1 - span**2.7, 0) ** 0.56
    costal = {side: (a.width * (1 + 0.012 * traits[1] * side) * shape).astype(np.float32) for side in (-1, 1)}
    left, right, cardiac, top = _mediastinum(rows, a, traits[2:4])
    turn = 0.007 * angle  # rotation shows as a shift of what lies in front of the spine
    medial = {1: left + turn, -1: right - turn}
    below = columns[0] - centre[min(size - 1, int(0.75 * size))]
    domes = {side: _dome(below, side, a) for side in (-1, 1)}
    lateral = np.minimum(costal[1][:, None] - x, x + costal[-1][:, None])
    inner = np.maximum(x - medial[1][:, None], -x - medial[-1][:, None])
    lower = np.where(below > 0, domes[1], domes[-1])[None, :] - y
    air = _air(lateral, inner, lower)
    lungs = (lateral > 0) & (inner > 0) & (lower > 0)
    # The heart's mask ends at its borders and at the domes, where it rests.
    heart = (inner < 0) & (rows > top)[:, None] & (lower > -0.03) & (rows < 0.97)[:, None]
    heart &= (x < medial[1][:, None]) & (x > -medial[-1][:, None]) & (cardiac > 0.5)[:, None]

    body, abdomen, density = _soft_tissue(a, x, rows, lower, traits[5])
    density -= (0.475 - 0.03 * a.habitus) * air
    # Heart: rounder and denser in the middle than the rest of the mediastinum.
    density += 0.05 * cardiac[:, None] * ramp(-inner, 0.10) * ramp(lower + 0.03, 0.06)
    density += 0.035 * cardiac[:, None] * ramp(x, 0.25) * ramp(-inner, 0.03)

    scene = Scene(a, size, x, y, centre, density, air, lungs, heart, costal, medial, domes, np.zeros_like(x))
    ribs = _ribs(x, y, np.maximum(costal[1], 0.05)[:, None], a, traits[6:10])
    ribs *= 0.12 - 0.08 * abdomen
    ribs *= 0.45 + 0.55 * ramp(inner, 0.03)
    density += ribs
    pleura = bump(np.minimum(np.abs(lateral - 0.002) * (1 / 0.012), 1))
    density += 0.07 * pleura * ramp(rows - a.apex - 0.04, 0.06)[:, None]
    density += 0.15 * _bones(scene, traits[10:14], angle) * body
    _spine_and_airways(scene, traits[14:17], turn)
    hilum = top - 0.005
    _hila_and_breasts(scene, hilum, inner, traits[17:20])
    _stomach(scene, noise, traits[20:22], day[3], abdomen)

    grain, cloud = texture(noise, size, 44), texture(noise, size, 15)
    scene.detail = 0.15 * _vessels(scene, hilum, noise)
    scene.detail += 0.011 * grain
    scene.detail += 0.013 * cloud
    scene.detail *= air
    density += 0.012 * cloud * body
    return scene


def _side_body(a: Anatomy, x: np.ndarray, rows: np.ndarray, thick: float) -> np.ndarray:
    coat = 0.055 + 0.05 * a.habitus
    front = contour(rows, "lateral outline front", apex=a.apex) * thick + coat - 0.02
    chest = bump(np.clip(np.abs(rows - 0.55) * (1 / 0.17), 0, 1)) * (0.07 if a.female else 0.015)
    front = (front + chest).astype(np.float32)
    back = contour(rows, "lateral outline back", apex=a.apex) * thick + coat
    rim = np.clip(np.minimum(x + front[:, None], back[:, None] - x) * (1 / 0.06), 0, 1)
    return rim * (2 - rim)


def _side_heart(a: Anatomy, x: np.ndarray, y: np.ndarray, air: np.ndarray, density: np.ndarray) -> np.ndarray:
    # Heart: a leaning ellipse in the lower front; its width follows the frontal factor.
    below = y - (a.base - 0.085)
    off = ellipse((x + 0.115) + 0.35 * below, below, (0, 0), (0.115 * a.heart, 0.155 * (0.75 + 0.25 * a.heart)))
    density += 0.30 * ramp(1.05 - off, 0.5) * air
    arch = ellipse(x, y - a.apex, (0.02, 0.22), (0.11, 0.085))
    density += 0.10 * bump(np.minimum(np.abs(arch - 0.8), 1)) * ramp(a.apex + 0.24 - y, 0.04) * air
    hila = ellipse(x, y - a.apex, (0.01, 0.31), (0.055, 0.06))
    density += 0.17 * np.maximum(1 - hila, 0) * air
    return off < 1.0


def _side_skeleton(
    scene: Scene, traits: list[float], body: np.ndarray, inner: np.ndarray, lower: np.ndarray, back: np.ndarray
) -> None:
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


def _side_vessels(scene: Scene, noise: np.random.Generator) -> np.ndarray:
    lines: list[Stroke] = []
    hilum = scene.anatomy.apex + 0.31
    t = np.linspace(0, 1, 4)
    for _ in range(34):
        angle, bend, length, wide = noise.uniform(-1, 1, 4).tolist()
        way = np.pi * angle + 0.5 * bend * t
        # They leave the hilum from all around its outline, not from one point.
        reach = 0.035 + 0.015 * wide + (0.09 + 0.06 * length) * t
        points = scene.image_points(0.01 + reach * np.cos(way), hilum + 1.2 * reach * np.sin(way))
        lines += [(points[:3], 0.0055 + 0.002 * wide, 190), (points[2:], 0.0035, 150)]
    return strokes(scene.size, lines)


def draw_lateral(a: Anatomy, size: int) -> Scene:
    """Draw the chest from the left side, ready for findings, with the proportions of the study's frontal view.

    The front is on the left of the image. ``costal[-1]`` is the distance of the front border of the lungs from x = 0,
    ``costal[1]`` that of the back border, ``medial`` is 0.
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

    body = _side_body(a, x, rows, thick)
    density = body * (0.60 + 0.05 * a.habitus)
    density += body * (0.22 * ramp(a.apex + 0.10 - y, 0.20) + 0.10 * ramp(-lower, 0.16))
    density -= 0.50 * air
    cloud = texture(noise, size, 12)
    density += 0.012 * cloud * body
    heart = _side_heart(a, x, y, air, density) & (ahead > 0) & (lower > -0.02)
    medial = {side: np.zeros(size, dtype=np.float32) for side in (-1, 1)}
    costal = {-1: front, 1: back}
    scene = Scene(a, size, x, y, centre, density, air, lungs, heart, costal, medial, domes, np.zeros_like(x))
    _side_skeleton(scene, traits, body, inner, lower, back)
    scene.detail = 0.10 * _side_vessels(scene, noise)
    scene.detail += 0.014 * cloud
    scene.detail += 0.010 * texture(noise, size, 44)
    scene.detail *= air
    return scene
