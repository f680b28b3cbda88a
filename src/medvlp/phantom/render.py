"""Draws the radiographs of a study with exact masks and boxes."""

import math
from functools import cache

import numpy as np

from medvlp.errors import ConfigError
from medvlp.phantom.anatomy import draw_frontal, draw_lateral
from medvlp.phantom.fields import axes, split_parts, strokes
from medvlp.phantom.lesions import DRAW, ORDER, adapt
from medvlp.phantom.model import Difficulty, PhantomSpec, RenderedView, Study, View
from medvlp.phantom.scene import Lesion, Scene, build_anatomy

SMALLEST = 32  # side of the smallest image that can be drawn, in pixels

_BENDING = 1.15  # steepness of the tone curve: more squeezes the bright end


@cache
def _keep_freed_memory() -> None:
    """Let the C allocator reuse the memory of freed arrays, once in each process.

    Without it glibc gives freed memory back to the system, and page faults take a third of the drawing time. Freeing a
    block of just under 32 MiB, which is never touched, raises its thresholds ("M_MMAP_THRESHOLD" in mallopt(3)).
    """
    np.empty(31 << 20, dtype=np.uint8)


def _marker(size: int, view: View, u: list[float]) -> np.ndarray:
    left = u[0] > -0.6 or view == "LATERAL"
    x, y = (0.90 if left else 0.06) + 0.03 * u[1], 0.04 + 0.02 * u[2]
    tall, wide = 0.042, 0.026
    half = y + 0.5 * tall
    if left:
        glyphs = [[[x, y], [x, y + tall], [x + wide, y + tall]]]
    else:
        leg = [[x + 0.5 * wide, half], [x + wide, y + tall]]
        glyphs = [[[x, y + tall], [x, y], [x + wide, y], [x + wide, half], [x, half]], leg]
    return strokes(size, [(np.array(glyph), 0.007, 255) for glyph in glyphs])


def _develop(scene: Scene, study: Study, view: View, difficulty: Difficulty) -> np.ndarray:
    size, density = scene.size, scene.density
    rng = np.random.default_rng([study.seed, 7, 1 if view == "LATERAL" else 0])
    u = rng.uniform(-1, 1, 12).tolist()
    density += scene.detail
    # Uneven beam: a slope over the image, steeper at the bedside.
    columns, rows = axes(size)
    slope = 0.05 if view == "AP" else 0.025
    density += (slope * u[0]) * (columns - 0.5)
    density += (slope * u[1]) * (rows - 0.5)
    density *= 1.0 + 0.09 * u[2]
    density += 0.03 * u[3]
    if difficulty.noise > 0:
        # Smaller pixels catch fewer quanta. The full rise (with the size itself) would drown a 512-pixel image.
        noise = rng.standard_normal((size, size), dtype=np.float32)
        noise *= 0.0125 * difficulty.noise * math.sqrt(size / 256)
        density += noise
    np.maximum(density, 0.0, out=density)
    density *= _BENDING
    np.tanh(density, out=density)
    density *= 1 / math.tanh(_BENDING)
    density += 0.9 * _marker(size, view, u[4:7])
    for width, border in zip(u[8:12], (density, density[::-1], density.T, density.T[::-1]), strict=True):
        if width > 0.5:  # about a quarter of the edges are collimated
            edge = max(1, round(0.05 * (width - 0.4) * size))
            border[:edge] = 0.03
    density *= 255.0
    np.clip(density, 0, 255, out=density)
    return density.astype(np.uint8)


def render_view(study: Study, view: View, size: int, difficulty: Difficulty) -> RenderedView:
    """Draw one projection of a study, at least 32 pixels a side; the same arguments give the same bytes.

    A patient's left is on the right of a frontal image; a lateral view looks to the left.

    Raises:
        ConfigError: the size is too small.
    """
    if size < SMALLEST:
        raise ConfigError(f"phantom images of {size} pixels are too small to draw; use a size of {SMALLEST} or more")
    _keep_freed_memory()
    anatomy = build_anatomy(study, view)
    for finding in study.findings:
        # A change of shape has no contrast of its own: both settings scale it.
        anatomy = adapt(anatomy, finding, min(1.3, difficulty.contrast * difficulty.lesion_size))
    scene = draw_lateral(anatomy, size) if view == "LATERAL" else draw_frontal(anatomy, size)
    order = sorted(range(len(study.findings)), key=lambda i: ORDER.index(study.findings[i].name))
    drawn = {i: DRAW[study.findings[i].name](Lesion(scene, study.findings[i], difficulty)) for i in order}
    masks, boxes = split_parts(drawn[i] for i in range(len(drawn)))
    return RenderedView(view, _develop(scene, study, view, difficulty), masks, boxes, scene.lungs, scene.heart)


def render_study(study: Study, spec: PhantomSpec) -> tuple[RenderedView, ...]:
    """Draw every view of a study, in the order of ``study.views``, with the size and difficulty of ``spec``."""
    return tuple(render_view(study, view, spec.size, spec.difficulty) for view in study.views)
