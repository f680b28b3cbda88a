"""What a radiograph is while it is being drawn: the patient's proportions and the fields that findings change.

Density is about the grey level, 0 to 1, before the tone curve. ``x`` runs from the body's midline to the patient's
left, which is the right of the image, in a frontal view, and from front to back in a lateral one; ``y`` runs down
from the upper edge; both in image sides.
"""

from dataclasses import dataclass

import numpy as np

from medvlp.phantom.fields import FIELD_MM, axes
from medvlp.phantom.model import Study, View, Zone

# Where a zone lies: from and to as share of the lung's height, then of its width (0 medial, 1 lateral).
ZONES: dict[Zone, tuple[float, float, float, float]] = {
    "apical": (0.14, 0.24, 0.35, 0.65),
    "upper": (0.20, 0.38, 0.30, 0.75),
    "mid": (0.44, 0.60, 0.35, 0.75),
    "lower": (0.64, 0.80, 0.35, 0.75),
    "basal": (0.78, 0.90, 0.35, 0.75),
    "perihilar": (0.44, 0.58, 0.18, 0.35),
    "peripheral": (0.35, 0.75, 0.76, 0.86),
    "diffuse": (0.25, 0.80, 0.30, 0.75),
    "retrocardiac": (0.70, 0.85, 0.10, 0.30),
    "none": (0.25, 0.80, 0.30, 0.75),
}


@dataclass(frozen=True)
class Anatomy:
    """The patient's proportions in one study; findings may change them before anything is drawn.

    Args:
        seed: drawing seed of what stays the same between studies.
        study_seed: drawing seed of what does not.
        view: the projection.
        female: breast shadows.
        habitus: 0 (thin) to 1 (obese).
        apex: row of the lung apex.
        width: half width of the rib cage at its widest.
        dome_right: row of the right dome.
        dome_left: row of the left dome.
        flatness: 0 (round domes) to 1 (flat).
        heart: factor on the width of the heart.
        age: in years.
        drop_right: how far the outer part of a broken right clavicle hangs down; 0 if whole.
        drop_left: the same on the left.
    """

    seed: int
    study_seed: int
    view: View
    female: bool
    habitus: float
    apex: float
    width: float
    dome_right: float
    dome_left: float
    flatness: float
    heart: float
    age: int
    drop_right: float = 0.0
    drop_left: float = 0.0


@dataclass
class Scene:
    """A radiograph in the making. Arrays are float32 of (size, size) unless said otherwise.

    Args:
        anatomy: the proportions that were drawn.
        size: side in pixels.
        x: body coordinate across: the patient's left is positive in a frontal view, the back in a lateral one.
        y: (size, 1) row coordinate.
        centre: (size,) image column of the midline in each row, in image sides.
        density: the image so far, without vessels.
        detail: vessels and lung texture, drawn on top at the end.
        air: share of the lung's depth, 0 outside the lungs to 1.
        lungs: bool, the lung fields.
        heart: bool, the heart.
        costal: outer lung border by row, (size,) each: distance from the midline on side −1 (right) and 1 (left).
        medial: inner lung border by row, the same way.
        dome: (size,) diaphragm row by image column, of side −1 and 1.
    """

    anatomy: Anatomy
    size: int
    x: np.ndarray
    y: np.ndarray
    centre: np.ndarray
    density: np.ndarray
    detail: np.ndarray
    air: np.ndarray
    lungs: np.ndarray
    heart: np.ndarray
    costal: dict[int, np.ndarray]
    medial: dict[int, np.ndarray]
    dome: dict[int, np.ndarray]

    @property
    def frontal(self) -> bool:
        """Whether this is a PA or AP view."""
        return self.anatomy.view != "LATERAL"

    def _at(self, line: np.ndarray, where: float) -> float:
        return float(line[min(self.size - 1, max(0, int(where * self.size)))])

    def midline(self, y: float) -> float:
        """Image column of x = 0 in row ``y``."""
        return self._at(self.centre, y)

    def image_points(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Points in image coordinates, (n, 2), from body coordinates (n,) and rows (n,)."""
        rows = axes(self.size)[1][:, 0]
        return np.stack([x + np.interp(y, rows, self.centre), y], axis=1)

    def edge(self, side: int, y: float) -> tuple[float, float]:
        """Inner and outer lung border of a side (−1 right, 1 left) in row ``y``: two distances from the midline."""
        return self._at(self.medial[side], y), self._at(self.costal[side], y)

    def floor(self, side: int, x: float) -> float:
        """Row of the diaphragm of a side under body coordinate ``x`` (signed)."""
        return self._at(self.dome[side], x + self.midline(0.75))

    def place(self, side: int, zone: Zone, across: float, down: float) -> tuple[float, float]:
        """A point in a zone of a lung.

        Args:
            side: −1 right, 1 left.
            zone: see :data:`ZONES`.
            across: position within the zone's width, 0 to 1.
            down: position within the zone's height, 0 to 1.

        Returns:
            Body coordinates x, y. In a lateral view ``across`` is the depth from front to back instead.
        """
        top, bottom, inner, outer = ZONES[zone]
        share = top + down * (bottom - top)
        dome = self.anatomy.dome_left if side > 0 else self.anatomy.dome_right
        y = self.anatomy.apex + share * (dome - self.anatomy.apex)
        if not self.frontal:
            front, back = -self._at(self.costal[-1], y), self._at(self.costal[1], y)
            return front + (0.3 + 0.5 * across) * (back - front), y
        near, far = self.edge(side, y)
        return side * (near + (inner + across * (outer - inner)) * (far - near)), y

    def opacify(self, cover: np.ndarray, amount: float) -> None:
        """Replaces air by tissue: adds ``amount`` × cover where the lung holds air, and hides vessels there."""
        solid = cover * self.air
        self.detail *= 1 - min(0.8, amount * 1.5) * np.minimum(solid, 1.0)
        solid *= amount
        self.density += solid


def build_anatomy(study: Study, view: View) -> Anatomy:
    """The proportions of a patient in one view, before any finding changes them.

    Args:
        study: who is examined, and the seed of this examination.
        view: the projection.

    Returns:
        Proportions that stay close between a patient's studies and differ between patients.
    """
    patient = study.patient
    own = np.random.default_rng([patient.seed, 1]).uniform(-1, 1, 8).tolist()
    day = np.random.default_rng([study.seed, 1]).uniform(-1, 1, 4).tolist()
    bedside = view == "AP"
    breath = 0.012 * day[0] - (0.045 if bedside else 0.0) - 0.02 * patient.habitus
    right = 0.72 + 0.035 * own[0] + breath
    return Anatomy(
        seed=patient.seed,
        study_seed=study.seed,
        view=view,
        female=patient.sex == "F",
        habitus=patient.habitus,
        apex=0.115 + 0.024 * own[1] + 0.008 * day[1],
        width=0.342 + 0.022 * own[2] + (0.006 if patient.sex == "M" else -0.008),
        dome_right=right,
        dome_left=right + 0.022 + 0.012 * own[3],
        flatness=0.25 + 0.15 * own[4],
        heart=(1.0 + 0.09 * own[5] + 0.02 * day[2]) * (1.12 if bedside else 1.0) + 0.06 * patient.habitus,
        age=patient.age,
    )


def millimetres(length: float) -> float:
    """A length of so many millimetres at the patient, in image sides."""
    return length / FIELD_MM
