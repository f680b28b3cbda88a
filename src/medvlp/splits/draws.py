"""How 1 % and 10 % of a training part are drawn: our nested rule, and those of the papers' code."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from medvlp.errors import ConfigError, DataError
from medvlp.splits.fractions import nested_fraction
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
_LISTED = {0.01: "train_1.txt", 0.1: "train_10.txt"}


def target(labels: pd.DataFrame) -> np.ndarray:
    """The one label that a recipe balances or stratifies by.

    It is the only label; or, of exclusive classes that cover all records, the class by name; or the first of Target,
    Lung Opacity, Pneumonia, Pneumothorax, Foreign object that there is. RSNA's "Target" and "Lung Opacity" come before
    its three detailed classes.

    Args:
        labels: N rows of raw labels.

    Returns:
        (N,) class numbers in the sorted order of the classes; for a single label 0 is absent or unknown, 1 present.

    Raises:
        DataError: no label decides.
    """
    names = [str(c) for c in labels.columns]
    values = labels.to_numpy(dtype=np.float64) == 1
    for name in _TARGETS[:2]:
        if name in names:
            return values[:, names.index(name)].astype(np.int64)
    if len(names) == 1:
        return values[:, 0].astype(np.int64)
    if len(names) > 1 and len(values) and (values.sum(axis=1) == 1).all():
        return np.unique(np.array(names, dtype=object)[values.argmax(axis=1)].astype(str), return_inverse=True)[1]
    for name in _TARGETS:
        if name in names:
            return values[:, names.index(name)].astype(np.int64)
    raise DataError(f"no label to balance or stratify by among {names}; expected one label or one of {list(_TARGETS)}")


@dataclass(frozen=True)
class _Request:
    fraction: float
    inputs: SplitInput
    part: Part
    seed: int
    lists: str | Path | None


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
        DataError: nothing is left, the labels needed are missing, or the lists are.
    """
    if rule not in FRACTION_RULES:
        raise ConfigError(f'unknown fraction rule "{rule}"; there are {", ".join(FRACTION_RULES)}')
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction must lie in (0, 1], not {fraction}")
    check_seed(seed)
    try:
        kept = _RULES[rule](_Request(fraction, inputs, part, seed, lists))
    except ValueError as error:  # scikit-learn and numpy: too few records, or a class of one
        raise DataError(f"{len(part)} records are too few to draw {fraction:g} of them by {rule}: {error}") from error
    if not kept.any() and len(part):
        raise DataError(f"{fraction:g} of {len(part)} records leaves none by the rule {rule}; take a larger fraction")
    return kept


def _nested(q: _Request) -> np.ndarray:
    return nested_fraction(list(np.asarray(q.inputs.patients, dtype=object)[q.part.records]), q.fraction, q.seed)


def _mask(part: Part, positions: np.ndarray) -> np.ndarray:
    kept = np.zeros(len(part), dtype=bool)
    kept[positions] = True
    return kept


def _mgca(q: _Request) -> np.ndarray:
    frontal = np.flatnonzero(q.inputs.is_frontal[q.part.records])
    if q.fraction == 1:
        return _mask(q.part, frontal)
    return _mask(q.part, pd.Series(frontal).sample(frac=q.fraction, random_state=42).to_numpy())


def _gloria(q: _Request) -> np.ndarray:
    drawn = pd.Series(np.arange(len(q.part))).sample(frac=q.fraction, random_state=q.seed).to_numpy()
    return _mask(q.part, drawn) & q.inputs.is_frontal[q.part.records]


def _mgca_choice(q: _Request) -> np.ndarray:
    n = len(q.part)
    return _mask(q.part, np.random.RandomState(42).choice(n, int(q.fraction * n), replace=False))


def _mgca_siim(q: _Request) -> np.ndarray:
    # One generator for both draws, as the code has them. There its state also depends on what was drawn before.
    random = np.random.RandomState(42)
    positive = target(q.inputs.labels)[q.part.records] == 1
    ill, well = np.flatnonzero(positive), np.flatnonzero(~positive)
    # published data always has enough negatives; a phantom may not
    chosen = random.choice(well, size=min(len(ill), len(well)), replace=False)
    pool = np.concatenate([ill, well[np.isin(well, chosen)]])
    if q.fraction == 1:
        return _mask(q.part, pool)
    return _mask(q.part, random.choice(pool, size=int(len(pool) * q.fraction), replace=False))


def _benchx(q: _Request) -> np.ndarray:
    if q.fraction == 1:
        return np.ones(len(q.part), dtype=bool)
    classes = target(q.inputs.labels)[q.part.records]
    rest = round(1 - q.fraction, 12)
    return _mask(q.part, train_test_split(np.arange(len(q.part)), test_size=rest, stratify=classes, random_state=42)[0])


def _benchx_object_cxr(q: _Request) -> np.ndarray:
    if q.fraction == 1:
        return np.ones(len(q.part), dtype=bool)
    classes = target(q.inputs.labels)[q.part.records]
    return _mask(
        q.part, train_test_split(np.arange(len(q.part)), test_size=q.fraction, stratify=classes, random_state=42)[1]
    )


def _maco(q: _Request) -> np.ndarray:
    if q.fraction == 1:
        return np.ones(len(q.part), dtype=bool)
    if q.fraction not in _LISTED:
        raise ConfigError(f"the rule maco has lists for 0.01 and 0.1, not for {q.fraction:g}")
    name = _LISTED[q.fraction]
    path = find_list(q.lists, (name,), what="the fraction rule maco", repository="RL4M/MRM-pytorch, DatasetsSplits/")
    records = match_list(read_list(path), q.inputs, path)
    place = pd.Index(q.part.records).get_indexer(records)
    if (place < 0).any():
        raise DataError(
            f"{int((place < 0).sum())} of the {len(place)} images in {path.name} are not in the training part, the "
            f"first is {q.inputs.ids[records[place < 0][0]]}; take the split maco, which these lists belong to"
        )
    return _mask(q.part, place)


_RULES: dict[str, Callable[[_Request], np.ndarray]] = {
    "nested": _nested,
    "mgca": _mgca,
    "mgca_choice": _mgca_choice,
    "mgca_siim": _mgca_siim,
    "gloria": _gloria,
    "benchx": _benchx,
    "benchx_object_cxr": _benchx_object_cxr,
    "maco": _maco,
}
