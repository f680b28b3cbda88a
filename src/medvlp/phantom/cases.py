"""Invents patients and studies: who comes, what they have, which views are taken.

Every number comes from a generator seeded by (spec seed, purpose, patient, study), so a study can be made alone, in
any order and in any process.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np

from medvlp.errors import ConfigError
from medvlp.phantom.model import FINDINGS, Finding, Patient, PhantomSpec, Severity, Side, Study, View, Zone

READERS = 8
"""Number of radiologists who report in the phantom."""

MOST_FINDINGS = 5
"""A study has at most this many findings, each name at most once."""

_COUNTS, _PATIENT, _STUDY, _SPLIT = 1, 2, 3, 4  # purposes: keep the random streams apart
_STUDY_COUNT_LIMITS = (0.76, 0.95)  # 76 % of the patients come once, 19 % twice, 5 % three times
_BLOCK = 4096
_HEALTHY = 0.21
_GOLDEN = (math.sqrt(5) - 1) / 2

# Probability in a study that is not healthy, before the pull of the findings drawn earlier (in this order).
_BASE: dict[str, float] = {
    "Support Devices": 0.160,
    "Emphysema": 0.116,
    "COVID-19": 0.116,
    "Cardiomegaly": 0.154,
    "Edema": 0.083,
    "Pleural Effusion": 0.105,
    "Pneumonia": 0.143,
    "Consolidation": 0.099,
    "Infiltration": 0.105,
    "Atelectasis": 0.116,
    "Pneumothorax": 0.105,
    "Fibrosis": 0.127,
    "Pleural Thickening": 0.121,
    "Mass": 0.116,
    "Nodule": 0.127,
    "Hernia": 0.116,
    "Fracture": 0.110,
    "Foreign Object": 0.116,
}

# Factors on the odds of a finding where an earlier one is present.
_PULL: dict[str, dict[str, float]] = {
    "Cardiomegaly": {"Support Devices": 1.8, "COVID-19": 0.6},
    "Edema": {"Support Devices": 2.0, "Cardiomegaly": 3.5, "Emphysema": 0.4, "COVID-19": 0.3},
    "Pleural Effusion": {"Support Devices": 1.8, "Cardiomegaly": 1.7, "Edema": 3.5, "COVID-19": 0.5},
    "Pneumonia": {"COVID-19": 0.5, "Edema": 0.6, "Pleural Effusion": 1.4},
    "Consolidation": {"Pneumonia": 2.0, "COVID-19": 0.7, "Pleural Effusion": 1.4},
    "Infiltration": {"Pneumonia": 1.8, "COVID-19": 0.6, "Edema": 0.6},
    "Atelectasis": {"Pleural Effusion": 2.0, "Support Devices": 1.6},
    "Pneumothorax": {"Emphysema": 1.5, "Support Devices": 1.4},
    "Pleural Thickening": {"Fibrosis": 1.7, "Pleural Effusion": 0.6},
    "Nodule": {"Mass": 1.6},
    "Fracture": {"Pneumothorax": 1.7},
}

# These are there again at the next visit, drawn the same.
_CHRONIC = frozenset(
    {"Cardiomegaly", "Emphysema", "Fibrosis", "Hernia", "Pleural Thickening", "Mass", "Nodule", "Fracture"}
)
_STAYS, _NEW = 0.8, 0.25

_UNILATERAL_ZONES: dict[str, tuple[Zone, ...]] = {
    "Atelectasis": ("lower", "basal", "basal"),
    "Consolidation": ("upper", "mid", "lower"),
    "Pleural Effusion": ("basal",),
    "Infiltration": ("upper", "mid", "lower", "perihilar"),
    "Mass": ("upper", "mid", "lower", "perihilar"),
    "Nodule": ("apical", "upper", "mid", "lower", "peripheral"),
    "Pleural Thickening": ("apical", "peripheral"),
    "Pneumonia": ("upper", "mid", "lower", "lower"),
    "Pneumothorax": ("apical",),
}
# Probability that a finding of both lungs or pleurae is bilateral.
_BILATERAL: dict[str, float] = {
    "Atelectasis": 0.2,
    "Pleural Effusion": 0.3,
    "Infiltration": 0.2,
    "Pleural Thickening": 0.25,
    "Pneumonia": 0.15,
    "Edema": 1.0,
    "Emphysema": 1.0,
    "COVID-19": 1.0,
    "Fibrosis": 0.8,
}
DEVICES = (
    "endotracheal tube",
    "central venous catheter",
    "nasogastric tube",
    "pacemaker",
    "chest tube",
    "sternal wires",
)
"""Subtypes of "Support Devices"."""
OBJECTS = ("coin", "button", "safety pin", "necklace", "bullet fragment")
"""Subtypes of "Foreign Object"."""
_SIZES_MM: dict[str, tuple[tuple[float, float], ...]] = {  # for small, moderate, large
    "Nodule": ((8, 13), (13, 20), (20, 30)),
    "Mass": ((31, 40), (40, 55), (55, 80)),
    "Pneumothorax": ((12, 20), (20, 38), (38, 65)),
}
_SEVERITIES: tuple[Severity, ...] = ("small", "moderate", "large")


def _check(spec: PhantomSpec) -> None:
    knobs = spec.difficulty
    limits = {
        "contrast": (knobs.contrast, 2.0, False),
        "lesion_size": (knobs.lesion_size, 2.0, False),
        "prevalence": (knobs.prevalence, 10.0, False),
        "noise": (knobs.noise, 5.0, True),
        "omission": (knobs.omission, 1.0, True),
        "uncertainty": (knobs.uncertainty, 1.0, True),
        "laterals": (spec.laterals, 1.0, True),
    }
    for name, (value, most, zero) in limits.items():
        if not (0 <= value <= most and (zero or value > 0)):
            raise ConfigError(f"Phantom setting {name} is {value}; give a value from 0 to {most:g}.")
    if spec.studies < 0 or spec.seed < 0:
        raise ConfigError(f"Phantom studies ({spec.studies}) and seed ({spec.seed}) must not be negative.")
    unknown = [name for name in spec.findings if name not in FINDINGS]
    if unknown or not spec.findings:
        raise ConfigError(f"Phantom findings {unknown or 'none'}: choose among {', '.join(FINDINGS)}.")
    if min(spec.split) < 0 or abs(sum(spec.split) - 1) > 1e-6:
        raise ConfigError(f"Phantom split {spec.split} must hold three shares that sum to 1.")


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(0, 2**31 - 1))


@lru_cache(maxsize=4)
def _starts(seed: int, studies: int) -> tuple[int, ...]:
    """Index of each patient's first study; patients beyond ``studies`` are left out."""
    starts: list[int] = []
    total, block = 0, 0
    while total < studies:
        draws = np.random.default_rng([seed, _COUNTS, block]).random(_BLOCK)
        counts = 1 + np.digitize(draws, _STUDY_COUNT_LIMITS)
        ends = total + np.cumsum(counts)
        starts += [total, *ends[:-1].tolist()]
        total, block = int(ends[-1]), block + 1
    return tuple(starts[: bisect_right(starts, studies - 1)])


def sample_patient(seed: int, index: int) -> Patient:
    """A patient of the phantom.

    Args:
        seed: the spec's seed.
        index: position of the patient, 0-based.

    Returns:
        The patient, the same for the same arguments.
    """
    rng = np.random.default_rng([seed, _PATIENT, index])
    age = int(np.clip(rng.normal(58, 18), 18, 95))
    return Patient(
        index=index,
        seed=_seed(rng),
        sex="M" if rng.random() < 0.53 else "F",
        age=age,
        habitus=float(np.round(rng.beta(2.2, 3.0), 3)),
    )


def split_of(spec: PhantomSpec, patient_index: int) -> Literal["train", "validate", "test"]:
    """The split that a patient, with all studies, belongs to.

    The patients follow a golden-ratio sequence, so the shares hold closely even for a few tens of patients.

    Args:
        spec: its ``seed`` and ``split`` decide.
        patient_index: position of the patient, 0-based.

    Raises:
        ConfigError: the shares are negative or do not sum to 1.
    """
    _check(spec)
    offset = float(np.random.default_rng([spec.seed, _SPLIT]).random())
    at = (offset + (patient_index + 1) * _GOLDEN) % 1.0
    train, validate, test = spec.split
    # Each share is one arc of the circle; rounding must not send a patient to a split of share 0.
    if at < train or validate + test == 0:
        return "train"
    return "validate" if at < train + validate or test == 0 else "test"


def _odds(probability: float, factor: float) -> float:
    odds = probability / (1 - probability) * factor
    return odds / (1 + odds)


def _zone(name: str, subtype: str, rng: np.random.Generator) -> Zone:
    if name in _UNILATERAL_ZONES:
        zones = _UNILATERAL_ZONES[name]
        return zones[int(rng.integers(len(zones)))]
    if name == "Fibrosis":
        return "apical" if rng.random() < 0.25 else "basal"
    if name == "Emphysema":
        return "upper" if rng.random() < 0.5 else "diffuse"
    if name == "Fracture" and subtype == "rib":
        return "mid" if rng.random() < 0.6 else "lower"
    fixed: dict[str, Zone] = {"Edema": "perihilar", "COVID-19": "peripheral", "Hernia": "retrocardiac"}
    return fixed.get(name, "none")


def _side(name: str, subtype: str, rng: np.random.Generator) -> Side | None:
    draw, both = rng.random(2).tolist()
    if name in {"Cardiomegaly", "Hernia"} or subtype in {
        "endotracheal tube",
        "nasogastric tube",
        "sternal wires",
        "necklace",
    }:
        return "midline"
    if both < _BILATERAL.get(name, 0.0):
        return "bilateral"
    if subtype == "pacemaker":
        return "left" if draw < 0.85 else "right"
    if subtype == "central venous catheter":
        return "right" if draw < 0.7 else "left"
    return "left" if draw < 0.47 else "right"


def _subtype(name: str, rng: np.random.Generator) -> str:
    kinds: dict[str, tuple[str, ...]] = {
        "Support Devices": DEVICES,
        "Foreign Object": OBJECTS,
        "Fracture": ("rib", "rib", "clavicle"),
        "Atelectasis": ("plate-like", "plate-like", "lobar"),
        "Fibrosis": ("reticular",),
        "Hernia": ("hiatal",),
    }
    if name not in kinds:
        return ""
    return kinds[name][int(rng.integers(len(kinds[name])))]


def sample_finding(name: str, rng: np.random.Generator) -> Finding:
    """One finding with a clinically sensible side, zone, severity, size and subtype.

    Args:
        name: a member of :data:`medvlp.phantom.model.FINDINGS`.
        rng: source of every choice.

    Raises:
        ConfigError: the name is not one of the phantom's findings.
    """
    if name not in FINDINGS:
        raise ConfigError(f'The phantom has no finding "{name}"; it has {", ".join(FINDINGS)}.')
    subtype = _subtype(name, rng)
    side = _side(name, subtype, rng)
    grade = int(rng.choice(3, p=(0.3, 0.45, 0.25)))
    if subtype == "lobar":
        side = "left" if side == "bilateral" else side
    size_mm = float(np.round(rng.uniform(*_SIZES_MM[name][grade]))) if name in _SIZES_MM else 0.0
    return Finding(
        name=name,
        side=side,
        zone="lower" if subtype == "lobar" else _zone(name, subtype, rng),
        severity=_SEVERITIES[grade],
        size_mm=size_mm,
        subtype=subtype,
        seed=_seed(rng),
    )


def _findings(spec: PhantomSpec, patient: int, number: int) -> tuple[Finding, ...]:
    before = {f.name: f for f in _findings(spec, patient, number - 1)} if number else {}
    rng = np.random.default_rng([spec.seed, _STUDY, patient, number])
    factor = spec.difficulty.prevalence
    draws = rng.random((2, len(_BASE))).tolist()
    seeds = rng.integers(0, 2**31 - 1, len(_BASE)).tolist()
    order = rng.permutation(len(_BASE)).tolist()
    healthy = rng.random() < 1 - _odds(1 - _HEALTHY, factor)
    present: dict[str, Finding] = {}
    for position, (name, base) in enumerate(_BASE.items()):
        if name not in spec.findings:
            continue
        if name in before and name in _CHRONIC:
            if draws[0][position] < _STAYS:
                present[name] = before[name]
            continue
        if healthy:
            continue
        chance = base * (_NEW if number and name in _CHRONIC else 1.0)
        odds = factor * math.prod(pull for other, pull in _PULL.get(name, {}).items() if other in present)
        if draws[1][position] < _odds(chance, odds):
            present[name] = sample_finding(name, np.random.default_rng(seeds[position]))
    names = list(_BASE)
    kept = sorted((names.index(name) for name in present), key=lambda position: order[position])[:MOST_FINDINGS]
    chosen = [present[names[position]] for position in kept]
    return tuple(sorted(chosen, key=lambda f: FINDINGS.index(f.name)))


def sample_study(spec: PhantomSpec, index: int) -> Study:
    """One study of a phantom, made without the others.

    Args:
        spec: what decides the phantom.
        index: position of the study, from 0 to ``spec.studies`` − 1.

    Returns:
        The study, equal to element ``index`` of :func:`sample_studies`.

    Raises:
        ConfigError: a setting is out of its range.
        IndexError: the phantom has no such study.
    """
    _check(spec)
    if not 0 <= index < spec.studies:
        raise IndexError(f"Study {index} of a phantom of {spec.studies} studies.")
    starts = _starts(spec.seed, spec.studies)
    who = bisect_right(starts, index) - 1
    number = index - starts[who]
    findings = _findings(spec, who, number)
    rng = np.random.default_rng([spec.seed, _STUDY, who, number, 1])
    bedside, lateral = rng.random(2).tolist()
    names = {f.name for f in findings}
    portable = 0.2 + 0.45 * ("Support Devices" in names) + 0.2 * bool(names & {"Edema", "Pleural Effusion", "COVID-19"})
    views: tuple[View, ...] = ("AP" if bedside < portable else "PA",)
    if lateral < spec.laterals:
        views += ("LATERAL",)
    return Study(
        patient=sample_patient(spec.seed, who),
        index=index,
        number=number,
        views=views,
        findings=findings,
        reader=int(rng.integers(READERS)),
        seed=_seed(rng),
    )


def sample_studies(spec: PhantomSpec) -> Iterator[Study]:
    """All studies of a phantom, in order; a patient's studies follow each other.

    Args:
        spec: what decides the phantom.

    Yields:
        ``spec.studies`` studies.

    Raises:
        ConfigError: a setting is out of its range.
    """
    _check(spec)
    for index in range(spec.studies):
        yield sample_study(spec, index)
