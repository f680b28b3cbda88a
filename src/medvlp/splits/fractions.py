"""Draws of patients and records: our own by hash, and how the papers' code takes 1 % and 10 % of a training part."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from medvlp.errors import ConfigError, DataError, check_choice, check_range
from medvlp.seeding import derive_seed
from medvlp.splits.lists import find_list, match_list, read_list
from medvlp.splits.types import Part, SplitInput, check_seed

FRACTION_RULES: dict[str, str] = {
    "nested": "ours: patients in the order of a seeded hash, so that 1 % lies inside 10 % and no patient is cut",
    "mgca": "MGCA classification: pandas sample(frac, random_state=42) of the frontal records, by image",
    "mgca_choice": "MGCA detection and RSNA segmentation: RandomState(42).choice of int(fraction × n) records",
    "mgca_siim": "MGCA and GLoRIA on SIIM: all positives and as many negatives, then int(fraction × ids) of these",
    "gloria": "GLoRIA classification: sample(frac) of all views, then the frontal ones; unseeded there, our seed here",
    "benchx": "BenchX: stratified train_test_split(test_size=1 − fraction, random_state=42), the first output",
    "benchx_object_cxr": "BenchX on Object-CXR: stratified test_size=fraction, random_state=42, the second output",
    "maco": "MaCo and MRM: the authors' lists train_1.txt and train_10.txt, which are not nested",
}
"""Rule to one line. None of the published rules is nested, and all but "gloria" fix their own seed."""

_TARGETS = ("Target", "Lung Opacity", "Pneumonia", "Pneumothorax", "Foreign object", "Foreign Object")


def _hash(group: Any, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest(), "big")


def nested_fraction(groups: Sequence[Any], fraction: float, seed: int = 0) -> np.ndarray:
    """Draw a share of the groups so that smaller shares lie inside larger ones (1 % ⊂ 10 % ⊂ 100 %).

    Groups (patients, one name per record) are ordered by a hash of (seed, group), whatever the order of the rows; the
    first ceil(fraction × groups) are kept whole. Returns a bool array, true for the records that are kept.
    """
    check_range("(0, 1]", fraction=fraction)
    codes, unique = pd.factorize(np.asarray([str(g) for g in groups], dtype=object))
    if fraction == 1 or len(unique) == 0:
        return np.ones(len(codes), dtype=bool)
    order = sorted(range(len(unique)), key=lambda i: (_hash(unique[i], seed), unique[i]))
    keep = np.zeros(len(unique), dtype=bool)
    # minus an epsilon, since 0.1 × 30 is 3.0000000000000004 in binary
    keep[order[: math.ceil(fraction * len(unique) - 1e-9)]] = True
    return keep[codes]


def hash_split(groups: Sequence[Any], shares: dict[str, float], seed: int = 0) -> np.ndarray:
    """Assign each group to a part by its hash, so that adding records later moves none of the old ones.

    Args:
        groups: N group names, one per record.
        shares: part to share; the shares sum to at most 1, the rest goes to "train".
        seed: another seed gives another assignment.

    Returns:
        Object array (N,) of names of parts.
    """
    if any(s < 0 for s in shares.values()) or sum(shares.values()) > 1:
        raise ConfigError(f"split shares must be non-negative and sum to at most 1, not {shares}")
    codes, unique = pd.factorize(np.asarray([str(g) for g in groups], dtype=object))
    derived = derive_seed(seed, 1)
    positions = [_hash(group, derived) / 2**64 for group in unique]
    part_of = np.searchsorted(np.cumsum(list(shares.values())), positions, side="right")
    return np.array([*shares, "train"], dtype=object)[part_of][codes]


def linked_groups(patients: np.ndarray, hashes: np.ndarray | None) -> np.ndarray:
    """Return the connected components of patients and content hashes ("" where unknown), as (N,) names.

    A component is named after the first of its patients in alphabetical order, so that the name depends neither on the
    order of the records nor on how the patients are linked.
    """
    unique, labels = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if hashes is None or len(labels) == 0:
        return unique.astype(object)[labels]
    named = np.asarray(hashes, dtype=str)
    keys = np.where(named == "", np.arange(len(named)).astype(str), np.char.add("#", named))
    people, images = labels, np.unique(keys, return_inverse=True)[1]
    while True:  # the smallest label spreads over shared images and patients in turn until nothing changes
        before = labels
        for codes in (images, people):
            smallest = np.full(int(codes.max()) + 1, len(unique))
            np.minimum.at(smallest, codes, labels)
            labels = smallest[codes]
        if np.array_equal(before, labels):
            return unique.astype(object)[labels]


def target(labels: pd.DataFrame) -> np.ndarray:
    """Return the one label that a recipe balances or stratifies by.

    It is the only label; or, of exclusive classes that cover all records, the class by name; or the first of Target,
    Lung Opacity, Pneumonia, Pneumothorax, Foreign object. RSNA's "Target" and "Lung Opacity" come before its three
    detailed classes. Returns (N,) class numbers in the sorted order of the classes; for a single label 0 is absent or
    unknown, 1 present.
    """
    names = [str(c) for c in labels.columns]
    values = labels.to_numpy(dtype=np.float64) == 1
    exclusive = len(names) > 1 and len(values) and (values.sum(axis=1) == 1).all()
    decisive = _TARGETS[:2] if len(names) == 1 or exclusive else _TARGETS
    if name := next((name for name in decisive if name in names), names[0] if len(names) == 1 else ""):
        return np.asarray(values[:, names.index(name)], dtype=np.int64)
    if exclusive:
        return np.unique(np.array(names, dtype=object)[values.argmax(axis=1)].astype(str), return_inverse=True)[1]
    raise DataError(f"no label to balance or stratify by among {names}; expected one label or one of {list(_TARGETS)}")


@dataclass(frozen=True)
class _Draw:
    """A fraction to draw from a part; each rule below returns positions in the part, or a mask over it."""

    fraction: float
    inputs: SplitInput
    part: Part
    seed: int
    lists: str | Path | None

    def of_part(self, values: Any) -> np.ndarray:
        return np.asarray(np.asarray(values)[self.part.records])


def draw_fraction(
    rule: str,
    fraction: float,
    inputs: SplitInput,
    part: Part,
    *,
    seed: int = 0,
    lists: str | Path | None = None,
) -> np.ndarray:
    """Draw a share of a training part.

    Args:
        rule: a key of :data:`FRACTION_RULES`.
        fraction: share to keep, in (0, 1]; "mgca", "gloria" and "mgca_siim" drop laterals or surplus negatives at 1
            as well, as their code does.
        inputs: what the split was made of.
        part: its training part.
        seed: of the rules "nested" and "gloria"; the others fix theirs.
        lists: the folder of the authors' lists, for "maco".

    Returns:
        Bool, one per entry of ``part.records``: the ones that are kept.

    Raises:
        ConfigError: an unknown rule, or a fraction or seed that is out of range, or a fraction that has no list.
        DataError: no record is kept, the labels needed are missing, or the lists are.
    """
    check_choice("fraction rule", rule, FRACTION_RULES)
    check_range("(0, 1]", fraction=fraction)
    check_seed(seed)
    if fraction == 1 and rule in ("benchx", "benchx_object_cxr", "maco"):
        return np.ones(len(part), dtype=bool)
    kept = np.zeros(len(part), dtype=bool)
    try:
        kept[_RULES[rule](_Draw(fraction, inputs, part, seed, lists))] = True
    except ValueError as error:  # scikit-learn and numpy: too few records, or a class of one
        raise DataError(f"{len(part)} records are too few to draw {fraction:g} of them by {rule}: {error}") from error
    if not kept.any() and len(part):
        raise DataError(f"{fraction:g} of {len(part)} records leaves none by the rule {rule}; take a larger fraction")
    return kept


def _sample(positions: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    return pd.Series(positions).sample(frac=fraction, random_state=seed).to_numpy()


def _gloria(draw: _Draw) -> np.ndarray:
    drawn = _sample(np.arange(len(draw.part)), draw.fraction, draw.seed)
    return np.asarray(drawn[draw.of_part(draw.inputs.is_frontal)[drawn]])


def _choice(draw: _Draw, pool: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    return random.choice(pool, int(draw.fraction * len(pool)), replace=False)


def _mgca_siim(draw: _Draw) -> np.ndarray:
    # One generator for both draws, as the code has them. There its state also depends on what was drawn before.
    random = np.random.RandomState(42)
    positive = draw.of_part(target(draw.inputs.labels)) == 1
    ill, well = np.flatnonzero(positive), np.flatnonzero(~positive)
    # published data always has enough negatives; a phantom may not
    chosen = random.choice(well, size=min(len(ill), len(well)), replace=False)
    return _choice(draw, np.concatenate([ill, well[np.isin(well, chosen)]]), random)


def _stratified(draw: _Draw, size: float, output: int) -> np.ndarray:
    classes = draw.of_part(target(draw.inputs.labels))
    outputs = train_test_split(np.arange(len(draw.part)), test_size=size, stratify=classes, random_state=42)
    return np.asarray(outputs[output])


def _maco(draw: _Draw) -> np.ndarray:
    name = {0.01: "train_1.txt", 0.1: "train_10.txt"}.get(draw.fraction)
    if name is None:
        raise ConfigError(f"the rule maco has lists for 0.01 and 0.1, not for {draw.fraction:g}")
    path = find_list(draw.lists, (name,), what="the fraction rule maco", repository="RL4M/MRM-pytorch, DatasetsSplits/")
    records = match_list(read_list(path), draw.inputs, path)
    positions = pd.Index(draw.part.records).get_indexer(records)
    if (outside := positions < 0).any():
        raise DataError(
            f"{int(outside.sum())} of the {len(positions)} images in {path.name} are not in the training part, the "
            f"first is {draw.inputs.ids[records[outside][0]]}; use the split maco, which these lists belong to"
        )
    return np.asarray(positions)


_RULES: dict[str, Callable[[_Draw], np.ndarray]] = {
    "nested": lambda draw: nested_fraction(list(draw.of_part(draw.inputs.patients)), draw.fraction, draw.seed),
    "mgca": lambda draw: _sample(np.flatnonzero(draw.of_part(draw.inputs.is_frontal)), draw.fraction, 42),
    "mgca_choice": lambda draw: _choice(draw, np.arange(len(draw.part)), np.random.RandomState(42)),
    "mgca_siim": _mgca_siim,
    "gloria": _gloria,
    "benchx": lambda draw: _stratified(draw, round(1 - draw.fraction, 12), 0),
    "benchx_object_cxr": lambda draw: _stratified(draw, draw.fraction, 1),
    "maco": _maco,
}
