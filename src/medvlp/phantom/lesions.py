"""Draws findings into a scene, each with its exact mask.

``ADAPT`` holds the findings that change the proportions before the chest is drawn, ``DRAW`` the drawing functions: each
changes the scene's density and detail in place, and returns a (size, size) bool mask from the same geometry, empty
where the projection does not show the finding.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from medvlp.phantom import devices, lesions_lung, lesions_pleura
from medvlp.phantom.model import FINDINGS, Finding
from medvlp.phantom.scene import Anatomy, Lesion, grade


def _widen_heart(a: Anatomy, finding: Finding, strength: float) -> Anatomy:
    target = 1.36 + 0.26 * grade(finding)
    return replace(a, heart=a.heart + max(0.15, target - a.heart) * strength)


def _raise_dome(a: Anatomy, finding: Finding, strength: float) -> Anatomy:
    lift = (0.02 + 0.025 * grade(finding)) * strength
    right = a.dome_right - (lift if finding.side in {"right", "bilateral"} else 0.0)
    left = a.dome_left - (lift if finding.side in {"left", "bilateral"} else 0.0)
    return replace(a, dome_right=right, dome_left=left)


def _inflate(a: Anatomy, finding: Finding, strength: float) -> Anatomy:
    amount = (0.5 + 0.5 * grade(finding)) * strength
    return replace(
        a,
        dome_right=a.dome_right + 0.045 * amount,
        dome_left=a.dome_left + 0.045 * amount,
        flatness=min(1.2, a.flatness + 0.75 * amount),
        heart=a.heart * (1 - 0.10 * amount),
    )


def _break_clavicle(a: Anatomy, finding: Finding, strength: float) -> Anatomy:
    if finding.subtype != "clavicle":
        return a
    drop = (0.024 + 0.014 * grade(finding)) * strength
    return replace(a, drop_left=drop) if finding.side == "left" else replace(a, drop_right=drop)


ADAPT: dict[str, Callable[[Anatomy, Finding, float], Anatomy]] = {
    "Cardiomegaly": _widen_heart,
    "Atelectasis": _raise_dome,
    "Emphysema": _inflate,
    "Fracture": _break_clavicle,
}
"""Findings that change the proportions, by a factor on the change."""

DRAW: dict[str, Callable[[Lesion], np.ndarray]] = {
    "Atelectasis": lesions_lung.atelectasis,
    "Cardiomegaly": lambda lesion: lesion.scene.heart.copy(),  # drawn wide; a reader would box all of it
    "Consolidation": lesions_lung.consolidation,
    "Edema": lesions_lung.edema,
    "Pleural Effusion": lesions_pleura.effusion,
    "Emphysema": lesions_lung.emphysema,
    "Fibrosis": lesions_lung.fibrosis,
    "Hernia": lesions_pleura.hernia,
    "Infiltration": lesions_lung.infiltration,
    "Mass": lesions_lung.ball,
    "Nodule": lesions_lung.ball,
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
