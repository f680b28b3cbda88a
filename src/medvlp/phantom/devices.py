"""Things that do not belong to the body: support devices and foreign objects.

Tubes, catheters and leads are smooth lines through the control points in ``shapes.csv``; what is not such a line is
drawn by a function here.
"""

import numpy as np

from medvlp.phantom.fields import Shape, Stroke, paths, strokes
from medvlp.phantom.model import CATALOGUE
from medvlp.phantom.scene import Lesion, Scene, millimetres

Drawing = tuple[list[Stroke], list[Shape]]
_CIRCLE = np.linspace(0, 2 * np.pi, 25)


def _smooth(scene: Scene, control: np.ndarray, count: int) -> np.ndarray:
    """Return the polyline (count, 2) in image coordinates of a Catmull-Rom spline through control points."""
    t = np.linspace(0, len(control) - 1, count)
    k = np.minimum(t.astype(int), len(control) - 2)
    u = (t - k)[:, None]
    padded = np.concatenate([2 * control[:1] - control[1:2], control, 2 * control[-1:] - control[-2:-1]])
    p0, p1, p2, p3 = (padded[k + step] for step in range(4))
    body = 0.5 * (2 * p1 + (p2 - p0) * u + (2 * p0 - 5 * p1 + 4 * p2 - p3) * u**2 + (3 * p1 - 3 * p2 + p3 - p0) * u**3)
    return scene.image_points(*body.T)


def _tubes(scene: Scene, shape: str, side: int, u: list[float]) -> list[Stroke]:
    a = scene.anatomy
    entry = a.apex + (0.72 + 0.1 * u[0]) * (a.dome_right - a.apex)
    top = a.apex + 0.09 + 0.04 * abs(u[1])
    near_top, far_top = scene.edge(side, top)
    parameters = {"side": side, "left": side > 0, "apex": a.apex, "base": a.base, "deep": a.dome_left + 0.07}
    parameters |= {f"u{i}": value for i, value in enumerate(u)}
    parameters |= {"tip": a.apex + 0.15 + 0.05 * u[0], "end": a.apex + 0.33 + 0.06 * u[0], "entry": entry, "top": top}
    parameters |= {"far": scene.edge(side, entry)[1], "near_top": near_top, "width_top": far_top - near_top}
    lines = paths(shape, "frontal" if scene.frontal else "lateral", parameters)
    count = 30 if shape == "chest tube" else 36 if shape == "nasogastric tube" and scene.frontal else 24
    return [(_smooth(scene, points, count), millimetres(width), grey) for points, width, grey in lines.values()]


def _ring(scene: Scene, x: float, y: float, radius: float) -> np.ndarray:
    return scene.image_points(x + radius * np.cos(_CIRCLE), y + radius * np.sin(_CIRCLE))


def _spot(scene: Scene, side: int, u: list[float]) -> tuple[float, float]:
    return scene.place(side, "diffuse", 0.5 + 0.5 * u[0], 0.5 + 0.5 * u[1])


def _pacemaker(scene: Scene, side: int, u: list[float]) -> Drawing:
    apex = scene.anatomy.apex
    cx, cy = (side * (0.245 + 0.02 * u[1]), apex + 0.10) if scene.frontal else (-0.19, apex + 0.12)
    angle = np.deg2rad([20, 70, 110, 160, 200, 250, 290, 340]) + 0.35 * u[0]
    box, inner = (
        scene.image_points(cx + wide * np.cos(angle), cy + high * np.sin(angle))
        for wide, high in ((0.052, 0.048), (0.03, 0.022))
    )
    return _tubes(scene, "pacemaker", side, u), [(box, 255), (inner, 215)]


def _chest_tube(scene: Scene, side: int, u: list[float]) -> Drawing:
    ((line, width, grey),) = _tubes(scene, "chest tube", side, u)
    stripe = (millimetres(2.2), 255)
    # The radio-opaque stripe is interrupted by the drainage holes.
    pieces: list[Stroke] = [(line[part], width, grey) for part in (slice(20), slice(21, 26), slice(27, None))]
    return [*pieces, (line[:20], *stripe), (line[21:26], *stripe)], []


def _wires(scene: Scene, side: int, u: list[float]) -> Drawing:
    apex = scene.anatomy.apex
    rows = np.linspace(apex + 0.11, apex + 0.45, 6) + 0.004 * np.sin(np.arange(6) * (3 + u[0]))
    lines: list[Stroke] = []
    for number, row in enumerate(rows.tolist()):
        if scene.frontal:
            x = 0.006 * np.sin(number * 2.1 + u[1])
            ring = scene.image_points(x + 0.017 * np.cos(_CIRCLE), row + 0.008 * np.sin(_CIRCLE + 0.4 * u[2]))
        else:
            x = scene.edge(-1, row)[1]
            ring = scene.image_points(-x - 0.012 + 0.009 * np.cos(_CIRCLE), row + 0.010 * np.sin(_CIRCLE))
        lines += [(points, millimetres(2.2), 255) for points in (ring, ring[[2, 8]] + [0.004, -0.006])]
    return lines, []


def _coin(scene: Scene, side: int, u: list[float]) -> Drawing:
    x, y = _spot(scene, side, u)
    radius = millimetres(10.5 + 1.5 * u[2])
    return [], [(_ring(scene, x, y, radius), 255), (_ring(scene, x, y, radius * 0.8), 235)]


def _button(scene: Scene, side: int, u: list[float]) -> Drawing:
    x, y = _spot(scene, side, u)
    radius = millimetres(9.0 + u[2])
    holes = [(x + radius * 0.3 * dx, y + radius * 0.3 * dy, radius * 0.17, 0) for dx in (-1, 1) for dy in (-1, 1)]
    rings = [(x, y, radius, 235), (x, y, radius * 0.75, 150), *holes]
    return [], [(_ring(scene, *ring), grey) for *ring, grey in rings]


def _pin(scene: Scene, side: int, u: list[float]) -> Drawing:
    angle, length, gap, width = 1.5 * u[2], millimetres(34), millimetres(9), millimetres(2.4)
    along, over = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    base = scene.image_points(*np.array(_spot(scene, side, u))[:, None])[0]
    ends = [base + s * 0.5 * length * along + o * 0.5 * gap * over for s, o in ((1, -1), (-1, -1), (-1, 1), (1, 1))]
    coil = base - 0.5 * length * along
    ring = np.stack([coil[0] + 0.4 * gap * np.cos(_CIRCLE), coil[1] + 0.4 * gap * np.sin(_CIRCLE)], axis=1)
    lines = [np.array(ends[:2]), np.array(ends[2:]), ring]
    return [*((line, width, 255) for line in lines), (np.array([ends[0], ends[3]]), width * 2, 255)], []


def _necklace(scene: Scene, side: int, u: list[float]) -> Drawing:
    t = np.linspace(-1, 1, 27)
    low = 0.15 + 0.03 * u[0]
    if scene.frontal:
        points = scene.image_points(0.125 * t, scene.anatomy.apex - 0.10 + low * (1 - t * t) ** 0.7)
    else:
        points = scene.image_points(-0.16 + 0.12 * (t + 1), scene.anatomy.apex - 0.03 - 0.03 * t)
    bead = millimetres(2.6) * np.stack([np.cos(_CIRCLE[::4]), np.sin(_CIRCLE[::4])], axis=1)
    return [(points, millimetres(1.4), 190)], [(point + bead, 255) for point in points]


def _bullet(scene: Scene, side: int, u: list[float]) -> Drawing:
    x, y = _spot(scene, side, u)
    rng = np.random.default_rng(int(abs(u[3]) * 1e9))
    shapes: list[Shape] = []
    for number in range(6):  # the bullet, then its fragments
        radius = millimetres(6.5 if number == 0 else float(rng.uniform(1.5, 3.0)))
        off = np.zeros(2) if number == 0 else rng.normal(0, millimetres(11), 2)
        angle = np.sort(rng.uniform(0, 2 * np.pi, 7))
        reach = radius * rng.uniform(0.7, 1.2, 7)
        shapes.append((scene.image_points(x + off[0] + reach * np.cos(angle), y + off[1] + reach * np.sin(angle)), 255))
    return [], shapes


_DRAWINGS = {
    "pacemaker": _pacemaker,
    "chest tube": _chest_tube,
    "sternal wires": _wires,
    "coin": _coin,
    "button": _button,
    "safety pin": _pin,
    "necklace": _necklace,
    "bullet fragment": _bullet,
}


def _draw(lesion: Lesion, default: str, amount: float) -> np.ndarray:
    scene, subtype = lesion.scene, lesion.finding.subtype
    if subtype not in {*_DRAWINGS, *CATALOGUE["findings"]["Support Devices"]["subtypes"]}:
        subtype = default
    side, u = lesion.sides[-1], lesion.uniform(4)
    if subtype == "central venous catheter" and scene.frontal:
        subtype = "jugular catheter" if u[1] > 0 else "subclavian catheter"
    draw = _DRAWINGS.get(subtype)
    lines, shapes = draw(scene, side, u) if draw else (_tubes(scene, subtype, side, u), [])
    cover = strokes(scene.size, lines, shapes)
    # Metal and contrast stripes stand out less where the body is already dense.
    scene.density += cover * (amount * lesion.contrast)
    # A wire thinner than a pixel may cover none of them by a quarter.
    return cover > min(0.25, 0.5 * float(cover.max()))


def support_device(lesion: Lesion) -> np.ndarray:
    """Draw a tube, line, wire or generator by subtype; its size is real, so ``lesion_size`` leaves it alone."""
    return _draw(lesion, "central venous catheter", 0.36)


def foreign_object(lesion: Lesion) -> np.ndarray:
    """Draw a coin, button, safety pin, necklace or bullet fragment by subtype, at its real size."""
    return _draw(lesion, "coin", 0.55)
