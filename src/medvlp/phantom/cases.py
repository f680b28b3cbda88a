"""Samples patients and studies: who comes, what they have, which views are taken.

Every number comes from a generator seeded by (spec seed, purpose, patient, study), so a study can be sampled alone, in
any order and in any process.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np

from medvlp.errors import ConfigError, check_choice, check_range
from medvlp.phantom.model import CATALOGUE, FINDINGS, Finding, Patient, PhantomSpec, Severity, Side, Study, View, Zone

READERS = 8  # number of radiologists who report in the phantom

MOST_FINDINGS = 5  # in a study, each name at most once

_COUNTS, _PATIENT, _STUDY, _SPLIT = 1, 2, 3, 4  # purposes: keep the random streams apart
_STUDY_COUNT_LIMITS = (0.76, 0.95)  # 76 % of the patients come once, 19 % twice, 5 % three times
_BLOCK = 4096
_HEALTHY = 0.21
_GOLDEN = (math.sqrt(5) - 1) / 2
_STAYS, _NEW = 0.8, 0.25  # a chronic finding stays until the next visit; factor on the probability of a new one
_SEVERITIES: tuple[Severity, ...] = ("small", "moderate", "large")
_ORDER: list[str] = CATALOGUE["sampling_order"]


def _check(spec: PhantomSpec) -> None:
    knobs = spec.difficulty
    check_range("(0, 2]", contrast=knobs.contrast, lesion_size=knobs.lesion_size)
    check_range("(0, 10]", prevalence=knobs.prevalence)
    check_range("[0, 5]", noise=knobs.noise)
    check_range("[0, 1]", omission=knobs.omission, uncertainty=knobs.uncertainty, laterals=spec.laterals)
    check_range("[0, inf)", studies=spec.studies, seed=spec.seed)
    if not spec.findings:
        raise ConfigError(f"findings of a phantom must not be empty; expected some of: {', '.join(FINDINGS)}")
    for name in spec.findings:
        check_choice("phantom finding", name, FINDINGS)
    if min(spec.split) < 0 or abs(sum(spec.split) - 1) > 1e-6:
        raise ConfigError(f"split must hold three shares that sum to 1, not {spec.split}")


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(0, 2**31 - 1))


@lru_cache(maxsize=4)
def _starts(seed: int, studies: int) -> tuple[int, ...]:
    """Index of each patient's first study, for all patients with one among ``studies``."""
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
    """Sample the patient at a 0-based position of the phantom with this seed."""
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
    """Return the split of a patient, by a golden-ratio sequence: the shares hold closely for a few tens of patients."""
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
    zones = CATALOGUE["findings"][name].get("zones", ["none"])
    if subtype in {"lobar", "clavicle"}:
        return "lower" if subtype == "lobar" else "none"
    if isinstance(zones, dict):
        draw = rng.random()
        return next(zone for zone, most in zones.items() if draw < most)
    return zones[int(rng.integers(len(zones)))]


def _side(name: str, subtype: str, rng: np.random.Generator) -> Side:
    draw, both = rng.random(2).tolist()
    if name in CATALOGUE["midline"] or subtype in CATALOGUE["midline"]:
        return "midline"
    if both < CATALOGUE["findings"][name].get("bilateral", 0.0):
        return "left" if subtype == "lobar" else "bilateral"
    usual, share = CATALOGUE["usual_side"].get(subtype, CATALOGUE["usual_side"]["other"])
    return usual if draw < share else "right" if usual == "left" else "left"


def sample_finding(name: str, rng: np.random.Generator) -> Finding:
    """Sample a finding with a clinically sensible side, zone, severity, size and subtype."""
    check_choice("phantom finding", name, FINDINGS)
    settings = CATALOGUE["findings"][name]
    subtypes = settings.get("subtypes")
    subtype = subtypes[int(rng.integers(len(subtypes)))] if subtypes else ""
    side = _side(name, subtype, rng)
    severity = _SEVERITIES[int(rng.choice(3, p=(0.3, 0.45, 0.25)))]
    size_mm = float(np.round(rng.uniform(*settings["sizes_mm"][severity]))) if "sizes_mm" in settings else 0.0
    zone = _zone(name, subtype, rng)
    return Finding(name, side, zone, severity, size_mm, subtype, _seed(rng))


def _findings(spec: PhantomSpec, patient: int, number: int) -> tuple[Finding, ...]:
    before = {f.name: f for f in _findings(spec, patient, number - 1)} if number else {}
    rng = np.random.default_rng([spec.seed, _STUDY, patient, number])
    factor = spec.difficulty.prevalence
    draws = rng.random((2, len(_ORDER))).tolist()
    seeds = rng.integers(0, 2**31 - 1, len(_ORDER)).tolist()
    order = rng.permutation(len(_ORDER)).tolist()
    healthy = rng.random() < 1 - _odds(1 - _HEALTHY, factor)
    present: dict[str, Finding] = {}
    for position, name in enumerate(_ORDER):
        settings = CATALOGUE["findings"][name]
        chronic = settings.get("chronic", False)
        if name not in spec.findings:
            continue
        if name in before and chronic:
            if draws[0][position] < _STAYS:
                present[name] = before[name]
            continue
        if healthy:
            continue
        probability = settings["prevalence"] * (_NEW if number and chronic else 1.0)
        odds = factor * math.prod(pull for other, pull in settings.get("pull", {}).items() if other in present)
        if draws[1][position] < _odds(probability, odds):
            present[name] = sample_finding(name, np.random.default_rng(seeds[position]))
    kept = sorted(present, key=lambda name: order[_ORDER.index(name)])[:MOST_FINDINGS]
    return tuple(present[name] for name in sorted(kept, key=FINDINGS.index))


def sample_study(spec: PhantomSpec, index: int) -> Study:
    """Sample element ``index`` of :func:`sample_studies`, independently of the others."""
    _check(spec)
    if not 0 <= index < spec.studies:
        raise IndexError(f"index {index} is out of range for a phantom of {spec.studies} studies")
    return _study(spec, index)


def _study(spec: PhantomSpec, index: int) -> Study:
    starts = _starts(spec.seed, spec.studies)
    patient = bisect_right(starts, index) - 1
    number = index - starts[patient]
    findings = _findings(spec, patient, number)
    rng = np.random.default_rng([spec.seed, _STUDY, patient, number, 1])
    bedside, lateral = rng.random(2).tolist()
    names = {f.name for f in findings}
    portable = 0.2 + 0.45 * ("Support Devices" in names) + 0.2 * bool(names & {"Edema", "Pleural Effusion", "COVID-19"})
    views: tuple[View, ...] = ("AP" if bedside < portable else "PA",)
    if lateral < spec.laterals:
        views += ("LATERAL",)
    reader = int(rng.integers(READERS))
    return Study(sample_patient(spec.seed, patient), index, number, views, findings, reader, _seed(rng))


def sample_studies(spec: PhantomSpec) -> Iterator[Study]:
    """Yield all studies of a phantom in order; a patient's studies follow each other.

    Raises:
        ConfigError: a setting is out of its range.
    """
    _check(spec)
    for index in range(spec.studies):
        yield _study(spec, index)
