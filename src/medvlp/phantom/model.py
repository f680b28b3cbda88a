"""What a phantom study is, apart from how it is drawn, described or stored.

The renderer (``render.py``) turns a :class:`Study` into pixels and masks, the reporter (``reports.py``) into
text, and a writer in ``layouts/`` into files. None of the three knows the others.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

FINDINGS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumonia",
    "Pneumothorax",
    "Fracture",
    "Support Devices",
    "Foreign Object",
    "COVID-19",
)
"""Every finding that the phantom can draw, in the order of all its label tables."""

Side = Literal["left", "right", "bilateral", "midline"]
Zone = Literal["apical", "upper", "mid", "lower", "basal", "perihilar", "peripheral", "diffuse", "retrocardiac", "none"]
Severity = Literal["small", "moderate", "large"]
View = Literal["PA", "AP", "LATERAL"]


@dataclass(frozen=True)
class Difficulty:
    """Knobs that keep a task off its ceiling. All are factors of a well visible default of 1.

    Args:
        contrast: factor on the contrast of every finding against its surroundings, in (0, 2].
        noise: factor on the quantum and detector noise, in [0, 5].
        lesion_size: factor on the linear size of the findings, in (0, 2].
        omission: probability that a report leaves a present finding out, in [0, 1].
        uncertainty: probability that a mentioned finding is hedged ("possible", "cannot exclude"), in [0, 1].
        prevalence: factor on the odds of each finding, in (0, 10].
    """

    contrast: float = 1.0
    noise: float = 1.0
    lesion_size: float = 1.0
    omission: float = 0.05
    uncertainty: float = 0.1
    prevalence: float = 1.0


@dataclass(frozen=True)
class PhantomSpec:
    """Everything that decides the bytes of a phantom tree.

    Args:
        studies: number of studies written.
        seed: the same seed gives the same bytes, whatever the number of processes.
        size: side of the square images, in pixels.
        difficulty: the knobs of :class:`Difficulty`.
        laterals: share of the studies that also hold a lateral view.
        split: shares of the patients in train, validate and test; they sum to 1.
        findings: the members of :data:`FINDINGS` that may occur; fewer make an easier phantom.
    """

    studies: int = 1000
    seed: int = 0
    size: int = 256
    difficulty: Difficulty = field(default_factory=Difficulty)
    laterals: float = 0.2
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)
    findings: tuple[str, ...] = FINDINGS

    def as_dict(self) -> dict:
        """The spec as plain nested dictionaries and numbers, for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Finding:
    """One finding of a study.

    Args:
        name: a member of :data:`FINDINGS`.
        side: the patient's side (a left finding lies on the right of a frontal image), or None.
        zone: where in the lung or chest.
        severity: small, moderate or large.
        size_mm: longest extent in millimetres, for findings that are measured (nodule, mass, pneumothorax).
        subtype: the kind, where there are several ("endotracheal tube", "rib", "sternal wires", "coin", …).
        seed: drawing seed, so that all views show the same lesion.
    """

    name: str
    side: Side | None = None
    zone: Zone = "none"
    severity: Severity = "moderate"
    size_mm: float = 0.0
    subtype: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Patient:
    """A patient: everything that stays the same from study to study.

    Args:
        index: position in the phantom, 0-based.
        seed: drawing seed of the anatomy.
        sex: "M" or "F".
        age: in years at the first study.
        habitus: 0 (thin) to 1 (obese).
    """

    index: int
    seed: int
    sex: Literal["M", "F"]
    age: int
    habitus: float


@dataclass(frozen=True)
class Study:
    """One examination of a patient.

    Args:
        patient: who.
        index: position among the phantom's studies, 0-based.
        number: position among the patient's studies, 0-based.
        views: the projections taken, in order; the first is frontal.
        findings: what there is to see, possibly nothing.
        reader: which of the phantom's radiologists reports, 0-based.
        seed: seed of everything drawn or worded anew in this study.
    """

    patient: Patient
    index: int
    number: int
    views: tuple[View, ...]
    findings: tuple[Finding, ...]
    reader: int
    seed: int

    @property
    def labels(self) -> np.ndarray:
        """Exact labels, (18,) float32 of 0 and 1, in the order of :data:`FINDINGS`."""
        present = {f.name for f in self.findings}
        return np.array([name in present for name in FINDINGS], dtype=np.float32)


@dataclass(frozen=True)
class RenderedView:
    """One drawn radiograph with its exact truth.

    Args:
        view: the projection.
        image: (size, size) uint8 grey levels, bright = dense, as in MIMIC-CXR-JPG.
        masks: one (size, size) bool array for each finding of the study, in its order; all False where the
            projection does not show the finding.
        boxes: for each finding a list of (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, one per connected part.
        lungs: (size, size) bool, both lung fields.
        heart: (size, size) bool.
    """

    view: View
    image: np.ndarray
    masks: tuple[np.ndarray, ...]
    boxes: tuple[tuple[tuple[int, int, int, int], ...], ...]
    lungs: np.ndarray
    heart: np.ndarray


@dataclass(frozen=True)
class PhantomReport:
    """A report and what it says.

    Args:
        sections: section name in capitals ("EXAMINATION", "INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION")
            to plain text, in the order of printing; omitted sections are absent.
        mentions: finding name to 1.0 (stated present), 0.0 (negated) or −1.0 (hedged); unmentioned are absent.
    """

    sections: dict[str, str]
    mentions: dict[str, float]
