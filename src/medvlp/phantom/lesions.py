"""Draws findings into a scene, each with its exact mask.

``ADAPT`` holds the findings that change the proportions before the chest is drawn, ``DRAW`` the function of every
finding. A drawing function takes the scene, the finding and the difficulty, changes ``scene.density`` and
``scene.detail`` in place, and returns a (size, size) bool mask from the same geometry, empty where the projection
does not show the finding.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from medvlp.phantom import devices, lesions_lung, lesions_pleura
from medvlp.phantom.lesions_lung import grade
from medvlp.phantom.model import FINDINGS, Difficulty, Finding
from medvlp.phantom.scene import Anatomy, Scene

DrawFn = Callable[[Scene, Finding, Difficulty], np.ndarray]
AdaptFn = Callable[[Anatomy, Finding, Difficulty], Anatomy]


def _strength(difficulty: Difficulty) -> float:
    # Findings that are a change of shape have no contrast of their own: both knobs scale the change.
    return min(1.3, difficulty.contrast * difficulty.lesion_size)


def _widen_heart(a: Anatomy, finding: Finding, difficulty: Difficulty) -> Anatomy:
    usual = a.heart
    target = 1.36 + 0.26 * grade(finding)
    return replace(a, heart=usual + max(0.15, target - usual) * _strength(difficulty))


def _raise_dome(a: Anatomy, finding: Finding, difficulty: Difficulty) -> Anatomy:
    lift = (0.02 + 0.025 * grade(finding)) * _strength(difficulty)
    right = a.dome_right - (lift if finding.side in {"right", "bilateral"} else 0.0)
    left = a.dome_left - (lift if finding.side in {"left", "bilateral"} else 0.0)
    return replace(a, dome_right=right, dome_left=left)


def _inflate(a: Anatomy, finding: Finding, difficulty: Difficulty) -> Anatomy:
    amount = (0.5 + 0.5 * grade(finding)) * _strength(difficulty)
    return replace(
        a,
        dome_right=a.dome_right + 0.045 * amount,
        dome_left=a.dome_left + 0.045 * amount,
        flatness=min(1.2, a.flatness + 0.75 * amount),
        heart=a.heart * (1 - 0.10 * amount),
    )


def _break_clavicle(a: Anatomy, finding: Finding, difficulty: Difficulty) -> Anatomy:
    if finding.subtype != "clavicle":
        return a
    drop = (0.024 + 0.014 * grade(finding)) * _strength(difficulty)
    return replace(a, drop_left=drop) if finding.side == "left" else replace(a, drop_right=drop)


ADAPT: dict[str, AdaptFn] = {
    "Cardiomegaly": _widen_heart,
    "Atelectasis": _raise_dome,
    "Emphysema": _inflate,
    "Fracture": _break_clavicle,
}
"""Findings that change the proportions."""

DRAW: dict[str, DrawFn] = {
    "Atelectasis": lesions_lung.atelectasis,
    "Cardiomegaly": lesions_pleura.cardiomegaly,
    "Consolidation": lesions_lung.consolidation,
    "Edema": lesions_lung.edema,
    "Pleural Effusion": lesions_pleura.effusion,
    "Emphysema": lesions_lung.emphysema,
    "Fibrosis": lesions_lung.fibrosis,
    "Hernia": lesions_pleura.hernia,
    "Infiltration": lesions_lung.infiltration,
    "Mass": lesions_lung.mass,
    "Nodule": lesions_lung.nodule,
    "Pleural Thickening": lesions_pleura.thickening,
    "Pneumonia": lesions_lung.pneumonia,
    "Pneumothorax": lesions_pleura.pneumothorax,
    "Fracture": lesions_pleura.fracture,
    "Support Devices": devices.support_device,
    "Foreign Object": devices.foreign_object,
    "COVID-19": lesions_lung.covid,
}
"""The drawing function of every finding."""

# What fills or replaces lung is drawn before the pleural line and the devices that lie over it.
_LAST = ("Pneumothorax", "Pleural Effusion", "Hernia", "Fracture", "Support Devices", "Foreign Object")
ORDER: tuple[str, ...] = (*(name for name in FINDINGS if name not in _LAST), *_LAST)
"""Findings in the order of drawing."""
