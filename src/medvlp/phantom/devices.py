"""Things that do not belong to the body: support devices and foreign objects."""

from collections.abc import Callable

import numpy as np

from medvlp.phantom.fields import Shape, Stroke, strokes
from medvlp.phantom.lesions_lung import sides
from medvlp.phantom.model import Difficulty, Finding
from medvlp.phantom.scene import Scene, millimetres

Drawing = tuple[list[Stroke], list[Shape]]
_CIRCLE = np.linspace(0, 2 * np.pi, 25)


def _path(scene: Scene, points: list[tuple[float, float]], count: int = 24) -> np.ndarray:
    """A smooth polyline (n, 2) in image coordinates through control points of body x and row."""
    control = np.array(points)
    t = np.linspace(0, len(points) - 1, count)
    k = np.minimum(t.astype(int), len(points) - 2)
    u = (t - k)[:, None]
    padded = np.concatenate([2 * control[:1] - control[1:2], control, 2 * control[-1:] - control[-2:-1]])
    p0, p1, p2, p3 = padded[k], padded[k + 1], padded[k + 2], padded[k + 3]
    body = 0.5 * (2 * p1 + (p2 - p0) * u + (2 * p0 - 5 * p1 + 4 * p2 - p3) * u**2 + (3 * p1 - 3 * p2 + p3 - p0) * u**3)
    return scene.image_points(body[:, 0], body[:, 1])


def _disc(scene: Scene, x: float, y: float, radius: float) -> np.ndarray:
    return scene.image_points(x + radius * np.cos(_CIRCLE), y + radius * np.sin(_CIRCLE))


def _endotracheal(scene: Scene, side: int, u: list[float]) -> Drawing:
    a = scene.anatomy
    tip = a.apex + 0.15 + 0.05 * u[0]
    x = 0.004 * u[1] if scene.frontal else -0.03
    middle = [(x + 0.006 * u[2], -0.02), (x, 0.5 * tip), (x, tip)]
    half = millimetres(4.2)
    walls = [_path(scene, [(px + s * half, py) for px, py in middle]) for s in (-1, 1)]
    return [(walls[0], millimetres(2.6), 235), (walls[1], millimetres(2.6), 235)], []


def _catheter(scene: Scene, side: int, u: list[float]) -> Drawing:
    a = scene.anatomy
    end = a.apex + 0.33 + 0.06 * u[0]
    if not scene.frontal:
        return [(_path(scene, [(-0.10, 0.02), (-0.08, 0.2), (-0.06, end)]), millimetres(3.2), 235)], []
    if u[1] > 0:  # jugular
        points = [
            (side * 0.085, -0.02),
            (side * 0.07, 0.10),
            (-0.045 + 0.03 * (side > 0), a.apex + 0.13),
            (-0.055, end),
        ]
    else:  # subclavian
        points = [
            (side * 0.33, a.apex + 0.13),
            (side * 0.19, a.apex + 0.055),
            (side * 0.07, a.apex + 0.085),
            (-0.045 + 0.01 * side, a.apex + 0.15),
            (-0.055, end),
        ]
    return [(_path(scene, points), millimetres(3.2), 235)], []


def _nasogastric(scene: Scene, side: int, u: list[float]) -> Drawing:
    a = scene.anatomy
    deep = a.dome_left + 0.07
    if not scene.frontal:
        return [(_path(scene, [(-0.02, -0.02), (0.02, 0.3), (0.05, 0.6), (-0.05, deep)]), millimetres(3.4), 245)], []
    x = 0.012 + 0.01 * u[0]
    points = [
        (0.01, -0.02),
        (x, 0.25),
        (x + 0.006, 0.5),
        (0.03, deep - 0.09),
        (0.09, deep),
        (0.155 + 0.03 * u[1], deep + 0.03),
    ]
    return [(_path(scene, points, 36), millimetres(3.4), 245)], []


def _pacemaker(scene: Scene, side: int, u: list[float]) -> Drawing:
    a = scene.anatomy
    base = min(a.dome_left, a.dome_right)
    turn = 0.35 * u[0]
    if scene.frontal:
        cx, cy = side * (0.245 + 0.02 * u[1]), a.apex + 0.10
        leads = [
            [(cx, cy + 0.02), (side * 0.16, a.apex + 0.055), (-0.03, a.apex + 0.17), (-0.065, a.apex + 0.33)],
            [(-0.065, a.apex + 0.33), (-0.05, base - 0.06), (0.05, base - 0.015), (0.105, base - 0.03 + 0.01 * u[2])],
        ]
    else:
        cx, cy = -0.19, a.apex + 0.12
        leads = [[(cx, cy), (-0.08, 0.2), (-0.05, 0.42), (-0.12, base - 0.04)]]
    angle = np.deg2rad([20, 70, 110, 160, 200, 250, 290, 340]) + turn
    box = scene.image_points(cx + 0.052 * np.cos(angle), cy + 0.048 * np.sin(angle))
    inner = scene.image_points(cx + 0.03 * np.cos(angle), cy + 0.022 * np.sin(angle))
    strands: list[Stroke] = [(_path(scene, lead), millimetres(2.8), 225) for lead in leads]
    return strands, [(box, 255), (inner, 215)]


def _chest_tube(scene: Scene, side: int, u: list[float]) -> Drawing:
    a = scene.anatomy
    entry = a.apex + (0.72 + 0.1 * u[0]) * (a.dome_right - a.apex)
    top = a.apex + 0.09 + 0.04 * abs(u[1])
    if not scene.frontal:
        points = [(0.02, entry), (0.06, 0.45), (0.02, top)]
    else:
        far, high = scene.edge(side, entry)[1], scene.edge(side, top)
        points = [
            (side * (far + 0.09), entry + 0.05),
            (side * (far - 0.03), entry - 0.02),
            (side * (0.62 * far + 0.02 * u[2]), 0.5 * (entry + top)),
            (side * (high[0] + 0.45 * (high[1] - high[0])), top),
        ]
    line = _path(scene, points, 30)
    # A radio-opaque stripe interrupted by the drainage holes.
    return [
        (line[:20], millimetres(6.5), 150),
        (line[21:26], millimetres(6.5), 150),
        (line[27:], millimetres(6.5), 150),
        (line[:20], millimetres(2.2), 255),
        (line[21:26], millimetres(2.2), 255),
    ], []


def _wires(scene: Scene, side: int, u: list[float]) -> Drawing:
    a = scene.anatomy
    rows = np.linspace(a.apex + 0.11, a.apex + 0.45, 6) + 0.004 * np.sin(np.arange(6) * (3 + u[0]))
    lines: list[Stroke] = []
    for number, row in enumerate(rows.tolist()):
        if scene.frontal:
            x = 0.006 * np.sin(number * 2.1 + u[1])
            ring = scene.image_points(x + 0.017 * np.cos(_CIRCLE), row + 0.008 * np.sin(_CIRCLE + 0.4 * u[2]))
        else:
            x = scene.edge(-1, row)[1]
            ring = scene.image_points(-x - 0.012 + 0.009 * np.cos(_CIRCLE), row + 0.010 * np.sin(_CIRCLE))
        lines.append((ring, millimetres(2.2), 255))
        lines.append((ring[[2, 8]] + [0.004, -0.006], millimetres(2.2), 255))
    return lines, []


def _coin(scene: Scene, side: int, u: list[float]) -> Drawing:
    x, y = _spot(scene, side, u)
    radius = millimetres(10.5 + 1.5 * u[2])
    return [], [(_disc(scene, x, y, radius), 255), (_disc(scene, x, y, radius * 0.8), 235)]


def _button(scene: Scene, side: int, u: list[float]) -> Drawing:
    x, y = _spot(scene, side, u)
    radius = millimetres(9.0 + u[2])
    shapes: list[Shape] = [(_disc(scene, x, y, radius), 235), (_disc(scene, x, y, radius * 0.75), 150)]
    shapes += [
        (_disc(scene, x + radius * 0.3 * dx, y + radius * 0.3 * dy, radius * 0.17), 0)
        for dx in (-1, 1)
        for dy in (-1, 1)
    ]
    return [], shapes


def _pin(scene: Scene, side: int, u: list[float]) -> Drawing:
    x, y = _spot(scene, side, u)
    angle, length, gap = 1.5 * u[2], millimetres(34), millimetres(9)
    along, over = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    base = scene.image_points(np.array([x]), np.array([y]))[0]
    ends = [base + s * 0.5 * length * along + o * 0.5 * gap * over for s, o in ((1, -1), (-1, -1), (-1, 1), (1, 1))]
    coil = base - 0.5 * length * along
    ring = np.stack([coil[0] + 0.4 * gap * np.cos(_CIRCLE), coil[1] + 0.4 * gap * np.sin(_CIRCLE)], axis=1)
    cap = np.array([ends[0], ends[3]])
    width = millimetres(2.4)
    return [
        (np.array([ends[0], ends[1]]), width, 255),
        (np.array([ends[2], ends[3]]), width, 255),
        (ring, width, 255),
        (cap, width * 2, 255),
    ], []


def _necklace(scene: Scene, side: int, u: list[float]) -> Drawing:
    t = np.linspace(-1, 1, 27)
    low = 0.15 + 0.03 * u[0]
    if scene.frontal:
        points = scene.image_points(0.125 * t, scene.anatomy.apex - 0.10 + low * (1 - t * t) ** 0.7)
    else:
        points = scene.image_points(-0.16 + 0.12 * (t + 1), scene.anatomy.apex - 0.03 - 0.03 * t)
    radius = millimetres(2.6)
    turn = _CIRCLE[::4]
    beads = [(p + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1), 255) for p in points]
    return [(points, millimetres(1.4), 190)], beads


def _bullet(scene: Scene, side: int, u: list[float]) -> Drawing:
    x, y = _spot(scene, side, u)
    rng = np.random.default_rng(int(abs(u[3]) * 1e9))
    shapes: list[Shape] = []
    for number in range(6):
        radius = millimetres(6.5 if number == 0 else float(rng.uniform(1.5, 3.0)))
        off = np.zeros(2) if number == 0 else rng.normal(0, millimetres(11), 2)
        angle = np.sort(rng.uniform(0, 2 * np.pi, 7))
        reach = radius * rng.uniform(0.7, 1.2, 7)
        shapes.append((scene.image_points(x + off[0] + reach * np.cos(angle), y + off[1] + reach * np.sin(angle)), 255))
    return [], shapes


def _spot(scene: Scene, side: int, u: list[float]) -> tuple[float, float]:
    """Somewhere over a lung field."""
    return scene.place(side, "diffuse", 0.5 + 0.5 * u[0], 0.5 + 0.5 * u[1])


Plan = Callable[[Scene, int, list[float]], Drawing]
_DEVICES: dict[str, Plan] = {
    "endotracheal tube": _endotracheal,
    "central venous catheter": _catheter,
    "nasogastric tube": _nasogastric,
    "pacemaker": _pacemaker,
    "chest tube": _chest_tube,
    "sternal wires": _wires,
}
_OBJECTS: dict[str, Plan] = {
    "coin": _coin,
    "button": _button,
    "safety pin": _pin,
    "necklace": _necklace,
    "bullet fragment": _bullet,
}


def _draw(scene: Scene, finding: Finding, plan: Plan, amount: float) -> np.ndarray:
    u = np.random.default_rng(finding.seed).uniform(-1, 1, 4).tolist()
    lines, shapes = plan(scene, sides(finding)[-1], u)
    cover = strokes(scene.size, lines, shapes)
    # Metal and contrast stripes stand out less where the body is already dense.
    scene.density += cover * amount
    # A wire thinner than a pixel may cover none of them by a quarter.
    return cover > min(0.25, 0.5 * float(cover.max()))


def support_device(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A tube, line, wire or generator by subtype; its size is real, so ``lesion_size`` leaves it alone."""
    plan = _DEVICES.get(finding.subtype, _catheter)
    return _draw(scene, finding, plan, 0.36 * difficulty.contrast)


def foreign_object(scene: Scene, finding: Finding, difficulty: Difficulty) -> np.ndarray:
    """A coin, button, safety pin, necklace or bullet fragment by subtype, at its real size."""
    plan = _OBJECTS.get(finding.subtype, _coin)
    return _draw(scene, finding, plan, 0.55 * difficulty.contrast)
