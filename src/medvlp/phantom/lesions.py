"""Draws findings into a scene, each with its exact mask.

Some findings change the proportions before the chest is drawn (:func:`adapt`). A function of ``DRAW`` changes the
scene's density and detail in place, and returns a (size, size) bool mask from the same geometry, empty where the
projection does not show the finding.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from medvlp.phantom import devices, lesions_lung, lesions_pleura
from medvlp.phantom.model import FINDINGS, Finding
from medvlp.phantom.scene import Anatomy, Lesion, grade


def adapt(a: Anatomy, finding: Finding, strength: float) -> Anatomy:
    """Return the proportions that a finding changes, with ``strength`` as a factor on the change."""
    severity = grade(finding)
    if finding.name == "Cardiomegaly":
        return replace(a, heart=a.heart + max(0.15, 1.36 + 0.26 * severity - a.heart) * strength)
    if finding.name == "Atelectasis":
        lift = (0.02 + 0.025 * severity) * strength
        right = a.dome_right - (lift if finding.side in {"right", "bilateral"} else 0.0)
        left = a.dome_left - (lift if finding.side in {"left", "bilateral"} else 0.0)
        return replace(a, dome_right=right, dome_left=left)
    if finding.name == "Emphysema":
        amount = (0.5 + 0.5 * severity) * strength
        a = replace(a, dome_right=a.dome_right + 0.045 * amount, dome_left=a.dome_left + 0.045 * amount)
        return replace(a, flatness=min(1.2, a.flatness + 0.75 * amount), heart=a.heart * (1 - 0.10 * amount))
    if finding.subtype == "clavicle":
        drop = (0.024 + 0.014 * severity) * strength
        return replace(a, drop_left=drop) if finding.side == "left" else replace(a, drop_right=drop)
    return a


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
ORDER: tuple[str, ...] = (*(name for name in FINDINGS if name not in _LAST), *_LAST)  # findings in the order of drawing
