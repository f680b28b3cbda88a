"""What a phantom study is, apart from how it is drawn (``render``), worded (``reports``) or stored (``layouts``)."""

import dataclasses
import json
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

import numpy as np


def read_table(name: str) -> Any:
    """Read a JSON file of this package."""
    return json.loads(resources.files("medvlp.phantom").joinpath(name).read_text("utf-8"))


CATALOGUE: dict[str, Any] = read_table("findings.json")
"""What the phantom knows about its findings:

- ``findings``: for each one its ``prevalence`` in a study that is not healthy, the factors ("pull") on its odds where
  another finding is present, whether it is there again at the next visit ("chronic"), its zones (a list to choose from,
  or cumulated shares), the share of bilateral ones, subtypes, sizes, and what ChestX-ray14 and Open-I call it;
- ``sampling_order``, ``midline`` and ``usual_side``: how findings are drawn at random, the shares of their sides;
- ``zones``: where they lie, as shares of the lung's height (from, to) and width (medial 0, lateral 1).
"""

FINDINGS: tuple[str, ...] = tuple(CATALOGUE["findings"])
"""Every finding that the phantom can draw, in the order of all its label tables."""

Side = Literal["left", "right", "bilateral", "midline"]
Zone = Literal["apical", "upper", "mid", "lower", "basal", "perihilar", "peripheral", "diffuse", "retrocardiac", "none"]
Severity = Literal["small", "moderate", "large"]
View = Literal["PA", "AP", "LATERAL"]
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, x1 and y1 exclusive."""


@dataclass(frozen=True)
class Difficulty:
    """Settings that keep a task off its ceiling; a finding is well visible with the defaults.

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
        studies: number of studies.
        seed: the same seed gives the same bytes, whatever the number of processes.
        size: side of the square images, in pixels.
        difficulty: contrast, noise, prevalence and so on, see :class:`Difficulty`.
        laterals: share of the studies with an additional lateral view.
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


@dataclass(frozen=True)
class Finding:
    """One finding of a study."""

    name: str  # a member of FINDINGS
    side: Side | None = None  # the patient's: a left finding lies on the right of a frontal image
    zone: Zone = "none"
    severity: Severity = "moderate"
    size_mm: float = 0.0  # longest extent, for findings that are measured (nodule, mass, pneumothorax)
    subtype: str = ""  # "endotracheal tube", "rib", "sternal wires", "coin", …
    seed: int = 0  # drawing seed, so that all views show the same lesion

    def as_dict(self) -> dict[str, Any]:
        """Return the finding for JSON, without its drawing seed."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "seed"}


@dataclass(frozen=True)
class Patient:
    """What stays the same from study to study."""

    index: int  # 0-based position in the phantom
    seed: int  # drawing seed of the anatomy
    sex: Literal["M", "F"]
    age: int  # in years at the first study
    habitus: float  # 0 (thin) to 1 (obese)


@dataclass(frozen=True)
class Study:
    """One examination of a patient."""

    patient: Patient
    index: int  # 0-based position among the phantom's studies
    number: int  # 0-based position among the patient's studies
    views: tuple[View, ...]  # the projections taken; the first is frontal
    findings: tuple[Finding, ...]
    reader: int  # which of the phantom's radiologists reports, 0-based
    seed: int  # of what differs between the studies of a patient

    @property
    def labels(self) -> np.ndarray:
        """Exact labels, (18,) float32 of 0 and 1, in the order of :data:`FINDINGS`."""
        present = {f.name for f in self.findings}
        return np.array([name in present for name in FINDINGS], dtype=np.float32)


@dataclass(frozen=True)
class RenderedView:
    """One drawn radiograph with its exact truth: masks of (size, size) bool, in the order of the study's findings."""

    view: View
    image: np.ndarray  # (size, size) uint8 grey levels, bright = dense, as in MIMIC-CXR-JPG
    masks: tuple[np.ndarray, ...]  # all False if the projection does not show the finding
    boxes: tuple[tuple[Box, ...], ...]  # for each finding those of its connected parts, the largest first
    lungs: np.ndarray  # both lung fields
    heart: np.ndarray


@dataclass(frozen=True)
class PhantomReport:
    """A report and what it says."""

    # Name in capitals ("EXAMINATION", "FINDINGS", …) to text, in the order of printing; omitted sections are absent.
    sections: dict[str, str]
    mentions: dict[str, float]  # finding to 1.0 (stated present), 0.0 (negated) or −1.0 (hedged), if mentioned
