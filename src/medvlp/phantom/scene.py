"""What a radiograph is while it is being drawn: the patient's proportions and the fields that findings change.

Density is about the grey level, 0 to 1, before the tone curve. ``x`` runs from the body's midline to the patient's
left, which is the right of the image, in a frontal view, and from front to back in a lateral one; ``y`` runs down
from the upper edge; both in image sides.
"""

from dataclasses import dataclass

import numpy as np

from medvlp.phantom.fields import FIELD_MM, axes, ellipse, ramp, uniform
from medvlp.phantom.model import CATALOGUE, Difficulty, Finding, Study, View, Zone


@dataclass(frozen=True)
class Anatomy:
    """The patient's proportions in one study; findings may change them before anything is drawn."""

    seed: int  # of what stays the same between studies
    study_seed: int  # of what does not
    view: View
    female: bool
    habitus: float  # 0 (thin) to 1 (obese)
    apex: float  # row of the lung apex
    width: float  # half width of the rib cage at its widest
    dome_right: float  # rows of the diaphragm's domes
    dome_left: float
    flatness: float  # 0 (round domes) to 1 (flat)
    heart: float  # factor on the width of the heart
    age: int  # in years
    drop_right: float = 0.0  # how far the outer part of a broken clavicle hangs down; 0 if whole
    drop_left: float = 0.0

    @property
    def base(self) -> float:
        """Row of the higher dome."""
        return min(self.dome_left, self.dome_right)

    def dome(self, side: int) -> float:
        """Return the row of the dome of a side, −1 (right) or 1 (left)."""
        return self.dome_left if side > 0 else self.dome_right

    def drop(self, side: int) -> float:
        """Return how far the outer part of the clavicle of a side hangs down."""
        return self.drop_left if side > 0 else self.drop_right


@dataclass
class Scene:
    """A radiograph in the making. Arrays are float32 of (size, size) unless said otherwise."""

    anatomy: Anatomy
    size: int  # side in pixels
    x: np.ndarray  # body coordinate across
    y: np.ndarray  # (size, 1) row coordinate
    centre: np.ndarray  # (size,) image column of the midline in each row, in image sides
    density: np.ndarray  # the image so far, without vessels
    air: np.ndarray  # share of the lung's depth, 0 outside the lungs to 1
    lungs: np.ndarray  # bool, the lung fields
    heart: np.ndarray  # bool
    costal: dict[int, np.ndarray]  # (size,) distance of the outer lung border from the midline, of side −1 and 1
    medial: dict[int, np.ndarray]  # of the inner lung border
    domes: dict[int, np.ndarray]  # (size,) row of the diaphragm by image column, of side −1 and 1
    detail: np.ndarray  # vessels and lung texture, drawn on top at the end

    @property
    def frontal(self) -> bool:
        """Whether this is a PA or AP view."""
        return self.anatomy.view != "LATERAL"

    def _at(self, line: np.ndarray, where: float) -> float:
        return float(line[min(self.size - 1, max(0, int(where * self.size)))])

    def image_points(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return points in image coordinates, (n, 2), from body coordinates (n,) and rows (n,)."""
        rows = axes(self.size)[1][:, 0]
        return np.stack([x + np.interp(y, rows, self.centre), y], axis=1)

    def edge(self, side: int, y: float) -> tuple[float, float]:
        """Return the distances of the inner and the outer lung border of a side from the midline in row ``y``."""
        return self._at(self.medial[side], y), self._at(self.costal[side], y)

    def floor(self, side: int, x: float) -> float:
        """Return the row of the diaphragm of a side under body coordinate ``x`` (signed)."""
        return self._at(self.domes[side], x + self._at(self.centre, 0.75))

    def place(self, side: int, zone: Zone, across: float, down: float) -> tuple[float, float]:
        """Return a point (x, y) in a zone of a lung, by its shares (0 to 1) of the zone's width and height.

        In a lateral view ``across`` is the depth from front to back.
        """
        limits = CATALOGUE["zones"][zone]
        share = limits["from"] + down * (limits["to"] - limits["from"])
        y = self.anatomy.apex + share * (self.anatomy.dome(side) - self.anatomy.apex)
        if not self.frontal:
            front, back = -self._at(self.costal[-1], y), self._at(self.costal[1], y)
            return front + (0.3 + 0.5 * across) * (back - front), y
        near, far = self.edge(side, y)
        share = limits["medial"] + across * (limits["lateral"] - limits["medial"])
        return side * (near + share * (far - near)), y

    def opacify(self, cover: np.ndarray, amount: float) -> None:
        """Replace air by tissue: add ``amount`` × cover where the lung holds air, and hide vessels there."""
        solid = cover * self.air
        self.detail *= 1 - min(0.8, amount * 1.5) * np.minimum(solid, 1.0)
        solid *= amount
        self.density += solid


class Lesion:
    """A finding that is being drawn into a scene, with what its drawing function needs."""

    def __init__(self, scene: Scene, finding: Finding, difficulty: Difficulty) -> None:
        self.scene, self.finding = scene, finding
        self.anatomy = scene.anatomy
        self.contrast = difficulty.contrast
        self.size = difficulty.lesion_size
        self.rng = np.random.default_rng(finding.seed)
        self.grade = grade(finding)
        self.sides = {"left": (1,), "right": (-1,)}.get(finding.side or "", (-1, 1))
        self.strength = difficulty.contrast * (0.82 + 0.36 * self.grade)  # small findings are fainter
        self.span = difficulty.lesion_size * (0.78 + 0.5 * self.grade)  # for findings that are not measured
        self.mask = np.zeros((scene.size, scene.size), dtype=bool)

    def uniform(self, count: int) -> list[float]:
        """Draw numbers in [−1, 1)."""
        return self.rng.uniform(-1, 1, count).tolist()

    def random(self, count: int) -> list[float]:
        """Draw numbers in [0, 1)."""
        return self.rng.random(count).tolist()

    def blob(self, at: tuple[float, float], radius: tuple[float, float], noise: np.ndarray, rough: float) -> np.ndarray:
        """Return the distance from a centre over the radius, 1 at an outline that noise makes irregular."""
        off = ellipse(self.scene.x, self.scene.y, at, radius)
        np.sqrt(off, out=off)
        off += rough * noise
        return off

    def lung(self, side: int) -> np.ndarray:
        """Return the lung field of a side, bool; in a lateral view both lungs lie over each other."""
        scene = self.scene
        return scene.lungs & (scene.x * side > 0) if scene.frontal else scene.lungs

    def fade(self, side: int) -> np.ndarray | float:
        """Return 1 on a side of the midline and 0 beyond, so that a soft opacity does not cross it."""
        return ramp(self.scene.x * side, 0.02) if self.scene.frontal else 1.0


def grade(finding: Finding) -> float:
    """Return the severity as 0 (small), 0.5 (moderate) or 1 (large)."""
    return {"small": 0.0, "moderate": 0.5, "large": 1.0}[finding.severity]


def build_anatomy(study: Study, view: View) -> Anatomy:
    """Return the proportions of a patient in one view, before any finding changes them."""
    patient = study.patient
    traits, day = uniform([patient.seed, 1], 8), uniform([study.seed, 1], 4)
    bedside = view == "AP"
    breath = 0.012 * day[0] - (0.045 if bedside else 0.0) - 0.02 * patient.habitus
    right = 0.72 + 0.035 * traits[0] + breath
    return Anatomy(
        seed=patient.seed,
        study_seed=study.seed,
        view=view,
        female=patient.sex == "F",
        habitus=patient.habitus,
        apex=0.115 + 0.024 * traits[1] + 0.008 * day[1],
        width=0.342 + 0.022 * traits[2] + (0.006 if patient.sex == "M" else -0.008),
        dome_right=right,
        dome_left=right + 0.022 + 0.012 * traits[3],
        flatness=0.25 + 0.15 * traits[4],
        heart=(1.0 + 0.09 * traits[5] + 0.02 * day[2]) * (1.12 if bedside else 1.0) + 0.06 * patient.habitus,
        age=patient.age,
    )


def millimetres(length: float) -> float:
    """Convert millimetres at the patient to image sides."""
    return length / FIELD_MM
